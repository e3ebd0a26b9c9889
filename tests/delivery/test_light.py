"""The core install, without any extra: what a reader of releases needs works with its declared dependencies alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from pipeline.delivery import open_store, publish
from pipeline.imageset import ImageSet

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "prefect", "dvc", "great_expectations", "pandas", "torch_fidelity", "sklearn", "ruamel")

Run = Callable[..., str]


def core() -> set[str]:
    """The packages that `pip install .` brings, this one among them."""
    found: set[str] = set()
    left = ["forgeline"]
    while left:
        name = left.pop()
        if name in found:
            continue
        found.add(name)
        needed = map(Requirement, distribution(name).requires or [])
        left += [each.name.lower() for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the core's packages and no others."""
    folder = tmp_path_factory.mktemp("packages")
    (folder / "pipeline").symlink_to(ROOT / "pipeline")
    for name in core() - {"forgeline"}:
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            (folder / top).symlink_to(Path(str(found.locate_file(top))))
    return folder


@pytest.fixture
def light(packages: Path, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs code where only the core is installed; what it printed."""
    monkeypatch.setenv("FORGELINE_CACHE", str(tmp_path / "cache"))
    begin = f"import sys; sys.path.insert(0, {str(packages)!r}); "

    def run(code: str, *words: str, status: int = 0) -> str:
        said = subprocess.run([sys.executable, "-ISc", begin + code, *words], capture_output=True, text=True)
        assert said.returncode == status, said.stderr
        return said.stdout + (said.stderr if status else "")

    return run


FORGELINE = "from pipeline.cli import main; main()"


@pytest.fixture
def release(url: str, images: ImageSet, description) -> str:
    publish(open_store(url), "digits", images.root, description=description, documents={})
    return f"{url}/digits"


def test_there_is_nothing_heavy(light: Run) -> None:
    found = light(f"from importlib.util import find_spec; print([name for name in {HEAVY} if find_spec(name)])")
    assert found == "[]\n"


def test_list_show_pull_and_verify(light: Run, url: str, release: str, tmp_path: Path) -> None:
    (row,) = json.loads(light(FORGELINE, "list", url, "--json"))
    assert row["images"] == 24
    assert row["version"] in light(FORGELINE, "list", url)
    assert "Digits, synthetic" in light(FORGELINE, "show", release)
    assert "publish" in light(FORGELINE, "history", release)
    for layout in ("parquet", "imagefolder", "webdataset"):
        for more in ([], ["--classes", "one"]):
            dest = str(tmp_path / f"{layout}-{len(more)}")
            light(FORGELINE, "pull", release, dest, "--format", layout, *more)
            assert f"digits@{row['version']}, {8 if more else 24} images" in light(FORGELINE, "verify", dest)


def test_open_gives_arrays(light: Run, release: str) -> None:
    code = """
from pipeline.delivery import mix, open_release
release = open_release(sys.argv[1])
images, labels = release.arrays()
streamed = list(release.stream(seed=0))
both = mix(release.dataset(), release.dataset(), 0.25)
print(images.shape, labels.sum(), len(streamed), type(streamed[0][0]).__name__, len(both), type(both[0][0]).__name__)
"""
    assert light(code, release) == "(24, 1, 8, 8) 24 24 ndarray 96 ndarray\n"


def test_what_makes_sets_says_what_is_missing(light: Run) -> None:
    said = light(FORGELINE, "stage", "train", status=1)
    assert re.fullmatch(r"forgeline: the light install has no \w+, which this needs; .*\[train\]'\n", said)


@pytest.mark.parametrize("words", [["pull", "--help"], ["list"], ["history"]])
def test_what_starts_at_once_imports_no_arrays(
    light: Run, words: list[str], tmp_path: Path, images, description
) -> None:
    """Half a second is the bound, which only an idle machine can measure: `tests/bench/delivery.py` does."""
    store = str(tmp_path / "releases")
    publish(open_store(store), "digits", images.root, description=description, documents={})
    target = {"list": [store], "history": [f"{store}/digits"]}.get(words[0], [])
    code = """
from pipeline.cli import forgeline
forgeline(standalone_mode=False)
print(sorted({name.partition(".")[0] for name in sys.modules} & {"numpy", "pyarrow", "PIL", "boto3", "botocore"}))
"""
    assert light(code, *words, *target).splitlines()[-1] == "[]"
