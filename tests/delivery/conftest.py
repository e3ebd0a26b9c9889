"""Real stores: a folder, an S3 server on loopback, and a proxy before it that misbehaves on request."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import servers
from PIL import Image

from pipeline.delivery import Advice, Description, Lineage, Metric
from pipeline.imageset import ImageSet, Row, write_imageset

CONDITIONS = ("if-match", "if-none-match")


@pytest.fixture(scope="session")
def served() -> Iterator[str]:
    with servers.s3_server() as url:
        yield url


@pytest.fixture
def endpoint(served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The S3 server, and an environment that finds it and nothing of the person who runs the tests."""
    for key, value in {
        "AWS_ENDPOINT_URL_S3": served,
        "AWS_ACCESS_KEY_ID": servers.KEY,
        "AWS_SECRET_ACCESS_KEY": servers.SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no-credentials"),
    }.items():
        monkeypatch.setenv(key, value)
    for key in ("AWS_PROFILE", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(key, raising=False)
    return served


@pytest.fixture
def bucket(endpoint: str, tmp_path: Path) -> str:
    name = f"bucket-{abs(hash(tmp_path)):x}"
    boto3.session.Session().client("s3").create_bucket(Bucket=name)
    return name


@pytest.fixture
def s3_url(bucket: str) -> str:
    return f"s3://{bucket}/sets"


@pytest.fixture(params=["folder", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store of each kind."""
    if request.param == "folder":
        return str(tmp_path / "releases")
    found: str = request.getfixturevalue("s3_url")
    return found


@pytest.fixture
def proxy(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[servers.Proxy]:
    """A proxy before the S3 server that every store opened from now on goes through; retries do not wait."""
    with before(endpoint, monkeypatch) as found:
        yield found


@contextmanager
def before(target: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[servers.Proxy]:
    with servers.Proxy(target).serving() as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", found.url)
        monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: None)
        yield found


@pytest.fixture
def unsigned() -> None:
    """For tests that change a request on its way: a server that checks signatures sees another error."""
    if servers.is_ceph():
        pytest.skip("a server that does not check signatures is needed, as moto's")


@pytest.fixture(params=["moto", "rclone"])
def ignoring(request: pytest.FixtureRequest, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[servers.Proxy]:
    """A server that ignores conditional writes: moto's, which a proxy does not tell of them, or rclone's."""
    if request.param == "rclone":
        with servers.rclone() as target, before(target, monkeypatch) as found:
            yield found
        return

    def fault(number: int, method: str, path: str, headers: dict[str, str]) -> None:
        for name in CONDITIONS:
            headers.pop(name, None)

    request.getfixturevalue("unsigned")
    stripping: servers.Proxy = request.getfixturevalue("proxy")
    stripping.fault = fault
    yield stripping


def make_set(
    root: Path, seed: int = 0, *, classes: tuple[str, ...] = ("zero", "one", "two"), count: int = 24
) -> ImageSet:
    def rows() -> Iterator[Row]:
        random = np.random.default_rng(seed)
        for index in range(count):
            yield Row(
                split="train",
                label=index % len(classes),
                image=random.integers(0, 256, (1, 8, 8), np.uint8),
                path=f"{index:05d}.png",
                provenance={"seed": seed, "index": index, "confidence": 0.5 + index / 1000, "note": "drawn"},
            )

    return write_imageset(
        root,
        rows(),
        classes=classes,
        source={"kind": "digits", "licence": "CC BY 4.0"},
        resize=None,
        synthetic=True,
        generator={"family": "conditional", "model": "ab" * 32},
        shard_images=10,
    )


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    """24 synthetic images in three shards."""
    return make_set(tmp_path / "imageset")


@pytest.fixture
def make_images() -> Callable[..., ImageSet]:
    return make_set


def describe(**changes: Any) -> Description:
    picture = io.BytesIO()
    Image.new("L", (8, 8), 128).save(picture, format="PNG")
    lineage = Lineage(
        model="ab" * 32,
        params={"train": {"family": "conditional", "images": 1000}},
        seed=3,
        data_fingerprint="cd" * 32,
        dvc_lock="ef" * 32,
        git_commit="0123456789abcdef0123456789abcdef01234567",
        metrics={"synthetic": {"fid": 1.5}},
        validation={"synthetic": {"success": True}},
    )
    lineage = dataclasses.replace(lineage, **{key: changes.pop(key) for key in list(changes) if hasattr(lineage, key)})
    description = Description(
        title="Digits, synthetic",
        licence="CC BY 4.0",
        source="1,797 handwritten digits.",
        verdict="A classifier with 5 % of the real digits gains 3 points.",
        measured=(Metric(name="FID", value="1.5", protocol="24 images | in-domain"),),
        mixing=(Advice(real="58 (5 %)", share=0.7), Advice(real="1,134 (100 %)", share=0.0)),
        not_good_for=("Images larger than 8×8.",),
        how_made="A conditional GAN.",
        grid=picture.getvalue(),
        lineage=lineage,
    )
    return dataclasses.replace(description, **changes)


@pytest.fixture
def description() -> Description:
    return describe()


@pytest.fixture
def make_description() -> Callable[..., Description]:
    return describe
