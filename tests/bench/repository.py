"""Small repositories for the whole way from git to DVC, in which a stage costs nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_DVC = [sys.executable, "-m", "dvc"]
_COMMIT = [
    "git",
    "-c",
    "user.name=bench",
    "-c",
    "user.email=bench@localhost",
    "commit",
    "--quiet",
    "--message",
    "begin",
]


def project(folder: Path, stages: str, params: str) -> None:
    """A Git and DVC repository with these stages, the text of dvc.yaml, and this params.yaml."""
    folder.mkdir(exist_ok=True)
    for words in (["git", "init", "--quiet", "--initial-branch=main"], [*_DVC, "init", "--quiet"]):
        subprocess.run(words, cwd=folder, check=True)
    (folder / "dvc.yaml").write_text(stages)
    (folder / "params.yaml").write_text(params)


def scheduled(folder: Path, stages: str, params: str) -> Path:
    """Such a one in `folder`, from which runs are scheduled: with our flow, raw data, a bare `origin`, a DVC remote."""
    clone = folder / "clone"
    project(clone, stages, params)
    (clone / ".gitignore").write_text("/data\n/list.txt\n/copy.txt\n__pycache__\n")
    (clone / "data").mkdir()
    (clone / "data/one").touch()
    shutil.copytree(ROOT / "flows", clone / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    (clone / "infra").mkdir()
    shutil.copy(ROOT / "infra/prefect.yaml", clone / "infra")
    for words in (
        [*_DVC, "remote", "add", "--quiet", "--default", "store", str(folder / "store")],
        ["git", "init", "--quiet", "--bare", "--initial-branch=main", str(folder / "origin")],
        ["git", "remote", "add", "origin", str(folder / "origin")],
        ["git", "add", "--all"],
        _COMMIT,
        ["git", "push", "--quiet", "origin", "main"],
    ):
        subprocess.run(words, cwd=clone, check=True)
    return clone
