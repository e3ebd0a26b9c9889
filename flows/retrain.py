"""The flow: a Prefect task for each stage of dvc.yaml, then publish. What has not changed, DVC skips."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run
from prefect.states import Completed
from prefect.utilities.urls import url_for

from flows import artifacts, recording
from flows.drift import data_before, record_drift
from flows.ended import failed, interrupted, put_back
from flows.gate import Verdict, judge, show
from flows.graph import Stage, read_stages
from flows.handover import hand_over
from flows.hiding import hidden
from flows.place import Place, place_of
from flows.repro import StageRun, reproduce
from pipeline import paths
from pipeline.delivery import Published
from pipeline.delivery.pointer import LATEST
from pipeline.delivery.settings import PublishSettings, read_publish_settings
from pipeline.delivery.workspace import open_workspace_store, publish_workspace
from pipeline.errors import ForgelineError, UserError, nearest
from pipeline.params import Document
from pipeline.progress import duration
from pipeline.running import RunSettings, read_run_settings

SAID = "forgeline"  # marks the log records that are for the person at the terminal
REFUSED = "refused"  # the channel that keeps the last set that was not let through
NOTHING_NEW = "Nothing new"


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What became of each stage, in the order in which they ran, and of the release where one is asked for.

    `refusal` says why the set was not published as the latest, None where it was, or where none was asked for.
    """

    stages: tuple[StageRun, ...]
    published: Published | None
    refusal: str | None = None


@flow(name="retrain")
def retrain(
    workspace: Path = Path(), publish_url: str | None = None, scheduled: bool = False
) -> RunResult | State[Any]:
    """Bring every stage of dvc.yaml up to date and publish the synthetic set, where it passes the gate.

    Args:
        workspace: The folder of dvc.yaml and params.yaml, in a Git and DVC repository.
        publish_url: Where to publish, instead of publish.url in params.yaml: s3://bucket/prefix or a folder.
        scheduled: Start from the head of run.branch in params.yaml, where it names one, and end as "Nothing new" when
            neither data nor code nor settings changed since the last run.
    """
    try:
        clone = workspace.resolve()
        settings = read_run_settings(Document.load(workspace / paths.PARAMS))
        with place_of(clone, settings, scheduled=scheduled) as place:
            return _retrain(place, publish_url, scheduled)
    except ForgelineError as error:
        return failed(error)
    except TerminationSignal:
        put_back()
        raise


def _retrain(place: Place, publish_url: str | None, scheduled: bool) -> State[Any]:
    workspace = place.workspace
    graph = read_stages(workspace)
    document = Document.load(workspace / paths.PARAMS)
    settings, publishing = read_run_settings(document), read_publish_settings(document)
    url = publish_url or publishing.url
    if url and "://" not in url and place.own:
        url = str(place.clone / url)
    if url:
        open_workspace_store(workspace, url)  # a wrong word is told before hours of training
    names = [stage.name for stage in graph]
    for name in settings.remote_stages:
        if name not in names:
            raise UserError(f"params.yaml: run.remote_stages has '{name}'; {nearest(name, names)}")
    if settings.record:
        recording.check_recordable(place, settings.record)

    states: dict[str, State[Any]] = {}
    if scheduled:
        run_stages([stage for stage in graph if stage.probe], graph, place, states, settings)
        if place.as_remembered():
            _teller()("nothing new: data, code and settings are those of the last run")
            result = RunResult(stages=_runs(states), published=None)
            return Completed(name=NOTHING_NEW, message="data, code and settings are those of the last run", data=result)
    place.check_settings()
    with data_before(place) as before:
        run_stages([stage for stage in graph if stage.name not in states], graph, place, states, settings)
        artifacts.record(workspace)
        record_drift(before, workspace)
    stages = _runs(states)
    verdict = _judge(workspace, url, publishing, settings) if url else None
    made = _commit(place, settings, verdict, stages)
    published = _publish(workspace, url, publishing, verdict)
    if settings.record and made:
        recording.push(place, settings.record, made)
        _teller()(f"record: {made[:12]} on the branch {settings.record}")
    place.remember()
    result = RunResult(stages=stages, published=published, refusal=verdict.refusal if verdict else None)
    if result.refusal:
        return Completed(name="Refused", message=hidden(result.refusal), data=result)
    what = f"published {published.url}" if published and published.new else "nothing new to publish"
    return Completed(message=hidden(what if url else "publish.url names no place"), data=result)


def _judge(workspace: Path, url: str, publishing: PublishSettings, settings: RunSettings) -> Verdict:
    say = _teller()
    where = url if "://" in url else str(workspace / url)
    verdict = judge(workspace, where, publishing.name, settings.gate, harmful=publishing.harmful, say=say)
    show(verdict)
    say(f"gate: {f'refused: {verdict.refusal}' if verdict.refusal else 'passed'}")
    return verdict


