"""Automations of the Prefect server: who is told how runs ended, and that a run whose machine is gone is ended."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import cast
from uuid import UUID

from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_CLIENT_RETRY_JITTER_FACTOR
from prefect.types import SecretDict

from pipeline.errors import UserError
from pipeline.running import HEARTBEAT_SECONDS, PATIENCE_SECONDS, POOL

WEBHOOK = "FORGELINE_WEBHOOK"
# Longer than a healthy run bears that the server is away, or it would be ended, and another begun, when that is back.
# Four heartbeats more: the last one before, and time to come back in touch.
SILENT_SECONDS = round(PATIENCE_SECONDS * (1 + PREFECT_CLIENT_RETRY_JITTER_FACTOR.value())) + 4 * HEARTBEAT_SECONDS
NO_WORKER_SECONDS = 300  # a worker that is started anew is back by then
_NAME, _SUBJECT = "forgeline", "Forgeline"
_ENDINGS = {
    "failed": {"Failed", "Crashed", "TimedOut"},
    "refused": {"Refused"},
    "done": {"Completed"},
}


def notification_block(client: SyncPrefectClient, setting: str | None) -> UUID | None:
    """The id of the block that run.notify names, or of the webhook in $FORGELINE_WEBHOOK; None where there is none.

    The address of a webhook is as good as a password, so it stands in no file of the project but in Prefect's database,
    and stays there: whoever says `forgeline up` again, as a start of the machine does, need not have it. Raises
    UserError where the server has no such block, or it is none that notifies.
    """
    if setting is None and (url := os.environ.get(WEBHOOK)):
        block = CustomWebhookNotificationBlock(
            name=_NAME,
            url="{{url}}",
            json_data={"text": "{{subject}}\n{{body}}"},
            headers=None,
            cookies=None,
            secrets=SecretDict({"url": url}),
        )
        return cast(UUID, block.save(_NAME, overwrite=True))
    if setting is None:
        try:
            kind = CustomWebhookNotificationBlock.get_block_type_slug()
            return client.read_block_document_by_name(_NAME, kind, include_secrets=False).id
        except ObjectNotFound:
            return None
    try:
        found = Block.load(setting)
    except ValueError:
        raise UserError(
            f"params.yaml: run.notify is '{setting}', which the server does not have; 'prefect block ls' lists what it "
            "has, and its page makes one"
        ) from None
    if not isinstance(found, NotificationBlock):
        raise UserError(f"params.yaml: run.notify is '{setting}'; needed a block that notifies, such as slack-webhook")
    return found._block_document_id


def automate(
    client: SyncPrefectClient,
    deployments: Sequence[UUID],
    block: UUID | None,
    *,
    silent_seconds: int = SILENT_SECONDS,
    no_worker_seconds: int = NO_WORKER_SECONDS,
) -> None:
    """Create or bring up to date all automations; those that tell somebody are removed where nobody is to be told.

    The first of the `deployments` is that of whose runs people are told; silent runs of all are ended.
    """
    all_of_them = [_ends_silent_runs(deployments, silent_seconds)]
    if block:
        pool = client.read_work_pool(POOL).id
        all_of_them += [*_tells_of_ends(deployments[0], block), _tells_of_no_worker(pool, block, no_worker_seconds)]
    wanted = {each.name: each for each in all_of_them}
    for ending in ("silent", "no worker", *_ENDINGS):
        name = f"{_NAME}: {ending}"
        there = client.read_automations_by_name(name)
        for spare in there[1:] if name in wanted else there:
            client.delete_automation(spare.id)
        if name in wanted and there:
            client.update_automation(there[0].id, wanted[name])
        elif name in wanted:
            client.create_automation(wanted[name])


_RUNS = ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"})


def _of(*deployments: UUID) -> ResourceSpecification:
    return ResourceSpecification({"prefect.resource.id": [f"prefect.deployment.{each}" for each in deployments]})


def _ends_silent_runs(deployments: Sequence[UUID], seconds: int) -> AutomationCore:
    return AutomationCore(
        name=f"{_NAME}: silent",
        description="A run that was alive and is silent has lost its machine: it is ended, so that the next may begin.",
        trigger=EventTrigger(
            match=_RUNS,
            match_related=_of(*deployments),
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},  # another heartbeat, or any end
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=seconds),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name="Crashed",
                force=False,
                message=f"silent for {seconds} seconds: its machine or its process is gone",
            )
        ],
    )


def _tells_of_no_worker(pool: UUID, block: UUID, seconds: int) -> AutomationCore:
    return AutomationCore(
        name=f"{_NAME}: no worker",
        description=f"Tells that the work pool '{POOL}' has lost its last worker.",
        trigger=EventTrigger(
            match=ResourceSpecification({"prefect.resource.id": f"prefect.work-pool.{pool}"}),
            after={"prefect.work-pool.not-ready"},
            expect={"prefect.work-pool.ready", "prefect.work-pool.not-ready"},  # the time begins anew with each loss
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=seconds),
        ),
        actions=[
            SendNotification(
                block_document_id=block,
                subject=f"{_SUBJECT}: no worker",
                body=f"the work pool '{POOL}' has none, so that no run begins; 'forgeline up' starts one",
            )
        ],
    )


def _tells_of_ends(deployment: UUID, block: UUID) -> Iterator[AutomationCore]:
    for ending, states in _ENDINGS.items():
        yield AutomationCore(
            name=f"{_NAME}: {ending}",
            description=f"Tells that a run is {ending}.",
            trigger=EventTrigger(
                match=_RUNS,
                match_related=_of(deployment),
                expect={f"prefect.flow-run.{state}" for state in states},
                for_each={"prefect.resource.id"},
                posture=Posture.Reactive,
                threshold=1,
            ),
            actions=[
                SendNotification(
                    block_document_id=block,
                    subject=f"{_SUBJECT}: {ending}",
                    body="{{ flow.name }} {{ flow_run.name }}: {{ flow_run.state.message }}\n{{ flow_run|ui_url }}",
                )
            ],
        )
