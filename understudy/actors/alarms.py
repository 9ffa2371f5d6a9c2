"""Times that must not be missed while nobody is in memory: deadlines of parked messages, and of waits for the outside.

Each is a small record; at opening all are read. What is due late, after an outage, is due at once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from understudy.codec import encode
from understudy.errors import NotRegistered, StateUndecodable, UnderstudyError
from understudy.mailbox.commit import Record

if TYPE_CHECKING:
    from understudy.actors.system import System

_KIND = "alarm"
_PAGE = 1_000
_LOOK_AGAIN_S = 3_600.0  # a wall clock that was set forward is noticed within this
_KEPT_S = 30 * 86_400.0  # how long one stays that nobody cleared: its message has ended by then


class _Alarm(msgspec.Struct, frozen=True):
    at: float
    message: int


_decode = msgspec.msgpack.Decoder(_Alarm).decode


class Alarms:
    """The alarms of one system, each under the number of what it is for."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._handles: dict[int, asyncio.TimerHandle] = {}

    async def start(self) -> None:
        """Read them all."""
        after = ""
        while page := await self._system.store.records(_KIND, None, after, _PAGE):
            after = page[-1].id
            for record in page:
                alarm = _decode(record.body)
                self._watch(int(record.id), alarm.at, alarm.message)

    def stop(self) -> None:
        """Ring no more in this life."""
        for handle in self._handles.values():
            handle.cancel()
        self._handles.clear()

    def set(self, no: int, at: float, message: int) -> None:
        """Ring at *at* (wall time), about a message or, where *no* is another number, about what it waits for."""
        body = encode(_Alarm(at, message))
        self._system.committer.touch().put(Record(_KIND, _id(no), body, str(message), at + _KEPT_S))
        self._watch(no, at, message)

    def clear(self, no: int) -> None:
        """Forget one."""
        handle = self._handles.pop(no, None)
        if handle is not None:
            handle.cancel()
            self._system.committer.touch().drop(_KIND, _id(no))

    def _watch(self, no: int, at: float, message: int) -> None:
        before = self._handles.pop(no, None)
        if before is not None:
            before.cancel()
        wait_s = min(max(0.0, at - self._system.wall()), _LOOK_AGAIN_S)
        self._handles[no] = self._system.loop.call_later(wait_s, self._due, no, at, message)

    def _due(self, no: int, at: float, message: int) -> None:
        del self._handles[no]
        if self._system.wall() < at:
            self._watch(no, at, message)
        elif self._system.accepting:
            self._system.spawn(self._ring(no, message), "alarm")

    async def _ring(self, no: int, message: int) -> None:
        try:
            if no == message:
                await self._system.withdrawals.expire_waiting(message)
            else:
                await self._system.waits.expire(message, no)
        except (NotRegistered, StateUndecodable):
            return  # It waits for its code, or for the mending of its actor: it rings again at the next opening.
        except UnderstudyError:
            if self._system.usable:
                raise
            return
        self._system.committer.touch().drop(_KIND, _id(no))


def _id(no: int) -> str:
    return f"{no:020d}"
