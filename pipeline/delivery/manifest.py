"""manifest.json: what a version holds and where it comes from. Writing it commits the version."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, NoReturn

from pipeline.delivery.stores import shown
from pipeline.errors import FailedError, UserError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
CHECKSUMS = "SHA256SUMS"
CARD = "README.md"
_MAX_DEPTH = 8

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
NAME = "a-z, 0-9, '.', '_', '-', with a letter or digit first"  # in words
_PART = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,99}[A-Za-z0-9_-])?")
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_name(name: str) -> bool:
    """Whether `name` may be that of a release or a version."""
    return _NAME.fullmatch(name) is not None


def is_plain(part: str) -> bool:
    """Whether `part` is the name of a file or a folder on every system."""
    return _PART.fullmatch(part) is not None and _DEVICE.fullmatch(part) is None


def check_name(kind: str, name: str) -> None:
    """Raise UserError unless `name` may be that of a release or a version, the `kind` that the sentence says."""
    if not is_name(name):
        raise UserError(f"'{shown(name)}' cannot be a {kind}; needed {NAME}")


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of a release: its path inside the release, with '/' between the parts."""

    path: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        parts = self.path.split("/", _MAX_DEPTH)
        if len(parts) > _MAX_DEPTH or not all(map(is_plain, parts)):
            raise ValueError(f"files has the path {self.path!r:.99}; needed plain names inside the release")
        if not 0 <= self.bytes < 1 << 63:
            raise ValueError(f"files has {self.bytes} bytes for {self.path}; needed a size")
        if not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"files has the sha256 {self.sha256!r:.99} for {self.path}; needed 64 hex digits")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`files` is every object of the version but the manifest itself; `created` is ISO 8601 with its zone."""

    name: str
    version: str
    created: str
    title: str
    licence: str
    verdict: str
    synthetic: bool
    classes: tuple[str, ...]
    images: int
    fingerprint: str
    files: tuple[File, ...]
    lineage: Mapping[str, Any]

    def __post_init__(self) -> None:
        for key, value in (("name", self.name), ("version", self.version)):
            if not is_name(value):
                raise ValueError(f"{key} is {value!r:.99}; needed a-z, 0-9, '.', '_', '-'")
        if datetime.fromisoformat(self.created).utcoffset() is None:
            raise ValueError(f"created is {self.created:.99}; needed a time with its zone")
        paths = [file.path.casefold() for file in self.files] + [MANIFEST]
        folders = {
            "/".join(parts[:end]) for path in paths for parts in [path.split("/")] for end in range(1, len(parts))
        }
        if len(set(paths)) < len(paths) or folders & set(paths):
            raise ValueError("files has a path twice, or two that only differ in case, or a file where a folder is")

    @property
    def total_bytes(self) -> int:
        """The bytes of all files."""
        return sum(file.bytes for file in self.files)

    def to_json(self) -> bytes:
        """The bytes of manifest.json."""
        return to_json({"schema_version": SCHEMA_VERSION, **asdict(self)})

    @classmethod
    def parse(cls, data: bytes, where: str) -> Manifest:
        """The manifest in `data`, which nobody vouches for. Raises FailedError that begins with `where`."""
        content = parse_json(data, where, _MANIFEST)
        try:
            for index, file in enumerate(content["files"]):
                check_types(file, _FILE, f"files[{index}].")
            if not all(isinstance(name, str) for name in content["classes"]):
                raise ValueError("classes has other things than names")
            content["files"] = tuple(File(**{key: file[key] for key in _FILE}) for file in content["files"])
            content["classes"] = tuple(content["classes"])
            return cls(**{key: content[key] for key in _MANIFEST})
        except ValueError as error:
            raise FailedError(f"{where}: {error}") from None


_FILE = {"path": str, "bytes": int, "sha256": str}
_MANIFEST = {
    "name": str,
    "version": str,
    "created": str,
    "title": str,
    "licence": str,
    "verdict": str,
    "synthetic": bool,
    "classes": list,
    "images": int,
    "fingerprint": str,
    "files": list,
    "lineage": dict,
}


def to_json(content: Mapping[str, Any]) -> bytes:
    """Sorted, indented JSON: the same content is the same bytes."""
    return (json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def parse_json(data: bytes, where: str, needed: Mapping[str, type]) -> dict[str, Any]:
    """The JSON object in `data`, of this schema version and with values of the `needed` types, else FailedError."""
    try:
        content = json.loads(data.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise FailedError(f"{where}: is not JSON as Forgeline writes it") from None
    found = content.get("schema_version") if isinstance(content, dict) else None
    if type(found) is not int or found != SCHEMA_VERSION:
        raise FailedError(f"{where}: schema_version is {found!r:.40}; this Forgeline reads {SCHEMA_VERSION}")
    try:
        check_types(content, needed, "")
    except ValueError as error:
        raise FailedError(f"{where}: {error}") from None
    return dict(content)


def check_types(value: Any, needed: Mapping[str, type], key: str) -> None:
    """Raise ValueError unless `value` is an object with values of the `needed` types; its names begin with `key`."""
    for name, kind in needed.items():
        if not isinstance(value, dict) or type(value.get(name)) is not kind:
            raise ValueError(f"{key}{name} is missing or not {kind.__name__}")


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(word)
