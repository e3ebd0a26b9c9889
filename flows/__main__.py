"""What `forgeline run` starts: the flow once, then where everything is and what was measured."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console

from flows.run import run
from pipeline import paths
from pipeline.errors import end, ending
from pipeline.report.summary import summary

if TYPE_CHECKING:
    from flows.retrain import RunResult


def main() -> None:
    """Exit status: 0 done, 1 failed, 2 the user's words are off, 128 and the signal's number where one ended it."""
    parser = argparse.ArgumentParser(prog="forgeline run")
    parser.add_argument("--publish", metavar="URL", help="where to publish, instead of publish.url in params.yaml")
    url = parser.parse_args().publish
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _leave)
    with ending():
        result = run(Path.cwd(), url)
    _show(Path(), result)
    if result.refusal:
        end(f"not published as the latest: {result.refusal}", 1)


def _show(workspace: Path, result: RunResult) -> None:
    """What was measured, and where the release, the report, the samples and the Data Docs are."""
    from flows.artifacts import SAMPLES
    from pipeline.report.page import REPORT

    console = Console(highlight=False)
    for table in summary(workspace):
        console.print(table, end="\n\n")
    if result.published:
        console.print(f"{'kept' if result.refusal else 'release'}: {result.published.url}", soft_wrap=True)
    docs = {f"Data Docs, {which}": paths.VALIDATION / which / "docs" / "index.html" for which in ("real", "synthetic")}
    for name, path in {"report": REPORT, "samples": SAMPLES, **docs}.items():
        if (workspace / path).is_file():
            console.print(f"{name}: {path}", soft_wrap=True)


def _leave(number: int, _: FrameType | None) -> NoReturn:
    """Unwind: the stage's processes end, Prefect learns of it, its server ends."""
    end(f"ended by {signal.Signals(number).name}", 128 + number)


if __name__ == "__main__":
    main()
