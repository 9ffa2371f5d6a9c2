"""What every store must do, whatever it is made of."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Sequence
from typing import Any, cast

import msgspec
import pytest

from understudy.errors import StoreFailed, SystemClosed
from understudy.mailbox.commit import Batch, DeadLetter, KeptResult, Record, Snapshot
from understudy.mailbox.envelope import Envelope, Head
from understudy.mailbox.journal import Failure, JournalEntry, Outcome
from understudy.mailbox.store import Timer

pytestmark = pytest.mark.anyio

FAILURE = Failure(kind="failed", type="ValueError", message="no", traceback="Traceback")


def message(no: int, actor: int = 1, **fields: Any) -> Envelope:
    head = Head(sent_at=1000.5 + no, correlation=f"c{no}", parent="p", chain=(3, 4))
    return Envelope(
        **{"no": no, "actor": actor, "position": no, "handler": "h", "body": b"\x90", "head": head, **fields}
    )


def kept(no: int, **fields: Any) -> KeptResult:
    return KeptResult(
        **{
            "no": no,
            "actor": 1,
            "handler": "h",
            "key": None,
            "digest": b"d",
            "outcome": Outcome(value=b"v"),
            "state": "done",
            "finished_at": 5.0,
            "expires_at": 10.0,
            "correlation": "c",
            **fields,
        }
    )


def facts(envelope: Envelope | None) -> tuple[Any, ...]:
    """Envelopes compare by identity; these are their stored fields."""
    assert envelope is not None
    return tuple(getattr(envelope, name) for name in envelope.__struct_fields__[:16])


class Writer:
    """Hands batches to a store, with one actor number 1 in the first."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.count = 0

    def batch(self) -> Batch:
        self.count += 1
        batch = Batch(self.count)
        if self.count == 1:
            batch.actors[1] = ("account", "alice")
        return batch

    async def write(self, traces: Sequence[tuple[Any, ...]] = (), **parts: Any) -> None:
        batch = self.batch()
        for told in traces:
            batch.tell(*told)
        for name, content in parts.items():
            setattr(batch, name, content)
        if self.count == 1:
            batch.actors[1] = ("account", "alice")
        await self.store.commit(batch)

    async def accept(self, *envelopes: Envelope) -> None:
        await self.write(envelopes={each.no: each for each in envelopes})


@pytest.fixture
def writer(store: Any) -> Writer:
    return Writer(store)


async def test_actor_is_found_by_name_and_by_number_in_the_order_asked(writer: Writer) -> None:
    await writer.write(actors={2: ("account", "bob"), 3: ("other", "alice")})

    found = await writer.store.load([("other", "alice"), 2, ("account", "nobody"), 99, ("account", "alice")], 10)

    assert [each and (each.no, each.kind, each.id) for each in found] == [
        (3, "other", "alice"),
        (2, "account", "bob"),
        None,
        None,
        (1, "account", "alice"),
    ]


async def test_new_actor_has_nothing(writer: Writer) -> None:
    await writer.write()

    (loaded,) = await writer.store.load([1], 10)

    assert (loaded.status, loaded.reason, loaded.snapshot, loaded.last_event) == ("active", "", None, 0)
    assert (loaded.depth, loaded.window, loaded.damage) == (0, [], None)


async def test_last_snapshot_counts(writer: Writer) -> None:
    await writer.write(snapshots={1: Snapshot(version=1, seq=0, body=b"old")})
    await writer.write(snapshots={1: Snapshot(version=2, seq=7, body=b"")})

    (loaded,) = await writer.store.load([1], 10)

    assert loaded.snapshot == Snapshot(version=2, seq=7, body=b"")


async def test_status_and_reason_are_kept(writer: Writer) -> None:
    await writer.write()
    await writer.write(statuses={1: ("suspended", "quotes \ud800 and 'more'")})

    (loaded,) = await writer.store.load([1], 10)

    assert (loaded.status, loaded.reason) == ("suspended", "quotes \\ud800 and 'more'")


async def test_message_comes_back_with_every_field(writer: Writer) -> None:
    original = message(
        5,
        key="k",
        caller=3,
        caller_key=b"\x00ck",
        due_at=1763800000.123457,
        started=1,
        crashes=2,
        attempts=3,
        not_before=1763800000.765432,
        history=b"past",
        amended=b"\x91\x07",
    )
    await writer.accept(original)

    where = await writer.store.message(5)

    assert facts(where.pending) == facts(original)
    assert (where.result, where.dead) == (None, None)


