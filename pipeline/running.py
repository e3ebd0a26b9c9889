"""`run` of params.yaml: when runs happen by themselves, where they start, what they must reach, who is told."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.params import Document

POOL = "forgeline"  # the work pool of Prefect's that runs are deployed to
REMOTE_POOL = "forgeline-gpu"  # that of machines which only run the stages of run.remote_stages
PROCESS = "process"  # the type of pools whose workers run what they get themselves
REMOTE_DEPLOYMENT = "elsewhere/stage"  # of the flow which runs such a stage
HEARTBEAT_SECONDS = 30  # between two signs of life of a run; Prefect knows no shorter time
RETRIES = 8  # of each request to a Prefect server that is away, after 2, 4, … seconds: it may be updated just then
PATIENCE_SECONDS = sum(2**retry for retry in range(1, RETRIES + 1))
UP = Path(".dvc/tmp/forgeline/up")  # what `forgeline up` has started here: up.json and logs; git ignores .dvc/tmp

Metric = Literal[
    "fidelity.fid",
    "fidelity.kid",
    "fidelity.precision",
    "fidelity.recall",
    "fidelity.density",
    "fidelity.coverage",
    "agreement.mean",
    "agreement.worst_class",
    "memorization.nearer_than_percentile_1",
]
_BRANCH = re.compile(r"(?!-)(?!.*(//|\.\.|@\{|\.lock(/|$)))[^\s~^:?*\[\\\x00-\x1f]+(?<![/.])")


def worker_command(pool: str, kind: str) -> str:
    """The command that starts a worker of a pool of that type: ours where it is PROCESS, else Prefect's."""
    if kind == PROCESS:
        return f"python -m flows.work --pool {pool}"
    return f"prefect worker start --pool {pool} --install-policy if-not-present"


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What a set must reach to be published.

    `utility`: what it must do for a classifier by the verdicts of `utility`: help somewhere and harm nowhere; not harm,
    unless it helps elsewhere (as publish.harmful says); or any. `max_copies`: exact copies of training images.
    `max_near_copies`: the share of images that are nearer to a training image than 99 % of held-out real images are; of
    those it is 0.01, and few of them say little, so that `noise` standard errors are allowed for.
    `champion`: the measures by which it must not be worse than the set that `latest` names, which is measured anew on
    today's real images. An empty list asks for nothing, and is needed once where that set has other classes or another
    size, as nothing can be compared then. Both are drawn from `draws` times, half of the smaller set each time, and
    worse is what exceeds `noise` standard deviations of the difference.
    """

    utility: Literal["helps", "harmless", "any"] = "harmless"
    max_copies: int = 0
    max_near_copies: float = 0.02
    champion: tuple[Metric, ...] = ("fidelity.fid", "fidelity.recall", "agreement.mean")
    noise: float = 2.0
    draws: int = 5

    def __post_init__(self) -> None:
        if self.max_copies < 0:
            raise ValueError(f"max_copies is {self.max_copies}; needed at least 0")
        if not 0 <= self.max_near_copies <= 1:
            raise ValueError(f"max_near_copies is {self.max_near_copies}; needed a share from 0 to 1")
        if self.noise < 0:
            raise ValueError(f"noise is {self.noise}; needed at least 0")
        if self.draws < 2:
            raise ValueError(f"draws is {self.draws}; needed at least 2, for one draw has no noise")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What `forgeline up` and the flow read; a params.yaml without the section has these defaults.

    `cron` is when the deployed flow runs (`0 2 * * *`: at two every night), null where only a person starts it;
    `timezone` is the one that it means, as IANA names it. A scheduled run starts from the head of `branch`, in a
    checkout of its own; where that is null it happens in the clone as it is. `record` is the branch that each run adds
    a commit to, null for none. `remote_stages` are handed to the work pool forgeline-gpu, whose machines share
    nothing with this one but the git remote `origin` and the DVC remote. `notify` is the block of Prefect's that tells
    people, as `slack-webhook/team`.
    """

    cron: str | None = None
    timezone: str = "UTC"
    branch: str | None = None
    record: str | None = None
    remote_stages: tuple[str, ...] = ()
    notify: str | None = None
    gate: Gate = field(default_factory=Gate)

    def __post_init__(self) -> None:
        for name in ("branch", "record"):
            if (value := getattr(self, name)) is not None and not _BRANCH.fullmatch(value):
                raise ValueError(f"{name} is '{value}'; needed the name of a branch, such as main or forgeline/nightly")
        if self.notify is not None and not re.fullmatch(r"[a-z0-9-]+/[a-z0-9-]+", self.notify):
            raise ValueError(f"notify is '{self.notify}'; needed the type and the name of a block: slack-webhook/team")


def read_run_settings(document: Document) -> RunSettings:
    """The section `run`."""
    return document.section("run", RunSettings) if "run" in document.content else RunSettings()
