"""What every test gets: a wall-clock watchdog, anyio on asyncio, a seed that a failure prints."""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import hypothesis
import pytest

# A disk that waits for other programs makes one example slow now and then; the watchdog guards against real hangs.
hypothesis.settings.register_profile("understudy", deadline=None)
hypothesis.settings.load_profile("understudy")

WATCHDOG_S = 60.0
_AGAIN_S = 10.0  # The alarm repeats for a test that swallows it, and leaves this long to clean up.
_LAST_RESORT_S = 60.0  # Then the whole run ends, with the stacks of all threads.
_stderr = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="seed of the `seed` fixture; a failure prints it")
    parser.addoption("--soak", action="store_true", help="also run the tests marked `soak`")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.seed is None:
        config.option.seed = random.SystemRandom().randrange(2**32)
    config.stash[_stderr] = os.dup(2)  # Now, before the tests: they run with descriptor 2 captured.


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {config.option.seed}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.soak:
        return
    soak = [item for item in items if item.get_closest_marker("soak")]
    if soak:
        config.hook.pytest_deselected(items=soak)
        items[:] = [item for item in items if item not in soak]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    if report.failed and "seed" in getattr(item, "fixturenames", ()):
        report.sections.append(("seed", f"pytest '{item.nodeid}' --seed {item.config.option.seed}"))
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    with _watchdog(item):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    with _watchdog(item):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    with _watchdog(item):
        return (yield)


@contextmanager
def _watchdog(item: pytest.Item) -> Iterator[None]:
    """Fail one phase of a test that takes too long; end the run if even that does not get through."""
    marker = item.get_closest_marker("watchdog")
    limit_s = float(marker.args[0]) if marker else WATCHDOG_S
    stderr = item.config.stash[_stderr]

    def bark(_signum: int, _frame: object) -> None:
        faulthandler.dump_traceback(stderr)
        # Not an `Exception`, so the code under test does not take it for a failure of a handler.
        pytest.fail(f"watchdog: {item.nodeid} took longer than {limit_s:g} s", pytrace=True)

    faulthandler.dump_traceback_later(limit_s + _LAST_RESORT_S, exit=True, file=stderr)
    if sys.platform != "win32":
        previous = signal.signal(signal.SIGALRM, bark)
        signal.setitimer(signal.ITIMER_REAL, limit_s, _AGAIN_S)
    try:
        yield
    finally:
        if sys.platform != "win32":
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def anyio_backend() -> Any:
    """Real time on asyncio; a module that wants virtual time overrides this fixture."""
    return "asyncio"


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of this run: random, printed on failure, replayed with `--seed N`."""
    value: int = request.config.option.seed
    return value
