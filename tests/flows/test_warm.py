"""Scheduled runs that train on from the model of the last one, with the real stage that looks it up."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from flows.retrain import retrain

STAGES = f"""
  probe: {{cmd: ls data > list.txt, outs: [list.txt], always_changed: true}}
  parent:
    cmd: {sys.executable} -m pipeline stage parent
    params: [train]
    deps: [list.txt]
    outs: [out/parent]
  toy:
    cmd: mkdir -p out/training && cat list.txt $(ls out/parent/players.safetensors) > out/training/players.safetensors
    deps: [list.txt, out/parent]
    outs: [out/training]
"""
PARAMS = """publish: {url: null, name: toy}
source: {url: data}
train: {warm_start: nightly}
run: {branch: main, record: nightly}
"""


def test_each_trains_on_from_the_last_and_without_news_nothing_runs(
    workspace: Callable[[str], Path], prefect_server: str
) -> None:
    folder = workspace(STAGES)

    def git(*words: str) -> None:
        subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)

    def run() -> str:
        return str(retrain(folder, scheduled=True, return_state=True).name)

    def learned() -> str:
        """What the model of the last recorded run has learned from, the newest first."""
        players = "out/training/players.safetensors"
        words = [sys.executable, "-m", "dvc", "get", "--quiet", "--force", "--rev", "nightly", ".", players]
        subprocess.run(words, cwd=folder, check=True)
        return " ".join((folder / "players.safetensors").read_text().split())

    (folder / "params.yaml").write_text(PARAMS)
    (folder / ".gitignore").write_text("/data\n/list.txt\n/out\n/players.safetensors\n")
    (folder / "data").mkdir()
    (folder / "data/a").touch()
    git("checkout", "-q", "-b", "main")
    git("add", "--all")
    git("-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "--message", "begin")
    assert run() == "Completed"
    assert learned() == "a"  # afresh: the branch began with it
    assert run() == "Nothing new"
    (folder / "data/b").touch()
    assert run() == "Completed"
    assert learned() == "a b a"
    assert run() == "Nothing new"
    (folder / "data/a").unlink()
    assert run() == "Completed"
    assert learned() == "b a b a"
