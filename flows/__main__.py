"""What `forgeline run` starts: the flow once, then where everything is and what was measured."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from flows.run import run
from pipeline.errors import ForgelineError


def main() -> None:
    """Exit status: 0 done, 1 failed, 2 the user's words are off, 128 and the signal's number where one ended it."""
    parser = argparse.ArgumentParser(prog="forgeline run")
    parser.add_argument("--publish", metavar="URL", help="where to publish, instead of publish.url in params.yaml")
    url = parser.parse_args().publish
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _leave)
    try:
        result = run(Path.cwd(), url)
    except ForgelineError as error:
        _end(str(error), error.exit_status)
    except KeyboardInterrupt:
        _end("interrupted", 128 + signal.SIGINT)

    from flows.summary import print_summary

    print_summary(Path.cwd(), result)


def _leave(number: int, _: FrameType | None) -> NoReturn:
    """Unwind: the stage's processes end, Prefect learns of it, its server ends."""
    _end(f"ended by {signal.Signals(number).name}", 128 + number)


def _end(sentence: str, status: int) -> NoReturn:
    print(f"forgeline: {sentence}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
