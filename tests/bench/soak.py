"""What many scheduled runs without news leave behind, on a server and a worker that `forgeline up` starts.

One run after another in a repository of small stages, each in a checkout of its own as by night. In between, memory and
open files of server and worker are read, and the sizes of the repository and of Prefect's own folder, whose database
keeps a history of runs. `python tests/bench/soak.py [RUNS]`, 200 by default, takes about 8 seconds for each.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from uuid import UUID

import numpy as np
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.retrain import NOTHING_NEW
from flows.up import DEPLOYMENT, Standing, down, up
from pipeline.running import UP

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 300  # for one run
STAGES = """stages:
  probe: {cmd: ls data > list.txt, outs: [list.txt], always_changed: true}
  copy: {cmd: cp list.txt copy.txt, deps: [list.txt], outs: [copy.txt]}
"""
PARAMS = "publish: {url: null, name: toy}\nsource: {url: data}\nrun: {branch: main, record: nightly}\n"


def repository(folder: Path) -> Path:
    """A clone with a bare `origin` and a DVC remote beside it, with the flow as this clone has it."""
    clone = folder / "clone"
    clone.mkdir()
    dvc = [sys.executable, "-m", "dvc"]
    commit = ["-c", "user.name=soak", "-c", "user.email=soak@localhost", "commit", "--quiet", "--message", "begin"]
    for words in (["git", "init", "--quiet", "--initial-branch=main"], [*dvc, "init", "--quiet"]):
        subprocess.run(words, cwd=clone, check=True)
    (clone / "dvc.yaml").write_text(STAGES)
    (clone / "params.yaml").write_text(PARAMS)
    (clone / ".gitignore").write_text("/data\n/list.txt\n/copy.txt\n__pycache__\n")
    (clone / "data").mkdir()
    (clone / "data/one").touch()
    shutil.copytree(ROOT / "flows", clone / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    (clone / "infra").mkdir()
    shutil.copy(ROOT / "infra/prefect.yaml", clone / "infra")
    for words in (
        [*dvc, "remote", "add", "--quiet", "--default", "store", str(folder / "store")],
        ["git", "init", "--quiet", "--bare", "--initial-branch=main", str(folder / "origin")],
        ["git", "remote", "add", "origin", str(folder / "origin")],
        ["git", "add", "--all"],
        ["git", *commit],
        ["git", "push", "--quiet", "origin", "main"],
    ):
        subprocess.run(words, cwd=clone, check=True)
    return clone


def run_once(client: SyncPrefectClient, deployment: UUID) -> str:
    """The state in which a run of the deployment ends."""
    run = client.create_flow_run_from_deployment(deployment)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not ((state := client.read_flow_run(run.id).state) and state.is_final()):
        if time.monotonic() > deadline:
            raise SystemExit(f"{run.name} is still {state and state.name} after {PATIENCE_SECONDS} seconds")
        time.sleep(0.5)
    return str(state.name)


def size(folder: Path) -> int:
    """Bytes of the files in it; some may go away meanwhile."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def look(clone: Path, home: Path) -> dict[str, float]:
    """What could grow."""
    found: dict[str, float] = {}
    standing = Standing.read(clone / UP)
    assert standing is not None
    for name, identity in standing.processes.items():
        process = identity.find()
        if process is None:
            raise SystemExit(f"{name} has ended; see {clone / UP / name}.log")
        with process.oneshot():
            found[f"{name}, MB"] = process.memory_info().rss / 1e6
            found[f"{name}, open files"] = process.num_fds()
            found[f"{name}, children"] = len(process.children(recursive=True))
    found["repository, MB"] = size(clone) / 1e6
    found["repository, files"] = sum(1 for _ in clone.rglob("*"))
    found["origin and store, MB"] = (size(clone.parent / "origin") + size(clone.parent / "store")) / 1e6
    found["Prefect's folder, MB"] = size(home) / 1e6
    return found


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    every = max(1, runs // 20)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name) / "prefect"
        os.environ |= {"PREFECT_HOME": str(home)}
        os.environ.pop("PREFECT_API_URL", None)
        clone = repository(Path(name))
        os.chdir(clone)
        try:
            with temporary_settings({PREFECT_API_URL: up(clone, print)}), get_client(sync_client=True) as client:
                deployment = client.read_deployment_by_name(DEPLOYMENT).id
                print(f"the first run: {run_once(client, deployment)}")
                looks, started = [], time.monotonic()
                for number in range(runs + 1):
                    if number % every == 0:
                        looks.append(look(clone, home))
                        words = ", ".join(f"{what} {value:.1f}" for what, value in looks[-1].items())
                        print(f"after {number} runs, {time.monotonic() - started:.0f} s: {words}", flush=True)
                    if number < runs and (state := run_once(client, deployment)) != NOTHING_NEW:
                        raise SystemExit(f"run {number + 1} ended as {state}; needed {NOTHING_NEW}")
        finally:
            down(clone, print)
    half = len(looks) // 2
    print(f"over the second half of {runs} runs, for each 100 (by least squares):")
    for what in looks[0]:
        values = [each[what] for each in looks[half:]]
        slope = np.polyfit(np.arange(len(values)) * every, values, 1)[0] * 100
        print(f"  {what}: {values[0]:.1f} to {values[-1]:.1f}, {slope:+.2f}")


if __name__ == "__main__":
    main()
