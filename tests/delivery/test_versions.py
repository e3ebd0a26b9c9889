from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from pipeline.cli import forgeline
from pipeline.delivery import find, list_releases, open_store, publish
from pipeline.delivery.keeping import promote
from pipeline.delivery.showing import releases_json
from pipeline.errors import FailedError, UserError


def test_a_list_has_every_version(url: str, tmp_path: Path, make_images, description) -> None:
    store = open_store(url)
    published = {}
    for name, seed in (("digits", 0), ("digits", 1), ("letters", 0)):
        images = make_images(tmp_path / f"{name}-{seed}", seed)
        published[name, seed] = publish(store, name, images.root, description=description, documents={}).version
    rows = list_releases(open_store(url))
    assert {(row.name, row.version, row.channels) for row in rows} == {
        ("digits", published["digits", 0], ()),
        ("digits", published["digits", 1], ("latest",)),
        ("letters", published["letters", 0], ("latest",)),
    }
    assert {(row.images, row.classes) for row in rows} == {(24, 3)}
    sizes = store.sizes(f"letters/v={published['letters', 0]}/")
    assert rows[-1].bytes == sum(size for key, size in sizes.items() if not key.endswith("/manifest.json"))


def test_an_empty_store_lists_nothing(url: str) -> None:
    assert list_releases(open_store(url)) == []


def test_a_list_of_a_folder_that_is_not_there_says_so(tmp_path: Path) -> None:
    """An empty one has no releases yet; a misspelt one is a mistake."""
    empty = CliRunner().invoke(forgeline, ["list", str(tmp_path)])
    assert (empty.exit_code, empty.stdout) == (0, f"{tmp_path}: no releases yet\n")
    with pytest.raises(UserError, match=r"/setz: there is no such folder; needed s3://bucket/prefix or a folder$"):
        CliRunner().invoke(forgeline, ["list", f"{tmp_path}/setz"], catch_exceptions=False)


def test_a_list_tells_what_decides(url: str, images, make_description) -> None:
    published = publish(
        open_store(url), "digits", images.root, description=make_description(verdict="Helps."), documents={}
    )
    promote(f"{url}/digits@{published.version}", channel="stable", why="measured again")
    (row,) = list_releases(open_store(url))
    assert (row.verdict, row.licence, row.channels, row.yanked) == ("Helps.", "CC BY 4.0", ("latest", "stable"), None)


def test_a_version_is_found_by_its_channel(url: str, tmp_path: Path, make_images, description) -> None:
    store, sets = open_store(url), [make_images(tmp_path / str(seed), seed) for seed in range(2)]
    old, new = (publish(store, "digits", each.root, description=description, documents={}).version for each in sets)
    promote(f"{url}/digits@{old}", channel="stable", why="")
    found = {words: find(f"{url}/digits{words}").manifest.version for words in ("", "@latest", "@stable", f"@{old}")}
    assert found == {"": new, "@latest": new, "@stable": old, f"@{old}": old}
    with pytest.raises(UserError, match="has no version or channel 'stabel'; did you mean 'stable'"):
        find(f"{url}/digits@stabel")


def test_only_folders_that_hold_releases_are_offered(tmp_path: Path, images, description) -> None:
    publish(open_store(str(tmp_path / "sets")), "digits", images.root, description=description, documents={})
    (tmp_path / "sets" / "photos").mkdir()
    with pytest.raises(UserError, match=r"has no release 'photos'; needed one of digits$"):
        find(f"{tmp_path}/sets/photos")
    with pytest.raises(UserError, match=rf"^{tmp_path}: has no releases; needed one of {tmp_path}/sets/digits$"):
        find(f"{tmp_path}/sets/")
    with pytest.raises(UserError, match=rf"^{tmp_path}/sets/photos: has no releases$"):
        find(f"{tmp_path}/sets/photos/digits")


def test_a_release_is_no_store_of_releases(url: str, images, description) -> None:
    publish(open_store(url), "digits", images.root, description=description, documents={})
    with pytest.raises(UserError, match=rf"^{url}/digits: is a release; needed the store that it is in, {url}$"):
        list_releases(open_store(f"{url}/digits"))


def test_a_small_file_is_read_as_published_or_not_at_all(url: str, images, description) -> None:
    store = open_store(url)
    publish(store, "digits", images.root, description=description, documents={"a.json": b"{}\n"})
    version = find(f"{url}/digits")
    assert (version.read("a.json"), version.read("b.json")) == (b"{}\n", None)
    store.delete(version.key("a.json"))
    store.create(version.key("a.json"), b"[]\n")
    with pytest.raises(FailedError, match=r"a\.json: is not what manifest\.json says"):
        version.read("a.json")


HOSTILE = "\x1b[31mred\x1b[0m [bold]markup[/bold] \x07"


