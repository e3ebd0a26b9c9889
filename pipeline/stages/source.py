"""source: the raw data → out/inventory.json, what there is to ingest.

The stage runs every time, so that new files are noticed; what follows reruns only when it writes other bytes.
"""

from __future__ import annotations

import json
from typing import Any

from pipeline import paths
from pipeline.imageset.files import write_atomically
from pipeline.params import Document
from pipeline.sources.source import Source, load_source


def read_params(document: Document) -> Source:
    """The source; each kind's settings are its own `Config`."""
    return load_source(document)


def run(document: Document) -> None:
    """Write the inventory. Raises UserError where there is nothing of the kind, FailedError where it cannot be read."""
    inventory = read_params(document).inventory()
    write_atomically(paths.INVENTORY, to_json(inventory))


def to_json(inventory: dict[str, Any]) -> bytes:
    """The same inventory gives the same bytes: sorted keys, no times."""
    return (json.dumps(inventory, indent=1, sort_keys=True) + "\n").encode()
