from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from tests.cli.owners import TREE, Order, owner
from understudy import Limits, System
from understudy.cli import main
from understudy.events import DeadLetterDiscarded, DeadLetterRedelivered
from understudy.mailbox.commit import Batch, DeadLetter
from understudy.mailbox.envelope import Envelope, Head
from understudy.mailbox.journal import Failure, JournalEntry, Outcome
from understudy.mailbox.lock import OwnerLock
from understudy.mailbox.sqlite import SQLiteStore

pytestmark = pytest.mark.anyio

FAILURE = Failure(kind="failed", type="ValueError", message="no \x1b[31mstock", traceback="Traceback\n  \x1b[2J here")


def dead(*arguments, **settings):
    return CliRunner().invoke(main, ["dead", *map(str, arguments)], **settings)


def listed(file):
    return [json.loads(line) for line in dead(file, "list", "--json").output.splitlines()]


def ids(file):
    return [each["id"] for each in listed(file)]


async def events_of(file, correlation):
    store = SQLiteStore(file)
    await store.open()
    rows = await store.traces(correlation, 0, 99)
    await store.close(clean=True)
    return b" ".join(row.body for row in rows)


@pytest.fixture
async def file(tmp_path):
    """A store that was closed in good order, with three dead letters."""
    store = SQLiteStore(tmp_path / "agents.db")
    await store.open()
    batch = Batch(1)
    batch.actors = {1: ("order", "o-1"), 2: ("order", "o-2")}
    head = Head(1_000.0, "c-1")
    full = Envelope(
        12, 1, 12, "place", b"\x81\xa4what\xa4bo\x1bk", head, key="k", attempts=2, crashes=1, history=b"h",
        not_before=9.0, amended=b"\x81\xa4what\xa3pen",
    )  # fmt: skip
    batch.dead[12] = DeadLetter(full, FAILURE, 2_000.0)
    batch.dead[13] = DeadLetter(Envelope(13, 2, 13, "place", b"\x80", Head(1_000.0, "")), FAILURE, 2_000.0)
    batch.dead[140] = DeadLetter(Envelope(140, 2, 140, "place", b"\x80", head), FAILURE, 2_000.0)
    unknown = Outcome(failure=Failure(kind="own", type="OutcomeUnknown", message=""))
    for key, outcome in ((b"a", Outcome(value=b"v")), (b"b", Outcome(failure=FAILURE)), (b"c", unknown)):
        batch.journal[12, key] = JournalEntry(12, key, outcome)
    await store.commit(batch)
    await store.close(clean=True)
    return store.path


# --- looking ---------------------------------------------------------------------------------------------------------


async def test_list_is_the_default_and_tells_the_newest_first(file):
    result = dead(file)

    assert result.exit_code == 0
    assert result.output == dead(file, "list").output
    heading, *rows = [line.split("   ") for line in result.output.splitlines()[:4]]
    assert [cell.strip() for cell in heading if cell.strip()] == ["id", "given up", "handler", "tries", "error"]
    assert [row[0].partition("-")[0] for row in rows] == ["140", "13", "12"]
    assert [cell.strip() for cell in rows[2] if cell.strip()][2:] == [
        "order/o-1.place",
        "3",
        "ValueError: no [31mstock",
    ]
    assert "\x1b" not in result.output


async def test_limit_bounds_the_list_and_tells_what_is_left(file):
    result = dead(file, "-n", "1")

    assert "… and 2 older ones: -n 3" in result.output
    assert len(dead(file, "--json", "-n", "2").output.splitlines()) == 2


async def test_looking_leaves_a_closed_store_as_it_was(file, tmp_path):
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    dead(file)
    dead(file, "show", ids(file)[0])
    dead(file, "redeliver", "17")

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


