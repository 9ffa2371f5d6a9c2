"""An agent's journal: model calls by their number, tool calls by the model's id for them (rules 20 and 21)."""

from __future__ import annotations

import pytest

from tests.actors.steps.conftest import Open
from tests.actors.turns.world import World, dying, world
from understudy import Agent, Limits, OutcomeUnknown, tool
from understudy.testing import FakeAnthropic, calls, says

pytestmark = pytest.mark.anyio


@tool
async def look_up(word: str) -> str:
    """Look a word up."""
    outside = world()
    outside.did.append(f"look up {word}")
    outside.seen["on disk"] = await outside.seen["journal"]()
    await outside.stop_at("looking up")
    return f"{word} is a word"


@tool(interrupted="fail")
async def send_mail(to: str) -> str:
    """Send a mail."""
    outside = world()
    outside.did.append(f"mail to {to}")
    await outside.stop_at("mailing")
    return "sent"


class Clerk(Agent[str], kind="clerk"):
    model = "claude-haiku-5"
    tools = (look_up, send_mail)

    async def prompt(self) -> str:
        return f"Today is day {world().seen['day']}."


async def test_date_in_the_instructions_does_not_buy_an_answer_again(open_system: Open, outside: World) -> None:
    outside.seen["day"] = 1
    async with FakeAnthropic(calls(look_up, "actor"), says("An actor is a word.")) as model:
        async with dying(open_system(Clerk, endpoints=[model.endpoint()])) as system:
            outside.seen["journal"] = lambda: system.store.journal(1)
            job = await system.actor(Clerk, "c").run.submit("What is an actor?")
            await outside.wait("looking up")
        outside.seen["day"] = 2
        outside.open("looking up")
        async with open_system(Clerk, endpoints=[model.endpoint()]) as again:
            outside.seen["journal"] = lambda: again.store.journal(1)
            answer = await again.job(job.id)

        assert answer == "An actor is a word."
        assert len(model.paid) == 2


async def test_tool_starts_when_the_answer_that_caused_it_is_on_disk(open_system: Open, outside: World) -> None:
    outside.seen["day"] = 1
    outside.open("looking up")
    async with (
        FakeAnthropic(calls(look_up, "actor"), says("done")) as model,
        open_system(Clerk, endpoints=[model.endpoint()]) as system,
    ):
        outside.seen["journal"] = lambda: system.store.journal(1)
        await (await system.actor(Clerk, "c").run.submit("What is an actor?"))

    assert [row.key.partition(b"\0")[0] for row in outside.seen["on disk"]] == [b"prompt", b"model model"]


async def test_model_is_told_that_nobody_knows_whether_an_interrupted_mail_was_sent(
    open_system: Open, outside: World
) -> None:
    outside.seen["day"] = 1
    limits = Limits(grace_s=0.1)
    async with FakeAnthropic(calls(send_mail, "ann"), says("I do not know whether it was sent.")) as model:
        async with dying(open_system(Clerk, endpoints=[model.endpoint()], limits=limits)) as system:
            job = await system.actor(Clerk, "c").run.submit("Mail Ann.")
            await outside.wait("mailing")
        outside.open("mailing")
        async with open_system(Clerk, endpoints=[model.endpoint()], limits=limits) as again:
            await again.job(job.id)

        told = str(model.requests[-1].messages)

    assert outside.did == ["mail to ann"]
    assert "nobody knows whether" in told
    assert OutcomeUnknown.__name__ in told or "interrupted='fail'" in told
