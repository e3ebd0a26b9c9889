"""A real git and DVC repository whose commits hold models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import paths
from pipeline.errors import FailedError, UserError
from pipeline.params import Document
from pipeline.stages import parent


def _do(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def _train(text: str) -> str:
    """Leave players with this content in a commit of the branch that is open; returns the commit."""
    paths.TRAINING.mkdir(parents=True, exist_ok=True)
    (paths.TRAINING / paths.PLAYERS).write_text(text)
    _do(sys.executable, "-m", "dvc", "add", "--quiet", str(paths.TRAINING))
    _do("git", "add", "--all")
    _do("git", "-c", "user.name=a", "-c", "user.email=a@localhost", "commit", "--quiet", "-m", text)
    return _do("git", "rev-parse", "HEAD")


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The first of two commits of the branch `nightly`."""
    monkeypatch.chdir(tmp_path)
    _do("git", "init", "--quiet", "--initial-branch", "nightly")
    _do(sys.executable, "-m", "dvc", "init", "--quiet")
    commit = _train("one")
    _train("two")
    return commit


def _found() -> tuple[str | None, str | None]:
    """The players that training begins from, and the commit that they are of."""
    players = paths.PARENT / paths.PLAYERS
    said = json.loads((paths.PARENT / "parent.json").read_text())
    return players.read_text() if players.exists() else None, said["commit"]


def test_a_branch_gives_the_model_that_it_names_now_and_a_commit_its_own(first: str) -> None:
    parent.run(Document({"train": {"warm_start": "nightly"}}))
    assert _found() == ("two", _do("git", "rev-parse", "HEAD"))
    parent.run(Document({"train": {"warm_start": first}}))
    assert _found() == ("one", first)


def test_a_branch_is_taken_as_it_is_on_the_remote_now_or_was_when_that_could_be_reached(
    first: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    remote, second = tmp_path_factory.mktemp("remote") / "origin", _do("git", "rev-parse", "HEAD")
    _do("git", "clone", "--quiet", "--bare", ".", str(remote))
    _do("git", "remote", "add", "origin", str(remote))
    _do("git", "-C", str(remote), "update-ref", "refs/heads/nightly", first)
    for moved in (first, second):
        _do("git", "-C", str(remote), "update-ref", "refs/heads/nightly", moved)
        parent.run(Document({"train": {"warm_start": "nightly"}}))
        assert _found() == ({first: "one", second: "two"}[moved], moved)
    _do("git", "-C", str(remote), "update-ref", "refs/heads/nightly", first)
    remote.rename(remote.with_name("away"))
    parent.run(Document({"train": {"warm_start": "nightly"}}))
    assert _found() == ("two", second)


@pytest.mark.parametrize("content", [{"warm_start": None}, {}])
def test_without_one_training_begins_afresh(first: str, content: dict[str, None]) -> None:
    parent.run(Document({"train": content}))
    assert _found() == (None, None)


def test_the_branch_that_runs_are_recorded_on_may_begin_with_this_one(first: str) -> None:
    parent.run(Document({"train": {"warm_start": "runs"}, "run": {"record": "runs"}}))
    assert _found() == (None, None)


def test_what_is_no_revision_is_named(first: str) -> None:
    with pytest.raises(UserError, match=r"train\.warm_start is 'nihgtly'; needed a branch, tag or commit"):
        parent.run(Document({"train": {"warm_start": "nihgtly"}}))
    assert not paths.PARENT.exists()


@pytest.mark.parametrize("value", [1, True, "", "--all"])
def test_what_cannot_be_a_revision_is_refused(value: object) -> None:
    with pytest.raises(UserError, match=r"train\.warm_start is"):
        parent.read_params(Document({"train": {"warm_start": value}}))


@pytest.mark.parametrize("section", [None, [], "afresh"])
def test_a_section_that_is_no_mapping_is_refused(section: object) -> None:
    with pytest.raises(UserError, match=r"^params\.yaml: train found .*, needed a mapping$"):
        parent.read_params(Document({"train": section}))


def test_a_model_that_is_nowhere_is_named(first: str) -> None:
    _do("git", "rm", "--quiet", "-f", f"{paths.TRAINING}.dvc")
    _do("git", "-c", "user.name=a", "-c", "user.email=a@localhost", "commit", "--quiet", "-m", "none")
    with pytest.raises(FailedError, match="neither in DVC's cache nor its remote"):
        parent.run(Document({"train": {"warm_start": "nightly"}}))
    assert not paths.PARENT.exists()
