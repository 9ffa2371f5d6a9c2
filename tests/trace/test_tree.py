from __future__ import annotations

import random
from typing import get_args

import msgspec
import pytest
from hypothesis import given, strategies as st

from tests.trace.tape import MODEL, Tape, crash, order, report
from understudy import events
from understudy.endpoint.breaker import State
from understudy.trace.tree import Trace, build_trace, decode_events


def build(tape: Tape, *, is_live: bool = True) -> Trace:
    return build_trace(tape.correlation, tape.events, is_live=is_live)


def every_kind() -> list[events.TraceEvent]:
    """One event of every type in the catalogue, in two lives, on few spans."""
    values = {str: "x", int: 2, float: 0.5, bool: False, State: "open"}
    made = []
    for life in (1, 2):
        for place, cls in enumerate(events.Event.__args__):
            facts = {
                field.name: values[field.type] if field.type in values else get_args(field.type)[0]
                for field in msgspec.structs.fields(cls)
                if field.required and field.name not in ("at", "correlation", "span")
            }
            made.append(
                cls(at=float(place), correlation="1", span=str(place % 4), parent=str(place % 3), life=life, **facts)
            )
    return made


EVERYTHING = [*report(), *crash(), *order(), *every_kind()]


def test_run_has_the_names_the_times_and_the_sums_of_its_parts():
    trace = build_trace("17", report())

    (root,) = trace.roots
    assert (root.name, root.role, root.status, root.duration_s) == ("research-report  q-17", "agent", "ok", 5.75)
    assert [child.name for child in root.children] == ["gather_context", "analyze", "generate_report", "send_report"]
    assert [child.name for child in root.children[0].children] == ["tool search_database", "tool fetch_document"]
    totals = trace.totals
    assert (totals.usd_micros, totals.usd_unknown, totals.retries, totals.model_calls) == (42_000, False, 1, 3)
    assert (totals.input_tokens, totals.output_tokens) == (14_200, 3_590)
    assert trace.status == "ok"


def test_failed_and_amended_attempts_tell_why_on_their_own_attempt():
    call = build_trace("17", report()).span("17/m#2")

    assert call is not None
    assert [attempt.status for attempt in call.attempts] == ["failed", "ok"]
    assert [attempt.notes for attempt in call.attempts] == [
        ("FAILED malformed output",),
        ("amended: format reminder added",),
    ]
    assert (call.status, call.usd_micros, call.input_tokens) == ("ok", 24_000, 10_000)


def test_what_a_turn_amends_is_told_of_its_next_model_call():
    tape = Tape().turn("17", None, "a/x", "agent").model("17/model#1", "17", 1.0, 10, 5, usd_micros=1)
    facts = {"step": MODEL, "role": "model", "error": "MalformedOutput", "message": "no JSON", "decision": "amend"}
    tape.put(events.StepFinished, "17/model#1", "17", duration_s=0.0, **facts)
    tape.put(events.Amended, "17", amendment="format reminder added", reason="MalformedOutput")
    waiting = build(tape)
    tape.model("17/model#2", "17", 1.0, 10, 5, usd_micros=1, attempt=2).done("17", 2.0)

    trace = build(tape)

    assert waiting.roots[0].notes == ("amended: format reminder added",)
    assert [child.notes for child in trace.roots[0].children] == [
        ("FAILED malformed output: no JSON",),
        ("amended: format reminder added",),
    ]
    assert trace.totals.retries == 1


def test_killed_run_has_an_attempt_in_each_life():
    trace = build_trace("17", crash())

    (root,) = trace.roots
    assert [(attempt.life, attempt.status, attempt.ended_by) for attempt in root.attempts] == [
        (1, "interrupted", "killed"),
        (2, "ok", ""),
    ]
    assert (root.status, root.lives, trace.totals.crashes, trace.totals.retries) == ("ok", (1, 2), 1, 0)


def test_message_delivered_again_before_its_sender_belongs_to_the_senders_second_life():
    trace = build_trace("17", crash())

    tool, writer = trace.span("19"), trace.span("20")
    assert tool is not None
    assert writer is not None
    assert [attempt.within for attempt in tool.attempts] == [0, 1]
    assert [attempt.within for attempt in writer.attempts] == [0, 1]


