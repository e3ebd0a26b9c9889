"""For Prefect's setting server.events.causal_ordering: a server that tells of a run as soon as it ends.

Prefect itself holds an event back for up to 15 minutes until it has seen the one before it, and with it all that come
after. It never sees that one where a run was scheduled by cron less than five minutes before it was due, as no event is
made of that, or where the server was started anew meanwhile.
"""

from __future__ import annotations

from prefect.server.events.ordering import memory
from prefect.server.events.schemas.events import ReceivedEvent


class CausalOrdering(memory.CausalOrdering):
    """In order where one event arrives while the one before it is still being looked at; nothing else is waited for.

    Events of one run reach a server of one process in order, so that an event which it does not know never comes.
    """

    async def wait_for_leader(self, event: ReceivedEvent) -> None:
        """Return when `event` may be looked at. Raises EventArrivedEarly as Prefect's does."""
        if event.follows and await self.event_has_started_processing(event.follows):
            await super().wait_for_leader(event)
