"""A release is read by the programs that data teams have: each real, from a folder and from a running S3 server.

Every script runs in a process of its own, which never imports Forgeline.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pipeline.delivery import open_store, publish, pull
from pipeline.imageset import ImageSet

Rows = list[list[Any]]  # label and sha256 of the PNG, of each image
Read = Callable[..., Rows]

# A script defines rows(place): what is in a version's folder, which is a path, s3://… or http://….
SCRIPT = """
import hashlib, importlib.metadata, json, sys
sha256 = lambda data: hashlib.sha256(data).hexdigest()
{script}
found = [list(map(list, rows(place))) for place in sys.argv[1:]]
assert not [name for name in sys.modules if name.partition(".")[0] in ("pipeline", "flows")]
ran = [name for name in {clients} if name in sys.modules]
print(json.dumps([found, [name + " " + importlib.metadata.version(name) for name in ran]]))
"""
CLIENTS = ("datasets", "duckdb", "mlcroissant", "pandas", "polars", "s3fs", "webdataset")


def needs(*modules: str) -> pytest.MarkDecorator:
    missing = [module for module in modules if find_spec(module) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} is not installed here")


def needs_program(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(name) is None, reason=f"the program {name} is not installed here")


@pytest.fixture
def folder(tmp_path: Path, images: ImageSet, description) -> Path:
    """A version in a folder."""
    store = open_store(str(tmp_path / "releases"))
    return Path(publish(store, "digits", images.root, description=description, documents={}).url)


@pytest.fixture
def on_s3(s3_url: str, images: ImageSet, description) -> str:
    """The same version on a server, as s3://bucket/prefix/digits/v=VERSION."""
    return publish(open_store(s3_url), "digits", images.root, description=description, documents={}).url


@pytest.fixture
def expected(images: ImageSet) -> Rows:
    found = images.table("train")
    pngs = [hashlib.sha256(image["bytes"]).hexdigest() for image in found["image"].to_pylist()]
    return [list(row) for row in zip(found["label"].to_pylist(), pngs, strict=True)]


