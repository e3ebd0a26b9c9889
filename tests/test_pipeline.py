"""The main job as its users run it: the real commands, in a fresh clone, on the real digits, with small budgets.

The tests share one workspace and build on each other, in the order in which they stand.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
STAGES = [
    "source", "ingest", "validate@real", "features", "parent", "train", "evaluate@model", "augment",
    "validate@synthetic", "evaluate@synthetic", "utility",
]  # fmt: skip


SECRET = "marked-credential"


class Workspace:
    """A clone that nobody has run yet."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *words: str, status: int = 0, errors: int = subprocess.STDOUT) -> str:
        """The output of a command, which must end with `status`."""
        environment = os.environ | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "FORGELINE_CACHE": str(self.root.parent / "cache"),  # which git does not see
            "COLUMNS": "200",
            **dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"), SECRET),
        }
        environment.pop("PREFECT_API_URL", None)
        ended = subprocess.run(words, cwd=self.root, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert ended.returncode == status, ended.stdout
        assert "Traceback" not in ended.stdout
        return ended.stdout

    def set(self, key: str, value: object) -> None:
        """Change one setting of params.yaml."""
        yaml, path = YAML(), self.root / "params.yaml"
        document = yaml.load(path)
        *sections, name = key.split(".")
        section = document
        for part in sections:
            section = section[part]
        section[name] = value
        yaml.dump(document, path)

    def json(self, path: str) -> dict[str, object]:
        content: dict[str, object] = json.loads((self.root / path).read_text())
        return content


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("clone") / "forgeline"
    for name in ("dvc.yaml", "params.yaml", ".dvcignore", ".gitignore"):
        root.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    shutil.copytree(ROOT / "pipeline", root / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / ".dvc", root / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "forgeline-state"))
    clone = Workspace(root)
    for key, value in {
        "features.images_seen": 4000,
        "train.images": 60_000,
        "train.snapshot_images": 30_000,
        "augment.images_per_class": 30,
        "utility.fractions": [0.1, 1.0],
        "utility.seeds": 2,
        "utility.images_seen": 2000,
    }.items():
        clone.set(key, value)
    for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "t"]):
        clone.run("git", *words)
    return clone


def outcomes(output: str) -> dict[str, str]:
    """What the flow said became of each stage."""
    return dict(re.findall(r"^\[\d+/11\] (\S+): (done|unchanged|restored)", output, re.MULTILINE))


def test_the_first_run_takes_every_stage_and_publishes(workspace: Workspace) -> None:
    output = workspace.run("forgeline", "run")
    assert outcomes(output) == dict.fromkeys(STAGES, "done")
    assert re.search(r"^release: .*releases/digits/v=[0-9a-f]{16}$", output, re.MULTILINE)
    assert "out/evaluation/synthetic/figures/samples.png" in output
    assert "out/validation/real/docs/index.html" in output
    assert "judges agree with the label" in output
    made = workspace.json("out/synthetic/imageset/imageset.json")
    assert made["counts"] == {"train": [30] * 10}


def test_the_second_run_skips_all_but_the_probe_and_publishes_nothing(workspace: Workspace) -> None:
    before = sorted(path for path in (workspace.root / "releases").rglob("*"))
    output = workspace.run("forgeline", "run")
    assert outcomes(output) == dict.fromkeys(STAGES, "unchanged") | {"source": "done"}
    assert "publish: nothing new, skipped" in output
    assert sorted(path for path in (workspace.root / "releases").rglob("*")) == before


def test_dvc_repro_finds_nothing_to_do_either(workspace: Workspace) -> None:
    assert re.findall(r"^Running stage '(.*)'", workspace.run("dvc", "repro"), re.MULTILINE) == ["source"]


def test_dvc_shows_numbers_changes_and_plots(workspace: Workspace) -> None:
    metrics = json.loads(workspace.run("dvc", "metrics", "show", "--json", errors=subprocess.DEVNULL))
    assert "error" not in metrics[""]
    assert set(metrics[""]["data"]) >= {"out/evaluation/synthetic/metrics.json", "out/utility/utility.json"}
    workspace.set("train.seed", 7)
    assert "train.seed" in workspace.run("dvc", "params", "diff")
    workspace.set("train.seed", 0)
    plots = json.loads(workspace.run("dvc", "plots", "show", "--json", errors=subprocess.DEVNULL))
    assert "errors" not in plots
    curves = {"losses", "game", "confusion", "agreement", "utility", "choices"}
    assert set(plots["data"]) >= curves | {f"out/utility/figures/{name}.png" for name in ("utility", "choices")}
    assert all(plots["data"].values())
    page = workspace.run("dvc", "plots", "show").split("file://")[-1].strip()
    assert {"samples.png", "closest.png"} <= {path.name.split("_")[-1] for path in Path(page).parent.glob("static/*")}


def test_a_parameter_reruns_its_stage_and_what_depends_on_it_and_nothing_else(workspace: Workspace) -> None:
    workspace.set("augment.seed", 4)
    output = workspace.run("dvc", "repro")
    ran = set(re.findall(r"^Running stage '(.*)'", output, re.MULTILINE))
    assert ran == {"source", "augment", "validate@synthetic", "evaluate@synthetic", "utility"}
    workspace.set("augment.seed", 3)
    restored = workspace.run("dvc", "repro")
    assert set(re.findall(r"^Running stage '(.*)'", restored, re.MULTILINE)) == {"source"}


