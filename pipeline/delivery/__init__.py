"""Delivery: releases published to a folder or to S3, found through small pointers, pulled with every byte checked."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.delivery.description import Advice, Description, Lineage, Metric
    from pipeline.delivery.opening import Release, mix, open_release
    from pipeline.delivery.pulling import pull, verify
    from pipeline.delivery.release import Published, publish
    from pipeline.delivery.stores import Promises, check, open_store
    from pipeline.delivery.versions import ReleaseInfo, find, list_releases

__all__ = [
    "Advice",
    "Description",
    "Lineage",
    "Metric",
    "Promises",
    "Published",
    "Release",
    "ReleaseInfo",
    "check",
    "find",
    "list_releases",
    "mix",
    "open_release",
    "open_store",
    "publish",
    "pull",
    "verify",
]
_HOMES = {
    "description": ("Advice", "Description", "Lineage", "Metric"),
    "opening": ("Release", "mix", "open_release"),
    "pulling": ("pull", "verify"),
    "release": ("Published", "publish"),
    "stores": ("Promises", "check", "open_store"),
    "versions": ("ReleaseInfo", "find", "list_releases"),
}


def __getattr__(name: str) -> Any:
    """Imported when it is asked for: `forgeline list` must not wait for what only publishing needs."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