def test_replayed_steps_are_counted_and_not_paid_again():
    trace = build_trace("17", crash())

    (root,) = trace.roots
    assert [attempt.replayed for attempt in root.attempts] == [0, 2]
    assert root.attempts[1].spared_usd_micros == 18_000
    assert (trace.totals.replayed, trace.totals.usd_micros) == (3, 70_000)
    first = trace.span("17/m#1")
    assert first is not None
    assert (first.status, first.replays, len(first.attempts)) == ("ok", 1, 1)


def test_model_call_killed_in_flight_has_an_unknown_cost():
    call = build_trace("17", crash()).span("20/m#2")

    assert call is not None
    assert [attempt.usd_micros for attempt in call.attempts] == [None, 7_000]
    assert call.usd_micros is None
    assert build_trace("17", crash()).totals.usd_unknown


def test_model_without_a_price_makes_the_cost_unknown_but_a_refused_request_costs_nothing():
    priceless = Tape().turn("17", None, "a/x", "agent").model("17/m#1", "17", 1.0, 10, 5)
    refused = Tape().turn("17", None, "a/x", "agent").model("17/m#1", "17", 0.1, error="RateLimited")

    assert build(priceless).totals.usd_unknown
    assert not build(refused).totals.usd_unknown


def test_step_without_an_end_is_running_while_a_process_lives_and_killed_without_one():
    tape = Tape().turn("17", None, "a/x", "agent").step("17/s#1", "17", "slow")

    assert [span.status for span in build(tape).spans()] == ["running", "running"]
    assert [span.status for span in build(tape, is_live=False).spans()] == ["interrupted", "interrupted"]


def test_step_that_never_ran_again_after_a_crash_is_not_shown_as_running():
    tape = Tape().turn("17", None, "a/x", "agent").step("17/s#1", "17", "slow")
    tape.next_life().turn("17", None, "a/x", "agent").done("17", 1.0)

    step = build(tape).span("17/s#1")
    assert step is not None
    assert (step.status, step.attempts[0].ended_by) == ("interrupted", "killed")


def test_step_left_open_by_the_end_of_its_turn_is_left_unfinished_and_a_told_message_goes_on():
    tape = Tape().turn("17", None, "a/x").step("17/s#1", "17", "loser").turn("18", "17", "b/y").done("17", 1.0)

    trace = build(tape)

    (root,) = trace.roots
    assert [(child.id, child.status) for child in root.children] == [("17/s#1", "interrupted"), ("18", "running")]
    assert root.children[0].attempts[0].ended_by == "left unfinished"


def test_step_that_runs_a_tool_ends_with_its_turn_too():
    tape = Tape().turn("17", None, "a/x").step("17/t#1", "17", "search", "tool").done("17", 1.0)

    (step,) = build(tape).roots[0].children
    assert (step.name, step.status) == ("tool search", "interrupted")


def test_turn_ended_by_a_shutdown_is_neither_a_crash_nor_a_retry():
    tape = Tape().turn("17", None, "a/x", "agent").step("17/s#1", "17", "slow")
    tape.put(events.TurnEndedBySystem, "17", reason="shutdown").next_life()
    tape.turn("17", None, "a/x", "agent").step("17/s#1", "17", "slow").stepped("17/s#1", "17", "slow", 1.0).done(
        "17", 1.0
    )

    trace = build(tape)

    assert (trace.totals.crashes, trace.totals.retries, trace.status) == (0, 0, "ok")
    assert [attempt.ended_by for attempt in trace.roots[0].attempts] == ["shutdown", ""]
    assert [attempt.ended_by for attempt in trace.roots[0].children[0].attempts] == ["shutdown", ""]


def test_parallel_tools_stand_side_by_side_in_the_order_of_their_start():
    tape = Tape().turn("17", None, "a/x", "agent")
    for number in (18, 19, 20):
        tape.turn(str(number), "17", f"tool-{number}", "tool")
    tape.done("20", 0.1).done("18", 0.1).done("19", 0.1)

    assert [child.id for child in build(tape).roots[0].children] == ["18", "19", "20"]


