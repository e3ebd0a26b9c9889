"""The command line: what is wrong is said in one sentence with the right exit status, and light commands stay light."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "prefect", "dvc", "great_expectations", "torch_fidelity", "boto3", "pandas", "sklearn", "matplotlib"}


def forgeline(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["publsh"], "'publsh' is not a command; did you mean 'publish'?"),
        (["stage", "ingets"], "'ingets' is not a stage of dvc.yaml; did you mean 'ingest'?"),
        (["stage", "validate"], "stage 'validate' found nothing after it, needed one of real, synthetic"),
        (["stage", "validate", "reel"], "stage 'validate' found reel after it, needed one of real, synthetic"),
        (["stage", "train", "real"], "stage 'train' found real after it, needed nothing"),
        (["recipe", "minst"], "'minst' is not a recipe; did you mean 'mnist'?"),
        (
            ["sample", "nowhere", "--out", "x.png", "--count", "0"],
            "Invalid value for '--count': 0 is not in the range x>=1.",
        ),
        *(
            (
                [*words, "--seed", str(2**32)],
                f"Invalid value for '--seed': {2**32} is not in the range 0<=x<={2**32 - 1}.",
            )
            for words in (["sample", "model", "--out", "x.png"], ["evaluate", "one", "--against", "other"])
        ),
        *(
            (
                ["gc", "sets", "--days", days],
                f"Invalid value for '--days': {float(days)} is not in the range 0<=x<=36500.",
            )
            for days in ("nan", "inf", "1e9", "-1")
        ),
        *(
            ([*words, ""], f"Invalid value for '{words[-1]}': found nothing, needed a text.")
            for words in (
                ["promote", "sets/digits@1", "--why"],
                ["rollback", "sets/digits", "--why"],
                ["yank", "sets/digits@1", "--why"],
                ["pull", "sets/digits", "here", "--classes"],
                ["publish", "sets", "--name"],
            )
        ),
        (["publish", ""], "Invalid value for '[URL]': found nothing, needed a text."),
        *(
            (["study", *shares], f"Invalid value for 'SHARE...': {number} is not in the range 0<x<=1.")
            for shares, number in ((["0.1", "10"], 10.0), (["0"], 0.0))
        ),
    ],
)
def test_wrong_words_get_one_sentence_and_status_2(words: list[str], sentence: str, workspace: Path) -> None:
    ended = forgeline(*words, cwd=workspace)
    assert (ended.returncode, ended.stderr, ended.stdout) == (2, f"forgeline: {sentence}\n", "")


@pytest.mark.parametrize("content", ["stages:\n", "stages: []\n", "vars: []\n", "stages: {train: }\n"])
def test_a_dvc_yaml_without_stages_is_named(content: str, workspace: Path) -> None:
    (workspace / "dvc.yaml").write_text(content)
    ended = forgeline("stage", "train", cwd=workspace)
    assert ended.returncode == 2
    assert re.fullmatch(r"forgeline: dvc\.yaml: stages(\.train)? (is missing;|found .*,) needed .*\n", ended.stderr)


def test_a_setting_that_is_wrong_stops_the_stage_before_it_writes(workspace: Path) -> None:
    params = workspace / "params.yaml"
    params.write_text(params.read_text().replace("image_size:", "image_sise:"))
    ended = forgeline("stage", "ingest", cwd=workspace)
    assert ended.returncode == 2
    assert ended.stderr.startswith(
        "forgeline: params.yaml: ingest.image_sise is not a setting; did you mean 'image_size'?"
    )
    assert not (workspace / "out").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["verify", "x" * 300], f"{'x' * 300}: File name too long"),
        (["recipe", "mnist"], "params.yaml: Is a directory"),
    ],
)
def test_what_the_system_refuses_is_one_sentence_and_status_1(words: list[str], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").mkdir()
    ended = forgeline(*words, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith(f"forgeline: {sentence.partition(':')[0]}")
    assert ended.stderr.endswith(f": {sentence.rpartition(': ')[2]}\n")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("words", ["stage source", "publish x", "doctor", "sample model --out x.png", "run"])
def test_what_the_light_install_cannot_do_is_told(words: str, workspace: Path) -> None:
    code = (
        "import sys; from importlib.machinery import PathFinder; found = PathFinder.find_spec\n"
        "left_out = ('ruamel', 'prefect', 'torch', 'safetensors')\n"
        "PathFinder.find_spec = lambda name, *more: None if name.split('.')[0] in left_out else found(name, *more)\n"
        "from pipeline.cli import main; main()"
    )
    ended = subprocess.run([sys.executable, "-c", code, *words.split()], cwd=workspace, capture_output=True, text=True)
    assert ended.returncode == 1
    assert re.fullmatch(
        r"forgeline: the light install has no \S+, which this needs; pip install 'forgeline\[train\]'\n", ended.stderr
    )


def test_more_memory_than_there_is_is_told(workspace: Path) -> None:
    params = workspace / "params.yaml"
    params.write_text(params.read_text().replace("\nfeatures:\n", "\nfeatures:\n  width: 100_000\n"))
    for stage in ("source", "ingest"):
        assert forgeline("stage", stage, cwd=workspace).returncode == 0
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))\n"
        "from pipeline.stages import features; features._check_test_split = lambda *_: None\n"  # it has fewer images
        "from pipeline.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "stage", "features"]
    ended = subprocess.run(command, cwd=workspace, capture_output=True, text=True)
    assert ended.returncode == 1
    assert re.fullmatch(
        r"forgeline: memory ran out \(.*\); needed smaller settings, or a larger machine\n", ended.stderr
    )


def test_help_names_every_command(tmp_path: Path) -> None:
    text = forgeline("--help", cwd=tmp_path).stdout
    for command in ("run", "recipe", "stage", "sample", "publish", "list", "show", "pull", "verify", "yank", "doctor"):
        assert f"\n  {command} " in text


def test_help_loads_nothing_heavy(tmp_path: Path) -> None:
    code = "import sys, pipeline.cli; print(*sorted(sys.modules), sep='\\n')"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert HEAVY & {name.split(".")[0] for name in loaded.stdout.split()} == set()