async def test_window_holds_the_first_messages_without_due_time_and_depth_counts_all(writer: Writer) -> None:
    await writer.accept(
        *[message(no, position=100 - no) for no in range(1, 6)],
        message(9, due_at=5.0, position=1),
        message(10, actor=2),
    )

    (loaded,) = await writer.store.load([1], 3)

    assert [each.no for each in loaded.window] == [5, 4, 3]
    assert loaded.depth == 6


async def test_mailbox_pages_by_position(writer: Writer) -> None:
    await writer.accept(*[message(no) for no in range(1, 6)], message(9, due_at=5.0, position=3), message(10, actor=2))

    page = await writer.store.mailbox(1, 2, 2)

    assert [each.no for each in page] == [3, 4]


async def test_progress_made_while_a_commit_runs_is_not_part_of_it(writer: Writer) -> None:
    envelope = message(1)
    batch = writer.batch()
    batch.envelopes[1] = envelope

    commit = asyncio.ensure_future(writer.store.commit(batch))
    await asyncio.sleep(0)
    envelope.attempts = 7
    await commit

    assert (await writer.store.message(1)).pending.attempts == 0


async def test_progress_is_stored(writer: Writer) -> None:
    envelope = message(1, due_at=5.0)
    await writer.accept(envelope)

    envelope.due_at, envelope.position = None, 44
    envelope.started, envelope.attempts, envelope.not_before, envelope.history = 2, 1, 9.5, b"h"
    envelope.amended = b"\x91\x02"
    await writer.write(progress={1: envelope})

    assert facts((await writer.store.message(1)).pending) == facts(envelope)
    assert [each.no for each in await writer.store.mailbox(1, 0, 9)] == [1]
    assert await writer.store.timers(None, 9) == []


async def test_finished_message_is_gone(writer: Writer) -> None:
    await writer.accept(*[message(no) for no in range(1, 1200)])

    await writer.write(finished=list(range(1, 1199)))

    assert [each.no for each in await writer.store.mailbox(1, 0, 9)] == [1199]


async def test_number_may_end_and_come_back_in_one_batch(writer: Writer) -> None:
    await writer.accept(message(1))

    await writer.write(finished=[1], envelopes={1: message(1, handler="other")})

    assert (await writer.store.message(1)).pending.handler == "other"


async def test_events_are_paged_by_number(writer: Writer) -> None:
    await writer.write(events=[(1, seq, b"e%d" % seq) for seq in range(1, 6)] + [(2, 1, b"x")])

    assert await writer.store.events(1, 2, 2) == [(3, b"e3"), (4, b"e4")]
    assert (await writer.store.load([1], 1))[0].last_event == 5


async def test_journal_keeps_the_order_of_writing_and_the_last_outcome_of_a_key(writer: Writer) -> None:
    def entry(key: bytes, value: bytes, after: bytes | None = None) -> JournalEntry:
        return JournalEntry(message=1, key=key, outcome=Outcome(value=value), after=after)

    await writer.write(journal={(1, b"z"): entry(b"z", b"mark"), (1, b"a"): entry(b"a", b"1", b"z")})
    await writer.write(journal={(1, b"m"): entry(b"m", b"2"), (1, b"z"): entry(b"z", b"done")})

    assert await writer.store.journal(1) == [entry(b"z", b"done"), entry(b"a", b"1", b"z"), entry(b"m", b"2")]
    assert await writer.store.journal(2) == []


async def test_forgotten_journal_goes_before_new_rows_come(writer: Writer) -> None:
    old = JournalEntry(message=1, key=b"k", outcome=Outcome(failure=FAILURE))
    new = JournalEntry(message=1, key=b"n", outcome=Outcome(value=b"v"))
    await writer.write(journal={(1, b"k"): old})

    await writer.write(forgotten=[1], journal={(1, b"n"): new})

    assert await writer.store.journal(1) == [new]


async def test_failure_with_lone_surrogates_is_stored(writer: Writer) -> None:
    failure = Failure(kind="failed", type="E", message="\udc80")
    await writer.write(
        journal={(1, b"k"): JournalEntry(message=1, key=b"k", outcome=Outcome(failure=failure))},
        dead={2: DeadLetter(message(2), failure, 1.0)},
    )

    (entry,) = await writer.store.journal(1)
    (letter,) = await writer.store.dead_letters(0, 9)

    assert entry.outcome.failure.message == letter.failure.message == "\\udc80"