def test_retried_turn_waits_for_its_next_attempt():
    tape = Tape("40").turn("40", None, "order/o-1.place").failed("40", "OSError", "retry", delay_s=2.0, duration_s=0.1)

    trace = build(tape)

    assert trace.status == "running"
    assert trace.roots[0].notes == ("FAILED OSError, retry in 2 s",)


def test_message_given_up_is_failed_with_its_error():
    trace = build_trace("40", order())

    (root,) = trace.roots
    assert (root.status, root.error, trace.totals.retries) == ("failed", "ValueError", 2)
    assert root.notes == (
        "FAILED StepFailed, restart in 200 ms: charge failed",
        "diverged: new step audit",
        "FAILED ValueError, dead letter: 3 of sku-11 wanted, 2 there",
    )


def test_message_that_killed_its_process_too_often_says_so():
    names = {"kind": "a", "actor": "x", "handler": "run"}
    tape = Tape().turn("17", None, "a/x").next_life().put(events.MessageCrashed, "17", crashes=5, **names)
    tape.put(events.MessageDeadLettered, "17", error="", message="", attempts=0, crashes=5, reason="poison", **names)

    trace = build(tape)

    assert trace.status == "failed"
    assert trace.roots[0].notes == ("dead letter: it was killed with the process 5 times",)


def test_suspended_run_says_why_and_goes_on_when_it_is_resumed():
    tape = Tape().turn("17", None, "a/x", "agent")
    tape.put(events.ActorSuspended, "17", kind="a", actor="x", reason="budget of $0.50 is spent")
    held = build(tape)
    tape.put(events.ActorResumed, "17", kind="a", actor="x").turn("17", None, "a/x", "agent").done("17", 1.0)

    assert held.status == "suspended"
    assert held.roots[0].notes == ("suspended: budget of $0.50 is spent",)
    assert build(tape).status == "ok"
    assert "resumed" in build(tape).roots[0].notes


def test_cancelled_and_expired_messages_end():
    names = {"kind": "a", "actor": "x", "handler": "run"}

    cancelled = build(Tape().turn("17", None, "a/x").put(events.MessageCancelled, "17", **names))
    expired = build(Tape().put(events.MessageExpired, "17", **names))

    assert (cancelled.status, cancelled.roots[0].attempts[0].ended_by) == ("interrupted", "cancelled")
    assert (expired.status, expired.roots[0].error) == ("failed", "DeadlineExceeded")
    assert expired.roots[0].name == "a/x.run"


def test_step_known_only_from_its_replay_is_shown_as_replayed():
    tape = Tape().turn("17", None, "a/x", "agent", attempt=1).replayed("17/s#1", "17", "charge")

    step = build(tape).span("17/s#1")
    assert step is not None
    assert (step.name, step.status) == ("charge", "replayed")


def test_span_whose_parent_is_missing_is_a_root():
    trace = build(Tape().turn("17", None, "a/x").turn("18", "12/lost#1", "b/y"))

    assert [root.id for root in trace.roots] == ["17", "18"]


def test_spans_that_name_each_other_as_parents_are_still_shown():
    trace = build(Tape().turn("1", "3", "a/x").turn("2", "1", "a/x").turn("3", "2", "a/x").turn("4", "4", "a/x"))

    assert sorted(span.id for span in trace.spans()) == ["1", "2", "3", "4"]


def test_chain_of_thousands_of_messages_is_built_and_drawn():
    tape = Tape().turn("0", None, "clock/x.tick").done("0", 0.1)
    for number in range(1, 5_000):
        tape.turn(str(number), str(number - 1), "clock/x.tick").done(str(number), 0.1)

    trace = build(tape)

    assert sum(1 for _ in trace.spans()) == 5_000
    assert len(str(trace).splitlines()) == 5_000
    assert repr(trace.roots[0])


