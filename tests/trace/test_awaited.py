"""Waits for the outside in the tree: who was asked, what was said, and how a turn stands meanwhile."""

from __future__ import annotations

import pytest

from tests.trace.tape import MODEL, Tape
from understudy import events
from understudy.trace.render import to_text
from understudy.trace.tree import Trace, build_trace

HOUR_S = 3600.0


def build(tape: Tape, *, is_live: bool = True) -> Trace:
    return build_trace(tape.correlation, tape.events, is_live=is_live, seen_at=tape.now)


def asked() -> Tape:
    """An agent whose model has called a tool that a person has to approve."""
    tape = Tape().turn("17", None, "support/ann", "agent").model("17/m#1", "17", 1.0, 10, 5, usd_micros=1_000)
    return tape.wait("17", "18-ab", "refund", "amount=120")


@pytest.mark.parametrize(
    ("outcome", "reason", "says"),
    [("approved", "", "approved"), ("rejected", "too \x1b[2Jmuch", "rejected: too [2Jmuch")],
)
def test_approval_is_drawn_with_the_call_what_was_said_and_after_how_long(outcome: str, reason: str, says: str):
    tape = asked().pause(3 * HOUR_S).waited("17", "18-ab", outcome, reason).done("17", 0.5)

    approval = build(tape).roots[0].children[1]

    assert (approval.name, approval.role, approval.status) == ("approval refund", "wait", "ok")
    assert approval.notes == (says, "refund(amount=120)")
    assert approval.duration_s == 3 * HOUR_S
    assert "3 h 0 min" in str(build(tape))


@pytest.mark.parametrize("is_live", [True, False])
def test_turn_that_was_let_rest_waits_and_tells_for_what_and_how_long(is_live: bool):
    tape = asked().parked("17").pause(HOUR_S)

    trace = build(tape, is_live=is_live)

    assert (trace.status, trace.duration_s, trace.totals.crashes) == ("waiting", None, 0)
    assert trace.roots[0].children[1].notes == ("waits for approval 18-ab, 1 h 0 min so far", "refund(amount=120)")
    assert to_text(trace).splitlines()[0].endswith("waits for approval")


def test_turn_in_memory_that_only_waits_is_not_drawn_as_running():
    tape = asked()
    beside = asked().step("17/s#1", "17", "count")

    assert [build(tape).status, build(beside).status] == ["waiting", "running"]


def test_turn_that_goes_on_after_it_has_waited_is_one_attempt():
    tape = asked().parked("17").pause(HOUR_S).waited("17", "18-ab", "approved")
    tape.turn("17", None, "support/ann", "agent").replayed("17/m#1", "17", MODEL)
    tape.model("17/m#2", "17", 1.0, 10, 5, usd_micros=2_000).done("17", 1.0)

    (root,) = build(tape).roots

    assert (root.status, len(root.attempts), root.attempts[0].replayed) == ("ok", 1, 0)
    assert root.duration_s == HOUR_S + 3.0
    assert "attempt 2" not in str(build(tape))


def test_turn_that_goes_on_in_another_life_has_waited_and_was_not_stopped():
    tape = asked().parked("17").next_life(HOUR_S).waited("17", "18-ab", "approved")
    tape.turn("17", None, "support/ann", "agent").replayed("17/m#1", "17", MODEL).done("17", 1.0)

    trace = build(tape)

    assert [each.status for each in trace.roots[0].attempts] == ["interrupted", "ok"]
    assert "══ waited ══ life 2 ══ 1 finished step from the journal" in to_text(trace, 120)
    assert trace.roots[0].children[1].duration_s == HOUR_S


def test_wait_survives_the_death_of_the_process_but_not_the_end_of_its_message():
    killed = asked().next_life().put(events.SystemStarted, "life 2", pid=1, clean=False)
    cancelled = asked().put(events.MessageCancelled, "17", kind="support", actor="ann", handler="run")
    finished = asked().done("17", 1.0)

    (_, open_wait), (_, withdrawn), (_, left) = (
        build(each).roots[0].children for each in (killed, cancelled, finished)
    )

    assert open_wait.status == "waiting"
    assert (withdrawn.status, withdrawn.attempts[-1].ended_by) == ("interrupted", "cancelled")
    assert (left.status, left.attempts[-1].ended_by) == ("interrupted", "left unfinished")


def test_value_from_outside_and_one_that_nobody_delivered_are_told():
    tape = Tape().turn("17", None, "order/o-1.place").wait("17", "18-ab", name="paid").pause(5.0)
    tape.waited("17", "18-ab", "delivered", name="paid").wait("17", "19-ab", name="signed").pause(60.0)
    tape.waited("17", "19-ab", "timed out", name="signed")

    paid, signed = build(tape).roots[0].children

    assert (paid.name, paid.status, paid.notes, paid.duration_s) == ("external paid", "ok", ("delivered",), 5.0)
    assert (signed.name, signed.status, signed.error) == ("external signed", "failed", "StepTimeout")
    assert signed.notes == ("FAILED timed out",)


def test_end_of_a_wait_whose_beginning_was_deleted_is_drawn():
    trace = build(Tape().waited("17", "18-ab", "rejected", "no"))

    assert [span.name for span in trace.spans()] == ["17", "approval"]
    assert "rejected: no" in str(trace)


def held() -> Tape:
    tape = Tape().turn("17", None, "a/x", "agent")
    facts = {"error": "BudgetExceeded", "message": "$1.00 of $1.00 are spent", "decision": "suspend"}
    tape.put(events.StepFinished, "17/m#1", "17", step=MODEL, role="model", duration_s=0.0, **facts)
    return tape.failed("17", **facts)


def test_run_that_a_budget_holds_is_suspended_and_tells_why_once():
    trace = build(held(), is_live=False)

    (root,) = trace.roots
    assert (trace.status, root.attempts[-1].message) == ("suspended", "$1.00 of $1.00 are spent")
    assert to_text(trace, 140).count("$1.00 of $1.00 are spent") == 1
    assert "suspended: BudgetExceeded" in to_text(trace, 140).splitlines()[0]


def test_run_that_goes_on_when_its_budget_was_raised_says_so():
    tape = held().put(events.BudgetRaised, "17", budget="17-ab").turn("17", None, "a/x", "agent").done("17", 1.0)

    trace = build(tape)

    assert (trace.status, trace.roots[0].attempts[-1].notes) == ("ok", ("budget raised",))
    assert trace.totals.retries == 0
    assert "── suspended: BudgetExceeded ── attempt 2" in to_text(trace, 140)


def test_run_whose_budget_was_raised_while_no_process_ran_is_not_held_any_more():
    trace = build(held().put(events.BudgetRaised, "17", budget="17-ab"), is_live=False)

    assert trace.status == "interrupted"
    assert to_text(trace, 140).splitlines()[0].endswith("suspended: BudgetExceeded · budget raised")


def test_model_call_that_waits_to_be_tried_again_is_not_drawn_as_running():
    tape = Tape().turn("17", None, "a/x", "agent").step("17/m#1", "17", MODEL, "model")
    tape.model("17/m#1", "17", 1.0, error="RateLimited", message="slow down", decision="retry", delay_s=30.0)
    waiting = build(tape)
    tape.pause(30.0).step("17/m#1", "17", MODEL, "model", attempt=2)

    assert (waiting.status, waiting.roots[0].children[0].status) == ("waiting", "waiting")
    assert "waits for the model endpoint" in to_text(waiting).splitlines()[0]
    assert build(tape).status == "running"
