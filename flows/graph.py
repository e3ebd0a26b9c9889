"""The stages of dvc.yaml in an order in which they can run. DVC owns the graph; nothing here knows a stage by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dvc.exceptions import DvcException, NotDvcRepoError
from dvc.repo import Repo
from dvc.scm import SCMError
from dvc.stage import PipelineStage

from pipeline.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage by the name that `dvc repro` knows it by, and the stages that must have run before.

    A `probe` is one that DVC always runs, to see whether there is anything new.
    """

    name: str
    needs: frozenset[str]
    probe: bool = False


def read_stages(workspace: Path) -> tuple[Stage, ...]:
    """All stages of dvc.yaml, each after what it needs, otherwise as they are declared.

    Raises UserError when `workspace` is not a Git and DVC repository, or dvc.yaml is not valid.
    """
    if not (workspace / "dvc.yaml").is_file():
        raise UserError(f"{workspace}: has no dvc.yaml; needed the folder of a Forgeline project")
    try:
        with Repo(str(workspace)) as repo:
            graph = repo.index.graph
            waiting = [
                Stage(
                    name=stage.name,
                    needs=frozenset(need.name for need in graph.successors(stage) if isinstance(need, PipelineStage)),
                    probe=bool(stage.always_changed),
                )
                for stage in repo.index.stages
                if isinstance(stage, PipelineStage)  # else a .dvc file: data, nothing to run
            ]
    except NotDvcRepoError:
        raise UserError(f"{workspace}: is not a DVC repository; 'dvc init' there makes it one") from None
    except SCMError:
        raise UserError(f"{workspace}: is not a Git repository, which DVC needs; 'git init' makes it one") from None
    except DvcException as error:
        raise UserError(
            f"{workspace / 'dvc.yaml'}: {' '.join(str(error).split())}; 'dvc stage list' tells more"
        ) from None
    ordered: dict[str, Stage] = {}
    while waiting:
        ready = next(stage for stage in waiting if stage.needs <= ordered.keys())
        ordered[ready.name] = ready
        waiting.remove(ready)
    return tuple(ordered.values())