def test_no_events_are_an_empty_trace():
    trace = build_trace("17", [])

    assert (trace.roots, trace.status, trace.started_at) == ((), "ok", None)
    assert str(trace) == "17: no events"


def test_names_say_what_a_span_is():
    tape = Tape().turn("1", None, "account/alice.deposit").turn("2", "1", "cart/q-17.add", "tool")
    tape.turn("3", "1", "tool:search", "tool").step("1/s#1", "1", "charge").step("1/m#1", "1", MODEL, "model")

    names = {span.id: span.name for span in build(tape).spans()}

    assert names == {
        "1": "account/alice.deposit",
        "2": "tool cart.add",
        "3": "tool search",
        "1/s#1": "charge",
        "1/m#1": f"model {MODEL}",
    }


def test_events_of_a_newer_version_are_left_out_and_counted():
    known = events.SystemStopped(at=1.0, correlation="1", span="1", interrupted=0)
    bodies = [msgspec.msgpack.encode(known), msgspec.msgpack.encode({"type": "TurnDreamt", "at": 1.0}), b"\xc1"]

    decoded, left_out = decode_events(bodies)

    assert (decoded, left_out) == ([known], 2)


@given(st.integers(0, 2**32), st.floats(0.0, 1.0), st.booleans())
def test_any_part_of_any_events_makes_a_tree_with_every_span_once(number, share, is_live):
    dice = random.Random(number)
    part = [event for event in EVERYTHING if dice.random() < share]

    trace = build_trace("1", part, is_live=is_live)

    found = [span.id for span in trace.spans()]
    waits = {
        f"{event.span}/wait {event.wait}" for event in part if isinstance(event, events.WaitBegan | events.WaitEnded)
    }
    assert sorted(found) == sorted({event.span for event in part} | waits)
    for span in trace.spans():
        assert span.attempts
        assert all(0 <= attempt.within < 100 for attempt in span.attempts)
        if not is_live:
            assert span.status != "running"
    assert str(trace)


@given(st.permutations(EVERYTHING), st.integers(20, 200))
def test_events_in_any_order_are_drawn_within_the_width(mixed, width):
    from understudy.trace.render import lines

    drawn = lines(build_trace("1", mixed), width)

    assert all(line.cell_len <= width for line in drawn)


def test_ladder_tells_its_rung_and_when_it_is_used_up():
    tape = Tape().turn("17", None, "a/x.go").step("17/s#1", "17", "call")
    facts = {"error": "OSError", "message": "away"}
    tape.stepped(
        "17/s#1", "17", "call", 1.0, decision="retry", delay_s=2.0, reason="OSError: retry 1 of 1", **facts
    ).pause(2.0)
    tape.step("17/s#1", "17", "call", attempt=2)
    tape.stepped("17/s#1", "17", "call", 1.0, attempt=2, reason="OSError: every reaction is used up", **facts)

    call = build(tape).span("17/s#1")

    assert call is not None
    assert [attempt.notes for attempt in call.attempts] == [
        ("FAILED OSError, retry 1 of 1 in 2 s: away",),
        ("FAILED OSError, every reaction is used up: away",),
    ]


@pytest.mark.parametrize(
    ("decision", "reason", "says"),
    [
        ("restart", "OSError: restart 1 of 3", "FAILED OSError, restart 1 of 3: away"),
        ("amend", "OSError: amend halve 1 of 2", "FAILED OSError: away"),
        ("stop", "OSError: the actor stops", "FAILED OSError, actor stopped: away"),
        ("suspend", "OSError: the actor is suspended", "FAILED OSError, suspended: away"),
        ("escalate", "OSError: escalated to the supervisor", "FAILED OSError, escalated: away"),
        (
            "dead_letter",
            "OSError: every reaction is used up",
            "FAILED OSError, dead letter (every reaction is used up): away",
        ),
        (
            "dead_letter",
            "OSError: amend halve 1 of 2, but halve failed: KeyError: 'x'",
            "FAILED OSError, dead letter (amend halve 1 of 2, but halve failed: KeyError: 'x'): away",
        ),
    ],
)
def test_decision_about_a_turn_is_told_with_its_reason(decision: str, reason: str, says: str):
    tape = Tape().turn("17", None, "a/x.go").failed("17", "OSError", decision, reason=reason, message="away")

    assert build(tape).roots[0].notes == (says,)


