"""Pictures in files: a folder of class folders, such folders in folders of splits, or one flat folder.

Each as a folder, a zip or a tar archive, on this machine or on s3:// (from where an archive is downloaded into the
folder for temporary files while it is read). Where

- the outermost folders are all named train, test, validation, valid or val, they are splits;
- there are folders (within the splits), they are classes, named after the outermost of them;
- there are none, all pictures are of the one class `image`;
- they are named trainA, trainB, testA, testB, they are splits and classes at once, as the CycleGAN sets have it.

One folder around all that is looked through. What lies outside the class folders is no image of the set. Hidden files
are ignored; text files that are not named as pictures (README.md, checksums) are listed and do no harm.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.errors import UserError
from pipeline.parallel import in_parallel
from pipeline.sources.archive import SUFFIXES, Entry, open_archive
from pipeline.sources.files import (
    READERS,
    another_inventory,
    check_url,
    check_utf8,
    is_hidden,
    listed,
    place_of,
)
from pipeline.sources.picture import picture_suffixes
from pipeline.sources.source import SPLIT_NAMES, RawImage, Reading, Split

UNLABELLED = "image"
MAX_FILE_BYTES = 1 << 28
_UNPAIRED = re.compile("(train|val|test)[AB]")


@dataclass(frozen=True, kw_only=True)
class Config:
    """`url` is a folder or an archive; `licence` as the Hugging Face hub names it, for the card of a release."""

    url: str
    licence: str = "unknown"
    description: str = ""

    def __post_init__(self) -> None:
        check_url(self.url)


class Source:
    """Pictures in files. See the module."""

    def __init__(self, config: Config) -> None:
        self.name = config.url
        self.is_archive = config.url.lower().endswith(SUFFIXES)
        self.place = place_of(config.url, single=self.is_archive)
        self.about: Mapping[str, str] = {
            "kind": "images",
            "licence": config.licence,
            "description": config.description,
        }

    def inventory(self) -> dict[str, Any]:
        files = self.place.inventory(lambda path: not is_hidden(path))
        if self.is_archive:
            return {"kind": "images", "files": files}
        classes, _ = arrange(self.name, files)
        return {"kind": "images", "classes": classes, "files": files}

    @contextmanager
    def read(self, inventory: Mapping[str, Any]) -> Iterator[Reading]:
        files = listed(inventory, self.place)
        if self.is_archive == ("classes" in inventory):  # which only folders have: url was another when it was taken
            raise another_inventory()
        if self.is_archive:
            ((path, identity),) = files.items()
            with (
                TemporaryDirectory() as folder,
                open_archive(self.place.fetch(path, identity, Path(folder)), self.name) as entries,
                self._reading(entries, readers=1) as reading,
            ):
                yield reading
        else:
            entries = [
                Entry(path=path, size=identity["bytes"], read=partial(self.place.read, path, identity))
                for path, identity in files.items()
            ]
            with self._reading(entries, readers=READERS) as reading:
                yield reading

    @contextmanager
    def _reading(self, entries: list[Entry], *, readers: int) -> Iterator[Reading]:
        entries = [entry for entry in entries if not is_hidden(entry.path)]
        classes, spots = arrange(self.name, [entry.path for entry in entries])

        def load(entry: Entry) -> RawImage:
            label, split = spots[entry.path]
            raw = partial(RawImage, path=entry.path, label=label, split=split)
            if entry.size > MAX_FILE_BYTES:
                return raw(data=b"", fault=f"is {entry.size:,} bytes; needed at most {MAX_FILE_BYTES:,}")
            try:
                data = entry.read()
            except ValueError as error:
                return raw(data=b"", fault=str(error))
            if b"\0" not in data[:8000] and PurePosixPath(entry.path).suffix.lower() not in picture_suffixes():
                return raw(data=b"", fault="is a text file", harmless=True)
            return raw(data=data, fault=None if label is not None else "lies outside the class folders")

        with closing(in_parallel(load, entries, threads=readers, ahead=4 * readers)) as images:
            yield Reading(classes=tuple(classes), count=len(entries), images=images)


Spot = tuple[str | None, Split | None]


def arrange(name: str, paths: Collection[str]) -> tuple[list[str], dict[str, Spot]]:
    """The class names in the order of their labels, and each path's class (None outside of all) and split.

    Names that are all whole numbers are ordered as numbers. Raises UserError where there is nothing to arrange, and
    where folders of splits stand beside others.
    """
    if not paths:
        raise UserError(f"{name}: is empty; needed pictures, flat or in class folders")
    check_utf8(name, paths)
    spots = _spots(name, paths)
    classes = {label for label, _ in spots.values() if label is not None}
    as_numbers = all(label.isdecimal() for label in classes)
    return sorted(classes, key=lambda label: (int(label) if as_numbers else 0, label)), spots


def _spots(name: str, paths: Collection[str]) -> dict[str, Spot]:
    inside = {path: path.split("/") for path in paths if "/" in path}
    if not inside:
        return dict.fromkeys(paths, (UNLABELLED, None))
    while _is_wrapped(list(inside.values())):
        inside = {path: rest for path, (_, *rest) in inside.items() if len(rest) > 1}
    if all(_UNPAIRED.fullmatch(top) for top, *_ in inside.values()):
        inside = {path: [top[:-1], top[-1], *rest] for path, (top, *rest) in inside.items()}
    tops = {parts[0] for parts in inside.values()}
    spots: dict[str, Spot] = dict.fromkeys(paths, (None, None))
    if tops <= set(SPLIT_NAMES):
        flat = all(len(parts) == 2 for parts in inside.values())
        for path, (top, first, *rest) in inside.items():
            spots[path] = (first if rest else UNLABELLED if flat else None, SPLIT_NAMES[top])
    elif {"train", "test"} <= tops:
        others = ", ".join(sorted(tops - set(SPLIT_NAMES))[:3])
        raise UserError(f"{name}: has the folders train and test beside {others}; needed splits or classes, not both")
    else:
        spots |= {path: (parts[0], None) for path, parts in inside.items()}
    return spots


def _is_wrapped(inside: list[list[str]]) -> bool:
    """Whether one folder, itself no split, lies around all others."""
    tops = {parts[0] for parts in inside}
    return len(tops) == 1 and not tops <= set(SPLIT_NAMES) and any(len(parts) > 2 for parts in inside)