async def test_show_tells_everything(file):
    id = ids(file)[2]

    result = dead(file, "show", id)

    assert result.exit_code == 0
    text = " ".join(result.output.split())
    for part in (
        f"dead letter {id}",
        "actor order/o-1",
        "handler place",
        "after 3 attempts and 1 crash of the process",
        "key k",
        "1 finished: not done again when it is redelivered; 1 failed: tried again; 1 with unknown outcome: stays so",
        f"understudy trace {file} c-1",
        "ValueError: no �[31mstock Traceback �[2J here",
        "arguments what = 'bo\\x1bk'",
        "amended for the last attempt what = 'pen'",
        f"understudy dead {file} redeliver {id}",
    ):
        assert part in text
    assert "\x1b" not in result.output


async def test_show_as_json_has_plain_arguments_and_counted_steps(file):
    told = json.loads(dead(file, "show", "12", "--json").output)

    assert (told["arguments"], told["amended_arguments"]) == ({"what": "bo\x1bk"}, {"what": "pen"})
    assert told["steps"] == {"finished": 1, "failed": 1, "unknown": 1}
    assert (told["attempts"], told["crashes"], told["traceback"]) == (3, 1, FAILURE.traceback)


async def test_store_without_dead_letters_says_so(tmp_path):
    store = SQLiteStore(tmp_path / "agents.db")
    await store.open()
    await store.close(clean=True)

    assert dead(store.path).output == f"{store.path} has no dead letters.\n"
    assert dead(store.path, "discard", "--all").output == f"{store.path} has no dead letters.\n"
    assert "has no dead letters" in dead(store.path, "show", "17").output


async def test_wrong_files_and_commands_are_refused(tmp_path, file):
    missing, directory, command = dead(tmp_path / "nope.db"), dead(tmp_path, "list"), dead(file, "resurrect", "12")

    assert (missing.exit_code, directory.exit_code, command.exit_code) == (2, 2, 2)
    assert "there is no file" in missing.output
    assert "is a directory" in directory.output
    assert "No such command 'resurrect'" in command.output


# --- without an owner ------------------------------------------------------------------------------------------------


async def pending(file, no):
    store = SQLiteStore(file)
    opening = await store.open()
    found = (await store.message(no)).pending, await store.journal(no), await store.dead_letters(0, 9), opening
    await store.close(clean=True)
    return found


async def test_redelivered_letter_is_as_if_it_had_never_been_tried(file):
    (id,) = [each for each in ids(file) if each.startswith("12-")]

    result = await asyncio.to_thread(dead, file, "redeliver", id)

    assert (result.exit_code, result.stdout) == (0, f"redelivered {id}\n")
    assert "is handled when its program starts" in result.stderr
    envelope, journal, letters, opening = await pending(file, 12)
    assert (envelope.attempts, envelope.crashes, envelope.started, envelope.key) == (0, 0, -1, "k")
    assert (envelope.due_at, envelope.not_before, envelope.history, envelope.amended) == (None, None, None, None)
    assert 140 < envelope.position <= opening.last_message
    # What had failed is tried again; what nobody knows stays unknown.
    outcomes = {entry.key: entry.outcome for entry in journal}
    assert outcomes[b"a"] == Outcome(value=b"v")
    assert outcomes[b"b"] == Outcome()
    assert outcomes[b"c"].failure.type == "OutcomeUnknown"
    assert [letter.envelope.no for letter in letters] == [13, 140]
    assert DeadLetterRedelivered.__name__.encode() in await events_of(file, "c-1")
    assert opening.clean


async def test_discarded_letter_and_its_journal_are_gone(file):
    result = await asyncio.to_thread(dead, file, "discard", "12", "13")

    assert result.exit_code == 0
    envelope, journal, letters, _ = await pending(file, 12)
    assert (envelope, journal) == (None, [])
    assert [letter.envelope.no for letter in letters] == [140]
    assert DeadLetterDiscarded.__name__.encode() in await events_of(file, "c-1")


async def test_numbers_of_redelivered_letters_are_not_given_again(file):
    _, _, _, before = await pending(file, 12)

    await asyncio.to_thread(dead, file, "redeliver", "--all", "--yes")

    envelopes = [(await pending(file, no))[0] for no in (12, 13, 140)]
    positions = [each.position for each in envelopes]
    assert positions == sorted(positions)
    assert positions[0] > before.last_message
    assert positions[-1] <= (await pending(file, 12))[3].last_message


