"""What every test shares: no telemetry, no network library that looks outside, no limits that know the machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.update(
    DO_NOT_TRACK="1",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="90",
    PREFECT_SERVER_API_PORT="0",  # any that is free: 4200 may be somebody's, or that of a test beside
    HF_HUB_OFFLINE="1",
    OMP_NUM_THREADS="1",  # the tests themselves run side by side
)

# A slow machine is no reason to fail. $FORGELINE_FUZZ cases of each kind are tried, for hours where somebody has them.
settings.register_profile(
    "forgeline",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    max_examples=int(os.environ.get("FORGELINE_FUZZ", "100")),
)
settings.load_profile("forgeline")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The whole pipeline first: it is the longest, and one worker's."""
    items.sort(key=lambda item: item.path.name != "test_pipeline.py")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Which programs of others read a release, by the tests that ran them."""
    passed = terminalreporter.getreports("passed")
    clients = {value for report in passed for name, value in report.user_properties if name == "client"}
    if clients:
        terminalreporter.write_line(f"clients that read releases: {', '.join(sorted(map(str, clients)))}")


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file of weights of Inception as torch-fidelity reads them: $FORGELINE_TEST_INCEPTION, else random ones.

    The true ones are 90 MB, which no test downloads. Whether our numbers are torch-fidelity's does not depend on them.
    """
    if found := os.environ.get("FORGELINE_TEST_INCEPTION"):
        yield Path(found)
        return
    from inception import write_random_weights

    path = tmp_path_factory.mktemp("inception") / "random.pth"
    write_random_weights(path)
    yield path
    path.unlink()
