"""Writes lists of events by hand, as a system would store them."""

from __future__ import annotations

from typing import Any

from understudy import events

MODEL = "claude-sonnet-5-5"


class Tape:
    """A clock, a life and a list of events; every method adds one event, `duration_s` after the one before."""

    def __init__(self, correlation: str = "17") -> None:
        self.correlation = correlation
        self.now = 1_700_000_000.0
        self.life = 1
        self.events: list[Any] = []

    def put(self, event: type[events.TraceEvent], span: str, parent: str | None = None, **facts: Any) -> Tape:
        self.now += facts.get("duration_s", 0.0)
        self.events.append(
            event(at=self.now, correlation=self.correlation, span=span, parent=parent, life=self.life, **facts)
        )
        return self

    def next_life(self, after_s: float = 8.0) -> Tape:
        self.life += 1
        self.now += after_s
        return self

    def pause(self, seconds: float) -> Tape:
        self.now += seconds
        return self

    def turn(self, span: str, parent: str | None, name: str, role: str = "actor", **facts: Any) -> Tape:
        """*name*: kind/actor.handler."""
        kind, _, rest = name.partition("/")
        actor, _, handler = rest.partition(".")
        facts = {"kind": kind, "actor": actor or "x", "handler": handler or "run", "role": role, **facts}
        return self.put(events.TurnStarted, span, parent, **facts)

    def done(self, span: str, duration_s: float, **facts: Any) -> Tape:
        return self.put(events.TurnFinished, span, duration_s=duration_s, **facts)

    def failed(self, span: str, error: str, decision: str, **facts: Any) -> Tape:
        facts = {
            "kind": "order",
            "actor": "o-1",
            "handler": "place",
            "attempt": 1,
            "message": "",
            "reason": "",
            **facts,
        }
        return self.put(events.TurnFailed, span, error=error, decision=decision, **facts)

    def wait(self, span: str, wait: str, tool: str = "", arguments: str = "", name: str = "approval") -> Tape:
        return self.put(events.WaitBegan, span, wait=wait, name=name, tool=tool, arguments=arguments)

    def waited(self, span: str, wait: str, outcome: str, reason: str = "", name: str = "approval") -> Tape:
        return self.put(events.WaitEnded, span, wait=wait, name=name, outcome=outcome, reason=reason)

    def parked(self, span: str) -> Tape:
        return self.put(events.TurnEndedBySystem, span, reason="parked")

    def step(self, span: str, parent: str, name: str, role: str = "step", **facts: Any) -> Tape:
        return self.put(events.StepStarted, span, parent, step=name, role=role, **facts)

    def stepped(self, span: str, parent: str, name: str, duration_s: float, **facts: Any) -> Tape:
        return self.put(events.StepFinished, span, parent, step=name, duration_s=duration_s, **facts)

    def replayed(self, span: str, parent: str, name: str, role: str = "step") -> Tape:
        return self.put(events.StepReplayed, span, parent, step=name, role=role)

    def model(self, span: str, parent: str, duration_s: float, read: int = 0, written: int = 0, **facts: Any) -> Tape:
        facts = {"model": MODEL, "attempt": 1, "input_tokens": read, "output_tokens": written, **facts}
        return self.put(events.ModelCalled, span, parent, duration_s=duration_s, **facts)


