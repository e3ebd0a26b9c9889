"""Git and DVC as commands, with failures in one sentence that holds no password."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from flows.hiding import hidden
from pipeline.errors import FailedError, UserError

REMOTE = "origin"


def git(folder: Path, *words: str, environment: Mapping[str, str] | None = None) -> str:
    """What the command prints, without the last line's end. Raises FailedError with git's own last words."""
    ended = _git(folder, *words, environment=environment or {})
    if ended.returncode:
        said = [line for line in ended.stderr.splitlines() if line and not line.startswith("hint:")]
        raise FailedError(hidden(f"git {words[0]}: {(said or ['ended without a word'])[-1]}"))
    return ended.stdout.removesuffix("\n")


def dvc(folder: Path, *words: str) -> None:
    """Run a command of DVC. Raises FailedError with its own last words."""
    ended = subprocess.run(
        [sys.executable, "-m", "dvc", *words],
        cwd=folder,
        env=os.environ | {"DVC_NO_ANALYTICS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if ended.returncode:
        said = [line.removeprefix("ERROR: ") for line in ended.stderr.splitlines() if line.startswith("ERROR: ")]
        raise FailedError(hidden(f"dvc {words[0]}: {(said or ['ended without a word'])[-1]}"))


def has_remote(folder: Path) -> bool:
    """Whether there is a remote `origin`: then branches are its, and not those of this clone."""
    return REMOTE in git(folder, "remote").split()


def tip_of(folder: Path, branch: str) -> str | None:
    """The commit that `branch` names, fetched where there is a remote; None where there is no such branch."""
    if not has_remote(folder):
        return _git(folder, "rev-parse", "--verify", "--quiet", f"refs/heads/{branch}").stdout.strip() or None
    if not git(folder, "ls-remote", "--heads", REMOTE, f"refs/heads/{branch}"):
        return None
    git(folder, "fetch", "--quiet", REMOTE, f"+refs/heads/{branch}:refs/remotes/{REMOTE}/{branch}")
    return git(folder, "rev-parse", f"refs/remotes/{REMOTE}/{branch}")


def head_of(folder: Path, branch: str) -> str:
    """The commit that `branch` names. Raises UserError where there is no such branch."""
    if (found := tip_of(folder, branch)) is None:
        where = f"the remote '{REMOTE}'" if has_remote(folder) else "this clone"
        raise UserError(f"params.yaml: run.branch is '{branch}'; needed a branch of {where}")
    return found


def is_ancestor(folder: Path, earlier: str, later: str) -> bool:
    """Whether all that is in the commit `earlier` is in `later` too."""
    return _git(folder, "merge-base", "--is-ancestor", earlier, later).returncode == 0


def file_at(folder: Path, commit: str, path: Path) -> bytes | None:
    """A file of a commit, its path relative to `folder`; None where it has none."""
    ended = subprocess.run(["git", "-C", str(folder), "show", f"{commit}:./{path}"], capture_output=True)
    return None if ended.returncode else ended.stdout


def _git(folder: Path, *words: str, environment: Mapping[str, str] = {}) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", "-C", str(folder), *words],
        env=os.environ | {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"} | dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
