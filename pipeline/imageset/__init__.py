"""The one data format, for real and for synthetic images alike: a folder of Parquet shards and imageset.json."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.imageset.imageset import ImageSet, Shard
    from pipeline.imageset.write import Row, write_imageset

__all__ = ["ImageSet", "Row", "Shard", "write_imageset"]
_HOMES = {"imageset": ("ImageSet", "Shard"), "write": ("Row", "write_imageset")}


def __getattr__(name: str) -> Any:
    """Imported when it is asked for: `forgeline list` needs files that appear whole, and no arrays or Parquet."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
