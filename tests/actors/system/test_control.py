"""The control socket: what the command line asks of a running system, and what a bad client cannot do to it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from understudy import Actor, Child, HandlerFailed, Supervisor, System, handler
from understudy.actors import control, standing
from understudy.actors.control import ControlServer, address
from understudy.testing import VirtualTimeLoop

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> Any:
    return "asyncio"  # a socket is there for other processes, and their time is real


class Shop(Actor, kind="shop"):
    is_broken = True
    gate: asyncio.Event

    @handler
    async def sell(self, what: str) -> str:
        if Shop.is_broken:
            raise ValueError(f"no {what}")
        return what

    @handler
    async def wait(self) -> None:
        await Shop.gate.wait()


@pytest.fixture(autouse=True)
def _world() -> None:
    Shop.is_broken, Shop.gate = True, asyncio.Event()


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[System]:
    tree = [Supervisor("mall", [Shop, Child(Shop, "corner")], strategy="rest_for_one")]
    async with System(path, tree) as system:
        try:
            yield system
        finally:
            Shop.gate.set()


async def connect(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    with address(f"{path}.sock") as name:
        return await asyncio.open_unix_connection(name)


async def send(path: Path, line: bytes) -> Any:
    reader, writer = await connect(path)
    writer.write(line)
    answer = await reader.readline()
    writer.close()
    return json.loads(answer) if answer else None


async def ask(path: Path, **request: Any) -> Any:
    return await send(path, json.dumps(request).encode() + b"\n")


def is_served() -> bool:
    return any(task.get_name() == "understudy-control-client" for task in asyncio.all_tasks())


async def dead_letter(system: System, what: str = "pen") -> str:
    with pytest.raises(HandlerFailed, match=f"no {what}"):
        await system.actor(Shop, "s").sell.options(key=what)(what)
    return [each.id async for each in system.dead_letters()][-1]


async def test_ps_tells_the_tree_and_what_runs(path: Path) -> None:
    async with serving(path) as system:
        await system.actor(Shop, "s").wait.tell()
        await asyncio.sleep(0)

        told = (await ask(path, do="ps"))["ok"]

    assert (told["pid"], told["life"], told["kinds"], told["running"]) == (os.getpid(), 1, ["shop"], 1)
    (turn,) = told["turns"]
    assert (turn["kind"], turn["id"], turn["handler"], turn["attempt"]) == ("shop", "s", "wait", 1)
    assert turn["running_s"] >= 0
    mall = told["picture"]["children"][0]
    assert (told["picture"]["name"], mall["name"], mall["kind"]) == ("root", "mall", "rest_for_one")
    assert [(each["role"], each.get("id", "")) for each in mall["children"]] == [("template", ""), ("child", "corner")]


async def test_dead_letter_is_redelivered_and_another_discarded(path: Path) -> None:
    async with serving(path) as system:
        pen, ink = await dead_letter(system), await dead_letter(system, "ink")
        Shop.is_broken = False

        answers = [await ask(path, do="redeliver", id=pen), await ask(path, do="discard", id=ink)]

        assert answers == [{"ok": {}}, {"ok": {}}]
        assert await system.actor(Shop, "s").sell.options(key="pen")("pen") == "pen"
        assert [each async for each in system.dead_letters()] == []


async def test_two_clients_that_redeliver_one_letter_deliver_it_once(path: Path) -> None:
    async with serving(path) as system:
        letter = await dead_letter(system)
        Shop.is_broken = False

        answers = await asyncio.gather(*(ask(path, do=move, id=letter) for move in ["redeliver"] * 4 + ["discard"] * 2))

    assert len([each for each in answers if each == {"ok": {}}]) == 1
    assert {each["error"]["type"] for each in answers if "error" in each} == {"NotFound"}


async def test_suspended_actor_is_resumed(path: Path) -> None:
    async with serving(path) as system:
        shop: Any = system.actor(Shop, "s")
        activation = await shop._target.enter()
        standing.suspend(activation, "a test")
        await system.committer.wait_durable()

        assert await ask(path, do="resume", kind="shop", id="s") == {"ok": {}}

        assert activation.status == "active"
        wrong = (await ask(path, do="resume", kind="nope", id="s"))["error"]
        assert (wrong["type"], "'nope'" in wrong["message"]) == ("NotRegistered", True)


@pytest.mark.parametrize(
    ("line", "type", "text"),
    [
        (b"nonsense\n", "InvalidArguments", "is not understood"),
        (b"[]\n", "InvalidArguments", "is not understood"),
        (b'{"do": "format"}\n', "InvalidArguments", "got 'format'"),
        (b'{"do": "redeliver", "id": "17"}\n', "NotFound", "'17' is no job id"),
        (b'{"do": "redeliver", "id": "\\ud800"}\n', "InvalidArguments", "is not understood"),
        (b'{"do": "approve", "id": "nope"}\n', "NotFound", "'nope' is no approval"),
        (b'{"do": "reject", "id": "nope", "reason": "no"}\n', "NotFound", "'nope' is no approval"),
        (b'{"do": "raise", "id": "nope", "limits": {"usd": 1}}\n', "NotFound", "'nope' is no job id"),
        (b'{"do": "raise", "id": "workflow:x", "limits": {"usd": 1}}\n', "NotFound", "workflow 'x' is not known"),
        (b'{"do": "raise", "id": "nope", "limits": {"euros": 1}}\n', "InvalidArguments", "got euros"),
        (b'{"do": "raise", "id": "nope", "limits": {"usd": "1"}}\n', "InvalidArguments", "is not understood"),
        (b"x" * (control.REQUEST_BYTES + 20_000), "LimitExceeded", "longer than"),
    ],
)
async def test_wrong_request_is_answered_with_an_error(path: Path, line: bytes, type: str, text: str) -> None:
    async with serving(path):
        error = (await send(path, line))["error"]

    assert (error["type"], text in error["message"]) == (type, True)


async def test_one_connection_takes_many_requests(path: Path) -> None:
    async with serving(path):
        reader, writer = await connect(path)
        writer.write(b'{"do": "ps"}\n{"do": "no"}\n{"do":')
        answers = [json.loads(await reader.readline()) for _ in range(2)]
        writer.write(b' "ps"}\n')
        answers.append(json.loads(await reader.readline()))
        writer.close()

    assert [list(each) for each in answers] == [["ok"], ["error"], ["ok"]]


async def test_error_of_ours_is_told_and_logged_and_harms_nobody(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(path) as system:
        monkeypatch.setattr(system, "picture", lambda: 1 / 0)

        error = (await ask(path, do="ps"))["error"]

        assert error["type"] == "ZeroDivisionError"
        assert "control.request_failed" in [each.message for each in caplog.records]
        assert (await ask(path, do="no"))["error"]["type"] == "InvalidArguments"


async def test_stalling_clients_are_sent_away_and_others_served(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "PATIENCE_S", 0.2)
    async with serving(path):
        stalling = [await connect(path) for _ in range(control.CLIENTS_MAX)]
        for _, writer in stalling:
            writer.write(b'{"do":')
        full = (await ask(path, do="ps"))["error"]
        ends = [await reader.read() for reader, _ in stalling]

        assert (full["type"], "try again" in full["message"]) == ("LimitExceeded", True)
        assert set(ends) == {b""}
        assert "ok" in await ask(path, do="ps")
        for _, writer in stalling:
            writer.close()


async def test_client_that_takes_no_answer_is_sent_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "PATIENCE_S", 0.2)
    async with serving(path) as system:
        with (
            monkeypatch.context() as patched,
            socket.socket(socket.AF_UNIX) as client,
            address(f"{path}.sock") as name,
        ):
            patched.setattr(system, "picture", lambda: "x" * (4 << 20))
            client.connect(name)
            client.sendall(b'{"do": "ps"}\n')
            async with asyncio.timeout(5):
                while not is_served():
                    await asyncio.sleep(0.01)
                while is_served():
                    await asyncio.sleep(0.01)

        assert "ok" in await ask(path, do="ps")


async def test_closing_ends_clients_and_removes_the_socket(path: Path) -> None:
    async with serving(path):
        reader, writer = await connect(path)
        assert stat.S_ISSOCK(Path(f"{path}.sock").stat().st_mode)

    assert await reader.read() == b""
    assert not Path(f"{path}.sock").exists()
    writer.close()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
async def test_socket_is_for_its_user_only_whatever_the_umask(path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        async with serving(path):
            assert stat.S_IMODE(Path(f"{path}.sock").stat().st_mode) == 0o600
            assert os.umask(umask) == umask
            assert "ok" in await ask(path, do="ps")
    finally:
        os.umask(before)


async def test_socket_has_its_mode_from_the_first_moment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []
    listen = socket.socket.listen

    def seen(self: socket.socket, *backlog: int) -> None:
        modes.append(stat.S_IMODE(Path(f"{path}.sock").stat().st_mode))
        listen(self, *backlog)

    monkeypatch.setattr(socket.socket, "listen", seen)
    monkeypatch.setattr(os, "chmod", None)
    async with serving(path):
        pass

    assert set(modes) == {0o600}


async def test_socket_of_a_dead_owner_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead, address(f"{path}.sock") as name:
        dead.bind(name)
    with pytest.raises(ConnectionRefusedError):
        await connect(path)

    async with serving(path):
        assert "ok" in await ask(path, do="ps")


async def test_what_is_no_socket_at_its_place_is_left_alone(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = Path(f"{path}.sock")
    other.write_text("mine")

    async with serving(path) as system:
        Shop.is_broken = False
        assert await system.actor(Shop, "s").sell("pen") == "pen"

    assert other.read_text() == "mine"
    assert "control.unavailable" in [each.message for each in caplog.records]


async def test_socket_of_a_later_owner_is_not_removed(tmp_path: Path) -> None:
    system: Any = SimpleNamespace(store=SimpleNamespace(path=str(tmp_path / "x")))
    first, second = ControlServer(system), ControlServer(system)
    await first.start()
    await second.start()

    await first.stop()
    await first.stop()

    assert (tmp_path / "x.sock").exists()
    await second.stop()
    assert not (tmp_path / "x.sock").exists()


async def test_path_that_is_too_long_for_an_address_is_served(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 150)
    directory.mkdir()

    async with serving(directory / "a.db"):
        assert "ok" in await ask(directory / "a.db", do="ps")

    assert not (directory / "a.db.sock").exists()


async def test_name_that_is_too_long_for_any_address_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        async with serving(tmp_path / ("n" * 120)) as system:
            Shop.is_broken = False
            assert await system.actor(Shop, "s").sell("pen") == "pen"

    (record,) = [each for each in caplog.records if each.message == "control.unavailable"]
    assert "longer than the 107 bytes" in record.error


@pytest.mark.parametrize("store", [SimpleNamespace(), SimpleNamespace(path=7)])
async def test_store_without_a_path_has_no_socket(store: Any) -> None:
    server = ControlServer(SimpleNamespace(store=store))  # type: ignore[arg-type]

    await server.start()
    await server.stop()

    assert server.path is None


def test_loop_with_virtual_time_has_no_socket(path: Path) -> None:
    async def main() -> bool:
        async with serving(path):
            return Path(f"{path}.sock").exists()

    with asyncio.Runner(loop_factory=partial(VirtualTimeLoop, strict=True)) as runner:
        assert not runner.run(main())


async def test_forked_child_neither_serves_nor_removes_the_socket(path: Path) -> None:
    async with serving(path):
        reader, writer = await connect(path)
        writer.write(b'{"do": "ps"}\n')
        await reader.readline()
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
        try:
            assert "ok" in await ask(path, do="ps")
            for server in list(control._open):
                await server.stop()

            # The child lives: were its copies open, the connection would not end and the next would wait for ever.
            assert await asyncio.wait_for(reader.read(), 5) == b""
            with pytest.raises(OSError):
                await connect(path)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            writer.close()
