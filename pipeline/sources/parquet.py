"""Images in Parquet as the Hugging Face hub lays them out: shards named after their split; our own ImageSets too.

The column of images is struct<bytes, path> or binary. Labels are names, or whole numbers, which the class names in the
`huggingface` metadata give meaning to; without these they stand for themselves. Shards on S3 are downloaded into the
folder for temporary files while they are read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError, nearest
from pipeline.sources.files import check_url, check_utf8, is_hidden, listed, place_of
from pipeline.sources.source import SPLIT_NAMES, RawImage, Reading, Split

_BATCH_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Config:
    """`url` is a folder of shards or one; `licence` as the Hugging Face hub names it, for the card of a release."""

    url: str
    image_column: str = "image"
    label_column: str = "label"
    licence: str = "unknown"
    description: str = ""

    def __post_init__(self) -> None:
        check_url(self.url)


class Source:
    """Images in Parquet. See the module."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.name = config.url
        self.place = place_of(config.url, single=config.url.endswith(".parquet"))
        self.about: Mapping[str, str] = {
            "kind": "parquet",
            "licence": config.licence,
            "description": config.description,
        }

    def inventory(self) -> dict[str, Any]:
        files = self.place.inventory(lambda path: path.endswith(".parquet") and not is_hidden(path))
        if not files:
            raise UserError(f"{self.name}: has no Parquet files; needed shards such as train-00000-of-00001.parquet")
        check_utf8(self.name, files)
        return {"kind": "parquet", "files": files}

    @contextmanager
    def read(self, inventory: Mapping[str, Any]) -> Iterator[Reading]:
        with TemporaryDirectory() as folder:
            files = listed(inventory, self.place)
            fetched = [(path, self.place.fetch(path, identity, Path(folder))) for path, identity in files.items()]
            shards = [self._open(path, file) for path, file in fetched]
            classes = _classes(self.name, shards)
            yield Reading(
                classes=classes,
                count=sum(shard.rows for shard in shards),
                images=(raw for shard in shards for raw in self._images(shard, classes)),
            )

    def _open(self, path: str, file: Path) -> _Shard:
        where = f"{self.name}: {path}"
        images, labels = self.config.image_column, self.config.label_column
        with _arrow_in_a_sentence(where), pq.ParquetFile(file) as parquet:
            schema = parquet.schema_arrow
            for key, column in (("image_column", images), ("label_column", labels)):
                if column not in schema.names:
                    hint = nearest(column, schema.names)
                    raise UserError(f"{where} has no column '{column}', which source.{key} names; {hint}")
            kind = schema.field(images).type
            if not (_is_binary(kind) or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)):
                raise UserError(f"{where}, column '{images}' is {kind}; needed struct<bytes, path> or binary")
            kind = schema.field(labels).type
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise UserError(f"{where}, column '{labels}' is {kind}; needed whole numbers or names")
            return _Shard(
                path=path,
                file=file,
                split=_split(path),
                rows=parquet.metadata.num_rows,
                names=_names(where, schema, labels) if pa.types.is_integer(kind) else None,
                labels=frozenset(parquet.read([labels])[labels].unique().to_pylist()) - {None},
            )

    def _images(self, shard: _Shard, classes: Sequence[str]) -> Iterator[RawImage]:
        columns = [self.config.image_column, self.config.label_column]
        row = 0
        with _arrow_in_a_sentence(f"{self.name}: {shard.path}"), pq.ParquetFile(shard.file) as parquet:
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=columns):
                for image, label in zip(*(batch.column(name).to_pylist() for name in columns), strict=True):
                    data = image["bytes"] if isinstance(image, dict) else image
                    fault = "has no bytes in its row" if data is None else "has no label" if label is None else None
                    yield RawImage(
                        path=f"{shard.path}/{row:06d}",
                        data=data or b"",
                        label=classes[label] if isinstance(label, int) else label,
                        split=shard.split,
                        fault=fault,
                    )
                    row += 1


@dataclass(frozen=True, kw_only=True)
class _Shard:
    """One file: its class names where it gives them, and the different labels that stand in it."""

    path: str
    file: Path
    split: Split | None
    rows: int
    names: tuple[str, ...] | None
    labels: frozenset[Any]


def _classes(name: str, shards: Sequence[_Shard]) -> tuple[str, ...]:
    """The class names in the order of their labels. Raises UserError where labels are not 0..K-1."""
    if len({shard.names for shard in shards}) > 1:
        raise UserError(f"{name}: its files differ in their class names; needed the same in the metadata of each")
    names, labels = shards[0].names, {label for shard in shards for label in shard.labels}
    if all(isinstance(label, str) for label in labels):
        return tuple(sorted(labels))
    if not all(isinstance(label, int) for label in labels):
        raise UserError(f"{name}: has names as labels in some files, numbers in others; needed one of the two")
    needed = range(len(names) if names is not None else len(labels))
    for shard in shards:
        if wrong := sorted(shard.labels - set(needed)):
            raise UserError(
                f"{name}: {shard.path} has the label {wrong[0]}; needed 0 to {len(needed) - 1}, as there are "
                f"{len(needed)} {'class names in its metadata' if names is not None else 'different labels'}"
            )
    return names if names is not None else tuple(map(str, needed))


def _names(where: str, schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """The class names that the `huggingface` metadata gives the labels in `column`."""
    try:
        feature = json.loads(schema.metadata[b"huggingface"])["info"]["features"][column]
        names = feature["names"] if feature["_type"] == "ClassLabel" else None
    except (TypeError, KeyError, ValueError):  # no metadata, or somebody else's
        return None
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UserError(f"{where} has the class names {names!r:.99} in its metadata; needed a list of texts")
    return names if names is None else tuple(names)


def _split(path: str) -> Split | None:
    """`train-00000-of-00004.parquet`, `train.parquet` and `train/0000.parquet` are of the training split."""
    *folders, file = PurePosixPath(path).parts
    words = [re.split(r"[-_.]", file)[0], *reversed(folders)]
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


@contextmanager
def _arrow_in_a_sentence(where: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        said = str(error).partition("\n")[0]
        raise UserError(f"{where} cannot be read as Parquet ({said})") from None
