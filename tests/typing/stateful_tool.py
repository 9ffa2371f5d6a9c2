import msgspec

from understudy import Actor, Agent, System, current_turn, handler, query, tool


class Pool:
    async def fetch(self, sql: str, *args: object) -> list[str]:
        return []


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
    return await current_turn().resource(Pool).fetch("select ... where name like $1", text)


class Shop(Agent[str]):
    model = "claude-sonnet-5-5"
    instructions = "Sell."
    tools = [find_article, Cart.add, Cart.show]  # the cart with the agent's own id


class Notes(msgspec.Struct):
    lines: list[str] = []


class Scribe(Agent[str, Notes]):  # or: state of its own beside the conversation
    model = "claude-sonnet-5-5"

    @handler
    async def note(self, line: str) -> None:
        """Write a line into the notes."""
        self.state.lines.append(line)

    tools = [find_article, note]

    async def prompt(self) -> str:
        return "\n".join(self.state.lines)


async def main(pool: Pool) -> None:
    async with System("shop.db", [Shop, Cart, Scribe], resources=[pool]) as system:
        print(await system.actor(Shop, "c-1").run("two apples"))
        print(await system.actor(Cart, "c-1").show())
