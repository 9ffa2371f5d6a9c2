"""The actors of these tests, and how their systems are opened."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec

from tests.actors.turns.world import World, world
from understudy import Actor, Limits, System, external, handler, step
from understudy.testing import FakeAnthropic, FaultyStore

PARK_S = 60.0
IDLE_S = 300.0


class Payment(msgspec.Struct):
    cents: int


class Count(msgspec.Struct):
    orders: list[str] = []


@step
async def ship(order: str) -> str:
    world().did.append(f"ship {order}")
    return order


@step
async def bill(order: str) -> str:
    world().did.append(f"bill {order}")
    return order


class Order(Actor[Count], kind="order"):
    @handler
    async def place(self, order: str) -> int:
        """Bill, wait for the payment, ship."""
        world().seen[order] = self.turn.id
        await bill(order)
        payment = await external("paid", Payment)
        await ship(order)
        self.state.orders.append(order)
        return payment.cents

    @handler
    async def note(self, text: str) -> list[str]:
        self.state.orders.append(text)
        return self.state.orders


def open_at(
    path: Path, outside: World, *classes: Any, model: FakeAnthropic | None = None, limits: Limits | None = None
) -> System:
    store = FaultyStore(path / "a.db", lock_wait_s=0.0)
    endpoints = [model.endpoint()] if model is not None else []
    limits = limits or Limits(grace_s=0.05, park_after_s=PARK_S, idle_s=IDLE_S)
    return System(store, classes or (Order,), endpoints=endpoints, resources=[outside], limits=limits)


async def until_parked() -> None:
    """Let so much time pass that whatever only waits is parked."""
    await asyncio.sleep(PARK_S + 1)


async def until_gone() -> None:
    """Let so much time pass that whatever is parked has left memory."""
    await asyncio.sleep(PARK_S + IDLE_S * 2)


def in_memory(system: System) -> list[str]:
    """Name the actors that are in memory."""
    return sorted(f"{type.kind}/{id}" for type in system.registry.types.values() for id in type.live)
