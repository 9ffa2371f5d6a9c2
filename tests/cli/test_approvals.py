from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.cli.support import Support, open_at, refund, run, wait_until
from understudy.events import WaitEnded
from understudy.mailbox.sqlite import SQLiteStore
from understudy.testing import FakeAnthropic, calls, says

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> Any:
    return "asyncio"  # the command line is another client of the socket, and its time is real


async def ask(path: Path, *orders: str) -> list[str]:
    """Leave a store in which a call for each of these orders waits for a person; return the jobs."""
    jobs = []
    for order in orders:
        async with FakeAnthropic(calls(refund, order, cents=500)) as model, open_at(path, model) as system:
            job = await system.actor(Support, order).run.submit("Refund me")
            await wait_until(system, job.id, "waiting")
            jobs.append(job.id)
    return jobs


@pytest.fixture
async def file(tmp_path: Path) -> Path:
    await ask(tmp_path / "agents.db", "o\x1b1", "o2")
    return tmp_path / "agents.db"


async def listed(file: Path) -> list[Any]:
    return [json.loads(line) for line in (await run("approvals", file, "list", "--json")).output.splitlines()]


async def first(file: Path) -> str:
    """Return the id of the first call that waits, once it is on disk."""
    while not (found := await listed(file)):
        await asyncio.sleep(0.01)
    return str(found[0]["id"])


# --- looking ---------------------------------------------------------------------------------------------------------


async def test_list_is_the_default_and_tells_the_call_of_each_oldest_first(file: Path) -> None:
    result = await run("approvals", file)

    first, second = await listed(file)
    lines = result.output.splitlines()
    assert result.exit_code == (await run("approvals", file, "list")).exit_code == 0
    assert lines[0].split() == ["id", "waits", "actor", "call"]
    assert [line.split()[0] for line in lines[1:3]] == [first["id"], second["id"]]
    assert lines[1].endswith(r"refund(order='o\x1b1', cents=500)")
    assert (first["tool"], first["arguments"]) == ("refund", {"order": "o\x1b1", "cents": 500})
    assert (second["actor"], second["job"], second["trace"]) == ("support/o2", second["job"], second["job"])


async def test_show_tells_all_arguments_and_how_to_decide(file: Path) -> None:
    id = (await listed(file))[1]["id"]

    result, by_number = (
        await run("approvals", file, "show", id),
        await run("approvals", file, "show", id.partition("-")[0]),
    )

    assert result.exit_code == by_number.exit_code == 0
    assert "  order = 'o2'" in result.output.splitlines()
    assert "  cents = 500" in result.output.splitlines()
    assert f"approve {id}" in by_number.output
    assert "\x1b" not in (await run("approvals", file, "show", (await listed(file))[0]["id"])).output


async def test_looking_changes_nothing_and_unknown_ids_are_refused(file: Path) -> None:
    before = {path.name: path.read_bytes() for path in file.parent.iterdir()}

    shown = await run("approvals", file, "show", "999")
    await run("approvals", file)

    assert shown.exit_code == 1
    assert f"999 is no approval that waits in {file}. The oldest is {(await listed(file))[0]['id']}" in shown.output
    assert {path.name: path.read_bytes() for path in file.parent.iterdir()} == before


async def test_damaged_wait_is_told_and_hides_no_other(file: Path) -> None:
    first, second = await listed(file)
    connection = sqlite3.connect(file)
    connection.execute(
        "UPDATE record SET body = x'00' WHERE kind = 'wait' AND id = ?", (f"{int(first['id'].partition('-')[0]):020d}",)
    )
    connection.commit()
    connection.close()

    result = await run("approvals", file)

    assert second["id"] in result.stdout
    assert f"The row of wait {first['id']} is damaged; it was left out." in result.stderr


# --- deciding --------------------------------------------------------------------------------------------------------


