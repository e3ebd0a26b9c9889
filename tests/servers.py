"""S3 servers on loopback for tests: moto's in this process, or a real Ceph gateway where FORGELINE_TEST_S3=ceph.

And rclone's, which ignores conditional writes, and a proxy before any of them, which misbehaves on request.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

KEY, SECRET = "marked-key-id", "marked-secret-of-the-store"
_PATIENCE_SECONDS = 120
_PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "ceph", "radosgw-admin", "monmaptool")

# One monitor, one OSD that keeps everything in memory, one gateway; nobody but this machine can reach them.
_CONFIGURATION = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{ports[0]},v1:127.0.0.1:{ports[1]}]
public addr = 127.0.0.1
ms bind ipv4 = true
auth cluster required = none
auth service required = none
auth client required = none
ms mon client mode = crc
keyring = /dev/null
mon allow pool size one = true
mon data avail crit = 0
mon data = {folder}/mon
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 2147483648
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd crush chooseleaf type = 0
run dir = {folder}
log file = {folder}/$name.log
admin socket = {folder}/$name.asok
pid file =
[client.admin]
rgw frontends = beast endpoint=127.0.0.1:{ports[2]}
rgw data = {folder}/rgw
"""


def is_ceph() -> bool:
    return os.environ.get("FORGELINE_TEST_S3") == "ceph"


@contextmanager
def s3_server() -> Iterator[str]:
    """The URL of a server whose keys are KEY and SECRET."""
    with ceph() if is_ceph() else moto() as url:
        yield url


@contextmanager
def moto() -> Iterator[str]:
    """It believes every key."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@dataclass(frozen=True, kw_only=True)
class _Cluster:
    """Ceph's programs with the configuration of `folder`."""

    folder: Path

    def run(self, *words: str) -> str:
        """What a program that ends says."""
        words = (words[0], "--conf", str(self.folder / "ceph.conf"), *words[1:])
        return subprocess.run(words, check=True, capture_output=True, text=True, timeout=_PATIENCE_SECONDS).stdout

    @contextmanager
    def running(self, *words: str, ready: Callable[[], bool]) -> Iterator[None]:
        """A program that serves in the block, from when it is ready."""
        log = self.folder / f"{words[0]}.out"
        with log.open("wb") as output:
            words = (words[0], "--conf", str(self.folder / "ceph.conf"), *words[1:])
            process = subprocess.Popen(words, stdout=output, stderr=output, start_new_session=True)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        try:
            while not ready():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.3)
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def says(self, word: str, *words: str) -> bool:
        with suppress(subprocess.SubprocessError):
            return word in self.run("ceph", "--connect-timeout", "5", *words)
        return False


@contextmanager
def ceph() -> Iterator[str]:
    """A gateway of Debian's packages ceph-mon, ceph-osd and radosgw; what is stored is gone with it."""
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    assert not missing, f"FORGELINE_TEST_S3 is ceph, and there is no {', '.join(missing)}; needed Debian's radosgw"
    fsid, osd = (Path("/proc/sys/kernel/random/uuid").read_text().strip() for _ in range(2))
    with TemporaryDirectory(prefix="ceph") as name, ExitStack() as stack:
        folder = Path(name)
        for part in ("mon", "osd", "rgw"):
            (folder / part).mkdir()
        ports = _free_ports(3)
        (folder / "ceph.conf").write_text(_CONFIGURATION.format(fsid=fsid, ports=ports, folder=folder))
        cluster, url = _Cluster(folder=folder), f"http://127.0.0.1:{ports[2]}"
        address = f"[v2:127.0.0.1:{ports[0]},v1:127.0.0.1:{ports[1]}]"
        cluster.run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, str(folder / "monmap"))
        cluster.run("ceph-mon", "--mkfs", "--id", "a", "--monmap", str(folder / "monmap"))
        monitor = ("ceph-mon", "--id", "a", "--foreground")
        stack.enter_context(cluster.running(*monitor, ready=lambda: cluster.says(fsid, "fsid")))
        cluster.run("ceph", "osd", "new", osd)
        cluster.run("ceph-osd", "--id", "0", "--mkfs", "--osd-uuid", osd)
        store = ("ceph-osd", "--id", "0", "--foreground")
        stack.enter_context(cluster.running(*store, ready=lambda: cluster.says("1 up", "osd", "stat")))
        cluster.run("ceph", "osd", "crush", "add", "osd.0", "1.0", "root=default", "host=localhost")
        gateway = ("radosgw", "--name", "client.admin", "--foreground")
        stack.enter_context(cluster.running(*gateway, ready=lambda: _answers(url)))
        user = ("--uid", "tests", "--display-name", "tests", "--access-key", KEY, "--secret-key", SECRET)
        cluster.run("radosgw-admin", "user", "create", *user)
        yield url


