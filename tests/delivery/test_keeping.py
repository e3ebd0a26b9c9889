from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from unittest.mock import Mock

import pytest
from click.testing import CliRunner

from pipeline.cli import forgeline
from pipeline.delivery import keeping, list_releases, open_release, open_store, publish, pull, verify
from pipeline.delivery.pointer import Pointer
from pipeline.errors import FailedError, UserError

NOW = timedelta(0)


@pytest.fixture
def versions(url: str, tmp_path: Path, make_images, make_description, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three sets published as digits, the oldest first, a day between each."""
    found = []
    for seed in range(3):
        monkeypatch.setattr("pipeline.delivery.release.now", lambda day=seed: f"2026-11-0{day + 1}T00:00:00+00:00")
        images = make_images(tmp_path / f"set-{seed}", seed)
        found.append(
            publish(open_store(url), "digits", images.root, description=make_description(), documents={}).version
        )
    return found


def latest(url: str) -> str:
    return Pointer.read(open_store(url), "digits").version


def listed(url: str) -> list[str]:
    return [row.version for row in list_releases(open_store(url))]


def test_a_rollback_goes_back_and_further_back(url: str, versions: list[str]) -> None:
    first, second, third = versions
    assert keeping.rollback(f"{url}/digits", why="worse") == f"digits@{second}"
    assert keeping.rollback(f"{url}/digits", why="this one too") == f"digits@{first}"
    moves = Pointer.read(open_store(url), "digits").moves
    assert [(move.version, move.action, move.why) for move in moves] == [
        (first, "rollback", "this one too"),
        (second, "rollback", "worse"),
        (third, "publish", ""),
        (second, "publish", ""),
        (first, "publish", ""),
    ]
    with pytest.raises(UserError, match="latest named no version before"):
        keeping.rollback(f"{url}/digits", why="and this one")


def test_a_yanked_version_is_told_and_refused_unless_insisted_on(url: str, versions: list[str], tmp_path: Path) -> None:
    said = keeping.yank(f"{url}/digits@{versions[2]}", why="shows a person")
    assert said == [f"digits@{versions[2]}: yanked", f"latest: now digits@{versions[1]}"]
    assert latest(url) == versions[1]
    with pytest.raises(UserError, match=r"was yanked on .* \(shows a person\); needed another version, or --yanked"):
        pull(f"{url}/digits@{versions[2]}", tmp_path / "dest")
    assert not (tmp_path / "dest").exists()
    assert verify(str(pull(f"{url}/digits@{versions[2]}", tmp_path / "dest", yanked=True))).version == versions[2]
    assert [row.yanked for row in list_releases(open_store(url))] == ["shows a person", None, None]


def test_a_second_yank_changes_nothing(url: str, versions: list[str]) -> None:
    keeping.yank(f"{url}/digits@{versions[0]}", why="first")
    assert keeping.yank(f"{url}/digits@{versions[0]}", why="second") == [f"digits@{versions[0]}: was yanked already"]
    assert list_releases(open_store(url))[-1].yanked == "first"


def test_a_second_yank_changes_nothing_where_conditions_are_ignored(ignoring, s3_url: str, images, description) -> None:
    version = publish(open_store(s3_url), "digits", images.root, description=description, documents={}).version
    keeping.yank(f"{s3_url}/digits", why="first")
    assert keeping.yank(f"{s3_url}/digits", why="second")[0] == f"digits@{version}: was yanked already"
    assert list_releases(open_store(s3_url))[0].yanked == "first"


def test_the_only_version_can_be_yanked(url: str, images, description, tmp_path: Path) -> None:
    version = publish(open_store(url), "digits", images.root, description=description, documents={}).version
    said = keeping.yank(f"{url}/digits", why="a mistake")
    assert said[1] == f"latest: still names digits@{version}, for there is none to go back to; pullers are refused"
    with pytest.raises(UserError, match="a mistake"):
        pull(f"{url}/digits", tmp_path / "dest")


REMOVED = r"was yanked on \d{4}-\d\d-\d\d \(shows a person\) and removed; needed another version"


def test_the_only_version_can_be_removed(url: str, images, description, tmp_path: Path, make_images) -> None:
    version = publish(open_store(url), "digits", images.root, description=description, documents={}).version
    assert keeping.yank(f"{url}/digits", why="shows a person", remove=True) == [
        f"digits@{version}: yanked",
        f"latest: still names digits@{version}, for there is none to go back to; pullers are refused",
        f"digits@{version}: removed, but for the mark that it was yanked",
    ]
    assert open_store(url).sizes("digits/").keys() == {"digits/latest.json", f"digits/v={version}/yanked.json"}
    for release in (f"{url}/digits", f"{url}/digits@latest", f"{url}/digits@{version}"):
        for insist in (lambda at: pull(at, tmp_path / "dest", yanked=True), lambda at: open_release(at, yanked=True)):
            with pytest.raises(UserError, match=REMOVED):
                insist(release)
        with pytest.raises(UserError, match=REMOVED):
            verify(release)
    with pytest.raises(UserError, match=REMOVED):
        keeping.promote(f"{url}/digits@{version}", channel="stable", why="")
    assert not (tmp_path / "dest").exists()
    with pytest.raises(UserError, match=r"was yanked \(shows a person\); needed another set"):
        publish(open_store(url), "digits", images.root, description=description, documents={})
    assert keeping.prune(f"{url}/digits", keep=1) == keeping.collect(open_store(url), NOW) == []
    other = publish(
        open_store(url), "digits", make_images(tmp_path / "o", 1).root, description=description, documents={}
    )
    assert (other.latest, verify(f"{url}/digits").version) == (True, other.version)
    with pytest.raises(UserError, match="latest named no version before"):
        keeping.rollback(f"{url}/digits", why="")


def test_the_commands_say_that_a_version_was_removed(tmp_path: Path, images, description) -> None:
    url = str(tmp_path / "releases")
    version = publish(open_store(url), "digits", images.root, description=description, documents={}).version
    words = ["yank", f"{url}/digits", "--why", "shows a person", "--remove"]
    assert CliRunner().invoke(forgeline, words, catch_exceptions=False).exit_code == 0
    table = CliRunner().invoke(forgeline, ["list", url], catch_exceptions=False).stdout
    assert re.search(rf"digits +{version}  [\d-]+ [\d:]+ +latest +yanked and removed: shows a person *\n", table), table
    (row,) = json.loads(CliRunner().invoke(forgeline, ["list", url, "--json"]).stdout)
    assert (row["version"], row["yanked"], row["removed"], row["images"]) == (version, "shows a person", True, 0)
    with pytest.raises(UserError, match=REMOVED):
        CliRunner().invoke(forgeline, ["show", f"{url}/digits"], catch_exceptions=False)
    history = CliRunner().invoke(forgeline, ["history", f"{url}/digits"], catch_exceptions=False).stdout
    assert re.search(rf"latest +{version} .* yank +shows a person *\n", history)


def test_a_removal_that_was_cut_off_is_told_and_goes_on(
    url: str, versions: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Right after it took the manifest away: no reader sees what is left as whole."""
    with monkeypatch.context() as patch:
        patch.setattr(keeping, "_remove", Mock(side_effect=FailedError("the store is away")))
        with pytest.raises(FailedError, match="away"):
            keeping.yank(f"{url}/digits", why="shows a person", remove=True)
    assert len(open_store(url).sizes(f"digits/v={versions[2]}/")) > 4
    with pytest.raises(UserError, match=REMOVED):
        pull(f"{url}/digits@{versions[2]}", tmp_path / "dest", yanked=True)
    assert keeping.yank(f"{url}/digits@{versions[2]}", why="again", remove=True) == [
        f"digits@{versions[2]}: was yanked already",
        f"digits@{versions[2]}: removed, but for the mark that it was yanked",
    ]
    assert list(open_store(url).sizes(f"digits/v={versions[2]}/")) == [f"digits/v={versions[2]}/yanked.json"]
    assert latest(url) == versions[1]


@pytest.mark.parametrize("remove", [False, True])
def test_what_is_not_there_is_neither_yanked_nor_removed(url: str, versions: list[str], remove: bool) -> None:
    with pytest.raises(UserError, match="has no version '0123456789abcdef'"):
        keeping.yank(f"{url}/digits@0123456789abcdef", why="a mistake", remove=remove)
    assert not open_store(url).sizes("digits/v=0123456789abcdef/")


def test_a_yanked_set_is_neither_published_nor_promoted_again(
    url: str, versions, tmp_path: Path, make_images, description
) -> None:
    keeping.yank(f"{url}/digits@{versions[2]}", why="a mistake")
    images = make_images(tmp_path / "again", 2)
    with pytest.raises(UserError, match=r"was yanked \(a mistake\); needed another set"):
        publish(open_store(url), "digits", images.root, description=description, documents={})
    with pytest.raises(UserError, match=r"was yanked \(a mistake\); needed another version"):
        keeping.promote(f"{url}/digits@{versions[2]}", channel="stable", why="")


def test_prune_keeps_the_newest_and_what_a_channel_names(url: str, versions: list[str]) -> None:
    keeping.promote(f"{url}/digits@{versions[0]}", channel="stable", why="")
    assert keeping.prune(f"{url}/digits", keep=1) == [f"digits@{versions[1]}"]
    assert listed(url) == [versions[2], versions[0]]
    assert not open_store(url).sizes(f"digits/v={versions[1]}/")
    assert verify(f"{url}/digits@stable").version == versions[0]


def test_prune_removes_what_was_yanked_and_remembers_it(
    url: str, versions, tmp_path: Path, make_images, description
) -> None:
    keeping.yank(f"{url}/digits@{versions[2]}", why="a person")
    assert keeping.prune(f"{url}/digits", keep=2) == [f"digits@{versions[2]}"]
    assert list(open_store(url).sizes(f"digits/v={versions[2]}/")) == [f"digits/v={versions[2]}/yanked.json"]
    assert keeping.collect(open_store(url), NOW) == []
    with pytest.raises(UserError, match="a person"):
        publish(open_store(url), "digits", make_images(tmp_path / "x", 2).root, description=description, documents={})


def after(store, method: str, key: str, act: Callable[[], object]):
    """The store, where somebody else does `act` once right after `method` was called with `key`."""
    done = []

    class Watched(type(store)):
        def __getattribute__(self, name: str):
            found = super().__getattribute__(name)
            if name != method:
                return found

            def call(called: str, *rest, **more):
                answer = found(called, *rest, **more)
                if called.endswith(key) and not done:
                    done.append(True)
                    act()
                return answer

            return call

    watched = Watched.__new__(Watched)
    watched.__dict__.update(store.__dict__)
    return watched


def test_a_version_that_is_promoted_while_it_is_pruned_stays_whole(
    url: str, versions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pointer is moved right after prune took the manifest away: prune sees it and puts the manifest back."""
    store = open_store(url)
    old = keeping.read_version(store, "digits", versions[0])

    def promote_meanwhile() -> None:
        data, tag = store.read("digits/latest.json")
        assert store.swap("digits/latest.json", data.replace(versions[2].encode(), versions[0].encode()), tag)

    watched = after(store, "delete", "manifest.json", promote_meanwhile)
    assert not keeping._withdraw(watched, dataclasses.replace(old, store=watched))
    assert verify(f"{url}/digits@{versions[0]}").version == versions[0]


def leave_parts(url: str, tmp_path: Path, images, description) -> str:
    """What a publish leaves that was killed right before its manifest; the version."""
    store = open_store(url)
    version = publish(store, "digits", images.root, description=description, documents={}).version
    store.delete(f"digits/v={version}/manifest.json")
    store.delete("digits/latest.json")
    return version


def test_gc_removes_parts_after_a_safe_age_only(url: str, tmp_path: Path, images, description) -> None:
    version, store = leave_parts(url, tmp_path, images, description), open_store(url)
    before = store.sizes("digits/")
    assert keeping.collect(store, timedelta(hours=1)) == []
    assert store.sizes("digits/") == before
    assert keeping.collect(store, NOW) == [f"digits@{version}"]
    assert store.sizes("digits/") == {}


def test_gc_leaves_what_was_published(url: str, versions: list[str]) -> None:
    assert keeping.collect(open_store(url), NOW) == []
    assert verify(f"{url}/digits").version == versions[2]


@pytest.mark.parametrize("key", ["SHA256SUMS", "imageset.json", "README.md"])
def test_a_publish_that_goes_on_while_parts_are_collected_fails_or_is_whole(
    url: str, tmp_path: Path, images, description, key: str
) -> None:
    """Another publisher goes on with the same parts right after the collector removed one of them."""
    version, store = leave_parts(url, tmp_path, images, description), open_store(url)

    def go_on() -> None:
        with suppress(FailedError):
            publish(store, "digits", images.root, description=description, documents={})

    keeping.collect(after(store, "delete", key, go_on), NOW)
    if listed(url):
        verify(f"{url}/digits@{version}")


@pytest.mark.parametrize("words", ["digits", "s3://bucket"])
def test_what_is_no_release_is_said(words: str) -> None:
    with pytest.raises(UserError, match="is not a release; needed URL/NAME"):
        keeping.rollback(words, why="")
