"""Stores for tests: deterministic, and with faults on demand.

`InlineSQLiteStore` is the real store on a real file, run on the loop's own thread; it can die as a killed process does.
`FaultyStore` can also cause these faults:

- a commit that fails before anything is written (`fail_before`);
- a commit that is written and then reported as failed, so that its outcome is unknown (`fail_after`);
- a full disk, reported by SQLite itself (`fill_disk`, `free_disk`);
- a slow disk: commits wait until the test lets them go (`hold`, `release`, `wait_held`);
- anything at all, right before and after a commit (`before_commit`, `after_commit`: crash points).

It cannot tear a write, lose one that was synced, or flip bits.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from functools import partial

from understudy.mailbox.commit import Batch
from understudy.mailbox.connection import InlineRunner, Runner
from understudy.mailbox.sqlite import SQLiteStore

Hook = Callable[[Batch], None]


class InlineSQLiteStore(SQLiteStore):
    """The store in one file, with all SQL on the loop's thread: the same run gives the same order of events."""

    def runner(self, connect: Callable[[], sqlite3.Connection]) -> Runner:
        """Run functions on the loop's thread."""
        return InlineRunner(connect)

    def crash(self) -> None:
        """Leave the file as the death of the process at this moment would, and give up the lock."""
        writer, reader = self._writer, self._reader
        self._writer = self._reader = None
        for runner in (writer, reader):  # In this order nobody empties the log.
            if isinstance(runner, InlineRunner):
                runner.close_now()
        self._lock.release()


class FaultyStore(InlineSQLiteStore):
    """An InlineSQLiteStore whose commits fail, wait or call hooks as the test says."""

    before_commit: Hook | None = None
    after_commit: Hook | None = None
    commits = 0  # commits that were asked for
    _fail_before: int | None = None
    _fail_after: int | None = None
    _gate: asyncio.Event | None = None
    _held: asyncio.Event | None = None

    def fail_before(self, nth: int = 1) -> None:
        """Let the *nth* commit from now fail with nothing written."""
        self._fail_before = self.commits + nth

    def fail_after(self, nth: int = 1) -> None:
        """Let the *nth* commit from now be written and then reported as failed."""
        self._fail_after = self.commits + nth

    def hold(self) -> None:
        """Let commits wait, from the next one on."""
        self._gate = asyncio.Event()
        self._held = asyncio.Event()

    def release(self) -> None:
        """Let commits go on."""
        if self._gate is not None:
            self._gate.set()
        self._gate = self._held = None

    async def wait_held(self) -> None:
        """Return when a commit waits."""
        if self._held is not None:
            await self._held.wait()

    async def fill_disk(self, spare_pages: int = 0) -> None:
        """Give the file no room beyond *spare_pages* more pages."""
        await self._require_writer().run(partial(_limit_pages, spare_pages=spare_pages))

    async def free_disk(self) -> None:
        """Give the file room again."""
        await self._require_writer().run(partial(_limit_pages, spare_pages=None))

    async def commit(self, batch: Batch) -> None:
        """Commit with the faults that were asked for."""
        self.commits += 1
        number = self.commits
        if self._gate is not None and self._held is not None:
            self._held.set()
            await self._gate.wait()
        if self.before_commit is not None:
            self.before_commit(batch)
        if number == self._fail_before:
            self._fail("disk I/O error (injected before the commit)")
        await super().commit(batch)
        if number == self._fail_after:
            self._fail("disk I/O error (injected after the commit)")
        if self.after_commit is not None:
            self.after_commit(batch)

    def _fail(self, text: str) -> None:
        self._broken = sqlite3.OperationalError(text)
        raise self._broken


def _limit_pages(connection: sqlite3.Connection, spare_pages: int | None) -> None:
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    count = 0xFFFFFFFE if spare_pages is None else pages + spare_pages
    connection.execute(f"PRAGMA max_page_count={count}").fetchall()
