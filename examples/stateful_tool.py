"""Tools with memory: a handler of another actor as a tool, and an agent with a state of its own.

python examples/stateful_tool.py
"""

import asyncio
from pathlib import Path

import msgspec

from understudy import Actor, Agent, System, handler, query, tool
from understudy.testing import FakeAnthropic, calls, says, together


class Items(msgspec.Struct):
    count: dict[str, int] = {}


class Cart(Actor[Items], kind="cart"):
    @handler
    async def add(self, sku: str, count: int = 1) -> dict[str, int]:
        """Put an article into the customer's cart."""
        self.state.count[sku] = self.state.count.get(sku, 0) + count
        return self.state.count

    @query
    async def show(self) -> dict[str, int]:
        """What is in the cart."""
        return self.state.count


@tool
async def find_article(text: str) -> list[str]:
    """Articles whose name matches the text."""
    return [name for name in ("apple", "apple juice", "pear") if text in name]


class Notes(msgspec.Struct):
    lines: list[str] = []


class Shop(Agent[str, Notes], kind="shop"):
    model = "claude-sonnet-5-5"

    @handler
    async def note(self, line: str) -> None:
        """Remember something about the customer."""
        self.state.lines.append(line)

    # `Cart.add` is the cart with the agent's own id; `note` changes the agent's own state, in the agent's turn.
    tools = [find_article, Cart.add, Cart.show, note]

    async def prompt(self) -> str:
        return "\n".join(["You sell fruit.", *self.state.lines])


async def main(path: Path = Path("shop.db")) -> None:
    fake = FakeAnthropic(
        calls(find_article, "apple"),
        together(calls(Cart.add, "apple", count=2), calls("note", line="Likes apples.")),
        calls(Cart.show),
        says("Two apples are in your cart."),
        says("As always: apples?"),
    )
    async with fake, System(path, [Shop, Cart], endpoints=[fake.endpoint()]) as system:
        shop = system.actor(Shop, "customer-1")
        print("shop:", await shop.run("Two apples, please."))
        print("cart:", await system.actor(Cart, "customer-1").show())
        print("shop:", await shop.run("Hello again!"))
        print("the prompt is now:", fake.requests[-1].system.replace("\n", " "))
        print("the conversation has", len(await shop.messages()), "messages")


if __name__ == "__main__":
    asyncio.run(main())
