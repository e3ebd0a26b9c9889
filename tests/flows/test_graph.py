"""The order comes from DVC's graph, and what is no graph is told in one sentence."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.graph import Stage, read_stages
from pipeline.errors import UserError

Workspace = Callable[[str], Path]

STAGES = """
  late: {cmd: x, deps: [b.txt, c-x.txt, data.txt]}
  side: {cmd: x, outs: [side.txt], always_changed: true}
  c:
    matrix: {which: [x, y]}
    cmd: x
    deps: [b.txt]
    outs: ["c-${item.which}.txt"]
  b: {cmd: x, deps: [a.txt], outs: [b.txt]}
  a: {cmd: x, outs: [a.txt]}
"""


def test_a_stage_comes_after_what_it_needs_and_otherwise_as_declared(workspace: Workspace) -> None:
    folder = workspace(STAGES)
    (folder / "data.txt.dvc").write_text("outs:\n- md5: 764efa883dda1e11db47671c4a3bbd9e\n  path: data.txt\n")
    assert read_stages(folder) == (
        Stage(name="side", needs=frozenset(), probe=True),
        Stage(name="a", needs=frozenset()),
        Stage(name="b", needs=frozenset({"a"})),
        Stage(name="c@x", needs=frozenset({"b"})),
        Stage(name="late", needs=frozenset({"b", "c@x"})),
        Stage(name="c@y", needs=frozenset({"b"})),
    )


def test_a_folder_without_dvc_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no dvc.yaml; needed the folder of a Forgeline project$"):
        read_stages(tmp_path)


@pytest.mark.parametrize(("missing", "mend"), [(".dvc", "'dvc init'"), (".git", "'git init'")])
def test_what_is_no_repository_is_told_with_its_mend(workspace: Workspace, missing: str, mend: str) -> None:
    folder = workspace(STAGES)
    shutil.rmtree(folder / missing)
    with pytest.raises(UserError, match=rf"^{folder}: is not a (DVC|Git) repository.*{mend}"):
        read_stages(folder)


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        ("  a: {cmd: x, typo: 1}\n", "validation failed"),
        ("  a: {cmd: '${nothing}'}\n", "Could not find 'nothing'"),
        (
            "  a: {cmd: x, deps: [b], outs: [a]}\n  b: {cmd: x, deps: [a], outs: [b]}\n",
            "both a dependency and an output in stages: ",
        ),
    ],
)
def test_a_dvc_yaml_that_is_not_valid_is_refused(workspace: Workspace, stages: str, sentence: str) -> None:
    folder = workspace(stages)
    with pytest.raises(UserError, match=rf"^{folder}/dvc.yaml: .*{sentence}.*; 'dvc stage list' tells more$"):
        read_stages(folder)
