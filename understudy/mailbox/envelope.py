"""One message on its way: what was said, to whom, and what has become of it so far.

The first fields are fixed when the message is accepted; the progress fields change while it waits; the last three
live in memory only and are not stored.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Head(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a message carries besides its arguments. Stored; evolves by appending fields with defaults."""

    sent_at: float
    correlation: str
    parent: str | None = None  # span of the sending turn
    sender: str | None = None  # id of the sending turn
    chain: tuple[int, ...] = ()  # actors whose turns wait for this message, outermost first
    deadline_at: float | None = None
    keep: bool = False  # the outcome is kept for `result_ttl_s`: `submit` and keyed messages
    traced: bool = False  # the sender's turn is in the trace, so this one is too
    scope: str | None = None  # the ledgers that what it causes draws on, as `open_ledger.scope_of` writes them
    workflow: str | None = None  # the ledger of the workflow that it was sent through itself


class Envelope(msgspec.Struct, eq=False, gc=True):
    """A message and its metadata. `no` names it for ever; `position` is its place in the actor's mailbox."""

    no: int
    actor: int
    position: int
    handler: str
    body: bytes
    head: Head
    key: str | None = None
    caller: int | None = None  # number of the message whose turn asks
    caller_key: bytes | None = None  # the asking turn's journal key for this ask
    due_at: float | None = None  # wall time before which it is not delivered
    # Progress: changed by failures and crashes, stored by UPDATE.
    # 1: its turn was started; 2: started alone, so that a crash is charged to it only; -1: started before, nothing to
    # charge, but its journal may hold outcomes.
    started: int = 0
    crashes: int = 0
    attempts: int = 0
    not_before: float | None = None
    history: bytes | None = None  # failures of earlier attempts, encoded
    amended: bytes | None = None  # arguments that replace `body`, by a policy's amendment
    # Memory only.
    arguments: Any = None  # decoded in this life
    waiter: Any = None  # who waits for the reply in this life
    hold: str | None = None  # why it may not start yet
