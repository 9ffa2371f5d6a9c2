"""Which model calls a breaker lets wait, from the changes of breakers that a store tells of."""

from __future__ import annotations

import sqlite3
from typing import Final

from understudy.endpoint.estimates import family_of
from understudy.events import BreakerChanged
from understudy.trace.tree import decode_events

_CHANGES: Final = 10_000  # newest events of the system that are looked at


class Breakers:
    """The breakers of a store as they were changed last, those of its newest life."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        rows = connection.execute(
            "SELECT body FROM trace WHERE correlation = 'system' ORDER BY no DESC LIMIT ?", (_CHANGES,)
        ).fetchall()
        events, _ = decode_events(body for (body,) in rows)
        life = max((event.life for event in events), default=0)
        self._newest: dict[str, BreakerChanged] = {}
        for event in events:
            if isinstance(event, BreakerChanged) and event.life == life:
                self._newest.setdefault(event.model, event)

    def hold_back(self, model: str, began_at: float) -> bool:
        """Whether a call waits that began at that time; one that began before the breaker opened is under way."""
        change = self._newest.get(family_of(model))
        return change is not None and change.state == "open" and began_at >= change.at