@pytest.fixture
def run(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a program in an empty folder, with the server in the environment as its user would say; what it printed."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.setenv("FORGELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # offline, `datasets` opens no s3:// either
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")  # Polars' word for a server without a certificate
    here = tmp_path / "user"

    def run(*words: str) -> str:
        here.mkdir(exist_ok=True)
        said = subprocess.run(words, capture_output=True, text=True, cwd=here)
        assert said.returncode == 0, said.stderr
        return said.stdout

    return run


@pytest.fixture
def read(run: Callable[..., str], record_property: Callable[[str, object], None]) -> Callable[..., list[Rows]]:
    """Runs a script; what it found in each place. The versions of the clients that it ran are said at the end."""

    def read(script: str, *places: str | Path) -> list[Rows]:
        said = run(sys.executable, "-c", SCRIPT.format(script=script, clients=CLIENTS), *map(str, places))
        found: list[Rows]
        found, ran = json.loads(said.splitlines()[-1])
        assert ran
        for client in ran:
            record_property("client", client)
        return found

    return read


@needs("pandas", "s3fs")
def test_pandas(folder: Path, on_s3: str, read: Read, expected: Rows) -> None:
    script = """
import fsspec, pandas
def rows(place):
    disk, path = fsspec.url_to_fs(place)
    names = sorted(disk.glob(path + "/train-*.parquet"))
    frame = pandas.concat(pandas.read_parquet(disk.unstrip_protocol(name)) for name in names)
    return [[label, sha256(image["bytes"])] for image, label in zip(frame["image"], frame["label"])]
"""
    assert read(script, folder, on_s3) == [expected, expected]


@needs("polars")
def test_polars(folder: Path, on_s3: str, read: Read, expected: Rows) -> None:
    script = """
import polars
def rows(place):
    frame = polars.scan_parquet(place + "/train-*.parquet").filter(polars.col("label") == 1).collect()
    return [[row["label"], sha256(row["image"]["bytes"])] for row in frame.iter_rows(named=True)]
"""
    ones = [row for row in expected if row[0] == 1]
    assert read(script, folder, on_s3) == [ones, ones]


@needs("duckdb", "s3fs")
def test_duckdb(folder: Path, on_s3: str, read: Read, expected: Rows) -> None:
    script = """
import duckdb, fsspec
def rows(place):
    base = duckdb.connect()
    if place.startswith("s3://"):  # without its extension httpfs, which it would download
        base.register_filesystem(fsspec.filesystem("s3"))
    found = base.sql(f"select label, image.bytes from '{place}/train-*.parquet' where confidence > 0.51")
    return [[label, sha256(png)] for label, png in found.fetchall()]
"""
    found = read(script, folder, on_s3)
    assert found[0] == found[1]
    assert len(found[0]) == 13
    assert [row for row in expected if row in found[0]] == found[0]


@needs("datasets", "s3fs")
def test_datasets(folder: Path, on_s3: str, read: Read, expected: Rows) -> None:
    script = """
import datasets
datasets.disable_progress_bars()
def rows(place):
    if place.startswith("s3://"):
        images = datasets.load_dataset("parquet", data_files={"train": place + "/train-*.parquet"}, split="train")
    else:
        images = datasets.load_dataset(place, split="train")
    assert images.features["label"].names == ["zero", "one", "two"]
    assert images[0]["image"].size == (8, 8)
    images = images.cast_column("image", datasets.Image(decode=False))
    return [[row["label"], sha256(row["image"]["bytes"])] for row in images]
"""
    assert read(script, folder, on_s3) == [expected, expected]


@needs("webdataset")
def test_webdataset(on_s3: str, read: Read, tmp_path: Path, expected: Rows) -> None:
    tars = pull(on_s3.replace("/v=", "@"), tmp_path / "tars", layout="webdataset")
    script = """
import glob, webdataset
def rows(place):
    images = webdataset.WebDataset(sorted(glob.glob(place + "/train-*.tar")), shardshuffle=False)
    decoded = images.decode("rgb8").to_tuple("png", "cls")
    assert {image.shape for image, _ in decoded} == {(8, 8, 3)}
    return [[int(label), sha256(png)] for png, label in images.to_tuple("png", "cls")]
"""
    assert read(script, tars) == [expected]


@needs("mlcroissant")
def test_mlcroissant(folder: Path, on_s3: str, read: Read, tmp_path: Path, expected: Rows) -> None:
    pulled = pull(on_s3.replace("/v=", "@"), tmp_path / "pulled")  # it knows no s3://
    script = """
import mlcroissant
def rows(place):
    dataset = mlcroissant.Dataset(jsonld=place + "/croissant.json")
    issues = dataset.metadata.ctx.issues
    assert not issues.errors and not issues.warnings, issues.report()
    assert [row["classes/name"] for row in dataset.records("classes")] == ["zero", "one", "two"]
    return [[row["train/label"], str(row["train/image"].size)] for row in dataset.records("train")]
"""
    found = [[label, "(8, 8)"] for label, _ in expected]
    assert read(script, folder, pulled) == [found, found]


COPIES = {
    "cp": ("cp", "-r"),
    "aws": ("aws", "s3", "cp", "--recursive", "--only-show-errors"),
    "rclone": ("rclone", "copy", "--quiet"),
}


@needs_program("sha256sum")
@pytest.mark.parametrize("program", [pytest.param(name, marks=needs_program(name)) for name in COPIES])
def test_a_copy_is_checked_by_sha256sum(
    program: str,
    folder: Path,
    on_s3: str,
    endpoint: str,
    run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    for key, value in {"TYPE": "s3", "PROVIDER": "Other", "ENV_AUTH": "true", "ENDPOINT": endpoint}.items():
        monkeypatch.setenv(f"RCLONE_CONFIG_HERE_{key}", value)
    monkeypatch.setenv("RCLONE_CONFIG", "")
    place = {"cp": str(folder), "aws": on_s3, "rclone": on_s3.replace("s3://", "here:")}[program]
    copy = tmp_path / "copy"
    for each in (program, "sha256sum"):
        record_property("client", run(each, "--version").splitlines()[0])
    run(*COPIES[program], place, str(copy))
    said = run("sh", "-c", f"cd '{copy}' && sha256sum --strict -c SHA256SUMS")
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    assert sorted(said.splitlines()) == sorted(f"{line.split('  ')[1]}: OK" for line in lines)
    assert {path.name for path in copy.iterdir()} == {path.name for path in folder.iterdir()}


@needs("datasets", "pandas")
@needs_program("aws")
def test_what_the_card_says_of_loading_works_as_it_stands(on_s3: str, run, tmp_path: Path) -> None:
    store, _, version = on_s3.rpartition("/digits/")
    card = open_store(store).read(f"digits/{version}/README.md")
    assert card
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", card[0].decode(), re.MULTILINE | re.DOTALL)
    assert [language for language, _ in blocks] == ["python", "python", "python", "sh"]
    for line in blocks[-1][1].splitlines():  # with Forgeline; without it
        assert "digits" in line
        run("bash", "-ec", f"rm -rf digits; {line}")
        assert {path.name for path in (tmp_path / "user").iterdir()} == {"digits"}
    for (_, code), name in zip(blocks[1:], ("images", "frame"), strict=False):
        assert run(sys.executable, "-c", f"{code}\nprint(len({name}))").splitlines()[-1] == "24"
    mixed = f"real = [(None, 0)] * 9\n{blocks[0][1]}\nprint(len(images))"  # the 24 are 70 %
    assert run(sys.executable, "-c", mixed).splitlines()[-1] == "34"