@pytest.mark.parametrize("move", ["redeliver", "discard"])
async def test_one_wrong_id_changes_nothing(file, move):
    good = ids(file)

    far = dead(file, move, good[0], "999999")
    near = dead(file, move, good[0].replace("140", "14"))
    other = dead(file, move, "12-zzzzzz")
    nonsense = dead(file, move, "nonsense")

    assert [each.exit_code for each in (far, near, other, nonsense)] == [1, 1, 1, 1]
    assert "999999 is no dead letter of" in far.output
    assert f"The newest is {good[0]}" in far.output
    assert f"Did you mean {good[0]}" in near.output
    assert "belongs to another store" in other.output
    assert "is no id of a dead letter" in nonsense.output
    assert all("Nothing was changed." in each.output for each in (far, near, other, nonsense))
    assert ids(file) == good


async def test_id_of_a_message_that_waits_is_told(file):
    assert (await asyncio.to_thread(dead, file, "redeliver", "12")).exit_code == 0

    again = dead(file, "redeliver", "12")

    assert again.exit_code == 1
    assert "12 is no dead letter of" in again.output
    assert "it waits in its actor's mailbox" in again.output


async def test_all_asks_first(file):
    unsure = dead(file, "discard", "--all", input="n\n")
    left = len(ids(file))
    sure = await asyncio.to_thread(lambda: dead(file, "discard", "--all", input="y\n"))

    assert (unsure.exit_code, left) == (1, 3)
    assert f"Discard 3 dead letters of {file}? [y/N]" in unsure.output
    assert sure.output.endswith("discarded 3 dead letters\n")
    assert ids(file) == []


async def test_ids_or_all_must_be_given_and_not_both(file):
    neither, both = dead(file, "discard"), dead(file, "discard", "--all", "--yes", "12")

    assert (neither.exit_code, both.exit_code, len(ids(file))) == (2, 2, 3)


async def test_letter_that_cannot_be_delivered_stays_and_the_others_go(file):
    store = SQLiteStore(file)
    await store.open()
    batch = Batch(1)
    batch.statuses[2] = ("stopped", "a person said so")
    await store.commit(batch)
    await store.close(clean=True)

    result = await asyncio.to_thread(dead, file, "redeliver", "13", "12")

    assert result.exit_code == 1
    assert "was not redelivered: order/o-2 has stopped (a person said so)" in result.stderr
    assert [each.partition("-")[0] for each in ids(file)] == ["140", "13"]


async def test_damaged_letter_is_shown_and_discarded_but_not_delivered(file):
    connection = sqlite3.connect(file)
    connection.execute("UPDATE dead_letter SET body = x'c1' WHERE no = 13")
    connection.commit()
    connection.close()

    shown = dead(file, "show", "13")
    redelivered = await asyncio.to_thread(dead, file, "redeliver", "13")
    discarded = await asyncio.to_thread(dead, file, "discard", "13")

    assert "its checksum fails" in shown.output
    assert "1 bytes that are no arguments: c1" in shown.output
    assert (redelivered.exit_code, "its checksum fails" in redelivered.stderr) == (1, True)
    assert discarded.exit_code == 0


async def test_crash_of_the_last_owner_is_not_forgotten(file):
    store = SQLiteStore(file)
    await store.open()
    batch = Batch(1)
    batch.envelopes[200] = Envelope(200, 1, 200, "place", b"\x80", Head(1.0, "c"), started=1)
    await store.commit(batch)
    await store.close(clean=False)

    await asyncio.to_thread(dead, file, "discard", "12")

    envelope, _, _, opening = await pending(file, 200)
    assert (envelope.crashes, opening.clean) == (1, False)