def test_what_a_turn_amends_without_a_model_call_is_told_of_its_next_attempt():
    tape = Tape().turn("17", None, "a/x.go").failed("17", "OSError", "amend", reason="OSError: amend halve 2 of 3")
    tape.put(events.Amended, "17", amendment="halve", reason="OSError: amend halve 2 of 3")

    assert "amended: halve (2 of 3)" in build(tape).roots[0].notes


def test_decision_about_the_answer_of_a_tool_stands_with_the_tool():
    tape = Tape().turn("17", None, "a/x", "agent").turn("18", "17", "search", "tool")
    tape.done("18", 0.1, answered="ToolFailed").next_life()
    facts = {"step": "search", "role": "tool", "duration_s": 0.0, "error": "ToolFailed", "message": "away"}
    tape.put(
        events.StepFinished,
        "18",
        "17",
        attempt=2,
        decision="retry",
        delay_s=1.0,
        reason="ToolFailed: retry 2 of 3",
        **facts,
    )

    tool = build(tape).span("18")

    assert tool is not None
    assert tool.name == "tool search"
    assert tool.attempts[0].number == 2
    assert [attempt.notes for attempt in tool.attempts] == [("FAILED ToolFailed, retry 2 of 3 in 1 s: away",)]


def test_what_befalls_an_actor_is_told_of_it():
    tape = Tape("actor a/x")
    facts = {"kind": "a", "actor": "x"}
    tape.put(events.ActorStopped, "actor a/x", reason="normal", **facts)
    tape.put(events.ActorAbandoned, "actor a/x", shutdown_s=5.0, **facts)

    (root,) = build(tape).roots

    assert root.name == "a/x"
    assert root.notes == ("stopped: normal", "abandoned: it did not end within 5 s")


def test_what_a_supervisor_does_is_told_with_its_reasons():
    tape = Tape("supervisor research")
    where = "supervisor research"
    tape.put(events.ChildStartFailed, where, supervisor="research", child="bank", error="OSError", message="no\nfile")
    tape.put(events.Escalated, where, supervisor="research", child="bank", reason="more than 3 restarts")
    tape.put(events.SupervisorStopped, where, supervisor="research", reason="shutdown")
    tape.put(events.SupervisorRestarted, where, supervisor="research", reason="shutdown")

    (root,) = build(tape).roots

    assert (root.name, root.status) == ("supervisor research", "ok")
    assert root.notes == (
        "bank not started: OSError: no file",
        "bank escalated: more than 3 restarts",
        "stopped: shutdown",
        "restarted: shutdown",
    )


def test_failure_that_a_turn_hands_up_names_the_supervisor():
    tape = Tape().turn("17", None, "a/x.go").failed("17", "OSError", "escalate", reason="OSError: escalated")
    tape.put(events.Escalated, "17", supervisor="research", child="a", reason="OSError: escalated to the supervisor")

    assert build(tape).roots[0].notes == (
        "FAILED OSError, escalated",
        "escalated to supervisor research: OSError: escalated to the supervisor",
    )


def test_breaker_is_a_line_of_its_own_that_tells_each_change():
    tape = Tape("system")
    where = f"breaker {MODEL}"
    told = {"model": MODEL, "reason": "5 of 10 calls failed within 30 s"}
    tape.put(events.BreakerChanged, where, state="open", until=tape.now + 5, **told)
    tape.pause(5).put(events.BreakerChanged, where, model=MODEL, state="half_open", reason="one probe goes")
    tape.put(events.BreakerChanged, where, model=MODEL, state="closed", reason="the probe succeeded")

    (root,) = build_trace("system", tape.events).roots

    assert (root.name, root.status) == (where, "ok")
    assert root.attempts[-1].notes == (
        "open for 5 s: 5 of 10 calls failed within 30 s",
        "half open: one probe goes",
        "closed: the probe succeeded",
    )
