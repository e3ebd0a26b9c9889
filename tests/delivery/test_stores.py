from __future__ import annotations

import ctypes
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
import servers

from pipeline.delivery import check, list_releases, open_release, open_store, publish, pull, verify
from pipeline.delivery.keeping import open_release_store
from pipeline.delivery.stores import MAX_BYTES
from pipeline.delivery.versions import find
from pipeline.errors import FailedError, ForgelineError, UserError


def test_an_object_is_created_once(url: str) -> None:
    store = open_store(url)
    assert store.create("digits/a", b"first")
    assert not store.create("digits/a", b"second")
    assert store.read("digits/a")[0] == b"first"


def test_a_file_arrives_as_it_is(url: str, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(content)
    store = open_store(url)
    store.create("digits/v=1/file", tmp_path / "file")
    assert b"".join(store.chunks("digits/v=1/file")) == content
    assert store.sizes("digits/v=1/") == {"digits/v=1/file": len(content)}


def test_folders_are_the_names_directly_below(url: str) -> None:
    store = open_store(url)
    for key in ("digits/v=1/a", "digits/v=2/a", "letters/v=1/b/c"):
        store.create(key, b"x")
    assert [name for name in store.folders("") if not name.startswith(".")] == ["digits", "letters"]
    assert store.folders("digits/") == ["v=1", "v=2"]
    assert store.folders("nothing/") == []


def test_a_swap_needs_the_tag_that_was_read(url: str) -> None:
    store = open_store(url)
    assert store.swap("digits/p", b"one", None)
    assert not store.swap("digits/p", b"two", None)
    _, tag = store.read("digits/p")
    assert store.swap("digits/p", b"two", tag)
    assert not store.swap("digits/p", b"three", tag)
    assert store.read("digits/p")[0] == b"two"


def test_a_swap_of_what_was_removed_is_refused(url: str) -> None:
    store = open_store(url)
    store.create("digits/p", b"one")
    _, tag = store.read("digits/p")
    store.delete("digits/p")
    assert not store.swap("digits/p", b"two", tag)
    assert store.read("digits/p") is None


def test_of_many_who_create_one_wins(url: str) -> None:
    store = open_store(url)
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda index: store.create("digits/a", b"%d" % index), range(16)))
    assert sum(won) == 1
    assert store.read("digits/a")[0] == b"%d" % won.index(True)


def test_of_many_who_swap_one_wins(url: str) -> None:
    store = open_store(url)
    store.create("digits/p", b"before")
    _, tag = store.read("digits/p")
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda index: store.swap("digits/p", b"%d" % index, tag), range(16)))
    assert sum(won) == 1
    assert store.read("digits/p")[0] == b"%d" % won.index(True)


def test_what_is_larger_than_it_may_be_is_not_read(url: str) -> None:
    store = open_store(url)
    store.create("digits/a", b"x" * (MAX_BYTES + 1))
    with pytest.raises(FailedError, match="digits/a: is larger than 4,194,304 bytes"):
        store.read("digits/a")


def test_a_missing_object_is_named(url: str) -> None:
    store = open_store(url)
    assert store.read("digits/a") is None
    with pytest.raises(FailedError, match="digits/a: is missing"):
        list(store.chunks("digits/a"))


def test_a_good_store_promises_all_and_keeps_nothing(url: str) -> None:
    store = open_store(url)
    promises = check(store)
    assert (promises.read, promises.write, promises.create, promises.swap) == (True, True, True, True)
    assert store.sizes("") == {}
    assert store.folders("") == []


def test_a_store_that_ignores_conditions_is_noticed(ignoring, s3_url: str) -> None:
    promises = check(open_store(s3_url))
    assert (promises.read, promises.write, promises.create, promises.swap) == (True, True, False, False)


@pytest.mark.parametrize(("method", "read", "write"), [("PUT", True, False), ("GET", False, True)])
def test_what_the_credentials_may_not_do_is_noticed(proxy, s3_url: str, method: str, read: bool, write: bool) -> None:
    proxy.fault = lambda number, found, path, headers: 403 if found == method else None
    promises = check(open_store(s3_url))
    assert (promises.read, promises.write) == (read, write)
    proxy.fault = lambda *_: None
    assert open_store(s3_url).sizes("") == {}


def test_a_server_that_wants_the_tag_without_quotes(unsigned, proxy, s3_url: str) -> None:
    def fault(number: int, method: str, path: str, headers: dict[str, str]) -> int | None:
        if "if-match" not in headers:
            return None
        if headers["if-match"].startswith('"'):
            return 412
        headers["if-match"] = f'"{headers["if-match"]}"'
        return None

    proxy.fault = fault
    promises = check(open_store(s3_url))
    assert promises.swap