async def test_many_letters_go_in_several_commits(tmp_path):
    store = SQLiteStore(tmp_path / "agents.db")
    await store.open()
    batch = Batch(1)
    batch.actors[1] = ("order", "o")
    batch.dead = {
        no: DeadLetter(Envelope(no, 1, no, "h", b"\x80", Head(1.0, "")), FAILURE, 1.0) for no in range(1, 1_501)
    }
    await store.commit(batch)
    await store.close(clean=True)

    result = await asyncio.to_thread(dead, store.path, "redeliver", "--all", "-y")

    assert result.stdout == "redelivered 1,500 dead letters\n"
    (loaded,) = await reopened(store.path, 1)
    assert (loaded.depth, [each.no for each in loaded.window]) == (1_500, [1, 2, 3])


async def reopened(file, actor):
    store = SQLiteStore(file)
    await store.open()
    try:
        return await store.load([actor], 3)
    finally:
        await store.close(clean=True)


# --- with an owner ---------------------------------------------------------------------------------------------------


def wait_for(path):
    until = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_owner_redelivers_at_once_and_repeats_no_finished_step(tmp_path):
    file = tmp_path / "agents.db"
    with owner(file):
        first, second = sorted(ids(file))
        (tmp_path / "mended").touch()

        result = dead(file, "redeliver", first)
        wait_for(tmp_path / "placed")
        discarded = dead(file, "discard", second)
        again = dead(file, "redeliver", first)

        assert ids(file) == []

    assert (result.exit_code, result.output) == (0, f"redelivered {first}\n")
    assert discarded.output == f"discarded {second}\n"
    assert (again.exit_code, "is no dead letter of" in again.output) == (1, True)
    assert (tmp_path / "placed").read_text() == "book-0"


def test_owner_redelivers_all(tmp_path):
    with owner(tmp_path / "agents.db", 12):
        (tmp_path / "mended").touch()

        result = dead(tmp_path / "agents.db", "redeliver", "--all", "--yes")

    assert (result.exit_code, result.output) == (0, "redelivered 12 dead letters\n")


def test_owner_that_does_not_answer_is_named_and_nothing_is_changed(tmp_path):
    file = tmp_path / "agents.db"
    with owner(file) as process:
        (tmp_path / "agents.db.sock").unlink()

        result = dead(file, "discard", ids(file)[0])

        assert result.exit_code == 1
        assert f"process {process.pid} owns {file}, but nobody answers at {file}.sock" in result.output
        assert len(ids(file)) == 2


async def test_owner_that_comes_in_between_is_named(file, monkeypatch):
    monkeypatch.setattr("understudy.cli.owning._LOCK_WAIT_S", 0.0)
    monkeypatch.setattr("understudy.cli.dead.is_owned", lambda _store: False)
    lock = OwnerLock(f"{file}.lock")
    assert lock.acquire_nowait()

    result = await asyncio.to_thread(dead, file, "discard", "12")
    lock.release()

    assert result.exit_code == 1
    assert "has opened" in result.output
    assert len(ids(file)) == 3


async def test_letter_of_a_killed_owner_is_redelivered_and_handled_by_the_next(tmp_path):
    file = tmp_path / "agents.db"
    with owner(file) as process:
        process.kill()
        process.wait()
    assert (tmp_path / "agents.db.sock").exists()
    first, _ = sorted(ids(file))
    (tmp_path / "mended").touch()

    result = await asyncio.to_thread(dead, file, "redeliver", first)

    assert result.exit_code == 0
    Order.folder = tmp_path
    async with System(file, TREE, limits=Limits(grace_s=0.1)) as system:
        await asyncio.to_thread(wait_for, tmp_path / "placed")
        assert [each.id async for each in system.dead_letters()] == sorted(await asyncio.to_thread(ids, file))
    assert (tmp_path / "placed").read_text() == "book-0"


def test_reader_that_goes_away_ends_it_quietly(tmp_path):
    with owner(tmp_path / "agents.db", 3):
        code = "from understudy.cli import main; main()"
        command = f'"{sys.executable}" -c "{code}" dead "{tmp_path}/agents.db" | head -n 1'
        done = subprocess.run(command, shell=True, check=False, capture_output=True, text=True)

    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""