def report() -> list[Any]:
    """A run that nothing disturbed, but for one malformed answer."""
    tape = Tape()
    tape.turn("17", None, "research-report/q-17", "agent").step("17/a#1", "17", "gather_context")
    tape.turn("18", "17/a#1", "search_database", "tool").done("18", 0.045)
    tape.turn("19", "17/a#1", "fetch_document", "tool").done("19", 0.12)
    tape.stepped("17/a#1", "17", "gather_context", 0.2).step("17/b#1", "17", "analyze")
    tape.model("17/m#1", "17/b#1", 2.1, 4200, 890, usd_micros=18_000)
    tape.turn("20", "17/b#1", "run_query", "tool").done("20", 0.28)
    tape.stepped("17/b#1", "17", "analyze", 2.4).step("17/c#1", "17", "generate_report")
    tape.model("17/m#2", "17/c#1", 1.8, 4900, 300, usd_micros=8_000, error="MalformedOutput", decision="amend")
    tape.put(events.Amended, "17/m#2", "17/c#1", amendment="format reminder added", reason="MalformedOutput")
    tape.model("17/m#2", "17/c#1", 1.3, 5100, 2400, usd_micros=16_000, attempt=2)
    tape.stepped("17/c#1", "17", "generate_report", 3.1)
    tape.step("17/d#1", "17", "send_report").stepped("17/d#1", "17", "send_report", 0.05)
    return tape.done("17", 5.75).events


def crash() -> list[Any]:
    """A run whose process is killed while a tool, a sub-agent and its model call are under way; life 2 finishes it."""
    tape = Tape()
    tape.turn("17", None, "researcher/q-17", "agent").step("17/m#1", "17", MODEL, "model")
    tape.model("17/m#1", "17", 2.1, 4200, 890, usd_micros=18_000)
    tape.turn("18", "17", "search", "tool").turn("19", "17", "search", "tool")
    tape.turn("20", "17", "writer/q-17", "agent").done("18", 0.045)
    tape.step("20/m#1", "20", MODEL, "model").model("20/m#1", "20", 1.2, 900, 300, usd_micros=4_000)
    tape.step("20/m#2", "20", MODEL, "model")
    tape.next_life()
    # The messages below are delivered again before the one that asked for them.
    tape.turn("19", "17", "search", "tool", crashes=1).turn("20", "17", "writer/q-17", "agent", crashes=1)
    tape.replayed("20/m#1", "20", MODEL, "model")
    tape.turn("17", None, "researcher/q-17", "agent", crashes=1)
    tape.replayed("17/m#1", "17", MODEL, "model").replayed("18", "17", "search", "tool").done("19", 0.3)
    tape.step("20/m#2", "20", MODEL, "model").model("20/m#2", "20", 1.9, 1100, 600, usd_micros=7_000).done("20", 2.2)
    tape.step("17/m#2", "17", MODEL, "model").model("17/m#2", "17", 3.4, 9100, 1600, usd_micros=41_000)
    return tape.done("17", 8.0).events


def order() -> list[Any]:
    """A turn that fails, is tried again with a step more, and is given up."""
    tape = Tape("40").turn("40", None, "order/o-1.place")
    tape.step("40/r#1", "40", "reserve").stepped("40/r#1", "40", "reserve", 0.05)
    tape.step("40/c#1", "40", "charge")
    tape.stepped(
        "40/c#1", "40", "charge", 0.35, error="ConnectionError", message="reset", decision="retry", delay_s=1.0
    )
    tape.pause(1.0).step("40/c#1", "40", "charge", attempt=2)
    tape.stepped("40/c#1", "40", "charge", 0.3, attempt=2, error="ConnectionError", message="reset by peer")
    tape.failed("40", "StepFailed", "restart", message="charge failed", delay_s=0.2, duration_s=1.7).pause(0.2)
    tape.turn("40", None, "order/o-1.place", attempt=2).replayed("40/r#1", "40", "reserve")
    tape.put(events.TurnDiverged, "40", step="audit")
    tape.step("40/x#1", "40", "audit").stepped("40/x#1", "40", "audit", 0.02)
    tape.failed("40", "ValueError", "dead_letter", attempt=2, message="3 of sku-11 wanted, 2 there", duration_s=0.1)
    facts = {"kind": "order", "actor": "o-1", "handler": "place", "error": "ValueError", "message": "3 wanted"}
    tape.put(events.MessageDeadLettered, "40", attempts=2, crashes=0, reason="given up", **facts)
    return tape.events
