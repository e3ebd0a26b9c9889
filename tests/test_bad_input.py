"""What a user can get wrong, through the command line: one sentence, the right status, nothing half-written."""

from __future__ import annotations

import io
import shutil
import stat
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import recipes
from pipeline.cli import main

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with the recipe for images of one's own, which are in the folder `images`."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FORGELINE_CACHE", str(tmp_path / "cache"))
    shutil.copy(ROOT / "dvc.yaml", folder)
    recipes.use("images", folder / "params.yaml")
    for name in ("cat", "dog"):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(6):
            (folder / "images" / name / f"{number}.png").write_bytes(picture(number))
    return folder


@pytest.fixture
def refused(workspace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A function that runs commands until one ends with another status than 0, which must be `status`.

    It gives the sentence, and checks that nothing new but what earlier commands wrote is there.
    """

    def run(*commands: str, status: int) -> str:
        for command in commands:
            before = set(workspace.rglob("*"))
            monkeypatch.setattr(sys, "argv", ["forgeline", *command.split()])
            try:
                main()
                ended: object = 0
            except SystemExit as leaving:
                ended = leaving.code
            err = capfd.readouterr().err
            if ended:
                break
        assert ended == status
        assert "Traceback" not in err
        *_, last = err.splitlines()
        new = {path.relative_to(workspace).as_posix() for path in set(workspace.rglob("*")) - before}
        assert new <= {"out", "out/quarantine.json"}
        return last.removeprefix("forgeline: ")

    return run


def picture(seed: int) -> bytes:
    data = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


INGEST = ("stage source", "stage ingest")


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("max_bad_fraction:", "max_bad_fracton:", "ingest.max_bad_fracton is not a setting; did you mean 'max_bad_"),
        ("image_size: 32", "image_size: large", "ingest.image_size is the text 'large'; needed a whole number"),
        ("kind: images", "kind: image", "source.kind is 'image'; did you mean 'images'?"),
        ("ingest:", "ingset:", "ingest is missing; did you misspell it as 'ingset'?"),
        ("images_seen: 100_000", "images_seen: 100_000\n  images_seen: 1", "is not YAML: line "),
    ],
)
def test_settings(refused: Callable[..., str], old: str, new: str, sentence: str) -> None:
    text = Path("params.yaml").read_text()
    assert old in text
    Path("params.yaml").write_text(text.replace(old, new, 1))
    assert refused(*INGEST, status=2).startswith(f"params.yaml: {sentence}")


def test_an_unknown_family(refused: Callable[..., str]) -> None:
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("family: dcgan", "family: dcgam"))
    sentence = refused("stage train", status=2)
    assert sentence == "params.yaml: train.family is 'dcgam'; did you mean 'dcgan'?"


def test_an_empty_folder(refused: Callable[..., str]) -> None:
    shutil.rmtree("images/cat")
    shutil.rmtree("images/dog")
    assert refused(*INGEST, status=2) == "images: is empty; needed pictures, flat or in class folders"


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("cut.png", picture(0)[:2000], "is a damaged PNG picture (image file is truncated"),
        ("text.png", b"text", "is no picture that can be read"),
        ("zero.png", b"", "is 0 bytes long"),
    ],
)
def test_bad_pictures(refused: Callable[..., str], name: str, data: bytes, reason: str) -> None:
    Path("images/cat", name).write_bytes(data)
    sentence = refused(*INGEST, status=1)
    assert sentence.startswith(
        f"images: 1 of 13 files (7.7%) are bad, ingest.max_bad_fraction is 0.01: cat/{name} {reason}"
    )
    assert sentence.endswith("; out/quarantine.json lists all of them")


def test_a_decompression_bomb(refused: Callable[..., str]) -> None:
    Image.new("1", (50_000, 2_000)).save("images/dog/bomb.png")
    sentence = refused(*INGEST, status=1)
    assert "dog/bomb.png is 50,000×2,000 pixels by its header; needed at most 40,000,000 in all" in sentence


def test_a_class_with_one_image(refused: Callable[..., str]) -> None:
    Path("images/eel").mkdir()
    Path("images/eel/only.png").write_bytes(picture(50))
    sentence = refused(*INGEST, status=2)
    assert sentence.startswith("images: class 'eel' has no image in test, of 1 in all; needed at least one to train on")


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("entry", ["../evil.png", "cat/../../evil.png", "/tmp/evil.png", "C:\\evil.png", "link"])
def test_archives_that_reach_out(refused: Callable[..., str], workspace: Path, kind: str, entry: str) -> None:
    data = picture(1)
    if kind == "zip":
        with zipfile.ZipFile("set.zip", "w") as archive:
            archive.writestr("cat/1.png", data)
            info = zipfile.ZipInfo(entry)
            if entry == "link":
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, data)
    else:
        with tarfile.open("set.tar", "w") as tar:
            member = tarfile.TarInfo(entry)
            if entry == "link":
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            else:
                member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("url: images ", f"url: set.{kind} "))
    sentence = refused(*INGEST, status=2)
    needed = "is a link, a device or a sparse file; needed plain files" if entry == "link" else "lies outside of it"
    assert sentence.startswith(f"set.{kind}: its entry '{entry}' {needed}")
    assert not Path("/tmp/evil.png").exists()
    assert not (workspace.parent / "evil.png").exists()


def test_labels_that_are_not_counted_from_0(refused: Callable[..., str]) -> None:
    recipes.use("parquet", Path("params.yaml"))
    Path("dataset").mkdir()
    rows = pa.table({"image": [picture(number) for number in range(12)], "label": [0, 1, 5] * 4})
    pq.write_table(rows, "dataset/train.parquet")
    assert refused(*INGEST, status=2) == (
        "dataset: train.parquet has the label 5; needed 0 to 2, as there are 3 different labels"
    )


def test_a_data_set_that_is_not_there_and_may_not_be_downloaded(refused: Callable[..., str]) -> None:
    recipes.use("cifar10", Path("params.yaml"))
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("dataset: cifar10", "dataset: cifar10\n  download: false"))
    assert refused(*INGEST, status=2) == (
        "data/torchvision: has no cifar10 that torchvision.datasets.CIFAR10 can read; needed its files unpacked there, "
        "or source.download: true"
    )


def test_a_pull_into_a_folder_that_is_not_empty(refused: Callable[..., str], workspace: Path) -> None:
    assert refused("pull releases/digits images", status=2) == (
        f"{workspace / 'images'}: is not empty; needed a new or an empty folder"
    )


def test_a_store_that_is_not_there(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    assert refused("list s3://bucket/sets", status=1) == (
        "s3://bucket/sets: http://127.0.0.1:9 did not answer (EndpointConnectionError)"
    )
