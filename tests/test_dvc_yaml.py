"""dvc.yaml: an edit of code that a stage runs must rerun that stage, never be skipped silently."""

from __future__ import annotations

import ast
from pathlib import Path

import grimp
import pytest
from dvc.repo import Repo

ROOT = Path(__file__).parents[1]

# Words for a terminal, names of folders, and settings, which DVC tracks by their values.
SILENT = {"pipeline", "pipeline.errors", "pipeline.params", "pipeline.paths", "pipeline.progress"}


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    return grimp.build_graph("pipeline", cache_dir=None)


def code_dependencies() -> dict[str, list[Path]]:
    with Repo(str(ROOT)) as repo:
        return {
            stage.name: [ROOT / dep.def_path for dep in stage.deps if dep.def_path.startswith("pipeline/")]
            for stage in repo.index.stages
        }


STAGES = code_dependencies()


def file_of(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@pytest.mark.parametrize("stage", STAGES)
def test_the_code_dependencies_of_a_stage_cover_what_it_imports(stage: str, imports: grimp.ImportGraph) -> None:
    entries = {f"pipeline.stages.{stage.split('@')[0]}"}
    # Sources and families are imported by the name that params.yaml gives: dvc.yaml names the file in the same way.
    entries |= {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in STAGES[stage]
        if path.parent.name in ("sources", "families") and path.is_file()
    }
    closure = entries | {module for entry in entries for module in imports.find_upstream_modules(entry)}
    uncovered = {
        str(file_of(module).relative_to(ROOT))
        for module in closure - SILENT
        if not any(file_of(module).is_relative_to(path) for path in STAGES[stage])
        and ast.parse(file_of(module).read_text()).body[1:]  # more than a docstring
    }
    assert uncovered == set()


@pytest.mark.parametrize("stage", STAGES)
def test_every_code_dependency_exists(stage: str) -> None:
    assert [path for path in STAGES[stage] if not path.exists()] == []


def test_the_model_is_registered_by_name() -> None:
    with Repo(str(ROOT)) as repo:
        (found,) = repo.artifacts.read().values()
    assert {name: artifact.path for name, artifact in found.items()} == {"model": "out/model"}
