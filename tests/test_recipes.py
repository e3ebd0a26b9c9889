"""Each ready recipe is one that the stages accept, and using one never loses a person's edits."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pipeline import recipes
from pipeline.doctor import read_all_params
from pipeline.errors import UserError

ROOT = Path(__file__).parents[1]


def test_the_params_yaml_of_a_fresh_clone_is_the_digits_recipe() -> None:
    committed = subprocess.run(
        ["git", "show", "HEAD:params.yaml"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert committed.stdout == (ROOT / "pipeline/recipes/digits.yaml").read_text()


@pytest.mark.parametrize("name", recipes.titles())
def test_every_section_of_a_recipe_is_accepted(name: str, tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_bytes((ROOT / "dvc.yaml").read_bytes())
    recipes.use(name, tmp_path / "params.yaml")
    document = read_all_params(tmp_path)
    assert document.content["publish"]["name"] == name


def test_a_file_that_is_not_utf8_is_kept_too(tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_bytes(b"# caf\xe9\n")
    with pytest.raises(UserError, match="was edited by hand and is kept; needed --force"):
        recipes.use("mnist", params)
    assert params.read_bytes() == b"# caf\xe9\n"


def test_a_ready_file_is_replaced_and_an_edited_one_is_kept_unless_forced(tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    recipes.use("digits", params)
    recipes.use("mnist", params)
    edited = params.read_text().replace("seed", "sead") + "# mine\n"
    params.write_text(edited)
    with pytest.raises(UserError, match="was edited by hand and is kept; needed --force"):
        recipes.use("digits", params)
    assert params.read_text() == edited
    recipes.use("digits", params, force=True)
    assert params.read_text() == (ROOT / "pipeline/recipes/digits.yaml").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]