async def test_approval_without_a_process_lets_the_call_run_at_the_next_opening(tmp_path: Path) -> None:
    file = tmp_path / "agents.db"
    (job,) = await ask(file, "o1")
    id = (await listed(file))[0]["id"]

    result = await run("approvals", file, "approve", id)

    assert (result.exit_code, result.stdout) == (0, f"approved {id}\n")
    assert "it goes on when its program starts" in result.stderr
    assert await listed(file) == []
    async with FakeAnthropic(says("done")) as model, open_at(file, model) as system:
        assert await system.job(job) == "done"
        events = (await system.trace(job)).events
    assert model.requests[-1].messages[-1]["content"][0]["content"] == "refunded 500 for o1"
    assert [(each.outcome, each.wait) for each in events if isinstance(each, WaitEnded)] == [("approved", id)]


async def test_rejection_without_a_process_is_told_the_model_at_the_next_opening(tmp_path: Path) -> None:
    file = tmp_path / "agents.db"
    (job,) = await ask(file, "o1")

    result = await run("approvals", file, "reject", (await listed(file))[0]["id"], "--reason", "too much")

    assert result.exit_code == 0
    async with FakeAnthropic(says("sorry")) as model, open_at(file, model) as system:
        assert await system.job(job) == "sorry"
    block = model.requests[-1].messages[-1]["content"][0]
    assert (block["content"], block["is_error"]) == ("A person rejected this call: too much", True)
    assert "rejected: too much" in (await run("trace", file, job)).output


async def test_decisions_are_given_to_the_process_that_owns_the_store(tmp_path: Path) -> None:
    file = tmp_path / "agents.db"
    answers = calls(refund, "o1"), says("done"), calls(refund, "o2"), says("sorry")
    async with FakeAnthropic(*answers) as model, open_at(file, model) as system:
        one = await system.actor(Support, "a").run.submit("Refund me")
        await wait_until(system, one.id, "waiting")
        approved = await run("approvals", file, "approve", await first(file))
        said = [await one]
        other = await system.actor(Support, "b").run.submit("Refund me")
        await wait_until(system, other.id, "waiting")
        rejected = await run("approvals", file, "reject", await first(file), "--reason", "no")
        said.append(await other)

    assert said == ["done", "sorry"]
    assert (approved.exit_code, approved.stderr, rejected.exit_code) == (0, "", 0)
    assert model.requests[-1].messages[-1]["content"][0]["content"] == "A person rejected this call: no"


@pytest.mark.parametrize("is_live", [False, True])
async def test_second_decision_is_refused_with_the_first_and_hinders_no_other(file: Path, is_live: bool) -> None:
    decided, open_ = (each["id"] for each in await listed(file))
    await run("approvals", file, "reject", decided, "--reason", "too much")
    if is_live:
        async with FakeAnthropic(says("sorry")) as model, open_at(file, model) as system:
            await wait_until(system, (await listed(file))[0]["job"], "waiting")
            result = await run("approvals", file, "approve", decided, "nope")
    else:
        result = await run("approvals", file, "approve", decided, "nope", open_)

    assert result.exit_code == 1
    assert f"{decided} was not approved: approval {decided} was rejected (too much) at " in result.stderr
    assert "nope was not approved: 'nope' is no approval of this store" in result.stderr
    assert result.stdout == ("" if is_live else f"approved {open_}\n")


async def test_call_whose_caller_was_cancelled_waits_for_nobody(tmp_path: Path) -> None:
    file = tmp_path / "agents.db"
    async with FakeAnthropic(calls(refund, "o1")) as model, open_at(file, model) as system:
        job = await system.actor(Support, "a").run.submit("Refund me")
        await wait_until(system, job.id, "waiting")
        id = await first(file)
        await job.cancel()

    result = await run("approvals", file, "approve", id)

    assert (result.exit_code, (await listed(file))) == (1, [])
    assert "waits for nobody: there never was one, or who called the tool has ended" in result.stderr


async def test_refused_decision_leaves_a_store_that_was_closed_in_good_order(file: Path) -> None:
    await run("approvals", file, "approve", "nope")

    store = SQLiteStore(file)
    opening = await store.open()
    await store.close(clean=True)
    assert opening.clean
