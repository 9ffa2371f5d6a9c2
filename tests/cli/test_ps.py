from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys

import msgspec
import pytest
from click.testing import CliRunner

from tests.cli.owners import owner
from tests.cli.support import Shop, Support, open_at, refund, run, wait_until
from understudy import Limits
from understudy.cli import main
from understudy.cli.columns import draw
from understudy.cli.ps_tree import COLUMNS, Live, RunningTurn, Shown, rows
from understudy.mailbox.census import Census, KindCount, Seen
from understudy.mailbox.commit import Batch
from understudy.mailbox.envelope import Envelope, Head
from understudy.mailbox.sqlite import SQLiteStore
from understudy.supervisor.picture import Picture
from understudy.testing import FakeAnthropic, calls

pytestmark = pytest.mark.anyio

TREE = Picture(
    "supervisor",
    "root",
    "one_for_one",
    max_restarts=3,
    within_s=5.0,
    children=(
        Picture("child", "bank", "account", "bank", restart="permanent"),
        Picture(
            "supervisor",
            "research",
            "rest_for_one",
            restarts=2,
            max_restarts=3,
            within_s=5.0,
            children=(
                Picture("template", "researcher", "researcher", instances=3, also=("tool:search",)),
                Picture("child", "desk", "desk", "d-1", status="restarting", restart="transient"),
            ),
        ),
    ),
)


def ps(*arguments, **environment):
    return CliRunner().invoke(main, ["ps", *map(str, arguments)], env=environment)


def page(shown, width=140):
    return [line.plain for line in draw(rows(shown), COLUMNS, width)]


def shown(picture=TREE, live=None, shown_max=8, **census):
    return Shown(picture=picture, live=live, census=Census(**census), now=1_000.0, shown_max=shown_max)


def live(picture=TREE, turns=(), kinds=("account", "researcher", "desk", "tool:search")):
    return Live(7, 3, picture, list(kinds), 12, len(turns), list(turns))


# --- on a file -------------------------------------------------------------------------------------------------------


async def fill(path, picture=TREE):
    store = SQLiteStore(path)
    await store.open()
    batch = Batch(1)
    batch.picture = msgspec.msgpack.encode(picture) if picture is not None else None
    batch.actors = {1: ("account", "bank"), 2: ("researcher", "q-1"), 3: ("researcher", "q-2"), 4: ("invoice", "7")}
    batch.statuses = {3: ("suspended", "budget is spent")}
    for no, actor in ((11, 1), (12, 2), (13, 2), (14, 4)):
        batch.envelopes[no] = Envelope(no, actor, no, "h", b"\x80", Head(1_000.0, "c"))
    batch.work = 1
    await store.commit(batch)
    await store.close(clean=True)
    return path


async def test_stored_tree_is_drawn_when_no_process_owns_the_store(tmp_path):
    file = await fill(tmp_path / "agents.db")
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}

    result = ps(file)

    assert result.exit_code == 0
    assert result.output.startswith(f"{file}   no process owns it; drawn as it was stored\n")
    text = " ".join(result.output.split())
    for part in (
        "root one_for_one",
        "├─ account/bank waiting 1",
        "└─ research rest_for_one",
        "├─ researcher 2 2",
        "├─ q-2 suspended budget is spent",
        "└─ q-1 waiting 2",
        "└─ desk/d-1 transient",
        "waiting for code no class of these kinds is registered └─ invoice waiting 1 1",
    ):
        assert part in text
    assert "restarts" not in text
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before


async def test_file_without_a_picture_is_drawn_by_kind(tmp_path):
    text = " ".join(ps(await fill(tmp_path / "agents.db", None)).output.split())

    assert "no process owns it; no tree is stored" in text
    assert "actors by kind ├─ account waiting 1 1" in text
    assert "├─ invoice waiting 1 1" in text
    assert "└─ researcher 2 2" in text
    assert "waiting for code" not in text


