"""Automations of the Prefect server: who is told how runs ended, and that a run whose machine is gone is ended."""

from __future__ import annotations

import os
from collections.abc import Iterator
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
from prefect.types import SecretDict

from pipeline.errors import UserError

WEBHOOK = "FORGELINE_WEBHOOK"
SILENT_SECONDS = 120  # four heartbeats
_NAME = "forgeline"
_ENDINGS = {
    "failed": {"Failed", "Crashed", "TimedOut"},
    "refused": {"Refused"},
    "done": {"Completed"},
}


def notification_block(setting: str | None) -> UUID | None:
    """The id of the block that run.notify names, or of the webhook in $FORGELINE_WEBHOOK; None where there is none.

    The address of a webhook is as good as a password, so it stands in no file of the project but in Prefect's database.
    Raises UserError where the server has no such block, or it is none that notifies.
    """
    if setting is None:
        if not (url := os.environ.get(WEBHOOK)):
            return None
        block = CustomWebhookNotificationBlock(
            name=_NAME,
            url="{{url}}",
            json_data={"text": "{{subject}}\n{{body}}"},
            headers=None,
            cookies=None,
            secrets=SecretDict({"url": url}),
        )
        return cast(UUID, block.save(_NAME, overwrite=True))
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


def automate(client: SyncPrefectClient, deployment: UUID, block: UUID | None, *, silent_seconds: int) -> None:
    """Create or bring up to date all automations; those that tell somebody are removed where nobody is to be told."""
    wanted = {each.name: each for each in _automations(deployment, block, silent_seconds)}
    for ending in ("silent", *_ENDINGS):
        name = f"{_NAME}: {ending}"
        there = client.read_automations_by_name(name)
        for spare in there[1:] if name in wanted else there:
            client.delete_automation(spare.id)
        if name in wanted and there:
            client.update_automation(there[0].id, wanted[name])
        elif name in wanted:
            client.create_automation(wanted[name])


def _automations(deployment: UUID, block: UUID | None, silent_seconds: int) -> Iterator[AutomationCore]:
    runs = ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"})
    ours = ResourceSpecification({"prefect.resource.id": f"prefect.deployment.{deployment}"})
    yield AutomationCore(
        name=f"{_NAME}: silent",
        description="A run that was alive and is silent has lost its machine: it is ended, so that the next may begin.",
        trigger=EventTrigger(
            match=runs,
            match_related=ours,
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},  # another heartbeat, or any end
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=silent_seconds),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name="Crashed",
                force=False,
                message=f"silent for {silent_seconds} seconds: its machine or its process is gone",
            )
        ],
    )
    if block is None:
        return
    for ending, states in _ENDINGS.items():
        yield AutomationCore(
            name=f"{_NAME}: {ending}",
            description=f"Tells that a run is {ending}.",
            trigger=EventTrigger(
                match=runs,
                match_related=ours,
                expect={f"prefect.flow-run.{state}" for state in states},
                for_each={"prefect.resource.id"},
                posture=Posture.Reactive,
                threshold=1,
            ),
            actions=[
                SendNotification(
                    block_document_id=block,
                    subject=f"Forgeline: {ending}",
                    body="{{ flow.name }} {{ flow_run.name }}: {{ flow_run.state.message }}\n{{ flow_run|ui_url }}",
                )
            ],
        )