async def test_open_asks_of_a_turn_are_found(writer: Writer) -> None:
    await writer.accept(message(5, caller=2, caller_key=b"x"), message(4, caller=2), message(6, caller=3), message(7))

    assert [each.no for each in await writer.store.asked_by(2)] == [4, 5]


async def test_messages_are_read_by_number_and_those_that_are_gone_are_left_out(writer: Writer) -> None:
    await writer.accept(message(5), message(4, due_at=1e9), message(6))

    assert [each.no for each in await writer.store.messages([6, 9, 4])] == [4, 6]
    assert facts((await writer.store.messages([4]))[0]) == facts(message(4, due_at=1e9))
    assert await writer.store.messages([]) == []


async def test_result_replaces_an_earlier_one(writer: Writer) -> None:
    await writer.write(results={1: kept(1, state="failed", outcome=Outcome(failure=FAILURE))})
    await writer.write(results={1: kept(1)})

    assert (await writer.store.message(1)).result == kept(1)


async def test_key_finds_the_newest_message_wherever_it_is(writer: Writer) -> None:
    store = writer.store
    await writer.write(results={1: kept(1, key="k")}, envelopes={2: message(2, key="k"), 3: message(3, key="other")})

    assert (await store.keyed(1, "h", "k")).pending.no == 2
    await writer.write(finished=[2], results={2: kept(2, key="k")})
    assert (await store.keyed(1, "h", "k")).result == kept(2, key="k")
    await writer.write(dead={9: DeadLetter(message(9, key="k"), FAILURE, 1.0)})
    assert (await store.keyed(1, "h", "k")).dead.envelope.no == 9
    assert await store.keyed(1, "g", "k") == await store.keyed(2, "h", "k") == await store.message(77)


async def test_dead_letter_keeps_envelope_failure_and_journal(writer: Writer) -> None:
    entry = JournalEntry(message=1, key=b"k", outcome=Outcome(value=b"v"))
    envelope = message(1, key="k", history=b"h", attempts=3, amended=b"\x91\x02")
    await writer.write(envelopes={1: envelope}, journal={(1, b"k"): entry})

    await writer.write(finished=[1], dead={1: DeadLetter(envelope, FAILURE, 12.5)})

    where = await writer.store.message(1)
    assert where.pending is None
    assert facts(where.dead.envelope) == facts(envelope)
    assert (where.dead.failure, where.dead.at) == (FAILURE, 12.5)
    assert await writer.store.journal(1) == [entry]
    assert [each.envelope.no for each in await writer.store.dead_letters(0, 9)] == [1]
    assert await writer.store.dead_letters(1, 9) == []


async def test_discarding_deletes_the_letter_and_its_journal_and_frees_the_key(writer: Writer) -> None:
    entry = JournalEntry(message=1, key=b"k", outcome=Outcome(value=b"v"))
    await writer.write(
        dead={1: DeadLetter(message(1, key="k"), FAILURE, 1.0)},
        results={1: kept(1, key="k", state="failed")},
        journal={(1, b"k"): entry},
    )

    await writer.write(discarded=[1])

    where = await writer.store.message(1)
    assert (where.dead, where.result) == (None, kept(1, state="failed"))
    assert await writer.store.journal(1) == []
    assert (await writer.store.keyed(1, "h", "k")).result is None


async def test_redelivered_dead_letter_keeps_its_journal(writer: Writer) -> None:
    entry = JournalEntry(message=1, key=b"k", outcome=Outcome(value=b"v"))
    await writer.write(dead={1: DeadLetter(message(1), FAILURE, 1.0)}, journal={(1, b"k"): entry})

    await writer.write(discarded=[1], envelopes={1: message(1)})

    where = await writer.store.message(1)
    assert where.pending is not None
    assert where.dead is None
    assert await writer.store.journal(1) == [entry]


async def test_timers_come_by_due_time_then_number(writer: Writer) -> None:
    await writer.accept(message(1, due_at=9.0), message(2, due_at=5.0), message(3, due_at=9.0, actor=4), message(4))

    first = await writer.store.timers(None, 2)
    rest = await writer.store.timers(first[-1], 9)

    assert first == [Timer(5.0, 2, 1), Timer(9.0, 1, 1)]
    assert rest == [Timer(9.0, 3, 4)]


