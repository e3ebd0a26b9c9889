from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import servers
from numpy.typing import NDArray


@pytest.fixture
def write_idx() -> Callable[..., None]:
    """A function that writes images (N, 28, 28), the first `train` to train on, as files of the MNIST family."""

    def write(raw: Path, images: NDArray[np.uint8], *, labels: Sequence[int], train: int) -> None:
        raw.mkdir(parents=True)
        for name, part in (("train", slice(train)), ("t10k", slice(train, None))):
            count = len(labels[part])
            (raw / f"{name}-images-idx3-ubyte").write_bytes(
                struct.pack(">iiii", 2051, count, 28, 28) + images[part].tobytes()
            )
            (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, count) + bytes(labels[part]))

    return write


@pytest.fixture
def originals(tmp_path: Path) -> Path:
    """A writable root with the four original files of MNIST, packed as they are published."""
    data = os.environ.get("FORGELINE_TEST_DATA")
    found = Path(data, "torchvision", "MNIST", "raw") if data else None
    if found is None or not found.is_dir():
        pytest.skip("MNIST's original files are needed in $FORGELINE_TEST_DATA/torchvision/MNIST/raw")
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    for path in found.glob("*.gz"):
        shutil.copyfile(path, tmp_path / "MNIST" / "raw" / path.name)
    return tmp_path


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """A real S3 server on loopback."""
    with servers.s3_server() as url:
        yield url


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody's environment on a machine without an AWS configuration."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", servers.KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", servers.SECRET)


@pytest.fixture
def s3(server: str, credentials: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of the server, which has one bucket, `raw`."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server)
    client = boto3.session.Session().client("s3")
    client.create_bucket(Bucket="raw")
    yield client
    for item in client.list_objects_v2(Bucket="raw").get("Contents", []):
        client.delete_object(Bucket="raw", Key=item["Key"])
    client.delete_bucket(Bucket="raw")
    client.close()


@pytest.fixture
def upload(s3: Any) -> Callable[[Path, str], None]:
    """A function that puts a folder under a prefix of the bucket `raw`."""

    def put(folder: Path, prefix: str) -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                s3.put_object(Bucket="raw", Key=f"{prefix}/{path.relative_to(folder)}", Body=path.read_bytes())

    return put
