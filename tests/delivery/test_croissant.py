from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.delivery import open_store, publish

CODE = """
import json, sys
import mlcroissant
dataset = mlcroissant.Dataset(jsonld=sys.argv[1])
issues = dataset.metadata.ctx.issues
rows = [(str(row["train/image"].size), row["train/label"]) for row in dataset.records("train")]
names = [row["classes/name"] for row in dataset.records("classes")]
print(json.dumps([sorted(issues.errors), sorted(issues.warnings), rows, names]))
"""


@pytest.fixture
def release(tmp_path: Path, images, description) -> Path:
    store = open_store(str(tmp_path / "releases"))
    return Path(publish(store, "digits", images.root, description=description, documents={}).url)


def test_mlcroissant_validates_and_reads_it(release: Path, images) -> None:

    # In a process of its own: what it imports warns of its own age.
    arguments = [sys.executable, "-c", CODE, str(release / "croissant.json")]
    said = subprocess.run(arguments, capture_output=True, text=True, check=True)
    errors, warnings, rows, names = json.loads(said.stdout.splitlines()[-1])
    assert (errors, warnings) == ([], [])
    assert "WARNING" not in said.stderr
    assert [tuple(row) for row in rows] == [("(8, 8)", row) for row in images.table("train")["label"].to_pylist()]
    assert names == ["zero", "one", "two"]