def test_a_conflict_is_tried_again(proxy, s3_url: str) -> None:
    conflicts = iter([409, 409, 409])
    proxy.fault = lambda number, method, path, headers: next(conflicts, None) if method == "PUT" else None
    assert open_store(s3_url).create("digits/a", b"x")


def test_endless_conflicts_end_in_a_sentence(proxy, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.delivery.s3.random.uniform", lambda *_: 0.0)
    proxy.fault = lambda *_: 409
    with pytest.raises(FailedError, match="digits/a: other writers were in the way"):
        open_store(s3_url).create("digits/a", b"x")


def test_bytes_that_change_on_the_way_are_refused(proxy, s3_url: str) -> None:
    proxy.fault = lambda *_: "flip"
    store = open_store(s3_url)
    with pytest.raises(FailedError, match="PutObject failed with 400"):
        store.create("digits/a", b"x")
    assert store.read("digits/a") is None


def test_bytes_that_have_not_the_known_sha256_are_refused(
    request: pytest.FixtureRequest, s3_url: str, tmp_path: Path
) -> None:
    """Ceph itself refuses them."""
    if not servers.is_ceph():
        request.getfixturevalue("proxy")
    store = open_store(s3_url)
    (tmp_path / "file").write_bytes(b"y")
    known = hashlib.sha256(b"x").hexdigest()
    for source in (b"y", tmp_path / "file"):
        with pytest.raises(FailedError, match="PutObject failed with 400"):
            store.create("digits/a", source, known)
    assert store.read("digits/a") is None
    assert store.create("digits/a", b"x", known)


@pytest.mark.parametrize("words", ["", "gs://bucket/prefix", "https://host/bucket", "s3://"])
def test_what_is_no_store_is_the_users_mistake(words: str, endpoint: str) -> None:
    with pytest.raises(UserError, match="needed s3://bucket/prefix"):
        open_store(words)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (
            "https://host/digits?X-Amz-Credential=a/b&X-Amz-Signature=marked",
            "'https://host/digits?***' has a user or a query",
        ),
        ("s3://KEY:marked@bucket/sets", "'s3://***@bucket/sets' has a user or a query"),
        ("s3://KEY:mar/marked@bucket/digits@stable", "'s3://***@bucket/digits@stable' has a user or a query"),
        ("s3://bucket/digits?X-Amz-Signature=marked", "'s3://bucket/digits?***' has a user or a query"),
    ],
)
@pytest.mark.parametrize("act", [find, open_store, open_release_store])
def test_credentials_in_a_url_are_refused_and_not_shown(
    endpoint: str, url: str, said: str, act: Callable[[str], object]
) -> None:
    with pytest.raises(UserError) as caught:
        act(url)
    assert said in str(caught.value)
    assert "marked" not in str(caught.value)


def test_a_query_after_a_name_is_not_shown() -> None:
    with pytest.raises(UserError, match=r"^'digits\?\*\*\*' cannot be a release"):
        find("sets/digits?X-Amz-Signature=marked")


@pytest.mark.parametrize("place", ["127.0.0.1:9", "127.0.0.1 9", "127.0.0.1:nine"])
def test_credentials_in_an_endpoint_are_not_shown(s3_url: str, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://user:marked@{place}")
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: None)
    with pytest.raises(ForgelineError) as caught:
        open_store(s3_url).folders("")
    assert "user" not in str(caught.value)
    assert "marked" not in str(caught.value)


@pytest.mark.parametrize("url", ["s3://", "s3:///", "s3:///x"])
def test_a_store_without_a_bucket_is_refused(url: str) -> None:
    with pytest.raises(UserError, match=rf"^'{url}' names no bucket; needed s3://bucket/prefix$"):
        open_store(url)


def test_a_link_in_a_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"{}")
    (tmp_path / "store" / "digits").mkdir(parents=True)
    (tmp_path / "store" / "digits" / "latest.json").symlink_to(tmp_path / "elsewhere")
    store = open_store(str(tmp_path / "store"))
    for act in (lambda: store.read("digits/latest.json"), lambda: list(store.chunks("digits/latest.json"))):
        with pytest.raises(FailedError, match=r"digits/latest\.json: is a link; needed the object itself"):
            act()


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: is a file"):
        open_store(str(tmp_path / "file"))


@pytest.mark.parametrize("act", [lambda s: s.folders(""), lambda s: s.sizes("a/"), lambda s: s.create("a/b", b"x")])
def test_a_missing_bucket_is_named(endpoint: str, act: Callable[..., object]) -> None:
    with pytest.raises(UserError, match="there is no bucket 'nowhere-at-all'"):
        act(open_store("s3://nowhere-at-all/sets"))