async def test_waiting_actors_are_active_and_have_mail_that_is_due(writer: Writer) -> None:
    await writer.write(
        actors={no: ("k", str(no)) for no in range(2, 8)},
        statuses={4: ("suspended", "r")},
        envelopes={
            each.no: each
            for each in (
                message(1, 2),
                message(2, 2),
                message(3, 3, due_at=5.0),
                message(4, 4),
                message(5, 6),
                message(6, 7),
            )
        },
    )

    assert await writer.store.waiting(0, 9) == [2, 6, 7]
    assert await writer.store.waiting(2, 1) == [6]
    assert await writer.store.waiting(7, 9) == []


async def test_traces_are_read_in_order_of_all_or_of_one_correlation(writer: Writer) -> None:
    await writer.write(traces=[(1.0, "a", b"1"), (2.0, "b", b"2"), (3.0, "a", b"3")])
    await writer.write(traces=[(4.0, "c", b"4")])

    assert [each.body for each in await writer.store.traces(None, 0, 9)] == [b"1", b"2", b"3", b"4"]
    assert [each.body for each in await writer.store.traces("a", 0, 9)] == [b"1", b"3"]
    assert [each.body for each in await writer.store.traces(None, 2, 1)] == [b"3"]
    assert await writer.store.correlations(2) == [("c", 4.0), ("b", 2.0)]


async def test_list_of_actors_tells_depth_and_age_of_the_oldest_message(writer: Writer) -> None:
    await writer.write(
        actors={2: ("account", "bob"), 3: ("tool", "x")}, envelopes={4: message(4, 2), 5: message(5, 2, due_at=9.0)}
    )

    rows = await writer.store.actors(None, 1, 9)

    assert [(row.no, row.id, row.depth, row.oldest_at) for row in rows] == [(2, "bob", 2, 1004.5), (3, "x", 0, None)]
    assert [row.id for row in await writer.store.actors("account", 0, 9)] == ["alice", "bob"]


async def test_held_actors_are_listed_by_number_of_one_status_or_both(writer: Writer) -> None:
    await writer.write(
        actors={no: ("account", str(no)) for no in range(2, 9)},
        statuses={2: ("suspended", "budget"), 3: ("stopped", "done"), 5: ("suspended", "damage"), 7: ("stopped", "")},
        envelopes={4: message(4, 5)},
    )
    await writer.write(statuses={2: ("active", "")})
    held = writer.store.held

    rows = await held(None, 0, 9)

    assert [(row.no, row.kind, row.id, row.status, row.reason, row.depth, row.oldest_at) for row in rows] == [
        (3, "account", "3", "stopped", "done", 0, None),
        (5, "account", "5", "suspended", "damage", 1, 1004.5),
        (7, "account", "7", "stopped", "", 0, None),
    ]
    assert [row.no for row in await held("suspended", 0, 9)] == [5]
    assert [row.no for row in await held("stopped", 0, 1)] == [3]
    assert [row.no for row in await held(None, 3, 1)] == [5]
    assert await held("active", 0, 9) == []


async def test_only_a_waiting_actor_is_woken_and_only_then_its_mail_is_found(writer: Writer) -> None:
    await writer.write(
        actors={no: ("account", str(no)) for no in range(1, 5)},
        statuses={1: ("waiting", "external paid"), 2: ("suspended", "budget"), 3: ("waiting", "external paid")},
        envelopes={each.no: each for each in (message(5, 1), message(6, 2), message(7, 3), message(8, 4))},
    )
    before = await writer.store.waiting(0, 9)

    await writer.write(woken=[1, 2, 4])

    assert before == [4]
    assert await writer.store.waiting(0, 9) == [1, 4]
    rows = await writer.store.actors(None, 0, 9)
    assert [(row.status, row.reason) for row in rows] == [
        ("active", ""),
        ("suspended", "budget"),
        ("waiting", "external paid"),
        ("active", ""),
    ]


async def test_newest_picture_of_the_tree_counts(writer: Writer) -> None:
    assert await writer.store.picture() is None
    await writer.write(picture=b"first")
    await writer.write(picture=b"second")
    await writer.write()

    assert await writer.store.picture() == b"second"


async def test_turns_are_added_up(writer: Writer) -> None:
    await writer.write(turns={("k", "h"): [2, 1], ("k", "g"): [1, 0]})
    await writer.write(turns={("k", "h"): [3, 0]})

    assert await writer.store.turns() == [("k", "g", 1, 0), ("k", "h", 5, 1)]


