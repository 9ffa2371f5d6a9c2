from datetime import datetime, timedelta

import msgspec

from understudy import Actor, Job, System, handler


class Schedule(msgspec.Struct):
    text: str = ""
    every_s: float = 0.0
    timer: Job[None] | None = None


class Reminder(Actor[Schedule]):
    @handler
    async def start(self, text: str, every_s: float) -> None:
        await self.stop()
        self.state.text, self.state.every_s = text, every_s
        await self._schedule(self.turn.started_at + timedelta(seconds=every_s))

    @handler
    async def fire(self, due: datetime) -> None:
        print(self.state.text)
        await self._schedule(due + timedelta(seconds=self.state.every_s))

    @handler
    async def stop(self) -> None:
        if self.state.timer is not None:
            await self.state.timer.cancel()

    async def _schedule(self, due: datetime) -> None:
        self.state.timer = await self.fire.options(at=due).submit(due)


async def main() -> None:
    async with System("r.db", [Reminder]) as system:
        await system.actor(Reminder, "standup").start("Stand-up", 86_400)
