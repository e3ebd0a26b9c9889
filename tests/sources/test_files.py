from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import servers
from moto.core import set_initial_no_auth_action_count

from pipeline.errors import FailedError, UserError
from pipeline.sources.files import check_url, place_of


def every(path: str) -> bool:
    return True


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "raw"
    (root / "b" / "deep").mkdir(parents=True)
    (root / "b" / "deep" / "2.bin").write_bytes(b"two")
    (root / "a.bin").write_bytes(b"one")
    return root


def test_a_folder_lists_names_sizes_and_hashes_in_order(folder: Path) -> None:
    found = place_of(str(folder), single=False).inventory(every)
    assert list(found.items()) == [
        ("a.bin", {"bytes": 3, "sha256": "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"}),
        ("b/deep/2.bin", {"bytes": 3, "sha256": "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3"}),
    ]


def test_what_is_not_to_be_kept_is_not_listed(folder: Path) -> None:
    assert list(place_of(str(folder), single=False).inventory(lambda path: path.startswith("b"))) == ["b/deep/2.bin"]


def test_a_linked_folder_is_followed_and_a_circle_of_links_ends(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "3.bin").write_bytes(b"three")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "b" / "circle").symlink_to(folder)
    found = place_of(str(folder), single=False).inventory(every)
    assert list(found) == ["a.bin", "b/deep/2.bin", "linked/3.bin"]


def test_a_pipe_is_refused_and_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(UserError, match=r"raw/pipe: is a pipe.*; needed a regular file"):
        place_of(str(folder), single=False).inventory(every)


def test_a_link_to_nothing_is_refused(folder: Path) -> None:
    (folder / "b" / "link.bin").symlink_to(folder / "absent")
    with pytest.raises(UserError, match=r"raw/b/link\.bin: is a link to nothing; needed a file$"):
        place_of(str(folder), single=False).inventory(every)


@pytest.mark.parametrize("single", [False, True])
def test_a_place_that_is_not_there_is_named(tmp_path: Path, single: bool) -> None:
    with pytest.raises(UserError, match=r"absent: is not there; needed"):
        place_of(str(tmp_path / "absent"), single=single).inventory(every)


def test_a_file_in_place_of_a_folder_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"a\.bin: is a file; needed a folder"):
        place_of(str(folder / "a.bin"), single=False).inventory(every)


@pytest.mark.parametrize("change", ["b/deep/2.bin", None], ids=["changed", "gone"])
def test_a_file_that_is_not_as_listed_is_named(folder: Path, tmp_path: Path, change: str | None) -> None:
    place = place_of(str(folder), single=False)
    identity = place.inventory(every)["b/deep/2.bin"]
    if change:
        (folder / change).write_bytes(b"TWO")
    else:
        (folder / "b/deep/2.bin").unlink()
    with pytest.raises(FailedError, match=r"raw/b/deep/2\.bin: (changed|went away).*; run again"):
        place.read("b/deep/2.bin", identity)
    with pytest.raises(FailedError, match=r"raw/b/deep/2\.bin: (changed|went away).*; run again"):
        place.fetch("b/deep/2.bin", identity, tmp_path)


@pytest.mark.parametrize("url", ["s3://", "s3:///prefix", "https://host/set.zip", "gs://bucket/prefix", ""])
def test_a_url_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"^url is '.*'; needed a path of this machine or s3://bucket/prefix$"):
        check_url(url)


@pytest.mark.parametrize("url", ["s3://bucket", "s3://bucket/", "s3://bucket/a/b.zip", "data/photos", "C:photos", "/"])
def test_a_url_of_a_known_kind_is_taken(url: str) -> None:
    check_url(url)


def test_a_prefix_lists_sizes_and_etags_and_nothing_beside_it(s3: Any) -> None:
    for key in ("set/cat/1.png", "set/dog/1.png", "set/", "set-2/cat/1.png", "other"):
        s3.put_object(Bucket="raw", Key=key, Body=key.encode() if not key.endswith("/") else b"")
    found = place_of("s3://raw/set", single=False).inventory(every)
    assert list(found) == ["cat/1.png", "dog/1.png"]
    assert found["cat/1.png"] == {"bytes": 13, "etag": hashlib.md5(b"set/cat/1.png").hexdigest()}