async def test_events_of_one_turn_share_a_row_when_they_are_told_one_after_the_other(writer: Writer) -> None:
    one, two, three, other, outside = (msgspec.msgpack.encode({"type": name}) for name in ("1", "2", "3", "o", "x"))

    await writer.write(
        traces=[(1.0, "a", one, 7), (1.5, "a", two, 7), (1.5, "a", other, 8), (1.5, "b", outside), (1.6, "a", three, 7)]
    )
    await writer.write(traces=[(1.7, "b", outside), (1.7, "b", outside)])

    stored = await writer.store.traces(None, 0, 9)
    assert [(each.no, each.place, each.body) for each in stored] == [
        (1, 0, one), (1, 1, two), (2, 0, other), (3, 0, outside), (4, 0, three), (5, 0, outside), (6, 0, outside),
    ]  # fmt: skip
    assert [each.body for each in await writer.store.traces("a", 0, 9)] == [one, two, other, three]


async def test_event_outlives_those_that_its_turn_told_long_before(writer: Writer) -> None:
    first, second, last = (msgspec.msgpack.encode({"type": name}) for name in ("1", "2", "3"))
    await writer.write(traces=[(1.0, "a", first, 7), (1.5, "a", second, 7), (9.0, "a", last, 7)])

    await writer.store.tidy(15.0, 10.0, 10**9)

    assert [each.body for each in await writer.store.traces(None, 0, 9)] == [last]


async def test_no_number_is_taken_for_a_missing_one(writer: Writer) -> None:
    sent = message(1, due_at=-1.0, not_before=-1.0, key="-1", caller=-1, caller_key=b"-1", history=b"", amended=b"-1")
    await writer.accept(sent)

    (found,) = await writer.store.messages([1])

    assert facts(found) == facts(sent)


async def test_nothing_is_stored_where_something_is_required(writer: Writer) -> None:
    with pytest.raises(sqlite3.IntegrityError, match="NOT NULL"):
        await writer.write(records={("k", "1"): Record("k", "1", b"", owner=cast(Any, None))})


async def test_started_is_stored_without_the_rest_of_the_message(writer: Writer) -> None:
    envelopes = [message(no, 1) for no in (1, 2, 3, 4)]
    await writer.accept(*envelopes)
    for envelope, started in zip(envelopes, (1, -1, 2, 1), strict=True):
        envelope.started, envelope.attempts = started, 5
    batch = writer.batch()
    for envelope in envelopes:
        batch.note_started(envelope)
    envelopes[0].started = -1  # It got on before the batch was written.
    batch.finish(envelopes[3])
    await writer.store.commit(batch)

    (found,) = await writer.store.load([1], 9)

    assert found is not None
    assert [(each.no, each.started, each.attempts) for each in found.window] == [(1, -1, 0), (2, -1, 0), (3, 2, 0)]


async def test_tidy_deletes_expired_results_and_old_trace_only(writer: Writer) -> None:
    await writer.write(
        results={1: kept(1, expires_at=10.0), 2: kept(2, expires_at=20.0)},
        traces=[(1.0, "a", b"old"), (9.0, "a", b"new")],
    )

    await writer.store.tidy(15.0, 10.0, 10**9)

    assert (await writer.store.message(1)).result is None
    assert (await writer.store.message(2)).result is not None
    assert [each.body for each in await writer.store.traces(None, 0, 9)] == [b"new"]


async def test_tidy_bounds_the_size_of_the_trace(writer: Writer) -> None:
    await writer.write(traces=[(1.0, "a", os.urandom(900)) for _ in range(3000)])

    await writer.store.tidy(2.0, 1e9, 1_000_000)

    left = await writer.store.traces(None, 0, 9999)
    assert 800 < len(left) < 1_200
    assert left[-1].no == 3000


async def test_erased_actor_is_gone_and_its_number_is_not_given_again(writer: Writer, opened: Any) -> None:
    store = writer.store
    await writer.write(actors={2: ("account", "bob")}, envelopes={7: message(7, 2), 8: message(8, 1)})

    await store.erase(2)
    await store.close(clean=True)
    again = type(store)(store.path)
    opening = await again.open()

    assert opening.last_actor == 2
    assert await again.load([2, ("account", "bob")], 9) == [None, None]
    assert (await again.message(7)).pending is None
    assert (await again.message(8)).pending is not None
    await again.close(clean=True)


