"""The store in one SQLite file: one connection that writes, one that reads, each with a thread of its own.

Exactly one connection ever writes or checkpoints: that keeps out lock conflicts, and a bug of SQLite before 3.51.3 that
corrupts a file when two connections checkpoint at the same instant. All SQL stands in plain functions of a connection
(writing.py, reading.py, retention.py), so that a test can run them on the loop's thread.
"""

# Paths stay text here: this module works with inodes, and Path.resolve follows links.
# ruff: noqa: PTH100, PTH104, PTH108, PTH110, PTH112, PTH116, PTH119, PTH120
from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from functools import partial
from os import PathLike
from typing import Literal, TypeVar

from understudy.errors import StoreFailed, StoreLocked, StoreRefused, SystemClosed, WrongLoop
from understudy.mailbox import reading, retention, writing
from understudy.mailbox.commit import Batch, DeadLetter, Record
from understudy.mailbox.connection import Runner, ThreadRunner, settle_task
from understudy.mailbox.envelope import Envelope
from understudy.mailbox.inspection import inspect, require_local, uri
from understudy.mailbox.journal import JournalEntry
from understudy.mailbox.lock import OwnerLock
from understudy.mailbox.migrations import APPLICATION_ID, MIGRATIONS, upgrade
from understudy.mailbox.store import ActorRow, Loaded, Opening, Timer, TraceRow, Whereabouts

T = TypeVar("T")

logger = logging.getLogger(__name__)

# STRICT tables.
_SQLITE_MIN = (3, 37, 0)
# How often a waiting owner looks whether the lock is free.
_LOCK_POLL_S = 0.05
# The file may be deleted or replaced under us, and SQLite would go on writing into nowhere. A stat costs a microsecond.
_FILE_CHECK_S = 2.0


