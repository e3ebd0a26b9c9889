"""Who waits for work: the workers of a work pool of Prefect's that have been heard of lately, and how to start one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.running import worker_command

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient


def online(client: SyncPrefectClient, pool: str) -> list[str]:
    """Their names; none where there is no such pool."""
    from httpx import HTTPStatusError
    from prefect.client.schemas.filters import WorkerFilter, WorkerFilterStatus
    from prefect.client.schemas.objects import WorkerStatus

    wanted = WorkerFilter(status=WorkerFilterStatus(any_=[WorkerStatus.ONLINE]))
    try:
        return [worker.name for worker in client.read_workers_for_work_pool(pool, wanted)]
    except HTTPStatusError as error:
        if error.response.status_code == 404:
            return []
        raise


def starter(client: SyncPrefectClient, pool: str) -> str:
    """The command that starts a worker of the pool. Raises ObjectNotFound where there is no such pool."""
    return worker_command(pool, client.read_work_pool(pool).type)
