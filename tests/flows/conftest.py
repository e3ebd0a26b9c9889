"""Git and DVC repositories with small stages, and one real Prefect server for all tests."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PARAMS = "publish: {url: null, name: toy}\n"


@pytest.fixture(scope="session")
def empty_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], cwd=folder, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "config", "core.analytics", "false"], cwd=folder, check=True)
    (folder / "params.yaml").write_text(PARAMS)
    return folder


@pytest.fixture
def workspace(empty_repository: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Make a workspace with these stages, the text of dvc.yaml below `stages:`."""

    def make(stages: str) -> Path:
        folder = tmp_path / "workspace"
        shutil.copytree(empty_repository, folder)
        (folder / "dvc.yaml").write_text("stages:\n" + stages)
        return folder

    return make


@pytest.fixture(scope="session")
def prefect_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of Prefect's: to make one takes longer than most tests."""
    home = tmp_path_factory.mktemp("database")
    command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"]
    subprocess.run(command, env=os.environ | {"PREFECT_HOME": str(home)}, check=True, capture_output=True)
    return home / "prefect.db"


@pytest.fixture(scope="session")
def prefect_home(prefect_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Prefect's database and settings, none of this machine's own."""
    home = tmp_path_factory.mktemp("prefect")
    shutil.copy(prefect_database, home)
    os.environ["PREFECT_HOME"] = str(home)
    yield home
    del os.environ["PREFECT_HOME"]


@pytest.fixture(scope="session")
def prefect_server(prefect_home: Path) -> Iterator[str]:
    """The URL of a server's API, which flows in this process use."""
    from flows.server import temporary_server

    with temporary_server() as started:
        url = started()
        from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

        with temporary_settings({PREFECT_API_URL: url, PREFECT_HOME: prefect_home}):
            yield url
            for handler in logging.getLogger("prefect.flow_runs").handlers:
                handler.flush()