def _answers(url: str) -> bool:
    with suppress(OSError):
        urllib.request.urlopen(url, timeout=5)
        return True
    return False


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


@contextmanager
def rclone() -> Iterator[str]:
    """A server of rclone's that keeps buckets in a folder and ignores conditional writes. Its keys are those above."""
    program = shutil.which("rclone", path=str(Path(sys.executable).parent))  # not Debian's, which is no server
    assert program, "there is no rclone beside Python; needed pip install '.[dev]'"
    with TemporaryDirectory(prefix="rclone") as folder:
        [port] = _free_ports(1)
        command = [program, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY},{SECRET}", folder]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        try:
            while not _listens(port):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


class Proxy:
    """Passes requests on to the S3 server. `fault` sees (number, method, path, headers) and may answer otherwise:

    'drop': closes the connection at once; 'lose': passes the request on and closes; 'cut': sends half of the answer;
    'trickle': sends the answer a few bytes at a time; 'flip': changes a byte of what was sent, 'garble' one of the
    answer; a number: that status and nothing passed on. It may change the headers that are passed on. As S3 does and
    moto does not, it refuses a body that has not the sha256 that was signed.
    """

    def __init__(self, target: str) -> None:
        self.fault: Callable[[int, str, str, dict[str, str]], str | int | None] = lambda *_: None
        self.log: list[tuple[str, str]] = []
        proxy, lock, host = self, threading.Lock(), target.removeprefix("http://")

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                headers = {key.lower(): value for key, value in self.headers.items()}
                body = self.rfile.read(int(headers.get("content-length", 0)))
                headers.pop("expect", None)
                with lock:
                    proxy.log.append((self.command, self.path))
                    number = len(proxy.log)
                fault = proxy.fault(number, self.command, self.path, headers)
                if fault == "drop":
                    self.close_connection = True
                    return
                if fault == "flip" and body:
                    body = bytes([body[0] ^ 1]) + body[1:]
                if body and headers["x-amz-content-sha256"] != hashlib.sha256(body).hexdigest():
                    fault = 400
                if isinstance(fault, int):
                    status, sent, content = fault, [], b"<Error><Code>Fault</Code><Message>injected</Message></Error>"
                else:
                    server = http.client.HTTPConnection(host)
                    server.request(self.command, self.path, body, headers)
                    answer = server.getresponse()
                    status, sent, content = answer.status, answer.getheaders(), answer.read()
                    server.close()
                if fault == "lose":
                    self.close_connection = True
                    return
                if fault == "garble" and content:
                    middle = len(content) // 2
                    content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
                self.send_response(status)
                for key, value in sent:
                    if key.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                        self.send_header(key, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if fault == "cut":
                    content = content[: len(content) // 2]
                    self.close_connection = True
                if self.command != "HEAD":
                    step = len(content) // 50 + 1 if fault == "trickle" else len(content) + 1
                    for start in range(0, len(content), step):
                        self.wfile.write(content[start : start + step])
                        time.sleep(0.005 if fault == "trickle" else 0)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any  # noqa: N815

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    @contextmanager
    def serving(self) -> Iterator[Proxy]:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        try:
            yield self
        finally:
            self.server.shutdown()
            self.server.server_close()
