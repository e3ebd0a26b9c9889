"""`forgeline run`: the flow once, in this process, with or without a Prefect server beside it."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from flows.server import temporary_server
from pipeline.doctor import prefect_answers, read_all_params
from pipeline.errors import FailedError
from pipeline.progress import Terminal
from pipeline.running import RETRIES

if TYPE_CHECKING:
    from flows.retrain import RunResult as Result

QUIET = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}


def run(workspace: Path, publish_url: str | None = None) -> Result:
    """Bring every stage of the `workspace` up to date and publish; the run shows up on the Prefect server in use.

    That is the one of PREFECT_API_URL (or of the Prefect profile), else one for the length of the run. Raises what the
    failed stage ended with, UserError before anything runs when settings or the repository are not what is needed.
    """
    workspace = workspace.resolve()
    for name, value in {**QUIET, "PREFECT_CLIENT_MAX_RETRIES": str(RETRIES)}.items():
        os.environ.setdefault(name, value)
    import httpx
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with ExitStack() as stack:
        url = PREFECT_API_URL.value()
        if not url:
            print("a Prefect server starts, for this run alone", file=sys.stderr)  # which takes a while
            started = stack.enter_context(temporary_server())
        elif not prefect_answers(url):
            raise FailedError(
                f"PREFECT_API_URL: nobody answers at {url}; 'prefect server start' starts a server, without "
                "PREFECT_API_URL a run has one of its own"
            )

        # While the server starts: what takes seconds to import, and every mistake that can be told beforehand.
        read_all_params(workspace)
        from flows.graph import read_stages
        from flows.retrain import RunResult, retrain

        read_stages(workspace)
        show_only_what_is_said()
        if not url:
            stack.enter_context(temporary_settings({PREFECT_API_URL: started()}))
        try:
            state = retrain(workspace, publish_url, return_state=True)
        except httpx.TransportError as error:
            raise FailedError(
                f"the Prefect server at {PREFECT_API_URL.value()} is gone: {error}; what was made is kept, and the "
                "same command goes on from there"
            ) from None
        finally:
            for handler in logging.getLogger("prefect.flow_runs").handlers:
                handler.flush()  # before the server ends
        result = state.result()
        assert isinstance(result, RunResult)
        return result


def show_only_what_is_said() -> None:
    """Leave what the flow says for people on the terminal, as plain lines, and drop Prefect's own log there."""
    from flows.retrain import SAID

    root, threads = logging.getLogger(), logging.getLogger("prefect._internal")
    terminal = _Said()
    terminal.addFilter(lambda record: hasattr(record, SAID))
    threads.handlers = []  # say page by page of each event that a server that is away for a while did not hear
    root.handlers = [handler for handler in root.handlers if not type(handler).__module__.startswith("prefect.")]
    root.addHandler(terminal)


class _Said(logging.StreamHandler[TextIO]):
    """Standard error; where that is a terminal, each line of progress takes the place of the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.terminal = Terminal(self.stream) if self.stream.isatty() else None

    def emit(self, record: logging.LogRecord) -> None:
        if self.terminal:
            self.terminal.write(self.format(record))
        else:
            super().emit(record)
