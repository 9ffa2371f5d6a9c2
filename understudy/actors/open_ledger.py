"""One ledger in memory, what a call has set aside in it, and how ledgers are named. Knows nothing of when that changes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from understudy.endpoint.ledger import Amount, Ledger

LEDGER, RESERVATION = "ledger", "reservation"
WORKFLOW = "workflow:"  # the ledger of a workflow is called so; that of a run by the id of its message
WORKFLOWS = "workflow"  # the owner of their ledgers, by which they are listed
_BETWEEN = "\n"  # of the ledgers in a scope, outermost first

decode_ledger = msgspec.msgpack.Decoder(Ledger).decode


class Reserved(msgspec.Struct, frozen=True, array_like=True):
    """What one call has set aside, as it is stored."""

    ledgers: list[str]
    amount: Amount


decode_reserved = msgspec.msgpack.Decoder(Reserved).decode


class OpenLedger:
    """One ledger in memory."""

    __slots__ = ("active_since", "expires_at", "id", "owner", "paused", "queue", "runs", "state", "users", "written_in")

    def __init__(self, id: str, owner: str, state: Ledger, expires_at: float | None = None) -> None:
        self.id = id
        self.owner = owner
        self.state = state
        self.expires_at = expires_at
        self.queue: list[Waiting] = []  # calls that do not fit beside those under way, in order of arrival
        self.users = 0  # who keeps it in memory
        self.runs = 0  # runs under way: while there are any, the time of a run's ledger goes on
        self.paused = False  # its turn waits for the outside: that time does not count
        self.active_since = 0.0
        self.written_in = 0  # the number of the newest batch with it

    @property
    def is_workflow(self) -> bool:
        """Whether it is that of a workflow."""
        return self.id.startswith(WORKFLOW)


class Reservation:
    """What one call has set aside, until it is settled."""

    __slots__ = ("amount", "chain", "id", "open")

    def __init__(self, id: str, chain: Sequence[OpenLedger], amount: Amount) -> None:
        self.id = id
        self.chain = chain
        self.amount = amount
        self.open = True


class Waiting:
    """A call that waits for others to settle."""

    __slots__ = ("amount", "chain", "future", "ticket")

    def __init__(self, ticket: int, chain: Sequence[OpenLedger], amount: Amount, future: asyncio.Future[Any]) -> None:
        self.ticket = ticket
        self.chain = chain
        self.amount = amount
        self.future: asyncio.Future[Reservation] = future


def scope_of(ledgers: Sequence[str]) -> str:
    """Return the scope that a message carries: the ledgers that its effects draw on, outermost first."""
    return _BETWEEN.join(ledgers)


def within(scope: str | None, ledger: str | None) -> str | None:
    """Return a scope with one more ledger in it."""
    if ledger is None or scope is None:
        return scope or ledger
    return scope if ledger in ledgers_of(scope) else scope_of([*ledgers_of(scope), ledger])


def ledgers_of(scope: str | None) -> list[str]:
    """Return the ledgers of a scope, outermost first."""
    return scope.split(_BETWEEN) if scope else []


def run_ledger(turn: str, number: int) -> str:
    """Return the name of the ledger of a turn's run; the first is called as the turn's message."""
    return f"{turn}.{number}" if number else turn
