"""The two ways a command ends badly, told apart by exit status, and the nearest right word."""

import difflib
import errno
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn


class ForgelineError(Exception):
    """Ends a command with one sentence on standard error and no traceback."""

    exit_status: int


class UserError(ForgelineError):
    """The user's words, settings or data are not what is needed; the sentence says found and needed."""

    exit_status = 2


class FailedError(ForgelineError):
    """The words were right, and still it could not be done: a full disk, a lost race, an unreachable store."""

    exit_status = 1


def of_system(error: OSError) -> FailedError:
    """What the operating system refused, in a sentence. Raises `error` where it names no file: that is our mistake."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        where = f" while writing {error.filename}" if error.filename else ""
        return FailedError(f"no space left on the disk{where}; nothing half-written was kept")
    if error.filename is None:
        raise error
    return FailedError(f"{error.filename}: {error.strerror}")


def nearest(word: str, known: Iterable[str]) -> str:
    """The ending of a sentence that refuses `word`: the nearest of `known`, or all of them."""
    if not (choices := sorted(known)):
        return "needed none"
    close = difflib.get_close_matches(word, choices, n=1)
    return f"did you mean '{close[0]}'?" if close else f"needed one of {', '.join(choices)}"


def end(sentence: str, status: int) -> NoReturn:
    """End this process with one sentence, on a terminal in the place of a line of progress."""
    clear = "\r\x1b[J" if sys.stderr.isatty() else ""
    print(f"{clear}forgeline: {sentence}", file=sys.stderr)
    sys.exit(status)


@contextmanager
def ending() -> Iterator[None]:
    """End this process with the sentence of what goes wrong in the block as expected."""
    try:
        yield
    except ForgelineError as error:
        end(str(error), error.exit_status)
    except OSError as error:
        failed = of_system(error)
        end(str(failed), failed.exit_status)
    except KeyboardInterrupt:
        end("interrupted", 128 + signal.SIGINT)
