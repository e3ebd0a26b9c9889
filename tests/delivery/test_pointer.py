from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.delivery import open_store
from pipeline.delivery.pointer import Move, Pointer, move, read_pointers
from pipeline.errors import FailedError, UserError

JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["version", "since"]), inner),
)


def moves(*acts: tuple[str, str]) -> tuple[Move, ...]:
    """Of (action, version), the oldest first as they are made; the newest first as they are kept."""
    made = [Move(version=version, since="", action=action, by="", why="") for action, version in acts]
    return tuple(reversed(made))


@pytest.mark.parametrize(
    ("acts", "earlier"),
    [
        ([("publish", "a")], []),
        ([("publish", "a"), ("publish", "b"), ("publish", "c")], ["b", "a"]),
        ([("publish", "a"), ("publish", "b"), ("publish", "c"), ("rollback", "b")], ["a"]),
        ([("publish", "a"), ("publish", "b"), ("yank", "a"), ("publish", "c")], ["a"]),
        ([("publish", "a"), ("publish", "b"), ("promote", "a")], ["b"]),
        ([("publish", "a"), ("publish", "b"), ("promote", "a"), ("rollback", "b")], []),
    ],
)
def test_what_a_channel_named_before(acts: list[tuple[str, str]], earlier: list[str]) -> None:
    assert Pointer(channel="latest", moves=moves(*acts), tag="").earlier() == earlier


def test_a_channel_is_made_and_moved(url: str) -> None:
    store = open_store(url)
    for version in ("a", "b"):
        store.create(f"digits/v={version}/manifest.json", b"{}")
    move(store, "digits", "a", None, action="promote", channel="stable", why="it is good")
    move(store, "digits", "b", Pointer.read(store, "digits", "stable"), action="promote", channel="stable")
    move(store, "digits", "b", None, action="publish")
    latest, stable = read_pointers(store, "digits")
    assert (latest.channel, latest.version) == ("latest", "b")
    assert [(each.version, each.why) for each in stable.moves] == [("b", ""), ("a", "it is good")]


def test_a_move_from_what_is_no_longer_named_is_a_lost_race(url: str) -> None:
    store = open_store(url)
    for version in ("a", "b", "c"):
        store.create(f"digits/v={version}/manifest.json", b"{}")
    move(store, "digits", "a", None, action="publish")
    before = Pointer.read(store, "digits")
    move(store, "digits", "b", before, action="publish")
    with pytest.raises(FailedError, match="another publisher was faster and made b the latest"):
        move(store, "digits", "c", before, action="publish")
    assert Pointer.read(store, "digits").version == "b"


def test_a_version_that_is_removed_meanwhile_is_not_named(url: str) -> None:
    store = open_store(url)
    store.create("digits/v=a/manifest.json", b"{}")
    move(store, "digits", "a", None, action="publish")
    with pytest.raises(FailedError, match="version b was removed meanwhile"):
        move(store, "digits", "b", Pointer.read(store, "digits"), action="promote")
    assert [each.version for each in Pointer.read(store, "digits").moves] == ["a"]


@pytest.mark.parametrize("channel", ["0123456789abcdef", "Stable", "../x", ""])
def test_a_channel_needs_a_name_unlike_a_version(url: str, channel: str) -> None:
    with pytest.raises(UserError, match="cannot be a channel"):
        move(open_store(url), "digits", "a", None, action="promote", channel=channel)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"schema_version": 1}', b'{"schema_version": 2}', b"\xff", b"[" * 9999]
)
def test_a_pointer_that_is_none_is_refused(tmp_path, content: bytes) -> None:
    store = open_store(str(tmp_path))
    store.create("digits/latest.json", content)
    with pytest.raises(FailedError, match=r"digits/latest\.json: "):
        Pointer.read(store, "digits")


@given(history=JSON, version=st.text(max_size=5))
def test_any_pointer_is_read_or_refused_in_a_sentence(history: object, version: str) -> None:
    class Holding:
        url = "store"

        def read(self, key: str) -> tuple[bytes, str]:
            return json.dumps({"schema_version": 1, "version": version, "history": history}).encode(), "tag"

    with pytest.raises(FailedError) as caught:  # none of these is a whole move
        Pointer.read(Holding(), "digits")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", ["../../elsewhere", "s3://other/v=1", "/etc", ""])
def test_a_pointer_to_elsewhere_is_refused(tmp_path, version: str) -> None:
    store = open_store(str(tmp_path))
    history = [{"version": version, "since": "", "action": "publish", "by": "", "why": ""}]
    content = {"schema_version": 1, "version": version, "history": history}
    store.create("digits/latest.json", json.dumps(content).encode())
    with pytest.raises(FailedError, match=r"digits/latest\.json: points to"):
        Pointer.read(store, "digits")
