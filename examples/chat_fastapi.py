"""A support chat: answers stream to the browser, refunds wait for a person, and all of it survives a restart.

    pip install fastapi uvicorn
    python examples/chat_fastapi.py --fake      # no key: a fake endpoint plays the model
    python examples/chat_fastapi.py             # the real model (ANTHROPIC_API_KEY)

Then open http://127.0.0.1:8000, ask "Where is order 17?", then "Please refund order 17". Kill the process while the
refund waits for you (kill -9), start it again and allow it: it is paid once, and the open page gets its answer.

`uvicorn chat_fastapi:app --timeout-graceful-shutdown 3`, in this folder, serves it too. One process only: a store has
one owner. In a real service, also find out who asks: anybody may read any chat here, and allow any refund.
"""

import argparse
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import uvicorn
from fastapi import Depends, FastAPI, Header, Request
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse

from understudy import (
    ActorSuspended,
    Agent,
    AlreadyDecided,
    AnthropicProvider,
    Endpoint,
    InvalidArguments,
    KeyConflict,
    NotFound,
    RetryLater,
    System,
    SystemClosed,
    current_turn,
    tool,
)
from understudy.testing import Answer, FakeAnthropic, FakeRequest, calls, says, together


class Shop:
    """Stands for the shop's own services. A resource: whatever tools need that is not data, found by its type."""

    def __init__(self, book: Path) -> None:
        self.book = book

    def status(self, order_id: str) -> str:
        return f"Order {order_id} was shipped on Monday."

    def pay_back(self, order_id: str, cents: int, key: str) -> None:
        with self.book.open("a") as book:
            book.write(f"{order_id} {cents} {key}\n")


@tool
async def order_status(order_id: str) -> str:
    """Where the order is."""
    return current_turn().resource(Shop).status(order_id)


@tool(approval="always", timeout_s=30)
async def refund(order_id: str, cents: int) -> str:
    """Pay money back to the customer."""
    # The key is the same if the process dies right here and the tool runs again: a payment service pays once for it.
    current_turn().resource(Shop).pay_back(order_id, cents, key=str(current_turn().uuid()))
    return f"{cents / 100:.2f} EUR are on their way."


class Support(Agent[str], kind="support"):
    model = "claude-sonnet-5-5"
    instructions = "You help the customers of a shop. Answer in one or two sentences."
    tools = [order_status, refund]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    async with AsyncExitStack() as stack:
        if getattr(app.state, "fake", False):
            endpoint = (await stack.enter_async_context(FakeAnthropic(play))).endpoint()
        else:
            endpoint = Endpoint(AnthropicProvider())
        system = System("chat.db", [Support], endpoints=[endpoint], resources=[Shop(Path("refunds.txt"))])
        app.state.system = await stack.enter_async_context(system)
        yield


app = FastAPI(lifespan=lifespan)


def opened(request: Request) -> System:
    system: System = request.app.state.system
    return system


Opened = Annotated[System, Depends(opened)]


# Errors are branched by what the caller can do about them.


@app.exception_handler(NotFound)
async def not_found(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)}, 404)


@app.exception_handler(InvalidArguments)
async def wrong(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)}, 422)


@app.exception_handler(KeyConflict)
@app.exception_handler(AlreadyDecided)
async def decided(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)}, 409)


@app.exception_handler(RetryLater)
async def later(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)}, 503)


@dataclass
class Message:
    text: str


@app.post("/chats/{chat}/messages", status_code=202)
async def send(
    chat: str, message: Message, system: Opened, idempotency_key: Annotated[str | None, Header()] = None
) -> dict[str, str]:
    """Returns once the message is on disk. With an Idempotency-Key it is answered once, however often it is sent."""
    job = await system.actor(Support, chat).run.options(key=idempotency_key).submit(message.text)
    return {"job": job.id}


@app.get("/jobs/{job}/stream")
async def stream(job: str, system: Opened) -> StreamingResponse:
    """Server-sent events; after a lost connection or a restart ask again, for the same job."""
    handle = system.job(job, Support.run)
    await handle.status()  # An unknown job is a 404, not a stream.

    async def lines() -> AsyncIterator[bytes]:
        try:
            async for event in handle.stream():
                yield b"data: " + msgspec.json.encode(event) + b"\n\n"  # {"type": "TextDelta", "text": "..."}
        except ActorSuspended as held:
            yield b"data: " + msgspec.json.encode({"type": "Suspended", "reason": str(held)}) + b"\n\n"
        except SystemClosed:
            return  # Browsers ask again by themselves.

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"cache-control": "no-store"})


@app.get("/jobs/{job}")
async def status(job: str, system: Opened) -> dict[str, str | None]:
    handle = system.job(job, Support.run)
    status = await handle.status()
    answer = await handle if status.state == "done" else None
    return {"state": status.state, "reason": status.reason, "answer": answer}


@app.get("/approvals")
async def pending(system: Opened) -> list[dict[str, Any]]:
    return [{"id": each.id, "tool": each.tool, "arguments": each.arguments} for each in await system.approvals()]


