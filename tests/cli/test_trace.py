from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from typing import get_args

import msgspec
import pytest
from click.testing import CliRunner

from tests.trace.tape import Tape, crash, order, report
from understudy.cli import main
from understudy.events import BreakerChanged, Event
from understudy.mailbox.commit import Batch
from understudy.mailbox.migrations import MIGRATIONS
from understudy.mailbox.sqlite import SQLiteStore
from understudy.mailbox.visitor import is_owned

pytestmark = pytest.mark.anyio


async def write(store, runs):
    batch = Batch(1)
    for correlation, events in runs.items():
        for event in events:
            told = msgspec.structs.replace(event, correlation=correlation)
            batch.tell(told.at, correlation, msgspec.msgpack.encode(told))
    await store.commit(batch)


@pytest.fixture
async def file(tmp_path):
    """A store that was closed in good order, with three runs."""
    store = SQLiteStore(tmp_path / "agents.db")
    await store.open()
    await write(store, {"job-17": report(), "job-18": crash(), "job-40": order()})
    await store.close(clean=True)
    return tmp_path / "agents.db"


def run(*arguments):
    return CliRunner().invoke(main, ["trace", *map(str, arguments)])


async def test_without_an_id_the_newest_runs_come_first(file):
    result = run(file)

    assert result.exit_code == 0
    heading, *rows = [line.split("   ") for line in result.output.splitlines()]
    assert [cell.strip() for cell in heading if cell.strip()] == ["id", "started", "what", "status", "duration", "cost"]
    assert [row[0] for row in rows] == ["job-40", "job-18", "job-17"]
    cells = [[cell.strip() for cell in row if cell.strip()][2:] for row in rows]
    assert cells == [
        ["order/o-1.place", "failed", "3.72 s"],
        ["researcher  q-17", "ok", "27.1 s", "$0.070 + $?"],
        ["research-report  q-17", "ok", "5.75 s", "$0.042"],
    ]


async def test_runs_that_wait_or_are_held_are_listed_with_the_reason_below(file):
    store = SQLiteStore(file)
    await store.open()
    held = Tape("52").turn("52", None, "a/x", "agent")
    held.failed("52", "BudgetExceeded", "suspend", message="$1.00 of $1.00 are spent")
    waiting = Tape("51").turn("51", None, "a/y", "agent").wait("51", "60-ab", "refund", "amount=120").parked("51")
    await write(store, {"51": waiting.events, "52": held.events})
    await store.close(clean=True)

    lines = run(file).output.splitlines()

    assert [line.split()[0] for line in lines[1:3]] == ["52", "51"]
    assert ["suspended" in lines[1], "waiting" in lines[2], "failed" in lines[1]] == [True, True, False]
    assert "52   suspended: BudgetExceeded: $1.00 of $1.00 are spent" in lines
    told = lines[-1]
    assert told.startswith("51   waits for approval 60-ab, ")
    assert told.endswith("so far: refund(amount=120)")


async def test_model_call_that_a_breaker_lets_wait_is_not_drawn_as_running(tmp_path):
    store = SQLiteStore(tmp_path / "agents.db")
    await store.open()
    system = Tape("system")
    before = Tape("17").turn("17", None, "a/x", "agent").step("17/m#1", "17", "claude-sonnet-5-5", "model")
    facts = {"model": "claude-sonnet-5-5", "reason": "5 of 6 calls failed"}
    system.pause(1.0).put(BreakerChanged, "breaker", state="open", **facts)
    after = Tape("18").pause(2.0).turn("18", None, "a/y", "agent")
    after.step("18/m#1", "18", "claude-sonnet-5-5-20261001", "model")
    await write(store, {"17": before.events, "18": after.events, "system": system.events})

    running, waiting, both = run(store.path, "17").output, run(store.path, "18").output, run(store.path).output
    system.pause(9.0).put(BreakerChanged, "breaker", state="closed", **facts)
    await write(store, {"system": system.events[-1:]})
    mended = run(store.path, "18").output
    await store.close(clean=True)

    def said(page):
        return [line.split("   ")[-1].strip() for line in page.splitlines()]

    assert said(running) == ["running", "running"]
    assert said(waiting) == ["waits for the model endpoint", "waits for the breaker"]
    assert [("running" in line, "waiting" in line) for line in both.splitlines()[1:3]] == [(False, True), (True, False)]
    assert said(mended) == ["running", "running"]


async def test_limit_says_how_many_runs_are_listed(file):
    assert len(run(file, "--limit", "1").output.splitlines()) == 2


async def test_id_draws_the_tree(file):
    result = run(file, "job-18")

    assert result.exit_code == 0
    assert result.output.startswith("researcher  q-17")
    assert "══ killed ══ life 2, 8 s later ══" in result.output
    assert "\x1b" not in result.output


