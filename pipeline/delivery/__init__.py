"""Delivery: releases published to a folder or to S3, found through one pointer, pulled with every byte checked."""

from pipeline.delivery.description import Description, Lineage, Metric
from pipeline.delivery.pull import pull, verify
from pipeline.delivery.release import Published, ReleaseInfo, list_releases, publish
from pipeline.delivery.stores import Promises, check, open_store

__all__ = [
    "Description",
    "Lineage",
    "Metric",
    "Promises",
    "Published",
    "ReleaseInfo",
    "check",
    "list_releases",
    "open_store",
    "publish",
    "pull",
    "verify",
]