def test_a_prefix_of_more_than_one_page_is_listed_whole(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if servers.is_ceph():
        pytest.skip("moto is needed, whose pages can be made small")
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "2")
    for name in "abcde":
        s3.put_object(Bucket="raw", Key=f"many/{name}", Body=b"")
    assert len(s3.list_objects_v2(Bucket="raw", Prefix="many/")["Contents"]) == 2
    assert list(place_of("s3://raw/many/", single=False).inventory(every)) == list("abcde")
    monkeypatch.delenv("MOTO_S3_DEFAULT_MAX_KEYS")


def test_one_object_is_listed_without_its_neighbours(s3: Any, tmp_path: Path) -> None:
    s3.put_object(Bucket="raw", Key="sets/a.zip", Body=b"zip")
    s3.put_object(Bucket="raw", Key="sets/a.zip.sha256", Body=b"...")
    place = place_of("s3://raw/sets/a.zip", single=True)
    found = place.inventory(every)
    assert list(found) == ["a.zip"]
    assert place.fetch("a.zip", found["a.zip"], tmp_path).read_bytes() == b"zip"


def test_an_object_that_changed_or_went_away_is_named(s3: Any, tmp_path: Path) -> None:
    s3.put_object(Bucket="raw", Key="set/1", Body=b"one")
    place = place_of("s3://raw/set", single=False)
    identity = place.inventory(every)["1"]
    assert place.read("1", identity) == b"one"
    s3.put_object(Bucket="raw", Key="set/1", Body=b"two")
    with pytest.raises(FailedError, match=r"s3://raw/set/1: changed after its inventory was taken; run again"):
        place.read("1", identity)
    s3.delete_object(Bucket="raw", Key="set/1")
    with pytest.raises(FailedError, match=r"s3://raw/set: an object went away"):
        place.fetch("1", identity, tmp_path)


def test_a_key_with_dots_is_fetched_into_the_folder(s3: Any, tmp_path: Path) -> None:
    s3.put_object(Bucket="raw", Key="set/../../escape", Body=b"out")
    place = place_of("s3://raw/set", single=False)
    ((path, identity),) = place.inventory(every).items()
    (tmp_path / "in").mkdir()
    assert place.fetch(path, identity, tmp_path / "in").parent == tmp_path / "in"
    assert [file.name for file in tmp_path.iterdir()] == ["in"]


def test_a_bucket_that_is_not_there_is_the_users_mistake(s3: Any) -> None:
    with pytest.raises(UserError, match=r"^s3://rwa/set: the store has no bucket 'rwa'; needed one that exists$"):
        place_of("s3://rwa/set", single=False).inventory(every)


def test_a_name_that_no_bucket_can_have_is_the_users_mistake(s3: Any) -> None:
    with pytest.raises(UserError, match=r"'My Bucket' cannot be the name of a bucket"):
        place_of("s3://My Bucket/set", single=False).inventory(every)


def test_an_object_that_is_not_there_is_the_users_mistake(s3: Any) -> None:
    with pytest.raises(UserError, match=r"s3://raw/absent\.zip: is not there"):
        place_of("s3://raw/absent.zip", single=True).inventory(every)


@set_initial_no_auth_action_count(0)  # for moto, which else believes every key
def test_a_store_that_refuses_is_named(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with pytest.raises(
        FailedError, match=r"^s3://raw/set: the store refuses to let these credentials read it \(\w+\)$"
    ):
        place_of("s3://raw/set", single=False).inventory(every)


def test_a_store_that_is_not_there_is_named(credentials: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as held:  # bound, and nobody listens
        held.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{held.getsockname()[1]}")
        with pytest.raises(FailedError, match=r"^s3://raw/set: the store cannot be reached \(.*\)$"):
            place_of("s3://raw/set", single=False).inventory(every)


def test_missing_credentials_are_named(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(FailedError, match=r"s3://raw/set: no credentials; needed AWS_ACCESS_KEY_ID or a profile"):
        place_of("s3://raw/set", single=False).inventory(every)
