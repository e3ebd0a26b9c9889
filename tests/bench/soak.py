"""What many scheduled runs without news leave behind, on a server and a worker that `forgeline up` starts.

One run after another in a repository of small stages, each in a checkout of its own as by night. In between, memory and
open files of server and worker are read, and the sizes of the repository and of Prefect's own folder, whose database
keeps a history of runs. `python tests/bench/soak.py [RUNS]`, 200 by default, takes about 8 seconds for each. The exit
status is 1 where something grows faster over the second half than `LIMITS` allow; fewer than 100 runs are not judged.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from uuid import UUID

import numpy as np
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from repository import scheduled

from flows.retrain import NOTHING_NEW
from flows.up import DEPLOYMENT, Standing, down, up
from pipeline.running import UP

PATIENCE_SECONDS = 300  # for one run
STAGES = """stages:
  probe: {cmd: ls data > list.txt, outs: [list.txt], always_changed: true}
  copy: {cmd: cp list.txt copy.txt, deps: [list.txt], outs: [copy.txt]}
"""
LIMITS = {  # of growth for each 100 runs
    "server, MB": 15.0,  # its caches fill for a while
    "server, open files": 3.0,
    "server, children": 0.5,
    "worker, MB": 20.0,
    "worker, open files": 3.0,
    "worker, children": 0.5,
    "repository, MB": 1.0,
    "repository, files": 5.0,
    "origin and store, MB": 0.5,
    "Prefect's folder, MB": 25.0,  # the history of runs, which Prefect keeps
}
JUDGED_RUNS = 100
PARAMS = "publish: {url: null, name: toy}\nsource: {url: data}\nrun: {branch: main, record: nightly}\n"


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
        clone = scheduled(Path(name), STAGES, PARAMS)
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
    grown = growth(looks, every)
    print(f"over the second half of {runs} runs, for each 100 (by least squares):")
    for what, slope in grown.items():
        values = [each[what] for each in looks[len(looks) // 2 :]]
        print(f"  {what}: {values[0]:.1f} to {values[-1]:.1f}, {slope:+.2f}, at most {LIMITS[what]:+.1f}")
    beyond = [what for what, slope in grown.items() if slope > LIMITS[what]]
    if runs < JUDGED_RUNS:
        print(f"not judged: needed {JUDGED_RUNS} runs, since the first ones fill caches")
    elif beyond:
        raise SystemExit(f"grows faster than it may: {', '.join(beyond)}")


def growth(looks: list[dict[str, float]], every: int) -> dict[str, float]:
    """For each 100 runs, by least squares over the second half of the looks, which are `every` runs apart."""
    half = looks[len(looks) // 2 :]
    runs = np.arange(len(half)) * every
    return {what: float(np.polyfit(runs, [look[what] for look in half], 1)[0]) * 100 for what in half[0]}


if __name__ == "__main__":
    main()