class SQLiteStore:
    """A store in one file. It is opened once and closed once.

    `lock_wait_s`: how long `open` waits for another owner to go; a process that is being replaced needs a moment to finish its
    turns, while a second start by mistake should be told within seconds. `durability`: "full" survives a power cut,
    "process" only the death of the process, and saves one fsync per commit. `file_system`: "any" opens the store on network
    file systems too.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        create: bool = True,
        lock_wait_s: float = 5.0,
        durability: Literal["full", "process"] = "full",
        file_system: Literal["local", "any"] = "local",
        checkpoint_pages: int = 1_000,
        log_bytes_max: int = 64 * 1024 * 1024,
    ) -> None:
        # The file itself, not a link to it: lock, log and socket lie beside one name, whichever it was given.
        self.path = os.path.realpath(os.fsdecode(path))
        self._create = create
        self._lock_wait_s = lock_wait_s
        self._durability = durability
        self._file_system = file_system
        self._checkpoint_pages = checkpoint_pages
        self._log_bytes_max = log_bytes_max
        self._lock = OwnerLock(f"{self.path}.lock")
        self._writer: Runner | None = None
        self._reader: Runner | None = None
        self._opening: Opening | None = None
        self._broken: BaseException | None = None
        self._pid = -1
        self._inode = (0, 0)
        self._file_seen = 0.0
        self._rows_written = 0  # since the last checkpoint
        self._rows_per_checkpoint = checkpoint_pages

    def runner(self, connect: Callable[[], sqlite3.Connection]) -> Runner:
        """Return where the functions of a connection run; a testing store runs them on the loop's thread."""
        return ThreadRunner(connect)

    # Opening and closing.

    async def open(self) -> Opening:
        """Take ownership, look before touching, bring the schema up to date, count crashes."""
        if self._opening is not None:
            raise SystemClosed("a store object is opened once; make a new SQLiteStore to open the file again.")
        self._require_place()
        await self._acquire()
        try:
            return await settle_task(self._open())
        except asyncio.CancelledError:
            if (
                self._writer is not None
            ):  # It was opened before the cancellation came through, and nobody will close it.
                await settle_task(self._close(clean=True))
            raise

    async def _open(self) -> Opening:
        try:
            writer = self.runner(self._connect_writer)
            await writer.start()
            self._writer = writer
            reader = self.runner(self._connect_reader)
            await reader.start()
            self._reader = reader
        except BaseException as error:
            await self._shut()
            self._lock.release(undo=True)
            if isinstance(error, sqlite3.Error):
                raise StoreRefused(
                    f"{self.path} cannot be opened as a store ({error}). Check space, permissions and the disk.",
                    path=self.path,
                ) from error
            raise
        self._pid = os.getpid()
        assert self._opening is not None
        return self._opening

    async def close(self, *, clean: bool) -> None:
        """Finish what was handed over, checkpoint, and give up ownership. Closing twice is one closing."""
        if self._writer is None:
            return
        self._require_process()
        await settle_task(self._close(clean=clean))

    async def _close(self, *, clean: bool) -> None:
        try:
            if self._writer is not None and self._broken is None:
                # The reader goes first: the last connection to close removes the log.
                reader, self._reader = self._reader, None
                if reader is not None:
                    await reader.close()
                await self._writer.run(partial(self._say_goodbye, clean=clean))
        except (sqlite3.Error, StoreFailed) as error:
            # Everything committed is safe; the next opening takes this for a crash.
            self._broken = error
            logger.warning("store.close_failed", extra={"store_path": self.path, "error": str(error)})
        finally:
            await self._shut()
            self._lock.release()

    async def _shut(self) -> None:
        # After a failure the writer goes first. It is not the last one then, and leaves the log as it is: what the failed
        # commit left there is for the next opening to decide.
        writer, self._writer = self._writer, None
        reader, self._reader = self._reader, None
        for runner in (writer, reader):
            if runner is not None:
                try:
                    await runner.close()
                except (sqlite3.Error, ValueError) as error:
                    self._broken = self._broken or error

    def _require_place(self) -> None:
        if sqlite3.sqlite_version_info < _SQLITE_MIN:
            raise StoreRefused(
                f"SQLite {sqlite3.sqlite_version} is too old; understudy needs 3.37 or later. Use a newer Python build.",
                path=self.path,
            )
        if os.path.basename(self.path) == ":memory:":
            raise StoreRefused(
                "a store needs a file: what is in memory is not durable. In tests use a temporary directory.",
                path=self.path,
            )
        directory = os.path.dirname(self.path)
        if not os.path.isdir(directory):
            raise StoreRefused(f"the directory {directory} does not exist. Make it first.", path=self.path)
        if os.path.isdir(self.path):
            raise StoreRefused(f"{self.path} is a directory; the store is a file.", path=self.path)
        if not self._create and not os.path.exists(self.path) and not os.path.exists(self._lock.path):
            raise StoreRefused(f"there is no store at {self.path}, and create=False.", path=self.path)
        if self._file_system == "local":
            require_local(directory)

    async def _acquire(self) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._lock_wait_s
        while not self._lock.acquire_nowait():
            if loop.time() >= until:
                pid = self._lock.owner_pid()
                owner = "another process" if pid is None else f"process {pid}"
                if pid == os.getpid():
                    owner = f"this process ({pid})"
                raise StoreLocked(
                    f"{self.path} is owned by {owner}; waited {self._lock_wait_s:g} s. A store has one owner at a time: "
                    "stop the other one, or raise lock_wait_s if it is about to finish.",
                    pid=pid,
                )
            await asyncio.sleep(_LOCK_POLL_S)

    # On the writer's thread.

    def _connect_writer(self) -> sqlite3.Connection:
        if inspect(self.path, self._lock.store_id, len(MIGRATIONS)) == "new":
            if not self._create:
                raise StoreRefused(f"there is no store at {self.path}, and create=False.", path=self.path)
            self._make_file()
        connection = sqlite3.connect(
            uri(self.path, "mode=rw"), uri=True, isolation_level=None, check_same_thread=False, cached_statements=512
        )
        try:
            self._set_up(connection)
            if upgrade(connection, MIGRATIONS):
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._opening = self._take_over(connection)
        except BaseException:
            connection.close()
            raise
        self._lock.note_store(self._opening.store_id)
        self._inode = self._look_at_file()
        self._file_seen = time.monotonic()
        return connection

    def _make_file(self) -> None:
        """Make the file under another name and move it into place when it is whole: a crash leaves none or all of it."""
        import uuid  # Rarely needed, and slow to import.

        draft = f"{self.path}.creating"
        for leftover in (draft, f"{draft}-journal"):
            if os.path.exists(leftover):
                os.unlink(leftover)
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(draft, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            upgrade(connection, MIGRATIONS)
            connection.execute("INSERT INTO owner VALUES (1, ?, ?, 0, 1, 0, 0)", (str(uuid.uuid4()), time.time()))
        finally:
            connection.close()
        os.rename(draft, self.path)
        retention.sync_directory(self.path)

    def _set_up(self, connection: sqlite3.Connection) -> None:
        (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":
            raise StoreRefused(
                f"SQLite cannot keep a write-ahead log at {self.path} (it says {mode!r}). Use a local disk.",
                path=self.path,
            )
        for pragma in (
            f"synchronous={'FULL' if self._durability == 'full' else 'NORMAL'}",
            # macOS: a plain fsync there does not reach the disk.
            f"fullfsync={int(self._durability == 'full')}",
            f"checkpoint_fullfsync={int(self._durability == 'full')}",
            "wal_autocheckpoint=0",
            f"journal_size_limit={self._log_bytes_max}",
            "busy_timeout=5000",
            "mmap_size=0",
            "cache_size=-16000",
            "temp_store=MEMORY",
            "trusted_schema=OFF",
            "cell_size_check=ON",
            # Some builds have it on. Zeroing every overwritten state costs too much; `erase` rewrites the file instead.
            "secure_delete=OFF",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()

    def _take_over(self, connection: sqlite3.Connection) -> Opening:
        execute = connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            store_id, epoch, clean, last_message, last_actor = execute(
                "SELECT store_id, epoch, clean, last_message, last_actor FROM owner"
            ).fetchone()
            if not clean:
                # A message that ran alone is the one that crashed; its bystanders are not charged.
                (alone,) = execute("SELECT count(*) FROM message WHERE started <> 0 AND started = 2").fetchone()
                execute(
                    "UPDATE message SET crashes = crashes + 1 WHERE started <> 0 AND started = ?", (2 if alone else 1,)
                )
            # Nothing runs now, but the journal of what was started may hold outcomes: -1 keeps that known.
            execute("UPDATE message SET started = -1 WHERE started <> 0 AND started > 0")
            # Answers to turns that ended without waiting for them, given in a life that could not know it.
            execute(
                "DELETE FROM journal WHERE message NOT IN (SELECT no FROM message)"
                " AND message NOT IN (SELECT no FROM dead_letter)"
            )
            execute("UPDATE owner SET epoch = epoch + 1, clean = 0")
            (highest,) = execute("SELECT coalesce(max(no), 0) FROM actor").fetchone()
            execute("COMMIT")
        except BaseException:
            writing.roll_back(connection)
            raise
        return Opening(
            store_id=store_id,
            epoch=epoch + 1,
            last_message=last_message,
            last_actor=max(highest, last_actor),
            clean=bool(clean),
        )

    def _connect_reader(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            uri(self.path, "mode=ro"), uri=True, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        for pragma in ("query_only=ON", "busy_timeout=5000", "trusted_schema=OFF", "cell_size_check=ON"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        # Only a first read opens the log, and a reader that has it open is what keeps a closing writer from removing it.
        connection.execute("SELECT epoch FROM owner").fetchall()
        return connection

    def _say_goodbye(self, connection: sqlite3.Connection, *, clean: bool) -> None:
        if clean:
            connection.execute("BEGIN IMMEDIATE")
            try:
                self._fence(connection)
                connection.execute("UPDATE owner SET clean = 1")
                connection.execute("COMMIT")
            except BaseException:
                writing.roll_back(connection)
                raise
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _fence(self, connection: sqlite3.Connection) -> None:
        assert self._opening is not None
        writing.fence(connection, self._opening.epoch)

    def _write(self, connection: sqlite3.Connection, todo: writing.Plan) -> None:
        assert self._opening is not None
        try:
            self._require_file()
            writing.write(connection, self._opening.epoch, todo)
        except BaseException as error:
            # An error at COMMIT does not say whether the rows are on disk, and a later commit could make it worse.
            self._broken = error
            raise
        self._rows_written += todo.rows

    def _checkpoint(self, connection: sqlite3.Connection) -> None:
        """Copy the log into the file, as far as no reader needs it. Learns how many rows make the pages of one log."""
        try:
            _, pages, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            per_page = self._rows_written / max(1, pages)
            self._rows_per_checkpoint = max(1, int(per_page * self._checkpoint_pages))
            self._rows_written = 0
            if os.stat(f"{self.path}-wal").st_size > self._log_bytes_max:
                retention.truncate_log(connection)
        except (sqlite3.Error, OSError) as error:
            self._broken = error

    def _require_file(self) -> None:
        now = time.monotonic()
        if now - self._file_seen < _FILE_CHECK_S:
            return
        if self._look_at_file() != self._inode:
            raise StoreFailed(
                f"{self.path} was deleted or replaced while it was open; what is written now would be lost. Put the "
                "right file back and open the store again."
            )
        self._file_seen = now

    def _look_at_file(self) -> tuple[int, int]:
        try:
            there = os.stat(self.path)
        except OSError:
            return (0, 0)
        return (there.st_dev, there.st_ino)

    # What the protocol asks for.

    async def commit(self, batch: Batch) -> None:
        """Write the whole batch durably, or raise: then the outcome is unknown and only `close` is left to call."""
        writer = self._require_writer()
        try:
            todo = writing.plan(batch)
        except BaseException as error:
            self._broken = error
            raise
        await writer.run(partial(self._write, todo=todo), partial(batch.landed, batch))
        if self._rows_written >= self._rows_per_checkpoint:
            # Not awaited: who waits for this commit need not wait for the checkpoint. The next commit comes after it.
            writer.post(self._checkpoint)

    async def load(self, addresses: Sequence[tuple[str, str] | int], window: int) -> list[Loaded | None]:
        """Return the actors in the order of *addresses*; None for one that is not there."""
        return await self._read(partial(reading.load, addresses=addresses, window=window))

    async def mailbox(self, actor: int, after: int, limit: int) -> list[Envelope]:
        """Return messages without a due time whose position is above *after*, in order."""
        return await self._read(partial(reading.mailbox, actor=actor, after=after, limit=limit))

    async def message(self, no: int) -> Whereabouts:
        """Return where the message is."""
        return await self._read(partial(reading.message, no=no))

    async def messages(self, numbers: Sequence[int]) -> list[Envelope]:
        """Return those of the messages that wait, by number; one that is damaged is left out."""
        return await self._read(partial(reading.messages, wanted=numbers))

    async def keyed(self, actor: int, handler: str, key: str) -> Whereabouts:
        """Return where the newest message with this key is."""
        return await self._read(partial(reading.keyed, actor=actor, handler=handler, key=key))

    async def journal(self, message: int) -> list[JournalEntry]:
        """Return the outcomes of the message's steps and asks, in order of writing."""
        return await self._read(partial(reading.journal, message=message))

    async def asked_by(self, message: int) -> list[Envelope]:
        """Return the messages that the turn of *message* asked and that have not ended."""
        return await self._read(partial(reading.asked_by, message=message))

    async def events(self, actor: int, after: int, limit: int) -> list[tuple[int, bytes]]:
        """Return (number, bytes) of the actor's events above *after*, in order."""
        return await self._read(partial(reading.events, actor=actor, after=after, limit=limit))

    async def timers(self, after: Timer | None, limit: int) -> list[Timer]:
        """Return delayed messages in order of (due_at, no), those above *after*."""
        return await self._read(partial(reading.timers, after=after, limit=limit))

    async def waiting(self, after: int, limit: int) -> list[int]:
        """Return numbers of active actors above *after* that have messages without a due time, in order."""
        return await self._read(partial(reading.waiting, after=after, limit=limit))

    async def suspects(self) -> list[int]:
        """Return numbers of actors whose messages have crashed the process twice or more."""
        return await self._read(reading.suspects)

    async def traces(self, correlation: str | None, after: int, limit: int) -> list[TraceRow]:
        """Return stored events above number *after*, in order, of one correlation or of all."""
        return await self._read(partial(reading.traces, correlation=correlation, after=after, limit=limit))

    async def correlations(self, limit: int) -> list[tuple[str, float]]:
        """Return the newest correlation ids with the time of their first event, newest first."""
        return await self._read(partial(reading.correlations, limit=limit))

    async def dead_letters(self, after: int, limit: int) -> list[DeadLetter]:
        """Return dead letters by message number above *after*."""
        return await self._read(partial(reading.dead_letters, after=after, limit=limit))

    async def actors(self, kind: str | None, after: int, limit: int) -> list[ActorRow]:
        """Return a page of the list of actors, by number."""
        return await self._read(partial(reading.actors, kind=kind, after=after, limit=limit))

    async def held(self, status: str | None, after: int, limit: int) -> list[ActorRow]:
        """Return actors above number *after* that are "suspended", or "stopped", or (None) either, by number."""
        return await self._read(partial(reading.held, status=status, after=after, limit=limit))

    async def picture(self) -> bytes | None:
        """Return the newest `Batch.picture`; None when there is none that can be trusted."""
        return await self._read(reading.picture)

    async def record(self, kind: str, id: str) -> Record | None:
        """Return the record stored under (kind, id)."""
        return await self._read(partial(reading.record, kind=kind, id=id))

    async def records(self, kind: str, owner: str | None, after: str, limit: int) -> list[Record]:
        """Return a page of the records of one kind, by id."""
        return await self._read(partial(reading.records, kind=kind, owner=owner, after=after, limit=limit))

    async def turns(self) -> list[tuple[str, str, int, int]]:
        """Return (kind, handler, finished turns, failed turns)."""
        return await self._read(reading.turns)

    async def tidy(self, now: float, trace_ttl_s: float, trace_bytes: int) -> None:
        """Delete expired results and trace rows that are too old or too many, a bounded part per call; checkpoint.

        Each part is a short transaction of its own, so that commits go on between them.
        """
        part = partial(retention.tidy_part, now=now, trace_ttl_s=trace_ttl_s, trace_bytes=trace_bytes)
        for _ in range(retention.PARTS_MAX):
            if not await self._require_writer().run(partial(self._maintain, work=part)):
                break
        await self._require_writer().run(partial(self._maintain, work=retention.truncate_log))

    async def erase(self, actor: int) -> None:
        """Delete every row of the actor and rewrite the file, so that no byte of it is left there or in the log.

        Pages and log keep what was overwritten long ago, so the whole file is written anew: commits wait meanwhile
        (about a second per 100 MB), and the disk needs room for a second copy. An error leaves the rows deleted and
        their old bytes in place: call again.
        """
        traces = await self._read(partial(retention.traces_of, actor=actor))
        for start in range(0, len(traces), 10_000):
            chunk = traces[start : start + 10_000]
            await self._require_writer().run(partial(self._maintain, work=partial(retention.delete_traces, rows=chunk)))
        await self._require_writer().run(partial(self._maintain, work=partial(retention.erase, actor=actor)))
        await self._require_writer().run(partial(self._maintain, work=retention.rewrite))

    def _maintain(self, connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            self._require_file()
            return work(connection)
        except sqlite3.Error as error:
            writing.roll_back(connection)
            # Without space, or beside a reader that stays, nothing was changed. Any other error says that the file cannot be trusted with more.
            if retention.primary_code(error) not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY):
                self._broken = error
            raise StoreFailed(f"the store could not be tidied ({error}). Mend the cause and call again.") from error

    async def backup(self, path: str | PathLike[str]) -> None:
        """Write a consistent copy to *path* while commits go on; the file appears when it is whole and on disk.

        The log grows while the copy is made. Cancelled, the copy is finished and then kept.

        Raises:
            StoreRefused: There is a file at *path* already, or it cannot be written.
        """
        self._require_process()
        if self._writer is None:
            raise SystemClosed("the store is not open.")
        target = os.path.abspath(os.fsdecode(path))
        # A connection of its own: reads do not wait for the copy.
        runner = self.runner(self._connect_reader)
        await runner.start()
        try:
            await runner.run(partial(retention.copy, target=target))
        finally:
            await runner.close()

    async def _read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        self._require_process()
        if self._reader is None:
            raise SystemClosed("the store is not open.")
        return await self._reader.run(function)

    def _require_writer(self) -> Runner:
        self._require_process()
        if self._broken is not None:
            raise StoreFailed(
                f"an earlier write failed with unknown outcome ({self._broken}); close the store and open it again."
            ) from self._broken
        if self._writer is None:
            raise SystemClosed("the store is not open.")
        return self._writer

    def _require_process(self) -> None:
        if self._pid != os.getpid() and self._writer is not None:
            raise WrongLoop(
                f"the store was opened by process {self._pid}, and this is its forked child {os.getpid()}. Open a store of "
                "your own, on another file, after the fork."
            )
