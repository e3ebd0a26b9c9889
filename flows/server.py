"""A Prefect server for the length of one run, on a machine that has none.

Prefect would start one by itself, but only once the flow begins, and talk about it on the terminal. This one starts up
while the flow is still being imported, keeps quiet, and ends with its parent however that ends.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from pipeline.errors import FailedError

START_SECONDS = 300  # the first start of all creates the database, and machines are busy; one that fails ends sooner
_END_SECONDS = 10


@contextmanager
def temporary_server() -> Iterator[Callable[[], str]]:
    """A server that is starting up; the function that this gives waits for it and returns the URL of its API.

    The function raises FailedError when the server does not start.
    """
    with socket.socket() as listener, tempfile.TemporaryFile() as log:
        listener.bind(("127.0.0.1", 0))
        host, port = listener.getsockname()
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.server", str(listener.fileno())],
            pass_fds=[listener.fileno()],
            stdin=subprocess.PIPE,  # its end, when this process ends, tells the server to end
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PREFECT_SERVER_LOGGING_LEVEL": "ERROR"},
            start_new_session=True,  # a Ctrl-C is for the run, which still needs its server then
        )
        answers = False

        def wait() -> str:
            nonlocal answers
            deadline = time.monotonic() + START_SECONDS
            while not answers:
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    told = log.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
                    raise FailedError(f"the temporary Prefect server did not start: {told[-1]}")
                with suppress(OSError), socket.create_connection((host, port), timeout=1):
                    answers = True
                time.sleep(0.05)
            return f"http://{host}:{port}/api"

        try:
            yield wait
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(_END_SECONDS if answers else 0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _serve(listener: socket.socket) -> None:
    """Serve until standard input ends."""
    import uvicorn
    from prefect.server.api.server import create_app

    app = create_app(ephemeral=True, final=True)
    server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_level="error", timeout_graceful_shutdown=2))

    def end_with_parent() -> None:
        sys.stdin.read()
        server.should_exit = True

    threading.Thread(target=end_with_parent, daemon=True).start()
    server.run(sockets=[listener])


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
