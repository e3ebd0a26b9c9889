from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from pipeline.errors import UserError
from pipeline.params import Document
from pipeline.stages import source

INVENTORY = Path("out/inventory.json")


def fill(folder: Path) -> Document:
    for name in ("cat/1.png", "dog/1.png"):
        (folder / name).parent.mkdir(parents=True)
        Image.new("L", (8, 8), 7).save(folder / name)
    return Document({"source": {"kind": "images", "url": str(folder)}})


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_inventory_lists_what_is_there(tmp_path: Path) -> None:
    source.run(fill(tmp_path / "photos"))
    inventory = json.loads(INVENTORY.read_bytes())
    assert (inventory["kind"], inventory["classes"]) == ("images", ["cat", "dog"])
    assert list(inventory["files"]) == ["cat/1.png", "dog/1.png"]
    size = (tmp_path / "photos/cat/1.png").stat().st_size
    assert inventory["files"]["cat/1.png"]["bytes"] == size


def test_the_same_content_gives_the_same_bytes_whatever_its_place_and_time(tmp_path: Path) -> None:
    source.run(fill(tmp_path / "here"))
    before = INVENTORY.read_bytes()
    document = fill(tmp_path / "there")
    os.utime(tmp_path / "there/cat/1.png", (0, 0))
    source.run(document)
    assert INVENTORY.read_bytes() == before


def test_a_new_file_is_noticed(tmp_path: Path) -> None:
    document = fill(tmp_path / "photos")
    source.run(document)
    before = INVENTORY.read_bytes()
    Image.new("L", (8, 8), 8).save(tmp_path / "photos/dog/2.png")
    source.run(document)
    assert INVENTORY.read_bytes() != before


def test_a_source_that_is_not_there_leaves_the_older_inventory(tmp_path: Path) -> None:
    source.run(fill(tmp_path / "photos"))
    before = INVENTORY.read_bytes()
    with pytest.raises(UserError, match="absent: is not there"):
        source.run(Document({"source": {"kind": "images", "url": "absent"}}))
    assert INVENTORY.read_bytes() == before
    assert list(Path("out").iterdir()) == [INVENTORY]


@pytest.mark.parametrize(
    "section", [{"kind": "digits"}, {"kind": "torchvision", "dataset": "cifar10", "root": "absent"}], ids=str
)
def test_a_versioned_source_needs_no_data(section: dict[str, str]) -> None:
    source.run(Document({"source": section}))
    assert json.loads(INVENTORY.read_bytes())["kind"] == section["kind"]