async def test_json_prints_the_stored_events_one_per_line(file):
    result = run(file, "job-17", "--json")

    told = [json.loads(line) for line in result.output.splitlines()]
    assert len(told) == len(report())
    assert (told[0]["type"], told[0]["span"], told[0]["correlation"]) == ("TurnStarted", "17", "job-17")
    for event in told:  # Those at their defaults are left out in the store, and not here.
        fields = next(each for each in get_args(Event) if each.__name__ == event["type"]).__struct_fields__
        assert event.keys() == {"type", "no", "place", *fields}
    places = [(event["no"], event["place"]) for event in told]
    assert sorted(set(places)) == places
    assert len(run(file, "--json").output.splitlines()) == len(report()) + len(crash()) + len(order())


@pytest.mark.parametrize(
    "stored", [{"type": ["x"], "span": "17"}, {"span": "17"}, {"type": "OfALaterVersion", "span": "17"}]
)
async def test_json_prints_an_event_of_an_unknown_type_as_it_is_stored(file, stored):
    connection = sqlite3.connect(file)
    with connection:
        no = connection.execute("SELECT min(no) FROM trace WHERE correlation = 'job-17'").fetchone()[0]
        connection.execute("UPDATE trace SET body = ? WHERE no = ?", (msgspec.msgpack.encode(stored), no))
    connection.close()

    result = run(file, "job-17", "--json")

    assert result.exit_code == 0, result.output
    first, second = (json.loads(line) for line in result.output.splitlines()[:2])
    assert first == {"no": no, "place": 0, **stored}
    assert second["type"]


async def test_looking_leaves_a_closed_store_as_it_was(file):
    before = {path.name: path.read_bytes() for path in file.parent.iterdir()}

    run(file)
    run(file, "job-17")

    assert {path.name: path.read_bytes() for path in file.parent.iterdir()} == before


async def test_store_is_read_while_a_process_owns_it(tmp_path):
    store = SQLiteStore(tmp_path / "agents.db")
    await store.open()
    await write(store, {"job-17": Tape().turn("17", None, "researcher/q-17", "agent").events})

    owned = run(store.path, "job-17")
    was_owned = is_owned(store.path)
    await write(store, {"job-18": report()})
    await store.close(clean=True)

    assert owned.output == "researcher  q-17   running\n"
    assert was_owned
    assert not is_owned(store.path)
    assert "killed once, not started again yet" in run(store.path, "job-17").output
    assert run(store.path, "job-18").exit_code == 0


def test_store_whose_owner_was_killed_is_read_with_its_log(tmp_path):
    code = """
import asyncio, os, sys
sys.path.insert(0, os.getcwd())
from tests.cli.test_trace import SQLiteStore, report, write
async def live():
    store = SQLiteStore(sys.argv[1])
    await store.open()
    await write(store, {"job-17": report()})
    os._exit(9)
asyncio.run(live())
"""
    subprocess.run([sys.executable, "-c", code, tmp_path / "agents.db"], check=False)
    assert (tmp_path / "agents.db-wal").stat().st_size

    result = run(tmp_path / "agents.db", "job-17")

    assert result.exit_code == 0
    assert result.output.startswith("research-report  q-17")


async def test_store_without_traced_runs_says_so(tmp_path):
    store = SQLiteStore(tmp_path / "agents.db")
    await store.open()
    await store.close(clean=True)

    result = run(store.path)

    assert (result.exit_code, "has no traced runs yet" in result.output) == (0, True)


async def test_unknown_id_is_refused_with_the_nearest_ones(file):
    near = run(file, "job-177")
    part = run(file, "40")
    far = run(file, "zzzzzzzz")

    assert (near.exit_code, part.exit_code, far.exit_code) == (1, 1, 1)
    assert "has no trace of 'job-177'. Did you mean 'job-17'" in near.output
    assert "Did you mean 'job-40'?" in part.output
    assert "The newest are 'job-40', 'job-18', 'job-17'." in far.output


def test_missing_file_and_directory_are_wrong_arguments(tmp_path):
    missing, directory = run(tmp_path / "nope.db"), run(tmp_path)

    assert (missing.exit_code, directory.exit_code) == (2, 2)
    assert "there is no file" in missing.output
    assert "is a directory" in directory.output
    assert not list(tmp_path.iterdir())


def test_file_that_is_no_store_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("not a database, but long enough to be looked at by SQLite " * 20)
    foreign = sqlite3.connect(tmp_path / "other.db")
    foreign.execute("CREATE TABLE t (x)")
    foreign.close()

    text, other = run(tmp_path / "notes.txt"), run(tmp_path / "other.db")

    assert (text.exit_code, other.exit_code) == (1, 1)
    assert "is not a store that can be read (file is not a database)" in text.output
    assert "is a SQLite file of another program" in other.output


@pytest.mark.parametrize(("step", "text"), [(1, "was written by a newer"), (-1, "was written by an older")])
async def test_store_of_another_version_is_refused(file, step, text):
    connection = sqlite3.connect(file)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + step}")
    connection.close()

    result = run(file)

    assert result.exit_code == 1
    assert text in result.output


async def test_reader_that_goes_away_ends_it_quietly(file):
    command = f'"{sys.executable}" -c "from understudy.cli import main; main()" trace "{file}" --json | head -n 1'

    done = subprocess.run(command, shell=True, check=False, capture_output=True, text=True)

    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""