@pytest.mark.parametrize("terminal", [False, True])
def test_what_a_store_says_is_printed_as_text(
    tmp_path: Path, images, make_description, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if terminal:  # one without colours, which are control codes
        wide = partial(Console, width=250, force_terminal=True, color_system=None)
        monkeypatch.setattr("pipeline.delivery.showing.Console", wide)
    store = open_store(str(tmp_path / "releases"))
    description = make_description(verdict=HOSTILE)
    version = publish(store, "digits", images.root, description=description, documents={}).version
    table = CliRunner().invoke(forgeline, ["list", store.url]).stdout
    card = CliRunner().invoke(forgeline, ["show", f"{store.url}/digits"]).stdout
    for text in (table, card):
        assert "[31mred[0m [bold]markup[/bold]" in text
        assert not {"\x1b", "\x07"} & set(text)
    assert version in table
    assert table.count("\n") == 2
    assert "dataset_info" not in card


def test_a_list_for_programs(tmp_path: Path, images, description) -> None:
    store = open_store(str(tmp_path / "releases"))
    version = publish(store, "digits", images.root, description=description, documents={}).version
    (row,) = json.loads(releases_json(list_releases(store)))
    assert (row["name"], row["version"], row["images"], row["channels"]) == ("digits", version, 24, ["latest"])


def test_in_a_pipe_a_row_is_a_line_that_ends_with_its_last_word(tmp_path: Path, make_images, make_description) -> None:
    url, long = str(tmp_path / "releases"), " ".join(["long"] * 120)
    for seed, verdict in enumerate(("Helps.", long)):
        set_ = make_images(tmp_path / f"{seed}", seed).root
        publish(open_store(url), "digits", set_, description=make_description(verdict=verdict), documents={})
    rows = CliRunner().invoke(forgeline, ["list", url]).stdout.splitlines()
    assert {row.rpartition("  ")[2] for row in rows} == {"verdict", "Helps.", long}
    moves = CliRunner().invoke(forgeline, ["history", f"{url}/digits"]).stdout.splitlines()
    assert [move.split()[-1] for move in moves] == ["why", "publish", "publish"]
    assert all(line == line.rstrip() for line in (*rows, *moves))


def test_in_a_pipe_a_card_is_as_it_was_written(tmp_path: Path, images, make_description) -> None:
    """Nothing is folded or cut off, as it is where a terminal is narrow."""
    url, long = str(tmp_path / "releases"), " ".join(["long"] * 120)
    publish(open_store(url), "digits", images.root, description=make_description(verdict=long), documents={})
    card = (tmp_path / "releases" / "digits").glob("v=*/README.md")
    shown = CliRunner().invoke(forgeline, ["show", f"{url}/digits"]).stdout
    assert next(card).read_text(encoding="utf-8").endswith(f"---\n\n{shown}")
    assert shown.startswith("# ")
    assert long in shown


def test_what_is_damaged_is_a_row_and_the_rest_is_listed(url: str, images, description) -> None:
    store = open_store(url)
    version = publish(store, "digits", images.root, description=description, documents={}).version
    store.create("configs/settings.json", b"{}")  # somebody else's, who shares the bucket
    store.create("digits/notes.json", b"{}")
    store.create("letters/v=0123456789abcdef/manifest.json", b"{")
    store.create("letters/latest.json", b"[]")
    said = CliRunner().invoke(forgeline, ["list", url, "--json"])
    rows = {(row["name"], row["version"], *row["channels"]): row for row in json.loads(said.stdout)}
    assert rows.keys() == {
        ("digits", version, "latest"),
        ("digits", "", "notes"),
        ("letters", "0123456789abcdef"),
        ("letters", "", "latest"),
    }
    assert (rows["digits", version, "latest"]["damaged"], rows["digits", version, "latest"]["images"]) == (None, 24)
    assert "digits/notes.json: schema_version is None" in rows["digits", "", "notes"]["damaged"]
    assert "manifest.json: is not JSON as Forgeline" in rows["letters", "0123456789abcdef"]["damaged"]
    assert (type(said.exception), str(said.exception)) == (
        FailedError,
        f"{url}: 3 of 4 rows are of what is damaged; see there",
    )
    table = CliRunner().invoke(forgeline, ["list", url]).stdout
    assert "A classifier with 5 % of the real digits gains 3 points." in table
    assert table.count("damaged: ") == 3


def test_a_store_that_breaks_is_no_list_of_damage(proxy, s3_url: str, images, description) -> None:
    publish(open_store(s3_url), "digits", images.root, description=description, documents={})
    proxy.fault = lambda number, method, path, headers: 503 if path.endswith("manifest.json") else None
    with pytest.raises(FailedError, match="GetObject failed with 503"):
        list_releases(open_store(s3_url))
