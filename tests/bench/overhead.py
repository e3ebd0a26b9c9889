"""What `forgeline run` costs over a bare `dvc repro` of the same graph, in seconds of wall and of CPU.

The graph is that of dvc.yaml, its commands write one line each: what remains is DVC, Prefect and Python. Wants idle
cores. `python tests/bench/overhead.py`, in about three minutes; the exit status is 1 where it costs more than demanded.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from repository import ROOT, project
from rich.console import Console
from rich.table import Table

from flows.graph import read_stages
from flows.server import temporary_server

DEMANDED = {"with its own server": 30, "with a server that runs": 12}  # seconds more than dvc repro


def workspace(folder: Path) -> None:
    """A repository with the graph of dvc.yaml, in which `token.txt` is what every stage depends on."""
    text = "stages:\n"
    for stage in read_stages(ROOT):
        name = stage.name.replace("@", "-")
        deps = ["token.txt", *(f"{need.replace('@', '-')}.txt" for need in sorted(stage.needs))]
        text += f"  {name}: {{cmd: cat {' '.join(deps)} > {name}.txt, deps: [{', '.join(deps)}], outs: [{name}.txt]}}\n"
    params = (ROOT / "params.yaml").read_text()  # which a run reads whole before it begins
    project(folder, text, params.replace("url: releases", "url: null"))


def measure(words: list[str], folder: Path, url: str | None) -> tuple[float, float]:
    """Seconds of wall and of CPU, of the command and all that it starts and waits for."""
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    environment |= {"PREFECT_API_URL": url} if url else {}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run([sys.executable, "-m", *words], cwd=folder, env=environment, check=True, capture_output=True)
    wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    table = Table("stages", "command", "wall, s", "CPU, s", "more than dvc repro, s", "demanded", box=None)
    beyond = []
    with tempfile.TemporaryDirectory() as home, ExitStack() as stack:
        os.environ["PREFECT_HOME"] = home
        url = stack.enter_context(temporary_server())()
        for what in ("all run", "none runs"):
            ways: dict[str, Callable[[Path], tuple[float, float]]] = {
                "dvc repro": lambda folder: measure(["dvc", "repro"], folder, None),
                "with its own server": lambda folder: measure(["flows"], folder, None),
                "with a server that runs": lambda folder: measure(["flows"], folder, url),
            }
            bare = 0.0
            for way, run in ways.items():
                with tempfile.TemporaryDirectory() as name:
                    folder = Path(name)
                    workspace(folder)
                    (folder / "token.txt").write_text("one\n")
                    if what == "none runs":
                        measure(["dvc", "repro"], folder, None)
                    wall, cpu = run(folder)
                bare = wall if way == "dvc repro" else bare
                more = "" if way == "dvc repro" else f"{wall - bare:.1f}"
                limit = f"at most {DEMANDED[way]}" if way in DEMANDED else ""
                if way in DEMANDED and wall - bare > DEMANDED[way]:
                    beyond.append(f"{what}, {way}")
                table.add_row(what, way, f"{wall:.1f}", f"{cpu:.1f}", more, limit)
    Console().print(table)
    if beyond:
        raise SystemExit(f"costs more than demanded: {'; '.join(beyond)}")


if __name__ == "__main__":
    main()
