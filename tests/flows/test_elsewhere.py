"""Where states are mirrored: beside what DVC keeps, in a folder, and on an S3 server that only its settings name."""

from __future__ import annotations

import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest
import servers

from flows.elsewhere import state_store
from pipeline.delivery.s3 import S3Store
from pipeline.delivery.stores import BrokenError
from pipeline.errors import UserError

Workspace = Callable[[str], Path]


def remote(folder: Path, url: str, **settings: str) -> None:
    """Make it the default DVC remote."""
    command = [sys.executable, "-m", "dvc", "remote", "add", "--quiet", "--default", "store", url]
    subprocess.run(command, cwd=folder, check=True)
    modify(folder, **settings)


def modify(folder: Path, **settings: str) -> None:
    for name, value in settings.items():
        command = [sys.executable, "-m", "dvc", "remote", "modify", "--quiet", "--local", "store", name, value]
        subprocess.run(command, cwd=folder, check=True)


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[servers.Proxy]:
    """Before an S3 server with the bucket 'states', of which the environment says nothing."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    keys = {"aws_access_key_id": servers.KEY, "aws_secret_access_key": servers.SECRET, "region_name": "us-east-1"}
    with servers.s3_server() as url, servers.Proxy(url).serving() as found:
        boto3.session.Session().client("s3", endpoint_url=url, **keys).create_bucket(Bucket="states")
        yield found


@pytest.mark.parametrize("by", ["keys", "profile"])
def test_the_store_is_reached_as_dvc_reaches_its_remote(
    proxy: servers.Proxy, workspace: Workspace, tmp_path: Path, by: str
) -> None:
    settings = {"access_key_id": servers.KEY, "secret_access_key": servers.SECRET}
    if by == "profile":
        credentials = tmp_path / "credentials"
        credentials.write_text(
            f"[store]\naws_access_key_id = {servers.KEY}\naws_secret_access_key = {servers.SECRET}\n"
        )
        settings = {"profile": "store", "credentialpath": str(credentials)}
    folder = workspace("  one: {cmd: 'true', outs: [one]}\n")
    remote(folder, f"s3://states/{by}", endpointurl=proxy.url, region="eu-central-7", **settings)
    signed: list[str] = []
    proxy.fault = lambda number, method, path, headers: signed.append(headers["authorization"])
    store = state_store(folder)
    assert store.create("key", b"state")
    assert [path for _, path in proxy.log] == [f"/states/{by}/state/key"]
    assert all(f"Credential={servers.KEY}/" in each and "/eu-central-7/s3/" in each for each in signed)


class Empty(BaseHTTPRequestHandler):
    """A store that has nothing."""

    def do_GET(self) -> None:
        self.send_response(404)
        self.end_headers()
        self.wfile.write(b"<Error><Code>NoSuchKey</Code></Error>")

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def https(proxy: servers.Proxy, tmp_path: Path) -> Iterator[str]:
    """The URL of a server whose certificate only the file `certificate` vouches for."""
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "certificate")]
    subprocess.run(["openssl", "req", "-x509", "-nodes", *subject, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    with ThreadingHTTPServer(("127.0.0.1", 0), Empty) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"https://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")  # as asked for
def test_certificates_are_trusted_as_dvc_trusts_them(https: str, workspace: Workspace, tmp_path: Path) -> None:
    folder = workspace("  one: {cmd: 'true', outs: [one]}\n")
    keys = {"access_key_id": servers.KEY, "secret_access_key": servers.SECRET, "region": "us-east-1"}
    remote(folder, "s3://states/tls", endpointurl=https, **keys)
    with pytest.raises(BrokenError, match="SSLError"):
        state_store(folder).read("key")
    for trusted in (str(tmp_path / "certificate"), "false"):
        modify(folder, ssl_verify=trusted)
        assert state_store(folder).read("key") is None
    modify(folder, use_ssl="false")
    command = [sys.executable, "-m", "dvc", "remote", "modify", "--quiet", "--local", "--unset", "store", "endpointurl"]
    subprocess.run(command, cwd=folder, check=True)
    store = state_store(folder)
    assert isinstance(store, S3Store)
    assert store.client.meta.endpoint_url == "http://s3.amazonaws.com"


def test_a_folder_is_one_too(workspace: Workspace, tmp_path: Path) -> None:
    folder = workspace("  one: {cmd: 'true', outs: [one]}\n")
    remote(folder, str(tmp_path / "remote"))
    assert state_store(folder).create("key", b"state")
    assert (tmp_path / "remote/state/key").read_bytes() == b"state"


def test_another_kind_of_remote_is_refused(workspace: Workspace) -> None:
    folder = workspace("  one: {cmd: 'true', outs: [one]}\n")
    sentence = r"^run.remote_stages: the default DVC remote is none; needed one on s3://, or a folder$"
    with pytest.raises(UserError, match=sentence):
        state_store(folder)
    remote(folder, "ssh://host/folder")
    with pytest.raises(UserError, match=r"the default DVC remote is ssh://host/folder; needed one on s3://"):
        state_store(folder)