async def test_everything_is_there_after_closing_and_opening(writer: Writer) -> None:
    store = writer.store
    await writer.write(
        envelopes={70: message(70)}, snapshots={1: Snapshot(1, 2, b"s")}, events=[(1, 1, b"e"), (1, 2, b"f")]
    )
    await store.close(clean=True)

    again = type(store)(store.path)
    opening = await again.open()
    (loaded,) = await again.load([("account", "alice")], 9)
    await again.close(clean=True)

    assert (opening.epoch, opening.clean, opening.last_actor) == (2, True, 1)
    assert opening.last_message >= 70
    assert (loaded.snapshot, loaded.last_event, loaded.depth) == (Snapshot(1, 2, b"s"), 2, 1)


async def test_numbers_that_never_reached_a_table_are_not_given_again(writer: Writer) -> None:
    store = writer.store
    await writer.write(last_message=123_456)
    await store.close(clean=False)

    again = type(store)(store.path)
    opening = await again.open()
    await again.close(clean=True)

    assert opening.last_message >= 123_456
    assert not opening.clean


async def test_backup_opens_as_a_store_with_the_same_content(writer: Writer, opened: Any, tmp_path: Any) -> None:
    await writer.accept(message(1))

    await writer.store.backup(tmp_path / "copy.db")
    await writer.accept(message(2))

    copy = await opened(type(writer.store), at=tmp_path / "copy.db")
    assert [each.no for each in await copy.mailbox(1, 0, 9)] == [1]
    assert oct((tmp_path / "copy.db").stat().st_mode & 0o777) == "0o600"


async def test_closed_store_says_so(writer: Writer) -> None:
    store = writer.store
    await store.close(clean=True)
    await store.close(clean=True)

    with pytest.raises(SystemClosed):
        await store.load([1], 1)
    with pytest.raises(SystemClosed):
        await store.commit(writer.batch())
    with pytest.raises(SystemClosed):
        await store.open()


async def test_batch_that_cannot_be_written_breaks_the_store_and_leaves_nothing(writer: Writer) -> None:
    store = writer.store
    await writer.accept(message(1))

    with pytest.raises(OverflowError):
        await writer.accept(message(2), message(2**70))
    with pytest.raises(StoreFailed, match="outcome"):
        await writer.accept(message(3))

    assert [each.no for each in await store.mailbox(1, 0, 9)] == [1]


async def test_cancelled_commit_is_either_there_or_not_and_the_store_goes_on(writer: Writer) -> None:
    for no in range(1, 40):
        task = asyncio.ensure_future(writer.accept(message(no)))
        for _ in range(no % 4):
            await asyncio.sleep(0)
        task.cancel()
        reading = asyncio.ensure_future(writer.store.mailbox(1, 0, 99))
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([task, reading])
        assert task.cancelled() or task.exception() is None
    writer.count = 100
    batch = Batch(101)
    batch.envelopes[50] = message(50)

    await writer.store.commit(batch)

    assert (await writer.store.mailbox(1, 0, 99))[-1].no == 50


async def test_records_are_replaced_deleted_and_listed_by_id_of_one_owner_or_all(writer: Writer) -> None:
    one, two, three = (
        Record("ledger", "a", b"1", "x"),
        Record("ledger", "b", b"2", "y"),
        Record("ledger", "c", b"3", "x"),
    )
    await writer.write(records={(each.kind, each.id): each for each in (three, one, two, Record("other", "a", b"4"))})
    await writer.write(
        records={("ledger", "b"): None, ("ledger", "a"): Record("ledger", "a", b"5", "x"), ("no", "n"): None}
    )

    assert await writer.store.record("ledger", "a") == Record("ledger", "a", b"5", "x")
    assert await writer.store.record("ledger", "b") is None
    assert [each.id for each in await writer.store.records("ledger", None, "", 9)] == ["a", "c"]
    assert [each.id for each in await writer.store.records("ledger", "x", "a", 9)] == ["c"]
    assert [each.id for each in await writer.store.records("ledger", "x", "", 1)] == ["a"]
    assert await writer.store.records("ledger", "y", "", 9) == []


async def test_record_is_deleted_when_it_has_expired(writer: Writer) -> None:
    kept, expiring = Record("ledger", "a", b"1"), Record("ledger", "b", b"2", expires_at=10.0)
    await writer.write(records={(each.kind, each.id): each for each in (kept, expiring)})

    await writer.store.tidy(9.0, 1e9, 1 << 30)
    assert await writer.store.record("ledger", "b") == expiring
    await writer.store.tidy(11.0, 1e9, 1 << 30)
    assert [each.id for each in await writer.store.records("ledger", None, "", 9)] == ["a"]