def test_a_bucket_name_that_cannot_be(endpoint: str) -> None:
    with pytest.raises(UserError, match="Invalid bucket name"):
        open_store("s3://a bucket/x").folders("")


def test_refused_credentials_are_said(proxy, s3_url: str) -> None:
    proxy.fault = lambda *_: 403
    with pytest.raises(FailedError, match="PutObject is refused with these credentials"):
        open_store(s3_url).create("digits/a", b"x")


def test_a_store_that_is_not_there_is_said(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: None)
    with pytest.raises(FailedError, match=r"http://127\.0\.0\.1:9 did not answer"):
        open_store(s3_url).folders("")


def test_an_endpoint_that_cannot_be_is_said(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "127.0.0.1")
    with pytest.raises(UserError, match="Invalid endpoint"):
        open_store(s3_url)


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Takes the credentials out of the environment."""

    def forget() -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    return forget


@pytest.mark.parametrize(
    "act", [lambda s: s.create("a", b"x"), lambda s: s.swap("a", b"x", None), lambda s: s.delete("a")]
)
def test_a_writer_needs_credentials(s3_url: str, nobody: Callable[[], None], act: Callable[..., object]) -> None:
    open_store(s3_url).create("a", b"mine")
    nobody()
    with pytest.raises(FailedError, match="found no credentials; needed AWS_ACCESS_KEY_ID"):
        act(open_store(s3_url))


def test_a_private_bucket_is_refused_without_credentials_and_says_so(
    proxy, s3_url: str, nobody: Callable[[], None]
) -> None:
    nobody()
    proxy.fault = lambda number, method, path, headers: None if "authorization" in headers else 403
    for act in (lambda store: store.folders(""), lambda store: store.read("a"), lambda store: list(store.chunks("a"))):
        with pytest.raises(
            FailedError, match=r"found no credentials, and .* is refused without .*; needed AWS_ACCESS_KEY"
        ):
            act(open_store(s3_url))
    with pytest.raises(FailedError, match="found no credentials; needed AWS_ACCESS_KEY_ID"):
        check(open_store(s3_url))


def test_a_public_bucket_is_read_by_everybody(
    proxy, bucket: str, s3_url: str, nobody: Callable[[], None], images, description, tmp_path: Path
) -> None:
    """With no credentials and nothing but the URL."""
    allowed = {"Effect": "Allow", "Principal": "*", "Action": ["s3:GetObject", "s3:ListBucket"]}
    policy = {
        "Version": "2012-10-17",
        "Statement": [{**allowed, "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]}],
    }
    boto3.session.Session().client("s3").put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    version = publish(open_store(s3_url), "digits", images.root, description=description, documents={}).version
    signed = []
    proxy.fault = lambda number, method, path, headers: signed.append("authorization" in headers)
    nobody()
    assert [row.version for row in list_releases(open_store(s3_url))] == [version]
    assert verify(str(pull(f"{s3_url}/digits", tmp_path / "digits"))).version == version
    assert len(list(open_release(f"{s3_url}/digits").stream())) == 24
    assert set(signed) == {False}


def test_a_server_that_fails_is_said(proxy, s3_url: str) -> None:
    proxy.fault = lambda *_: 500
    with pytest.raises(FailedError, match="ListObjectsV2 failed with 500"):
        open_store(s3_url).folders("")


def run_in_a_process(code: str, url: str, limit: Callable[[], object]) -> str:
    """What `code` prints, with `store` open, in a process that began with `limit`."""
    code = (
        "import sys; from pipeline.delivery import check, open_store; from pipeline.errors import FailedError\n"
        f"store = open_store(sys.argv[1])\ntry: {code}\nexcept FailedError as error: print(error)\n"
    )
    arguments = [sys.executable, "-c", code, url]
    return subprocess.run(arguments, preexec_fn=limit, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("folder", ["releases", "releases/new"])
def test_a_folder_without_permission_is_said(tmp_path: Path, folder: str) -> None:
    def drop_what_lets_root_write() -> None:
        ctypes.CDLL(None).prctl(24, 1)  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE

    (tmp_path / "releases").mkdir(mode=0o555)
    url = str(tmp_path / folder)
    said = run_in_a_process("store.create('digits/a', b'x')", url, drop_what_lets_root_write)
    assert "cannot be written (Permission denied)" in said
    said = run_in_a_process("print(check(store))", url, drop_what_lets_root_write)
    assert said == "Promises(read=True, write=False, create=False, swap=False)\n"


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    said = run_in_a_process("store.create('digits/a', b'x' * 1_000_000)", str(tmp_path / "releases"), limit)
    assert "digits/a: cannot be written (File too large)" in said
    assert [path.name for path in (tmp_path / "releases").rglob("*") if path.is_file()] in ([], [".forgeline.lock"])
