from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """A real S3 server (moto's) on loopback."""
    running = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody's environment on a machine without an AWS configuration."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


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
