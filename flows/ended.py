"""How tasks and flows end that fail in an expected way or are told to end: a state with one sentence, no traceback.

What is not expected, a mistake of ours, keeps its traceback.
"""

from __future__ import annotations

import logging
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas import OrchestrationResult
from prefect.client.schemas.objects import State
from prefect.client.schemas.responses import SetStateStatus
from prefect.exceptions import Pause, TerminationSignal
from prefect.runtime import deployment, flow_run
from prefect.states import AwaitingRetry, Cancelled, Failed

from flows.hiding import hidden
from pipeline.errors import ForgelineError


def failed(error: ForgelineError, prefix: str = "") -> State[Any]:
    """The state of a task or flow that ends with `error`, its sentence without secrets."""
    error.args = (hidden(str(error)),)
    return Failed(message=f"{prefix}{error}", data=error)


def interrupted(signal: TerminationSignal) -> State[Any]:
    """The state of a task whose process is told to end; its result raises the signal again, for the flow."""
    return Cancelled(message="its run was told to end", data=signal)


def put_back() -> None:
    """Leave a run that is told to end to the next worker, unless it is cancelled or no deployment's.

    Where it is left, this raises Pause, for which Prefect ends the process and leaves the state as it is.
    """
    if deployment.get_id() is None:  # nobody would go on with it
        return
    with get_client(sync_client=True) as client:
        run = UUID(flow_run.get_id())
        state = client.read_flow_run(run).state
        if state is None or not state.is_running():
            return
        told: OrchestrationResult[Any] = client.set_flow_run_state(
            run, AwaitingRetry(message="told to end; the next worker goes on")
        )
        if told.status == SetStateStatus.ACCEPT:
            raise Pause(state=told.state)


class _Sentence(logging.Filter):
    """Prefect logs a flow's failed state as an unexpected exception, with the stack of its engine."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info:
            error = record.exc_info[1]
            if isinstance(error, ForgelineError):
                record.msg, record.args = str(error), ()
            if error is None or isinstance(error, ForgelineError):
                record.exc_info = None
        return True


for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(_Sentence())
