"""What is said, logged and shown holds no credentials: those of environment, files and URLs are blotted out."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from botocore.configloader import raw_config_parse
from botocore.exceptions import BotoCoreError
from dvc.config import Config
from dvc.exceptions import DvcException

_NAMED = re.compile(
    r"(?!.*(FILE|PATH|DIR|SOURCE)$)"
    r".*(SECRET|TOKEN|PASSW|PASSPHRASE|CREDENTIAL|WEBHOOK|AUTH_STRING|AUTH_HEADER|CONNECTION_STRING|(^|_)KEY(_ID)?$)"
)
_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")
_LEAST = 6  # letters; shorter values are words of any text
HIDDEN = "***"


def hidden(text: str) -> str:
    """`text` without the values that are named as secrets are, and without user:password@ in URLs.

    Those are of environment variables, of the files of keys that boto3 reads, and of DVC's settings, this machine's and
    those of the repository in which this process stands. Files are read anew when they change.
    """
    values = {value for name, value in os.environ.items() if _is_secret(name, value)}
    for path in _aws_files():
        values |= _secrets(path, "aws")
    for path in _dvc_files():
        values |= _secrets(path, "dvc")
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return _IN_URL.sub(f"{HIDDEN}@", text)


def _aws_files() -> Iterator[Path]:
    for variable, usual in (
        ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
        ("AWS_CONFIG_FILE", "~/.aws/config"),
    ):
        yield Path(os.environ.get(variable) or usual)


def _dvc_files() -> Iterator[Path]:
    for level in ("system", "global"):
        yield Path(Config.get_dir(level), Config.CONFIG)
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / ".dvc").is_dir():
            yield folder / ".dvc" / Config.CONFIG
            yield folder / ".dvc" / Config.CONFIG_LOCAL
            return


def _secrets(path: Path, kind: str) -> frozenset[str]:
    """Of a file; none where there is no such file."""
    with suppress(OSError, RuntimeError):  # the latter where there is no home
        path = path.expanduser()
        found = path.stat()
        return _read(path, kind, found.st_mtime_ns, found.st_size)
    return frozenset()


@lru_cache(maxsize=32)
def _read(path: Path, kind: str, _changed: int, _size: int) -> frozenset[str]:
    try:
        content = raw_config_parse(str(path)) if kind == "aws" else Config.load_file(str(path))
    except (BotoCoreError, DvcException):  # who uses the file tells what is wrong with it
        return frozenset()
    values = set(_walk(content))
    if kind == "dvc":  # a remote may have a file of keys for itself
        for remote in content.get("remote", {}).values():
            for name in {"credentialpath", "configpath"} & set(remote):
                values |= _secrets(path.parent / Path(str(remote[name])).expanduser(), "aws")
    return frozenset(values)


def _walk(content: Mapping[str, Any]) -> Iterator[str]:
    """The secrets of settings, in whichever section they are."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _walk(value)
        elif isinstance(value, str) and _is_secret(name.upper(), value):
            yield value


def _is_secret(name: str, value: str) -> bool:
    return bool(_NAMED.match(name)) and len(value) >= _LEAST
