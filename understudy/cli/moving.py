"""Moving dead letters: by the process that owns the store, or, when there is none, by owning it for a moment."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Literal

import click

from understudy.cli.owner import NoAnswer, Refusal, ask_owner, owner_name
from understudy.cli.owning import own
from understudy.errors import StateUndecodable
from understudy.events import DeadLetterDiscarded, DeadLetterRedelivered, TraceEvent
from understudy.mailbox import letters
from understudy.mailbox.commit import Batch, DeadLetter
from understudy.mailbox.sqlite import SQLiteStore
from understudy.mailbox.store import Opening
from understudy.trace import words

Move = Literal["redeliver", "discard"]

# What one commit moves; a few letters go in one.
_WORK_MAX: Final = 1_000
_BYTES_MAX: Final = 16 << 20
_EVENTS: Final[dict[Move, type[TraceEvent]]] = {"redeliver": DeadLetterRedelivered, "discard": DeadLetterDiscarded}


def through_owner(store: Path, move: Move, numbers: Sequence[int], store_id: str) -> Iterator[tuple[int, str]]:
    """Let the owner do it; yield what became of each letter."""
    done = 0
    try:
        with ask_owner(store) as owner:
            for no in numbers:
                try:
                    owner.ask(move, id=letters.name_of(no, store_id))
                except Refusal as refusal:
                    yield no, str(refusal)
                else:
                    yield no, ""
                done += 1
    except NoAnswer as error:
        left = len(numbers) - done
        raise click.ClickException(
            f"{owner_name(store)} owns {store}, but {error}. {_unchanged(done, left, numbers, store_id)} Try again, or stop "
            "that process: without an owner this command does it by itself."
        ) from error


def _unchanged(done: int, left: int, numbers: Sequence[int], store_id: str) -> str:
    if not done:
        return f"{words.count(left, 'dead letter')} may be unchanged; `understudy dead` tells."
    first = letters.name_of(numbers[done], store_id)
    return f"{done:,} were done; from {first} on `understudy dead` tells."


def alone(store: Path, move: Move, numbers: Sequence[int]) -> Sequence[tuple[int, str]]:
    """Own the store for a moment, and do it."""
    return own(store, partial(_move, move=move, numbers=numbers))


async def _move(
    owned: SQLiteStore, opening: Opening, *, move: Move, numbers: Sequence[int]
) -> Sequence[tuple[int, str]]:
    results: list[tuple[int, str]] = []
    batch = Batch(1)
    size = 0
    at = time.time()
    for offset, no in enumerate(numbers, 1):
        letter = (await owned.message(no)).dead
        if letter is None:
            results.append((no, "it is no dead letter any more"))
            continue
        if move == "discard":
            trouble = ""
            letters.discard(batch, letter)
        else:
            batch.last_message = opening.last_message + offset
            trouble = await _put_back(owned, batch, letter, batch.last_message)
        results.append((no, trouble))
        if trouble:
            continue
        letters.tell(batch, _EVENTS[move], letter, store_id=opening.store_id, life=opening.epoch, at=at)
        size += len(letter.envelope.body)
        if batch.work >= _WORK_MAX or size >= _BYTES_MAX:
            await owned.commit(batch)
            batch, size = Batch(batch.number + 1), 0
    if batch.work:
        await owned.commit(batch)
    return results


async def _put_back(owned: SQLiteStore, batch: Batch, letter: DeadLetter, position: int) -> str:
    """Let the batch deliver the letter again, or return why not.

    The size of the mailbox is not checked: only the program knows its own limit, and nobody else sends now.
    """
    (actor,) = await owned.load([letter.envelope.actor], 0)
    if actor is None:
        return "its actor was erased"
    if actor.status == "stopped":
        return f"{actor.kind}/{actor.id} has stopped ({words.one_line(actor.reason)}) and takes no messages"
    try:
        envelope = letters.redeliver(batch, letter, await owned.journal(letter.envelope.no), position)
    except StateUndecodable as error:
        return str(error)
    batch.envelopes[envelope.no] = envelope
    batch.work += 1
    return ""
