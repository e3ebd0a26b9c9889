"""parent: the model that training begins from → out/parent: the players of another revision's run, or none.

`train.warm_start` names the revision. It is looked up when there are new data or other settings of `train`;
dvc.lock then pins what was found, so that a branch which moves on reruns nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from pipeline import paths
from pipeline.errors import FailedError
from pipeline.imageset.files import atomic_folder
from pipeline.params import Document
from pipeline.running import read_run_settings


def read_params(document: Document) -> str | None:
    """`train.warm_start`: a branch, tag or commit whose model is trained on; null where training begins afresh."""
    found = document.mapping("train").get("warm_start")
    if found is not None and (not isinstance(found, str) or not found or found.startswith("-")):
        raise document.error("train.warm_start", f"is {found!r}; needed a branch, tag or commit, or null")
    return found


def run(document: Document) -> None:
    """Write out/parent, whole or not at all. UserError where it is no revision, FailedError where it has no model."""
    revision = read_params(document)
    commit = _commit(revision) if revision else None
    if revision and commit is None and revision != read_run_settings(document).record:
        raise document.error("train.warm_start", f"is '{revision}'; needed a branch, tag or commit of this clone")
    with atomic_folder(paths.PARENT) as folder:
        if commit is not None:
            _fetch(commit, folder / paths.PLAYERS)
            print(f"parent: training begins from the model of {revision}, {commit[:12]}")
        elif revision:
            print(f"parent: the branch '{revision}' begins with this run, which trains afresh")
        (folder / "parent.json").write_text(json.dumps({"commit": commit}) + "\n", encoding="utf-8")


def _commit(revision: str) -> str | None:
    """The commit, of a branch that `origin` has too as it is there now, or was when `origin` could last be reached."""
    branch = f"+refs/heads/{revision}:refs/remotes/origin/{revision}"
    asking = os.environ | {"GIT_TERMINAL_PROMPT": "0"}
    subprocess.run(["git", "fetch", "--quiet", "origin", branch], capture_output=True, check=False, env=asking)
    for name in (f"refs/remotes/origin/{revision}", revision):
        words = ["git", "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"]
        found = subprocess.run(words, capture_output=True, text=True, check=False)
        if found.returncode == 0:
            return found.stdout.strip()
    return None


def _fetch(commit: str, target: Path) -> None:
    """From DVC's cache, else from its remote."""
    players = str(paths.TRAINING / paths.PLAYERS)
    words = [sys.executable, "-m", "dvc", "get", "--quiet", "--rev", commit, "--out", str(target), ".", players]
    ended = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    if ended.returncode:
        said = [line.removeprefix("ERROR: ") for line in ended.stderr.splitlines() if line.startswith("ERROR: ")]
        why = (said or ["ended without a word"])[-1]
        raise FailedError(
            f"train.warm_start: the model of {commit[:12]} is neither in DVC's cache nor its remote: {why}"
        )