async def test_picture_of_a_later_version_is_no_picture(tmp_path):
    file = await fill(tmp_path / "agents.db")
    store = SQLiteStore(file)
    await store.open()
    batch = Batch(1)
    batch.picture = msgspec.msgpack.encode({"role": "galaxy"})
    await store.commit(batch)
    await store.close(clean=True)

    assert "actors by kind" in ps(file).output


async def test_empty_store_says_so(tmp_path):
    store = SQLiteStore(tmp_path / "agents.db")
    await store.open()
    await store.close(clean=True)

    result = ps(store.path)

    assert (result.exit_code, "no actors yet" in result.output) == (0, True)


async def test_json_tells_the_same(tmp_path):
    told = json.loads(ps(await fill(tmp_path / "agents.db"), "--json").output)

    assert (told["owner"], told["trouble"], told["waiting_for_code"]) == (None, None, ["invoice"])
    assert told["tree"]["children"][1]["name"] == "research"
    assert told["kinds"]["researcher"]["suspended"] == 1
    assert [(each["kind"], each["id"], each["mail"]) for each in told["static_actors"]] == [("account", "bank", 1)]


def test_live_tree_is_asked_from_the_owner(tmp_path):
    file = tmp_path / "agents.db"
    with owner(file) as process:
        result = ps(file)
        told = json.loads(ps(file, "--json").output)

    text = " ".join(result.output.split())
    assert result.exit_code == 0
    assert f"process {process.pid}, life 1" in text
    assert "root running one_for_one · 0 of 3 restarts in 5 s" in text
    assert "shop running rest_for_one · 0 of 2 restarts in 5 s" in text
    assert "├─ order running 3 3 2" in text
    assert "├─ w-1 busy" in text
    assert "… and 2 more idle" in text
    assert "order/counter running transient" in text
    assert "2 dead letters: understudy dead" in text
    assert told["owner"] == {"pid": process.pid, "life": 1}
    assert [turn["id"] for turn in told["turns"]] == ["w-1"]


def test_owner_that_does_not_answer_is_named_and_the_store_drawn(tmp_path):
    file = tmp_path / "agents.db"
    with owner(file) as process:
        (tmp_path / "agents.db.sock").unlink()
        result = ps(file)

    assert result.exit_code == 0
    assert f"process {process.pid} owns it and does not tell: nobody answers at" in result.output
    assert "w-1" in result.output


def test_store_of_a_killed_owner_is_drawn_with_its_log(tmp_path):
    file = tmp_path / "agents.db"
    with owner(file) as process:
        process.kill()
        process.wait()
        result = ps(file)

    assert result.exit_code == 0
    assert "no process owns it" in result.output
    assert "w-1" in result.output


def test_link_to_the_store_finds_its_owner(tmp_path):
    (tmp_path / "link.db").symlink_to(tmp_path / "agents.db")
    with owner(tmp_path / "agents.db") as process:
        result = ps(tmp_path / "link.db")

    assert f"process {process.pid}, life 1" in result.output


def test_missing_file_directory_and_foreign_file_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("not a database, but long enough to be looked at by SQLite " * 20)
    sqlite3.connect(tmp_path / "empty.db").close()

    missing, directory, text = ps(tmp_path / "nope.db"), ps(tmp_path), ps(tmp_path / "notes.txt")

    assert (missing.exit_code, directory.exit_code, text.exit_code) == (2, 2, 1)
    assert "there is no file" in missing.output
    assert "is a directory" in directory.output
    assert "is not a store that can be read" in text.output


async def test_reader_that_goes_away_ends_it_quietly(tmp_path):
    file = await fill(tmp_path / "agents.db")
    command = f'"{sys.executable}" -c "from understudy.cli import main; main()" ps "{file}" | head -n 1'

    done = subprocess.run(command, shell=True, check=False, capture_output=True, text=True)

    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


async def test_terminal_that_cannot_show_the_guides_shows_question_marks(tmp_path):
    file = await fill(tmp_path / "agents.db")
    code = "from understudy.cli import main; main()"

    done = subprocess.run(
        [sys.executable, "-c", code, "ps", file],
        check=False,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )

    assert (done.returncode, done.stderr) == (0, b"")
    assert b"?? account/bank" in done.stdout