def _commit(place: Place, settings: RunSettings, verdict: Verdict | None, stages: Iterable[StageRun]) -> str | None:
    """The commit that records the run, which no branch names before all went well."""
    if settings.record is None:
        return None
    ran = [run.stage for run in stages if run.outcome == "ran"]
    title = f"Retrain: {', '.join(ran) or 'nothing'} ran"
    lines = [f"{row['metric']}: {row.get('synthetic')}" for row in artifacts.headlines(place.workspace)]
    if verdict:
        lines.append(f"refused: {verdict.refusal}" if verdict.refusal else "passed the gate")
    return recording.commit(place, settings.record, title, lines, f"{flow_run.get_name()} {flow_run.get_id()}")


def _publish(workspace: Path, url: str | None, settings: PublishSettings, verdict: Verdict | None) -> Published | None:
    """As the latest; a refused set that may be seen by others as what the channel `refused` names, with the reason."""
    if verdict and verdict.refusal and not verdict.shareable:
        _teller()("publish: a set that was refused for this is kept here only, in DVC's cache")
        return None
    refusal = verdict.refusal if verdict else None
    return cast("Published | None", publish(workspace, url, settings, refusal, return_state=True).result())


def run_stages(
    stages: list[Stage],
    graph: tuple[Stage, ...],
    place: Place,
    states: dict[str, State[Any]],
    settings: RunSettings,
) -> None:
    """One after another, as a stage may use all cores; their states are added to `states`.

    Raises the first failure; what comes after it does not run.
    """
    for stage in stages:
        title = f"[{graph.index(stage) + 1}/{len(graph)}] {stage.name}"
        needed = [states[need] for need in stage.needs if need in states]  # drawn as arrows on the run's page
        if stage.name in settings.remote_stages:
            state = run_stage_elsewhere(stage, place.workspace, title, return_state=True, wait_for=needed)
        else:
            state = run_stage(stage.name, place.workspace, title, place.pull, return_state=True, wait_for=needed)
        states[stage.name] = state
        if state.is_failed():
            log = url_for("task-run", state.state_details.task_run_id)
            get_run_logger().error("stage '%s' failed; what it printed is the log of its task, %s", stage.name, log)
        state.result()  # raises what it failed with


def _runs(states: dict[str, State[Any]]) -> tuple[StageRun, ...]:
    return tuple(state.result() for state in states.values())


@task(name="stage", task_run_name="{stage}", cache_policy=NO_CACHE)
def run_stage(stage: str, workspace: Path, title: str, pull: bool = False) -> StageRun | State[Any]:
    """Bring one stage up to date; ends as Skipped when nothing had changed."""
    say = _teller()
    try:
        run = reproduce(stage, workspace, pull=pull, started=lambda: say(title), say=lambda line: say(f"    {line}"))
    except ForgelineError as error:
        return failed(error)
    except TerminationSignal as signal:
        return interrupted(signal)
    return _told(run, title, say)


@task(name="stage", task_run_name="{stage.name}", cache_policy=NO_CACHE)
def run_stage_elsewhere(stage: Stage, workspace: Path, title: str) -> StageRun | State[Any]:
    """Bring one stage up to date by a machine of the work pool for such stages; ends as `run_stage` does."""
    say = _teller()
    try:
        run = hand_over(stage, workspace, title, say)
    except ForgelineError as error:
        return failed(error)
    except TerminationSignal as signal:
        return interrupted(signal)
    return _told(run, title, say)


def _told(run: StageRun, title: str, say: Callable[[str], None]) -> StageRun | State[Any]:
    if run.outcome == "ran":
        say(f"{title}: done in {duration(run.seconds)}")
        return run
    message = {"unchanged": "unchanged, skipped", "restored": "restored from an earlier run, skipped"}[run.outcome]
    say(f"{title}: {message}")
    return Completed(name="Skipped", message=message, data=run)


@task(name="publish", task_run_name="publish", cache_policy=NO_CACHE)
def publish(
    workspace: Path, url: str | None, settings: PublishSettings, refusal: str | None
) -> Published | State[Any] | None:
    """Publish the synthetic set, where a URL is given; ends as Skipped when this very set is published already.

    One that was refused is named by the channel `refused`, which says why, and not by `latest`.
    """
    say = _teller()
    if not url:
        say("publish: publish.url names no place, skipped")
        return Completed(name="Skipped", message="publish.url names no place")
    try:
        published = publish_workspace(
            workspace,
            url,
            settings.name,
            harmful=True,  # whether it may harm was the gate's to say
            channel=REFUSED if refusal else LATEST,
            why=refusal or "",
        )
    except ForgelineError as error:
        return failed(error, "publish: ")
    except TerminationSignal as signal:
        return interrupted(signal)
    if published.caveat:
        say(f"publish: {published.caveat}")
    if refusal:
        say(f"publish: kept as {settings.name}@{REFUSED}, {published.url}")
        return published
    if published.new:
        say(f"publish: {published.url}")
        return published
    say("publish: nothing new, skipped")
    return Completed(name="Skipped", message="nothing new", data=published)


def _teller() -> Callable[[str], None]:
    """Logs a line to the run in Prefect, for the terminal as well."""
    logger = get_run_logger()
    return lambda line: logger.info("%s", hidden(line), extra={SAID: True})
