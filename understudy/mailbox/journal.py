"""Outcomes: the value or the failure of a step, an ask, a model call or a whole message.

One table holds those of running turns, under (message, key), until their message commits; another holds those of
`submit` and keyed messages until they expire. A failure crosses every boundary as data; no type is looked up by name.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, Literal

import msgspec

FailureKind = Literal[
    "declared",  # an error that is an answer; `type` is its declared name, `arguments` its args
    "own",  # one of our own errors; `type` names it in errors.py, `arguments` holds its facts
    "failed",  # any other error; arrives as HandlerFailed or StepFailed
]


class Failure(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An error as data."""

    kind: FailureKind
    type: str
    message: str
    traceback: str = ""
    arguments: bytes | None = None
    dead_letter: str | None = None


class Outcome(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How something ended: exactly one of value and failure is set."""

    value: bytes | None = None
    failure: Failure | None = None


_LADDER: Final = b"+ladder"  # follows the number that a step's key ends with
_RUNGS: Final = "Ladder"  # type of the failure that the ladder of an unfinished step is stored as


class JournalEntry(msgspec.Struct, frozen=True, gc=False):
    """One row of a running turn's journal.

    `after` is the key of the step before it in the same branch, `child` the number of the message that was asked.
    """

    message: int
    key: bytes
    outcome: Outcome
    after: bytes | None = None
    child: int | None = None


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Outcome)


def encode_outcome(outcome: Outcome) -> bytes:
    """Return the stored bytes of *outcome*."""
    try:
        return _encode(outcome)
    except UnicodeEncodeError:
        if outcome.failure is None:
            raise
        return _encode(Outcome(value=outcome.value, failure=_storable(outcome.failure)))


def decode_outcome(body: bytes) -> Outcome:
    """Return the outcome stored as *body*; raises `msgspec.DecodeError` when it is none."""
    return _decoder.decode(body)


class Lineage:
    """The steps that one branch of a turn has made, newest first: tells equal steps of parallel branches apart."""

    __slots__ = ("before", "key")

    def __init__(self, key: bytes, before: Lineage | None) -> None:
        self.key = key
        self.before = before

    def holds(self, key: bytes) -> bool:
        """Whether this branch has made the step *key*."""
        node: Lineage | None = self
        while node is not None:
            if node.key == key:
                return True
            node = node.before
        return False


class Slot:
    """One step of a message, in memory: its outcome when there is one, and who waits for it."""

    __slots__ = ("_waiters", "after", "child", "claimed", "key", "lasts", "outcome", "running", "wait", "work")

    def __init__(self, key: bytes, after: bytes | None, outcome: Outcome | None = None) -> None:
        self.key = key
        self.after = after
        self.outcome = outcome
        self.claimed = False
        self.running = False  # an attempt of the turn runs its body and waits for it
        self.work: asyncio.Task[Any] | None = None  # the thread of its body, which nobody can cancel
        self.child: int | None = None  # number of the message that was asked
        self.wait: str | None = None  # id of the record that says what it waits for outside
        self.lasts = False  # a ladder that goes on in the attempt of the turn which it has decided about
        self._waiters: list[asyncio.Future[Outcome]] | None = None

    def is_open(self) -> bool:
        """Whether it has no outcome yet."""
        return self.outcome is None

    def settle(self, outcome: Outcome) -> None:
        """Give the outcome to whoever waits for this step."""
        self.outcome = outcome
        self.running = False
        for waiter in self._taken():
            waiter.set_result(outcome)

    def interrupt(self, error: Exception) -> None:
        """Wake whoever waits with *error*; the outcome may still come."""
        for waiter in self._taken():
            waiter.set_exception(error)

    async def wait_outcome(self) -> Outcome:
        """Return the outcome once there is one; cancelling one waiter disturbs no other."""
        if self.outcome is None:
            waiter: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
            if self._waiters is None:
                self._waiters = []
            self._waiters.append(waiter)
            return await waiter
        return self.outcome

    def _taken(self) -> list[asyncio.Future[Outcome]]:
        """Return those who still wait, for the last time."""
        if self._waiters is None:  # As of most steps.
            return []
        waiting = [waiter for waiter in self._waiters if not waiter.done()]
        self._waiters = None
        return waiting


class Journal:
    """What one message's turn has done, across its attempts and the lives of the process.

    Steps are matched by what they do (name and arguments), not by position. Where several are equal, the step that the
    same branch made before decides which is whose. The retry ladder of a step has a slot of its own, which belongs to
    no group: nobody claims it, and it is no step.
    """

    def __init__(self, message: int) -> None:
        self.message = message
        self.slots: dict[bytes, Slot] = {}
        self.stored = False  # rows of earlier batches exist
        self.batch = 0  # the batch that its newest row is in
        self.progressed = False  # something was journaled in this life
        self.replaying = False  # this attempt may find outcomes of an earlier one
        self.undecodable: Exception | None = None  # why a stored outcome cannot be read: the actor is to be held
        self._count = 0
        self._groups: dict[bytes, list[Slot]] = {}
        self._numbers: dict[bytes, int] = {}  # the next number of equal steps
        self._gone: dict[bytes, bytes | None] = {}  # forgotten steps: what their branch made before them

    @property
    def count(self) -> int:
        """How many steps the message has made, those of earlier attempts and lives included."""
        return self._count

    def remember(self, entry: JournalEntry) -> None:
        """Take over a stored row."""
        self.stored = self.replaying = True
        known = self.slots.get(entry.key)
        if known is not None:
            if known.is_open() and known.key + _LADDER in self.slots and entry.outcome != Outcome():
                known.outcome, known.child = entry.outcome, entry.child  # Its ladder was read before it.
            return  # Read before in this life, or its answer came while this was read, and is newer.
        if entry.outcome.value is None and entry.outcome.failure is None:
            self._gone[entry.key] = entry.after  # A failure that a later attempt was to forget.
            return
        if entry.key.endswith(_LADDER):
            self.slots[entry.key] = Slot(entry.key, entry.after, entry.outcome)
            step = entry.key.removesuffix(_LADDER)
            if step not in self.slots:
                self._add(Slot(step, entry.after))  # It goes on where it was, once the turn comes to it.
            return
        self._add(Slot(entry.key, entry.after, entry.outcome)).child = entry.child

    def ladder(self, slot: Slot) -> bytes | None:
        """Return the rungs of the step's retry ladder, as they were given to `climb`; None when it has none."""
        ladder = self.slots.get(slot.key + _LADDER)
        if ladder is None or ladder.outcome is None:
            return None
        failure = ladder.outcome.failure
        if failure is None:
            return ladder.outcome.value
        return failure.arguments if failure.type == _RUNGS else None  # else its row is damaged

    def climb(self, slot: Slot, rungs: bytes, why: str, *, lasts: bool = False) -> Slot:
        """Note how far the ladder of a step is; return its slot, whose outcome is to be written.

        It is a failure until the step has a value, and is forgotten as one; unless it *lasts*: the turn's next attempt
        is a rung of it.
        """
        ladder = self._ladder_of(slot)
        ladder.outcome = Outcome(failure=Failure("failed", _RUNGS, why, arguments=rungs))
        ladder.lasts = lasts
        return ladder

    def keep_ladder(self, slot: Slot) -> Slot | None:
        """Keep the ladder of a step as long as the value that the step now has; return its slot, to be written."""
        rungs = self.ladder(slot)
        if rungs is None:
            return None
        ladder = self._ladder_of(slot)
        ladder.outcome = Outcome(value=rungs)
        return ladder

    def _ladder_of(self, slot: Slot) -> Slot:
        key = slot.key + _LADDER
        return self.slots.setdefault(key, Slot(key, slot.after))

    def expect(self, key: bytes, child: int) -> Slot:
        """Note that the message *child* was asked under *key* and has not answered."""
        slot = self.slots.get(key)
        if slot is None:
            slot = self._add(Slot(key, None))
        slot.child = child
        self.replaying = True
        return slot

    def expect_outside(self, key: bytes, after: bytes | None, wait: str) -> None:
        """Note that the step *key* waits for the outside, as the record *wait* says."""
        slot = self.slots.get(key)
        if slot is None:
            slot = self._add(Slot(key, after))
            self.replaying = True
        if slot.is_open():
            slot.wait = wait

    def foresee(self, group: bytes) -> Slot:
        """Return a step that the turn has not come to yet, for an outcome that is there before it."""
        self.replaying = True
        return self._add(Slot(group + b"#%d" % self._numbers.get(group, 0), None))

    def steps(self, group: bytes) -> list[Slot]:
        """Return the steps of one group, in the order in which they began."""
        return list(self._groups.get(group, ()))

    def drop(self, slot: Slot) -> None:
        """Forget a step that was refused before it began."""
        if self.slots.get(slot.key) is slot:  # and not its successor in a later attempt
            self._remove(slot)

    def wrote(self, batch: int) -> None:
        """Note that a row was handed to the batch with this number."""
        self.stored = self.stored or self.batch not in (0, batch)
        self.batch = batch

    def claim(self, group: bytes, lineage: Lineage | None, *, guess: bool = False) -> Slot | None:
        """Return the step of an earlier attempt that this one is, or None when it is new.

        With *guess* also one of which no earlier step of its branch was claimed yet: they may be gone from the code, or
        their branch is late. So other branches get a chance before somebody guesses.
        """
        equal = self._groups.get(group)
        if equal is None:
            return None
        candidates = [slot for slot in equal if not slot.claimed]
        after = lineage.key if lineage is not None else None
        for slot in candidates:
            if slot.after == after:
                return self._claimed(slot)
        for slot in candidates:
            if self._could_be_mine(slot, lineage, guess):
                return self._claimed(slot)
        return None

    def begin(self, group: bytes, lineage: Lineage | None) -> Slot:
        """Return a new step."""
        # A number is not given twice while a row of that number may be there: it would be overwritten.
        number = self._numbers.get(group, 0)
        slot = Slot(group + b"#%d" % number, lineage.key if lineage is not None else None)
        return self._claimed(self._put(slot, group, number))

    def claim_covered(self, slot: Slot) -> list[Slot]:
        """Claim the steps that the outcome of *slot* stands for, and return them: they are not asked for again.

        They were made after it in its branch, or are matched by the same thing.
        """
        covered: dict[bytes, Slot] = {slot.key: slot}
        match = _matched_by(slot)
        for step in self.slots.values():
            if step.key.endswith(_LADDER):
                continue
            same = step.key.startswith((b"ask ", b"query ")) and _matched_by(step) == match
            if not step.claimed and (same or step.after in covered):
                step.claimed = True
                covered[step.key] = step
        return list(covered.values())[1:]

    def left_over(self, name: bytes) -> bool:
        """Whether outcomes of steps called *name* wait for a turn that asks for them again."""
        return self.replaying and any(
            not slot.claimed and not self._waits_for_its_ladder(slot)
            for group, slots in self._groups.items()
            if group.partition(b"\0")[0] == name
            for slot in slots
        )

    def start_attempt(self, *, forget_failures: bool) -> list[Slot]:
        """Make every step claimable again; return those whose failure is forgotten: their rows are to be voided.

        With a failure its ladder is forgotten. An outcome that is unknown stays: only a person may clear it.
        """
        self.undecodable = None
        forgotten: list[Slot] = []
        if forget_failures:
            self._forget_ladders(forgotten)
        for slot in list(self.slots.values()):
            if slot.key.endswith(_LADDER):
                continue
            slot.claimed = False
            failure = slot.outcome.failure if slot.outcome is not None else None
            if forget_failures and failure is not None and failure.type != "OutcomeUnknown":
                forgotten.append(slot)
                if slot.work is not None:  # Timed out, but its thread goes on: the next attempt joins it.
                    slot.outcome = None
                else:
                    self._remove(slot)
            elif _is_nothing(slot) and self.ladder(slot) is None:
                self._remove(slot)  # It never began, or may begin anew.
        self.replaying = bool(self.slots)
        return forgotten

    def _forget_ladders(self, forgotten: list[Slot]) -> None:
        for ladder in [slot for slot in self.slots.values() if slot.key.endswith(_LADDER)]:
            if ladder.lasts:
                ladder.lasts = False
            elif ladder.outcome is not None and ladder.outcome.failure is not None:
                del self.slots[ladder.key]
                forgotten.append(ladder)

    def _waits_for_its_ladder(self, slot: Slot) -> bool:
        # It has no outcome that another step could miss.
        return _is_nothing(slot)

    def conflicts(self, steps: bytes) -> bool:
        """Whether the key of the keyed group *steps* stands for other arguments already."""
        prefix = steps[: steps.rindex(b":") + 1]
        return any(slots and each != steps and each.startswith(prefix) for each, slots in self._groups.items())

    def _remove(self, slot: Slot) -> None:
        del self.slots[slot.key]
        self._gone[slot.key] = slot.after
        self._groups[slot.key.rpartition(b"#")[0]].remove(slot)
        self._count -= 1

    def _add(self, slot: Slot) -> Slot:
        group, _, number = slot.key.rpartition(b"#")
        return self._put(slot, group, int(number))

    def _put(self, slot: Slot, group: bytes, number: int) -> Slot:
        self.slots[slot.key] = slot
        self._groups.setdefault(group, []).append(slot)
        self._numbers[group] = max(self._numbers.get(group, 0), number + 1)
        self._count += 1
        return slot

    def _claimed(self, slot: Slot) -> Slot:
        slot.claimed = True
        return slot

    def _could_be_mine(self, slot: Slot, lineage: Lineage | None, guess: bool) -> bool:  # noqa: FBT001
        # Steps were added or removed before this one, or it belongs to another branch. The nearest step before it
        # that this attempt has made too tells whose it is.
        if slot.wait is not None and lineage is not None and lineage.holds(slot.key):
            return True  # The branch gave up waiting for it, and waits again.
        key = slot.after
        while key is not None:
            before = self.slots.get(key)
            if before is not None and before.claimed:
                return lineage is not None and lineage.holds(key)
            key = before.after if before is not None else self._gone.get(key)
        return guess


def _is_nothing(slot: Slot) -> bool:
    """Whether nothing would be lost with the step: it has no outcome, and none is on its way."""
    return slot.outcome is None and slot.child is None and slot.work is None and slot.wait is None


def _matched_by(slot: Slot) -> bytes:
    return slot.key.partition(b"\0")[2].rpartition(b"#")[0]


def group(name: str, arguments_digest: bytes, key: str | None = None) -> bytes:
    """Return what equal steps share: their name, and the digest of their arguments or the key that stands for them."""
    digest = arguments_digest.hex().encode()
    if key is None:
        return name.encode() + b"\0" + digest
    return name.encode() + b"\0" + key.encode("utf-8", "surrogatepass").hex().encode() + b":" + digest


def encode_failure(failure: Failure) -> bytes:
    """Return the stored bytes of *failure*."""
    try:
        return _encode(failure)
    except UnicodeEncodeError:
        return _encode(_storable(failure))


def storable(text: str) -> str:
    """Return *text* as UTF-8 can hold it.

    Error texts quote what models wrote, lone surrogates included. A commit must not fail because of one.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text


def _storable(failure: Failure) -> Failure:
    return msgspec.structs.replace(
        failure,
        type=storable(failure.type),
        message=storable(failure.message),
        traceback=storable(failure.traceback),
    )