@dataclass
class Decision:
    approve: bool
    reason: str = "The clerk has refused it."


@app.post("/approvals/{approval}", status_code=204)
async def decide(approval: str, decision: Decision, system: Opened) -> None:
    waiting = system.approval(approval)
    await (waiting.approve() if decision.approve else waiting.reject(decision.reason))


@app.get("/chats/{chat}")
async def history(chat: str, system: Opened) -> list[dict[str, str]]:
    return [{"role": each.role, "text": each.text} for each in await system.actor(Support, chat).messages()]


@app.get("/", response_class=HTMLResponse)
async def page() -> str:
    return PAGE


def play(request: FakeRequest) -> Answer:
    """What the fake model says: it looks orders up, asks for refunds, and repeats what the tools told it."""
    blocks = request.messages[-1]["content"]
    if told := [block["content"] for block in blocks if block["type"] == "tool_result"]:
        return says(" ".join(told))
    text = " ".join(block["text"] for block in blocks)
    order = re.search(r"\d+", text)
    if order is None:
        return says("Hello! Which order is it about? Tell me its number.")
    if "refund" in text.lower():
        return together(says("I am asking a clerk to allow the refund. "), calls(refund, order[0], 1999))
    return together(says("Let me look that up. "), calls(order_status, order[0]))


PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Support</title>
<style>
  body { font: 16px/1.5 system-ui; max-width: 40em; margin: 2em auto; padding: 0 1em }
  .user { color: #666 }
  input { width: 100%; font: inherit; padding: .4em; box-sizing: border-box }
</style>
<h1>Support</h1>
<div id="log"></div>
<form><input placeholder="Where is order 17?" autofocus></form>
<script>
  const chat = localStorage.chat ??= crypto.randomUUID()
  const log = document.querySelector("#log"), form = document.querySelector("form"), field = form.firstChild

  function line(kind, text = "") {
    const made = document.createElement("p")
    made.className = kind
    made.textContent = text
    return log.appendChild(made)
  }

  const post = (path, body) => fetch(path, {
    method: "POST", headers: {"content-type": "application/json"}, body: JSON.stringify(body)
  })

  function follow(job) {
    const answer = line("assistant"), asked = line("asked")
    let kept = "", draft = ""            // a tool call keeps the draft, Restarted drops it
    const source = new EventSource(`/jobs/${job}/stream`)
    source.onopen = () => {              // also after a lost connection: the stream starts with the newest answer again
      kept = draft = ""
      asked.replaceChildren()
    }
    source.onmessage = ({data}) => {
      const event = JSON.parse(data)
      if (event.type === "TextDelta") draft += event.text
      if (event.type === "Restarted") draft = ""
      if (event.type === "ToolCalled") { kept += `${draft} [${event.tool}] `; draft = "" }
      answer.textContent = kept + draft
      if (event.type === "ApprovalRequested") askPerson(event, asked)
      if (event.type === "Suspended") line("error", event.reason)
      if (event.type === "Finished" || event.type === "Suspended") {
        source.close()
        asked.remove()
        delete localStorage.job
        if (event.type === "Finished") finish(job, answer)
      }
    }
  }

  async function finish(job, answer) {    // the stream was for the eye; this is the outcome
    const outcome = await (await fetch(`/jobs/${job}`)).json()
    if (outcome.state !== "done") line("error", outcome.reason)
    else if (!answer.textContent.includes(outcome.answer)) answer.textContent += outcome.answer
  }

  function askPerson({approval_id, tool}, asked) {
    const buttons = document.createElement("span")
    for (const [label, approve] of [["Allow", true], ["Refuse", false]]) {
      const button = document.createElement("button")
      button.textContent = `${label} ${tool}`
      button.onclick = () => { buttons.remove(); post(`/approvals/${approval_id}`, {approve}) }
      buttons.append(button, " ")
    }
    asked.append(buttons)
  }

  form.onsubmit = async (submitted) => {
    submitted.preventDefault()
    line("user", field.value)
    const {job} = await (await post(`/chats/${chat}/messages`, {text: field.value})).json()
    localStorage.job = job
    field.value = ""
    follow(job)
  }

  (async () => {                          // a page that is loaded again: what was said, and what goes on
    for (const {role, text} of await (await fetch(`/chats/${chat}`)).json()) if (role !== "tool") line(role, text)
    const job = localStorage.job
    if (job && (await (await fetch(`/jobs/${job}`)).json()).state !== "done") follow(job)
  })()
</script>
"""


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description="A support chat.")
    arguments.add_argument("--fake", action="store_true", help="let a fake endpoint play the model")
    arguments.add_argument("--port", type=int, default=8000)
    given = arguments.parse_args()
    app.state.fake = given.fake
    # Streams of waiting jobs do not end by themselves: without a limit, uvicorn would wait for them at shutdown.
    uvicorn.run(app, port=given.port, timeout_graceful_shutdown=3)
