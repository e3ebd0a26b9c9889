"""What a publisher says of a set: read by the card, the Croissant metadata and the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One measured number, rendered, with the protocol that it was measured by."""

    name: str
    value: str
    protocol: str


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What part of the images shown to a classifier should be synthetic, in [0, 1), when it has the `real` ones."""

    real: str
    share: float


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """What a set came from. Only `model` and `params` are part of its version id.

    `model` and `dvc_lock` are hex sha256 (the latter of the file), `data_fingerprint` is the training ImageSet's;
    `metrics` and `validation` are JSON as their stages wrote it.
    """

    model: str
    params: Mapping[str, Any]
    seed: int
    data_fingerprint: str
    dvc_lock: str | None
    git_commit: str | None
    metrics: Mapping[str, Any]
    validation: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Description:
    """Texts are plain Markdown, one paragraph each; `grid` is a PNG of samples.

    `filling` is advice on filling up rare classes: its shares are of a class as good as without real images.
    """

    title: str
    licence: str
    source: str
    verdict: str
    measured: tuple[Metric, ...]
    mixing: tuple[Advice, ...]
    not_good_for: tuple[str, ...]
    how_made: str
    grid: bytes
    lineage: Lineage
    filling: tuple[Advice, ...] = ()
