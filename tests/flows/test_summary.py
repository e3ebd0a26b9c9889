"""What is printed at the end is what was measured and where it lies, and nothing about what is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.measured import DOCS, METRICS, SAMPLES
from flows.retrain import RunResult
from flows.summary import print_summary
from pipeline.delivery import Published


def test_an_empty_workspace_has_nothing_to_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(tmp_path, RunResult(stages=(), published=None))
    assert capsys.readouterr().out == ""


def test_measures_and_places_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contents = {METRICS["synthetic"]: json.dumps({"fidelity": {"fid": 0.123456}}), SAMPLES: "", DOCS["real"]: ""}
    for path, content in contents.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    published = Published(version="abc", url="releases/digits@abc", new=True, latest=True, caveat=None)
    print_summary(tmp_path, RunResult(stages=(), published=published))
    table, *places = capsys.readouterr().out.split("\nrelease: ")
    assert table.split() == ["measured", "synthetic", "FID,", "in-domain", "features", "0.1235"]
    assert "".join(places).splitlines() == [
        "releases/digits@abc",
        "samples: out/evaluation/synthetic/figures/samples.png",
        "Data Docs, real: out/validation/real/docs/index.html",
    ]
