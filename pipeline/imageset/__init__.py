"""The one data format, for real and for synthetic images alike: a folder of Parquet shards and imageset.json."""

from pipeline.imageset.imageset import ImageSet, Shard
from pipeline.imageset.write import Row, write_imageset

__all__ = ["ImageSet", "Row", "Shard", "write_imageset"]
