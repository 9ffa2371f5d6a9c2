"""Durable timers: a message to oneself that is delivered later, also when the process was away in between.

python examples/reminder.py
"""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from understudy import Actor, Job, System, handler, query


class Schedule(msgspec.Struct):
    text: str = ""
    every_s: float = 0.0
    fired: int = 0
    timer: Job[None] | None = None  # jobs can be stored


class Reminder(Actor[Schedule], kind="reminder"):
    @handler
    async def start(self, text: str, every_s: float) -> None:
        await self.stop()
        self.state.text, self.state.every_s = text, every_s
        await self._schedule(self.turn.started_at + timedelta(seconds=every_s))

    @handler
    async def fire(self, due: datetime) -> None:
        self.state.fired += 1
        print(f"{self.state.text} ({self.state.fired})")
        next_due = due + timedelta(seconds=self.state.every_s)
        while next_due <= datetime.now(UTC):  # Those that an outage swallowed are not made up for.
            next_due += timedelta(seconds=self.state.every_s)
        await self._schedule(next_due)

    @handler
    async def stop(self) -> None:
        if self.state.timer is not None:
            await self.state.timer.cancel()
            self.state.timer = None

    @query
    async def fired(self) -> int:
        return self.state.fired

    async def _schedule(self, due: datetime) -> None:
        self.state.timer = await self.fire.options(at=due).submit(due)


async def main(path: Path = Path("reminder.db")) -> None:
    async with System(path, [Reminder]) as system:
        await system.actor(Reminder, "tea").start("The tea is ready", 0.2)
        await asyncio.sleep(0.5)

    print("(the process is away; the timer is on disk)")
    await asyncio.sleep(0.5)

    async with System(path, [Reminder]) as system:
        await asyncio.sleep(0.3)  # The one that was due meanwhile comes late, and once.
        await system.actor(Reminder, "tea").stop()
        print("fired", await system.actor(Reminder, "tea").fired(), "times")


if __name__ == "__main__":
    asyncio.run(main())
