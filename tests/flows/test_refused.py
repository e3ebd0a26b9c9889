"""What becomes of a set that the gate refused: kept in the store under a channel of its own, with the reason."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefect import flow

from flows.retrain import REFUSED, publish
from pipeline.delivery import find, list_releases, open_store
from pipeline.delivery.keeping import promote
from pipeline.delivery.pointer import Pointer
from pipeline.delivery.settings import PublishSettings
from pipeline.errors import UserError
from pipeline.imageset import Row, write_imageset

REASON = "fidelity.fid: 0.9, needed not worse than 0.1 of toy@ab by more than 0.01"
INTERVAL = {"mean": -3.0, "low": -4.0, "high": -2.0}
REPORTS: dict[str, Any] = {
    "synthetic/report.json": {"drawn": 9, "kept": 9, "dropped": {}, "params": {"seed": 3, "spread": 1.0}},
    "model/model.json": {"family": "conditional", "images_seen": 1000, "data_fingerprint": "cd" * 32},
    "evaluation/model/metrics.json": {"protocol": []},
    "evaluation/synthetic/metrics.json": {"protocol": []},
    "utility/utility.json": {
        "synthetic_only_accuracy": 50.0,
        "rows": [
            {
                "data": "100 %",
                "real_images": 60,
                "verdict": "harms",
                "protocol": "same-data",
                "advised_share": 0.0,
                "gain_over_real": INTERVAL,
                "gain_over_real_long": INTERVAL,
            }
        ],
        "protocol": ["same-data: the same."],
    },
    "validation/real/report.json": {"success": True},
    "validation/synthetic/report.json": {"success": True},
}


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """What the stages leave, in small."""
    for path, content in REPORTS.items():
        (tmp_path / "out" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / path).write_text(json.dumps(content))
    (tmp_path / "out/model/weights.safetensors").write_bytes(b"weights")
    (tmp_path / "dvc.lock").write_text("{schema: '2.0', stages: {}}\n")
    model = hashlib.sha256(b"weights" + (tmp_path / "out/model/model.json").read_bytes()).hexdigest()
    image = np.zeros((1, 8, 8), np.uint8)
    write_imageset(
        tmp_path / "out/synthetic/imageset",
        (Row(split="train", label=i % 3, image=image + np.uint8(i), path=f"{i}.png", provenance={}) for i in range(9)),
        classes=("a", "b", "c"),
        source={"licence": "CC0", "description": "numbers"},
        resize=None,
        synthetic=True,
        generator={"family": "conditional", "model_sha256": model, "data_fingerprint": "cd" * 32},
    )
    return tmp_path


@flow
def published(workspace: Path, refusal: str | None) -> Any:
    """The task in a flow of its own, as its log needs one."""
    url = str(workspace / "sets")
    return publish(workspace, url, PublishSettings(url=url, name="toy"), refusal, return_state=True).result()


def test_a_refused_set_is_kept_marked_and_explained_and_can_be_promoted_by_hand(
    workspace: Path, prefect_server: str
) -> None:
    url = str(workspace / "sets")
    made = published(workspace, REASON)
    assert made.new
    pointer = Pointer.read(open_store(url), "toy", REFUSED)
    assert pointer is not None
    assert (pointer.version, pointer.moves[0].why) == (made.version, REASON)
    with pytest.raises(UserError, match="has no published version yet"):
        find(f"{url}/toy")
    assert [release.channels for release in list_releases(open_store(url))] == [(REFUSED,)]
    promote(f"{url}/toy@{REFUSED}", why="I looked at it")
    assert find(f"{url}/toy").manifest.version == made.version


def test_a_set_that_passes_later_becomes_the_latest(workspace: Path, prefect_server: str) -> None:
    url = str(workspace / "sets")
    refused, passed = published(workspace, REASON), published(workspace, None)
    assert passed.version == refused.version
    assert find(f"{url}/toy").manifest.version == passed.version
