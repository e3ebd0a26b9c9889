"""The section `run`: defaults where it is missing, one sentence where it is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.params import Document
from pipeline.running import Gate, RunSettings, read_run_settings


def test_without_the_section_nothing_happens_by_itself() -> None:
    assert read_run_settings(Document({})) == RunSettings(cron=None, branch=None, record=None, notify=None, gate=Gate())


@pytest.mark.parametrize("branch", ["main", "forgeline/nightly", "a.b-c_d"])
def test_names_of_branches(branch: str) -> None:
    assert read_run_settings(Document({"run": {"record": branch}})).record == branch


NO_BRANCH = "needed the name of a branch, such as main or forgeline/nightly"
MISSPELT = {"champion": ["fidelity.fidd"]}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"crom": "x"}, "run.crom is not a setting; did you mean 'cron'?"),
        *(
            (
                {"branch": name},
                f"run.branch is '{name}'; needed the name of a branch, such as main or forgeline/nightly",
            )
            for name in ("", "-f", "a b", "a..b", "a/", "x.lock", "refs:heads", "a@{1}")
        ),
        ({"notify": "team"}, "run.notify is 'team'; needed the type and the name of a block: slack-webhook/team"),
        ({"gate": {"draws": 1}}, "run.gate.draws is 1; needed at least 2, for one draw has no noise"),
        (
            {"gate": {"champion": ["fidelity.fidd"]}},
            "run.gate.champion[0] is 'fidelity.fidd'; did you mean 'fidelity.fid'?",
        ),
        ({"gate": {"max_near_copies": 2}}, "run.gate.max_near_copies is 2.0; needed a share from 0 to 1"),
        ({"gate": {"utility": "help"}}, "run.gate.utility is 'help'; did you mean 'helps'?"),
    ],
)
def test_what_is_wrong_is_told_in_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        read_run_settings(Document({"run": settings}))
    assert str(caught.value) == f"params.yaml: {sentence}"
