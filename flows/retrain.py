"""The flow: a Prefect task for each stage of dvc.yaml, then publish. What has not changed, DVC skips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows import artifacts
from flows.graph import Stage, read_stages
from flows.repro import StageRun, reproduce
from pipeline import paths
from pipeline.delivery import Published
from pipeline.delivery.settings import read_publish_settings
from pipeline.delivery.workspace import open_workspace_store, publish_workspace
from pipeline.errors import ForgelineError
from pipeline.params import Document
from pipeline.progress import duration

SAID = "forgeline"  # marks the log records that are for the person at the terminal


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What became of each stage, in the order in which they ran, and of the release where one is asked for."""

    stages: tuple[StageRun, ...]
    published: Published | None


@flow(name="retrain")
def retrain(workspace: Path = Path(), publish_url: str | None = None) -> RunResult | State[Any]:
    """Bring every stage of dvc.yaml up to date and publish the synthetic set.

    Args:
        workspace: The folder of dvc.yaml and params.yaml, in a Git and DVC repository.
        publish_url: Where to publish, instead of publish.url in params.yaml: s3://bucket/prefix or a folder.
    """
    try:
        graph = read_stages(workspace)
        settings = read_publish_settings(Document.load(workspace / paths.PARAMS))
        url = publish_url or settings.url
        if url:
            open_workspace_store(workspace, url)  # a wrong word is told before hours of training
        stages = run_stages(graph, workspace)
        artifacts.record(workspace)
        published = publish(workspace, url, settings.name, settings.harmful, return_state=True).result()
        return RunResult(stages=stages, published=cast("Published | None", published))
    except ForgelineError as error:  # an expected ending: its sentence, and no traceback
        return Failed(message=str(error), data=error)


def run_stages(stages: tuple[Stage, ...], workspace: Path) -> tuple[StageRun, ...]:
    """One after another, as a stage may use all cores. Raises the first failure; what comes after it does not run."""
    states: dict[str, State[Any]] = {}
    for position, stage in enumerate(stages, start=1):
        states[stage.name] = run_stage(
            stage.name,
            workspace,
            f"[{position}/{len(stages)}] {stage.name}",
            return_state=True,
            wait_for=[states[need] for need in stage.needs],  # drawn as arrows on the run's page
        )
        states[stage.name].result()  # raises what it failed with
    return tuple(state.result() for state in states.values())


@task(name="stage", task_run_name="{stage}", cache_policy=NO_CACHE)
def run_stage(stage: str, workspace: Path, title: str) -> StageRun | State[Any]:
    """Bring one stage up to date; ends as Skipped when nothing had changed."""
    say = _teller()
    try:
        run = reproduce(stage, workspace, started=lambda: say(title), say=lambda line: say(f"    {line}"))
    except ForgelineError as error:
        return Failed(message=str(error), data=error)
    if run.outcome == "ran":
        say(f"{title}: done in {duration(run.seconds)}")
        return run
    message = {"unchanged": "unchanged, skipped", "restored": "restored from an earlier run, skipped"}[run.outcome]
    say(f"{title}: {message}")
    return Completed(name="Skipped", message=message, data=run)


@task(name="publish", task_run_name="publish", cache_policy=NO_CACHE)
def publish(workspace: Path, url: str | None, name: str, harmful: bool = False) -> Published | State[Any] | None:
    """Publish the synthetic set, where a URL is given; ends as Skipped when this very set is published already."""
    say = _teller()
    if not url:
        say("publish: publish.url names no place, skipped")
        return Completed(name="Skipped", message="publish.url names no place")
    try:
        published = publish_workspace(workspace, url, name, harmful=harmful)
    except ForgelineError as error:
        return Failed(message=f"publish: {error}", data=error)
    if published.caveat:
        say(f"publish: {published.caveat}")
    if published.new:
        say(f"publish: {published.url}")
        return published
    say("publish: nothing new, skipped")
    return Completed(name="Skipped", message="nothing new", data=published)


def _teller() -> Callable[[str], None]:
    """Logs a line to the run in Prefect, for the terminal as well."""
    logger = get_run_logger()
    return lambda line: logger.info("%s", line, extra={SAID: True})
