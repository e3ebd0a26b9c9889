"""Which block of a real Prefect server's tells people; that it does is tested in test_up.py, with a webhook."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from prefect.blocks.notifications import NotificationBlock, SendgridEmail, SlackWebhook
from prefect.blocks.system import Secret
from prefect.client.orchestration import SyncPrefectClient, get_client

from flows.telling import WEBHOOK, notification_block
from pipeline.errors import UserError


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated")  # which these blocks import, by apprise
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (SlackWebhook, {"url": "https://hooks.slack.example/services/marked"}),
        (SendgridEmail, {"api_key": "marked", "sender_email": "a@b.example", "to_emails": ["c@d.example"]}),
    ],
)
def test_a_block_that_somebody_made_is_found_by_its_name(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch, kind: type[NotificationBlock], settings: dict[str, Any]
) -> None:
    """Whatever webhook the environment names."""
    monkeypatch.setenv(WEBHOOK, "https://host.example/hook")
    made = kind(**settings).save("team", overwrite=True)
    assert notification_block(client, f"{kind.get_block_type_slug()}/team") == made


def test_a_block_that_is_not_there_or_does_not_notify_is_named(client: SyncPrefectClient) -> None:
    with pytest.raises(UserError, match=r"^params.yaml: run.notify is 'slack-webhook/none', which the server does not"):
        notification_block(client, "slack-webhook/none")
    Secret(value="marked").save("team", overwrite=True)
    with pytest.raises(UserError, match=r"^params.yaml: run.notify is 'secret/team'; needed a block that notifies"):
        notification_block(client, "secret/team")
