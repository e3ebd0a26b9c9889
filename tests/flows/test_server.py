"""A temporary server that cannot start says why; those that can are what the other tests run on."""

from __future__ import annotations

import pytest

from flows.server import temporary_server
from pipeline.errors import FailedError


def test_a_server_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_SERVER_API_PORT", "everywhere")
    with (
        temporary_server() as started,
        pytest.raises(FailedError, match=r"^the temporary Prefect server did not start: "),
    ):
        started()
