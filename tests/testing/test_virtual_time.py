from __future__ import annotations

import asyncio
import functools
import signal
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, cast

import aiohttp
import anyio.from_thread
import anyio.to_thread
import httpx2
import pytest

from understudy import clock
from understudy.testing.virtual_time import VirtualTimeLoop

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": functools.partial(VirtualTimeLoop, strict=True)}


def running_loop() -> VirtualTimeLoop:
    return cast(VirtualTimeLoop, asyncio.get_running_loop())


@asynccontextmanager
async def http_server(*, delay_s: float = 0.0) -> AsyncIterator[str]:
    """A server on this loop that answers every request with `ok` after *delay_s* of the loop's time."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                if delay_s:
                    await asyncio.sleep(delay_s)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


async def test_an_hour_of_sleep_takes_no_time():
    start, really = running_loop().time(), time.monotonic()

    await asyncio.sleep(3600)

    assert running_loop().time() - start == pytest.approx(3600)
    assert time.monotonic() - really < 1


async def test_a_year_of_sleep_takes_no_time():
    start = running_loop().time()

    await asyncio.sleep(365 * 86400)

    assert running_loop().time() - start == pytest.approx(365 * 86400)


async def test_timers_fire_in_their_order():
    order: list[tuple[float, float]] = []
    start = running_loop().time()

    async def sleeper(delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        order.append((delay_s, running_loop().time() - start))

    async with asyncio.TaskGroup() as tasks:
        for delay_s in (30.0, 0.5, 7200.0, 2.0, 0.001):
            tasks.create_task(sleeper(delay_s))

    assert [delay_s for delay_s, _ in order] == [0.001, 0.5, 2.0, 30.0, 7200.0]
    assert [at for _, at in order] == pytest.approx([0.001, 0.5, 2.0, 30.0, 7200.0])


async def test_time_stands_still_while_tasks_can_run():
    start = running_loop().time()

    async with asyncio.timeout(0.001):
        for _ in range(1000):
            await asyncio.sleep(0)

    assert running_loop().time() == start


async def test_a_timeout_ends_what_takes_longer():
    start = running_loop().time()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(10):
            await asyncio.sleep(3600)

    assert running_loop().time() - start == pytest.approx(10)


async def test_an_anyio_deadline_ends_what_takes_longer():
    with anyio.move_on_after(10) as scope:
        await anyio.sleep(3600)

    assert scope.cancelled_caught


@pytest.mark.parametrize("run_sync", [asyncio.to_thread, anyio.to_thread.run_sync])
async def test_a_thread_in_flight_holds_the_time(run_sync):
    start = running_loop().time()

    async with asyncio.timeout(1):
        for _ in range(20):
            await run_sync(time.sleep, 0.01)

    assert running_loop().time() == start
    while running_loop().outside_work:  # The last thread says that it is through just after its result.
        await asyncio.sleep(0)


@pytest.mark.parametrize("run_sync", [asyncio.to_thread, anyio.to_thread.run_sync])
async def test_an_idle_thread_does_not_hold_the_time(run_sync):
    await run_sync(time.sleep, 0)
    start, really = running_loop().time(), time.monotonic()

    await asyncio.sleep(3600)

    assert running_loop().time() - start == pytest.approx(3600)
    assert time.monotonic() - really < 1


async def test_a_thread_goes_on_holding_the_time_after_its_waiter_was_cancelled():
    release = threading.Event()
    job = asyncio.ensure_future(asyncio.to_thread(release.wait))
    await asyncio.sleep(0)
    job.cancel()
    await asyncio.wait([job])

    assert running_loop().outside_work == 1

    release.set()
    await asyncio.sleep(1)
    assert running_loop().outside_work == 0


async def test_a_job_that_was_cancelled_before_it_began_does_not_hold_the_time():
    release = threading.Event()
    running_loop().set_default_executor(ThreadPoolExecutor(1))
    first = asyncio.ensure_future(asyncio.to_thread(release.wait))
    second = asyncio.ensure_future(asyncio.to_thread(release.wait))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait([second])

    release.set()
    await first
    await asyncio.sleep(1)

    assert running_loop().outside_work == 0


async def test_marked_work_of_another_thread_holds_the_time():
    loop, woken = running_loop(), asyncio.Event()
    thread = threading.Timer(0.05, loop.call_soon_threadsafe, [woken.set])
    start = loop.time()

    with clock.outside():
        thread.start()
        async with asyncio.timeout(1):
            await woken.wait()

    assert loop.time() == start
    thread.join()


async def test_a_thread_that_waits_for_a_timer_is_not_stuck(monkeypatch):
    monkeypatch.setattr("understudy.testing.virtual_time.HOLD_MAX_S", 0.02)
    start = running_loop().time()

    await anyio.to_thread.run_sync(lambda: anyio.from_thread.run(anyio.sleep, 0.05))

    assert running_loop().time() - start == pytest.approx(0.05)


async def test_another_thread_wakes_the_loop():
    loop, woken = running_loop(), asyncio.Event()
    thread = threading.Timer(0.02, loop.call_soon_threadsafe, [woken.set])
    thread.start()

    await woken.wait()

    thread.join()


async def test_the_wall_clock_moves_with_the_loop():
    wall = clock.wall_clock(running_loop())
    started = wall()

    await asyncio.sleep(90)

    assert datetime.fromtimestamp(started, UTC).isoformat() == "2026-01-01T00:00:00+00:00"
    assert wall() - started == pytest.approx(90)


async def test_a_step_of_the_wall_clock_leaves_the_loop_alone():
    loop = running_loop()
    started, wall_started = loop.time(), loop.wall_time()

    loop.jump_wall(-7200)
    await asyncio.sleep(1)

    assert loop.wall_time() - wall_started == pytest.approx(-7199)
    assert loop.time() - started == pytest.approx(1)


async def test_a_response_arrives_before_the_timeout_of_httpx():
    start = running_loop().time()

    async with http_server() as url, httpx2.AsyncClient(timeout=600, trust_env=False) as client:
        for _ in range(200):
            assert (await client.get(url)).text == "ok"

    assert running_loop().time() - start < 600


async def test_a_response_arrives_before_the_timeout_of_aiohttp():
    start = running_loop().time()

    async with (
        http_server() as url,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as client,
    ):
        for _ in range(200):
            async with client.get(url) as response:
                assert await response.text() == "ok"

    assert running_loop().time() - start < 600


async def test_concurrent_requests_wait_for_a_slow_server_in_virtual_time():
    start, really = running_loop().time(), time.monotonic()

    async with http_server(delay_s=30) as url, httpx2.AsyncClient(timeout=600, trust_env=False) as client:
        for _ in range(10):
            responses = await asyncio.gather(*(client.get(url) for _ in range(10)))
            assert [response.text for response in responses] == ["ok"] * 10

    assert running_loop().time() - start == pytest.approx(300, abs=10)
    assert time.monotonic() - really < 10


async def test_a_server_that_is_too_slow_times_out():
    async with http_server(delay_s=30) as url, httpx2.AsyncClient(timeout=5, trust_env=False) as client:
        with pytest.raises(httpx2.ReadTimeout):
            await client.get(url)


async def test_open_connections_do_not_slow_the_jumps():
    async with http_server() as url, httpx2.AsyncClient(timeout=600, trust_env=False) as client:
        await client.get(url)
        really = time.monotonic()

        for _ in range(1000):
            await asyncio.sleep(1)

    assert time.monotonic() - really < 2


async def test_waiting_for_the_executor_at_the_end_holds_the_time():
    def body() -> float:
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(asyncio.sleep(1))
            loop = cast(VirtualTimeLoop, runner.get_loop())
            runner.run(_leave_a_thread_behind())
        return loop.time()

    assert await asyncio.to_thread(body) == pytest.approx(1001)


async def _leave_a_thread_behind() -> None:
    asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.05)


def test_a_deadlock_is_reported_with_the_tasks_that_wait():
    async def wait_for_nothing() -> None:
        await asyncio.Event().wait()

    with (
        asyncio.Runner(loop_factory=functools.partial(VirtualTimeLoop, strict=True)) as runner,
        pytest.raises(RuntimeError, match=r"every task waits(.|\n)*wait_for_nothing at .*test_virtual_time"),
    ):
        runner.run(wait_for_nothing())


def test_without_strict_a_signal_can_still_come():
    async def wait_for_signal() -> None:
        came = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, came.set)
        sender = threading.Timer(0.3, signal.raise_signal, [signal.SIGUSR1])
        sender.start()
        await came.wait()
        sender.join()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(wait_for_signal())
