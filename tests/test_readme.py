"""README.md and docs/: what they name is there. That the commands do what is said of them, the tests of each show."""

import re
import shlex
from pathlib import Path

import pytest

from pipeline.cli import forgeline

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def commands_in(page: Path, program: str) -> list[list[str]]:
    """The words after `program` of each command of blocks of code and of `code` in a line, comments left out."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()] + re.findall(r"`([^`]+)`", prose)
    found = (re.fullmatch(rf"(?:[A-Z_]+=\S+ )*{program} (.+)", line, re.DOTALL) for line in lines)
    return [shlex.split(command[1].replace("…", "''"), comments=True) for command in found if command]


def anchors_of(page: Path) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    links = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    for link in links:
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target), link


@pages
def test_commands_of_ours_have_the_options_that_are_named(page: Path) -> None:
    for name, *words in commands_in(page, "forgeline"):
        assert name in forgeline.commands, name
        options = {option for parameter in forgeline.commands[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options, [name, *words]


@pages
def test_targets_of_make_are_in_the_makefile(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {words[0] for words in commands_in(page, "make")} <= targets


def test_the_readme_names_every_command() -> None:
    named = {words[0] for page in PAGES for words in commands_in(page, "forgeline")}
    assert named == {name for name, command in forgeline.commands.items() if not command.hidden}


def test_the_readme_names_every_page_of_the_documentation() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if page.parent.name == "docs" and f"(docs/{page.name})" not in text] == []