def test_the_release_is_listed_pulled_and_verified(workspace: Workspace) -> None:
    assert re.search(r"digits +[0-9a-f]{16}", workspace.run("forgeline", "list", "releases"))
    workspace.run("forgeline", "pull", "releases/digits", "pulled")
    assert "300 images, all as the manifest says" in workspace.run("forgeline", "verify", "pulled")
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=workspace.root / "pulled", check=True)
    again = workspace.run("forgeline", "pull", "releases/digits", "pulled", status=2)
    assert "pulled: is not empty; needed a new or an empty folder" in again
    assert "published already, nothing is new" in workspace.run("forgeline", "publish")


def test_samples_are_drawn_into_a_grid_or_a_folder(workspace: Workspace) -> None:
    workspace.run("forgeline", "sample", "out/model", "--count", "20", "--out", "grid.png")
    assert (workspace.root / "grid.png").read_bytes().startswith(b"\x89PNG")
    workspace.run("forgeline", "sample", "out/model", "--count", "20", "--out", "samples")
    assert len(list((workspace.root / "samples").glob("**/*.png"))) == 20


def test_the_doctor_finds_nothing_missing(workspace: Workspace) -> None:
    assert "settings" in workspace.run("forgeline", "doctor")


def test_no_credentials_in_what_a_person_or_a_reader_of_releases_gets(workspace: Workspace) -> None:
    report = workspace.run("forgeline", "report").strip()
    assert (workspace.root / report).is_file()
    files = [path for path in workspace.root.parent.rglob("*") if path.is_file()]
    assert {"dvc.lock", "manifest.parquet", "metrics.json", "manifest.json"} <= {path.name for path in files}
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def test_a_study_is_an_experiment_for_each_share_and_leaves_the_workspace_as_it_is(workspace: Workspace) -> None:
    before = workspace.run("git", "status", "--short")
    output = workspace.run("forgeline", "study", "1", "0.5", "--seeds", "3")
    found = re.findall(r"^ *([\d,]+) \((\d+) %\) +(\S+)% +(\S+)% +([+-]\S+) \[(\S+), (\S+)\]", output, re.MULTILINE)
    assert [(images, share) for images, share, *_ in found] == [("540", "50"), ("1,077", "100")]
    rows = list(csv.DictReader((workspace.root / "out/study/table.csv").read_text().splitlines()))
    assert [(row["data_fraction"], row["protocol"], row["real_images"]) for row in rows] == [
        ("0.5", "same-data", "540"),
        ("1.0", "same-data", "1077"),
    ]
    for row, (_, _, real, mixed, gain, low, high) in zip(rows, found, strict=True):
        shown = {"real_long": real, "mixed": mixed}
        shown |= {f"gain_over_real_long{end}": text for end, text in {"": gain, "_low": low, "_high": high}.items()}
        assert {name: f"{float(row[name]):.2f}" for name in shown} == {
            name: text.lstrip("+") for name, text in shown.items()
        }
    assert (workspace.root / "out/study/study.png").read_bytes().startswith(b"\x89PNG")
    assert workspace.run("git", "status", "--short") == before
    again = workspace.run("forgeline", "study", "0.5", "--seeds", "3")
    assert re.findall(r"^Running stage '(.*)'", again, re.MULTILINE) == ["source"]
    assert "Stage 'utility' is cached" in again


def test_a_study_of_several_generators_is_an_experiment_for_each_and_a_row_over_them(workspace: Workspace) -> None:
    output = workspace.run("forgeline", "study", "0.5", "--seeds", "3", "--generators", "2")
    assert re.findall(r"^study: experiment (.+)$", output, re.MULTILINE) == [
        "1 of 2, same-data-0.5",
        "2 of 2, same-data-0.5-seed-1",
    ]
    (gains,) = re.findall(r"^ *540 \(50 %\): (\S+) (\S+) *$", output, re.MULTILINE)
    (row,) = csv.DictReader((workspace.root / "out/study/table.csv").read_text().splitlines())
    mean = sum(float(gain.rstrip("*")) for gain in gains) / 2
    assert float(row["gain_over_real_long"]) == pytest.approx(mean, abs=0.006)


def test_a_study_trains_from_the_beginning_where_runs_go_on_from_a_model(workspace: Workspace) -> None:
    """A parent has learned from more than the share: its rows would not be of the same data."""
    params = workspace.root / "params.yaml"
    text = params.read_text()
    params.write_text(text.replace("train:\n", "train:\n  warm_start: HEAD\n"))
    workspace.run("forgeline", "study", "0.5", "--seeds", "2")
    params.write_text(text)
    rows = list(csv.DictReader((workspace.root / "out/study/table.csv").read_text().splitlines()))
    assert [(row["protocol"], row["real_images"]) for row in rows] == [("same-data", "540")]


def test_a_misspelt_setting_stops_the_run_before_anything_runs(workspace: Workspace) -> None:
    params = workspace.root / "params.yaml"
    text = params.read_text()
    params.write_text(text.replace("snapshot_images", "snapshot_image"))
    output = workspace.run("forgeline", "run", status=2)
    params.write_text(text)
    assert output.splitlines()[-1].startswith(
        "forgeline: params.yaml: train.snapshot_image is not a setting; did you mean 'snapshot_images'?"
    )
    assert outcomes(output) == {}