# --- what is drawn ---------------------------------------------------------------------------------------------------


def test_columns_are_aligned_and_say_who_is_busy_for_how_long():
    told = live(turns=[RunningTurn("researcher", "q-1", "run", "17-a", 2, 3.2)])
    kinds = {
        "researcher": KindCount(
            stored=12_407, mailed=2, mail=1_208, later=1, oldest_at=0.0, suspended=1,
            held=[Seen(1, "researcher", "q-9", "suspended", "budget of $0.50 is spent", 1, 0, 0.0)],
            deepest=[Seen(2, "researcher", "q-2", mail=1_204, oldest_at=940.0), Seen(3, "researcher", "q-1", mail=3)],
        ),
        "tool:search": KindCount(stored=1),
    }  # fmt: skip

    lines = page(shown(live=told, kinds=kinds))

    assert lines == [
        "                       status       alive   stored    mail   delayed        oldest",
        "root                   running   one_for_one · 0 of 3 restarts in 5 s",
        "├─ account/bank        running",
        "└─ research            running   rest_for_one · 2 of 3 restarts in 5 s",
        "   ├─ researcher       running          3   12,407   1,208         1   16 min 40 s",
        "   │  ├─ q-9           suspended                         1             16 min 40 s   budget of $0.50 is spent",
        "   │  ├─ q-2           waiting                       1,204               1 min 0 s",
        "   │  ├─ q-1           busy 3.2 s                        3                           run, attempt 2",
        "   │  ├─ … and 12,404 more idle",
        "   │  └─ tool:search                             1",
        "   └─ desk/d-1         restarting                                                    transient",
    ]


def test_narrow_page_keeps_reasons_below_and_lets_columns_go():
    kinds = {
        "researcher": KindCount(
            stored=2, suspended=1, mailed=1, mail=5, later=2, oldest_at=0.0,
            held=[Seen(1, "researcher", "a-long-name-of-an-actor", "suspended", "budget of $0.50 is spent: raise it")],
            deepest=[Seen(2, "researcher", "q-2", mail=5, oldest_at=940.0)],
        )
    }  # fmt: skip

    lines = page(shown(kinds=kinds), width=48)

    assert lines == [
        "                                status      mail",
        "root   one_for_one",
        "├─ account/bank",
        "└─ research   rest_for_one",
        "   ├─ researcher                               5",
        "   │  ├─ a-long-name-of-an-a…   suspended",
        "   │  │    budget of $0.50 is spent: raise it",
        "   │  └─ q-2                    waiting        5",
        "   └─ desk/d-1",
    ]


def test_thousands_of_static_children_are_cut_to_those_that_need_a_look():
    children = [
        Picture("child", f"c-{number}", "desk", f"c-{number}", status="restarting" if number == 4_000 else "running")
        for number in range(5_000)
    ]
    tree = Picture("supervisor", "root", "one_for_one", children=tuple(children))
    statics = {("desk", f"c-{no}"): Seen(no, "desk", f"c-{no}", mail=no) for no in range(3_000, 3_003)}

    few = page(shown(tree, live(tree), statics=statics))
    many = page(shown(tree, live(tree), shown_max=100, statics=statics))

    names = [line.split()[1] for line in few[2:-1]]
    assert names == [f"desk/c-{no}" for no in (0, 1, 2, 3, 3_000, 3_001, 3_002, 4_000)]
    assert few[-1] == "└─ … and 4,992 more children, idle"
    assert many[-1] == "└─ … and 4,900 more children, idle"


def test_kinds_under_no_supervisor_and_those_without_code_are_told_apart():
    kinds = {"tool:lone": KindCount(stored=1), "old": KindCount(stored=3, mail=2, mailed=1)}

    lines = page(shown(live=live(kinds=["account", "tool:lone"]), kinds=kinds))

    sections = [line.split("   ")[0] for line in lines if not line.startswith((" ", "├", "└", "│")) and line]
    assert sections == ["root", "under no supervisor", "waiting for code"]
    assert [line.split()[1] for line in lines[-5:] if "─" in line] == ["tool:lone", "old", "…"]


def test_held_actors_leave_room_for_those_with_mail():
    held = [Seen(no, "researcher", f"h-{no}", "stopped", "done") for no in range(8)]
    deep = [Seen(no, "researcher", f"m-{no}", mail=9) for no in range(8)]
    kinds = {"researcher": KindCount(stored=100, stopped=50, mailed=20, mail=180, held=held, deepest=deep)}

    lines = page(shown(kinds=kinds))

    listed = [line.split("─ ")[1].split()[0] for line in lines if "h-" in line or "m-" in line]
    assert listed == ["h-0", "h-1", "h-2", "h-3", "m-0", "m-1", "m-2", "m-3"]
    assert any("… and 92 more: 46 stopped, 16 with mail, 30 idle" in line for line in lines)


def test_text_of_strangers_commands_no_terminal():
    evil = "a\x1b[31m\nb\u202e"
    kinds = {evil: KindCount(stored=1, mailed=1, mail=1, deepest=[Seen(1, evil, evil, mail=1)])}
    tree = Picture("supervisor", evil, "one_for_one", children=(Picture("child", evil, evil, evil),))

    text = "\n".join(page(shown(tree, kinds=kinds, statics={(evil, evil): Seen(1, evil, evil, "suspended", evil)})))

    assert not [each for each in text.replace("\n", "") if not each.isprintable()]


# --- what waits for the outside --------------------------------------------------------------------------------------


async def test_actors_that_wait_for_the_outside_show_for_what_live_and_stored(tmp_path):
    file = tmp_path / "agents.db"
    limits = Limits(park_after_s=0.01)
    async with FakeAnthropic(calls(refund, "o1")) as model, open_at(file, model, limits=limits) as system:
        job = await system.actor(Support, "ann").run.submit("Refund me")
        await wait_until(system, job.id, "waiting")
        (approval,) = await system.approvals()
        await system.actor(Support, "ann").run.tell("And again")
        kept = await system.actor(Shop, "till").wait.submit()
        await wait_until(system, kept.id, "waiting")
        while system.turns:
            await asyncio.sleep(0.01)  # Until they are parked.
        await system.committer.wait_durable()
        live = await run("ps", file)
    stored, facts = await run("ps", file), json.loads((await run("ps", file, "--json")).output)

    for page in (live.output, stored.output):
        (ann,) = [line for line in page.splitlines() if line.endswith(f"approval {approval.id} of tool refund")]
        assert "waiting" in ann
        assert any("waiting" in line and line.endswith("external paid") for line in page.splitlines())
        assert f"1 call waits for approval: understudy approvals {file}" in page
    assert facts["approvals_waiting"] == 1
    assert facts["kinds"]["support"]["deepest"][0]["reason"] == f"approval {approval.id} of tool refund"


def test_turn_that_waits_in_memory_is_not_drawn_as_busy():
    turn = RunningTurn("researcher", "q-1", "run", "12-ab", 1, 7.0, "approval 13-ab of tool refund")
    seen = Seen(2, "researcher", "q-1", mail=2)

    lines = page(shown(live=live(turns=[turn]), kinds={"researcher": KindCount(stored=2, mailed=1, deepest=[seen])}))

    (line,) = [line for line in lines if "q-1" in line]
    assert "waiting" in line
    assert line.endswith("approval 13-ab of tool refund")


def test_actors_that_wait_and_are_not_listed_are_counted_once():
    waiting = Seen(2, "researcher", "q-1", status="waiting", reason="external paid", mail=1)

    lines = page(shown(kinds={"researcher": KindCount(stored=3, mailed=2, deepest=[waiting])}))

    assert any("… and 2 more: 1 with mail, 1 idle" in line for line in lines)
