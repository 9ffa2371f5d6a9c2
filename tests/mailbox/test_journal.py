"""The journal in memory: equal steps are told apart by the branch that made them, across attempts and crashes."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings, strategies as st

from understudy.mailbox.journal import Failure, Journal, JournalEntry, Lineage, Outcome, Slot, group

FAILED = Outcome(failure=Failure("failed", "OSError", "x"))
UNKNOWN = Outcome(failure=Failure("own", "OutcomeUnknown", "x"))


def value(text: str) -> Outcome:
    return Outcome(value=text.encode())


class Branch:
    """One branch of a turn, with its own lineage."""

    def __init__(self, journal: Journal, start: Lineage | None = None) -> None:
        self.journal = journal
        self.lineage = start

    def call(self, name: str, arguments: str = "", outcome: Outcome | None = None) -> Slot:
        """Make a step: replay it, or begin it and settle it."""
        steps = group(name, arguments.encode())
        slot = self.journal.claim(steps, self.lineage) or self.journal.claim(steps, self.lineage, guess=True)
        if slot is None:
            slot = self.journal.begin(steps, self.lineage)
            if outcome is not None:
                slot.settle(outcome)
        self.lineage = Lineage(slot.key, self.lineage)
        return slot


def reloaded(journal: Journal, order: Iterable[bytes] | None = None) -> Journal:
    """Return what a later life reads back."""
    again = Journal(journal.message)
    for key in order or list(journal.slots):
        slot = journal.slots[key]
        if slot.outcome is not None:
            again.remember(JournalEntry(journal.message, key, slot.outcome, slot.after))
    return again


def test_finished_step_is_claimed_once_per_attempt() -> None:
    journal = Journal(1)
    Branch(journal).call("charge", "a", value("paid"))
    journal.start_attempt(forget_failures=True)
    branch = Branch(journal)

    first = branch.call("charge", "a", value("paid again"))
    second = branch.call("charge", "a", value("second"))

    assert first.outcome == value("paid")
    assert second.outcome == value("second")


def test_other_arguments_or_another_name_are_another_step() -> None:
    journal = Journal(1)
    Branch(journal).call("charge", "a", value("paid"))
    journal.start_attempt(forget_failures=False)

    assert journal.claim(group("charge", b"b"), None) is None
    assert journal.claim(group("refund", b"a"), None) is None


def test_crash_replays_values_and_failures() -> None:
    journal = Journal(1)
    branch = Branch(journal)
    branch.call("a", outcome=FAILED)
    branch.call("b", outcome=value("b"))

    again = Branch(reloaded(journal))

    assert again.call("a").outcome == FAILED
    assert again.call("b").outcome == value("b")


def test_new_attempt_by_policy_keeps_values_and_forgets_failures_but_not_unknown_ones() -> None:
    journal = Journal(1)
    branch = Branch(journal)
    branch.call("a", outcome=FAILED)
    branch.call("b", outcome=value("b"))
    branch.call("c", outcome=UNKNOWN)

    forgotten = journal.start_attempt(forget_failures=True)

    again = Branch(journal)
    assert [slot.key for slot in forgotten] == [group("a", b"") + b"#0"]
    assert again.call("a").outcome is None
    assert again.call("b").outcome == value("b")
    assert again.call("c").outcome == UNKNOWN


@pytest.mark.parametrize("read_back", [False, True])
def test_step_after_a_forgotten_failure_does_not_take_the_row_of_a_kept_value(read_back: bool) -> None:
    journal = Journal(1)
    branch = Branch(journal)
    branch.call("call", outcome=FAILED)
    kept = branch.call("call", outcome=value("second try"))
    journal.start_attempt(forget_failures=True)
    if read_back:
        journal = reloaded(journal)
    again = Branch(journal)

    first = again.call("call", outcome=value("new"))
    second = again.call("call", outcome=value("newer"))

    assert first.outcome == value("second try")
    assert first.key == kept.key != second.key
    assert {slot.outcome for slot in journal.slots.values()} == {value("second try"), value("newer")}


def test_step_that_never_began_is_not_left_for_the_next_attempt() -> None:
    journal = Journal(1)
    stale = Branch(journal).call("ask")
    journal.start_attempt(forget_failures=True)
    fresh = Branch(journal).call("ask")

    journal.drop(stale)

    assert journal.slots == {fresh.key: fresh}
    assert fresh is not stale


def test_open_ask_is_found_by_the_next_attempt() -> None:
    journal = Journal(1)
    slot = Branch(journal).call("ask")
    slot.child = 7
    journal.start_attempt(forget_failures=True)

    assert Branch(journal).call("ask") is slot


def test_open_ask_of_an_earlier_life_is_expected_under_its_key() -> None:
    journal = Journal(1)
    journal.expect(group("ask", b"") + b"#0", 7)

    slot = Branch(journal).call("ask")

    assert (slot.child, slot.outcome) == (7, None)


def test_swapped_branches_get_their_own_outcomes() -> None:
    journal = Journal(1)
    for who in ("x", "y"):
        branch = Branch(journal)
        branch.call("fetch", who, value(who))
        branch.call("make_id", outcome=value(f"id of {who}"))
    journal.start_attempt(forget_failures=False)

    found = {}
    for who in ("y", "x"):
        branch = Branch(journal)
        branch.call("fetch", who)
        found[who] = branch.call("make_id").outcome

    assert found == {"x": value("id of x"), "y": value("id of y")}


def test_removed_step_does_not_break_the_chain_of_its_branch() -> None:
    journal = Journal(1)
    for who in ("x", "y"):
        branch = Branch(journal)
        for name in ("fetch", "check"):
            branch.call(name, who, value(who))
        branch.call("make_id", outcome=value(f"id of {who}"))
    journal.start_attempt(forget_failures=False)
    branches = {who: Branch(journal) for who in ("y", "x")}

    for who, branch in branches.items():
        branch.call("fetch", who)
    found = {who: branch.call("make_id").outcome for who, branch in branches.items()}

    assert found == {"x": value("id of x"), "y": value("id of y")}


def test_step_whose_predecessor_is_gone_from_the_code_is_found_by_guessing_only() -> None:
    journal = Journal(1)
    branch = Branch(journal)
    branch.call("look_up", "old", value("x"))
    charge = branch.call("charge", "a", value("paid"))
    journal.start_attempt(forget_failures=False)
    steps = group("charge", b"a")

    assert journal.claim(steps, None) is None
    assert journal.claim(steps, None, guess=True) is charge


def test_forgotten_failure_does_not_cut_the_chain_of_its_branch() -> None:
    journal = Journal(1)
    for who in ("x", "y"):
        branch = Branch(journal)
        branch.call("fetch", who, value(who))
        branch.call("check", outcome=FAILED)
        branch.call("make_id", outcome=value(f"id of {who}"))
    journal.start_attempt(forget_failures=True)
    branches = {who: Branch(journal) for who in ("y", "x")}

    for step in ("fetch", "check"):
        for who, branch in branches.items():
            branch.call(step, who if step == "fetch" else "")
    found = {who: branch.call("make_id").outcome for who, branch in branches.items()}

    assert found == {"x": value("id of x"), "y": value("id of y")}


def test_left_over_outcomes_tell_that_the_turn_diverged() -> None:
    journal = Journal(1)
    branch = Branch(journal)
    branch.call("charge", "a", value("a"))
    assert not journal.left_over(b"charge")
    journal.start_attempt(forget_failures=False)

    assert journal.left_over(b"charge")
    assert not journal.left_over(b"refund")
    Branch(journal).call("charge", "a")
    assert not journal.left_over(b"charge")


def test_key_stands_for_one_set_of_arguments() -> None:
    journal = Journal(1)
    first = group("charge", b"a", "k")
    journal.begin(first, None).settle(value("x"))

    assert not journal.conflicts(first)
    assert journal.conflicts(group("charge", b"b", "k"))
    assert not journal.conflicts(group("charge", b"b", "k2"))
    assert not journal.conflicts(group("refund", b"b", "k"))


def test_number_of_steps_counts_those_that_stand_and_not_every_attempt() -> None:
    journal = Journal(1)
    for _ in range(3):
        Branch(journal).call("a", outcome=FAILED)
        journal.start_attempt(forget_failures=True)

    assert journal.count == 0


# A program is a list of branches; each makes steps one after the other. The first step of a branch is its own, as
# `fetch(w)` is, and the others may be equal everywhere. All branches start, as `gather` starts them, in any order; then
# they are interleaved at random.
programs = st.lists(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["", "1"])), min_size=0, max_size=5),
    min_size=1,
    max_size=5,
)


def run(journal: Journal, program: list[list[tuple[str, str]]], dice: random.Random, steps: int) -> dict[object, Slot]:
    """Run *steps* steps of the program, its branches interleaved at random; return the slot of each step."""
    made: dict[object, Slot] = {}
    branches = {number: Branch(journal) for number in range(len(program))}
    done = dict.fromkeys(branches, 0)
    order = list(branches) if steps else []
    dice.shuffle(order)
    for number in order:
        made[(number, 0)] = branches[number].call("own", str(number), value(f"{number}.0"))
        done[number] = 1
    for _ in range(steps):
        ready = [number for number in branches if done[number] <= len(program[number])]
        if not ready:
            break
        number = dice.choice(ready)
        at = done[number]
        name, arguments = program[number][at - 1]
        made[(number, at)] = branches[number].call(name, arguments, value(f"{number}.{at}"))
        done[number] += 1
    return made


@settings(max_examples=300)
@given(programs, st.randoms(use_true_random=False), st.integers(0, 40), st.integers(0, 40), st.booleans())
def test_any_interleaving_of_branches_replays_to_the_same_outcomes(
    program: list[list[tuple[str, str]]], dice: random.Random, first: int, second: int, read_back: bool
) -> None:
    journal = Journal(1)
    before = {step: slot.outcome for step, slot in run(journal, program, dice, first).items()}

    for steps in (second, 1_000):
        if read_back:
            order = list(journal.slots)
            dice.shuffle(order)
            journal = reloaded(journal, order)
        else:
            journal.start_attempt(forget_failures=False)
        after = {step: slot.outcome for step, slot in run(journal, program, dice, steps).items()}
        assert all(after[step] == before[step] for step in after if step in before)
        before.update(after)

    assert all(outcome == value("{}.{}".format(*step)) for step, outcome in before.items())  # type: ignore[misc]


@settings(max_examples=200)
@given(programs, st.randoms(use_true_random=False), st.data())
def test_no_two_steps_ever_share_a_row_and_no_value_is_lost(
    program: list[list[tuple[str, str]]], dice: random.Random, data: st.DataObject
) -> None:
    journal = Journal(1)
    rows: dict[bytes, Outcome] = {}
    kept: set[Outcome] = set()

    for attempt in range(4):
        made = run(journal, program, dice, data.draw(st.integers(0, 20)))
        for number, slot in enumerate(made.values()):
            if slot.key not in rows or rows[slot.key] == FAILED:
                slot.outcome = dice.choice([value(f"{attempt}.{number}"), FAILED])
                rows[slot.key] = slot.outcome
                if slot.outcome != FAILED:
                    kept.add(slot.outcome)
        journal.start_attempt(forget_failures=True)
        rows = {key: outcome for key, outcome in rows.items() if outcome != FAILED}

    assert {slot.outcome for slot in journal.slots.values()} == kept
    assert {key: slot.outcome for key, slot in journal.slots.items()} == rows


def climbed(journal: Journal, slot: Slot, rungs: bytes = b"rungs", *, lasts: bool = False) -> Slot:
    return journal.climb(slot, rungs, "X: retry 1 of 3", lasts=lasts)


@pytest.mark.parametrize("read_back", [False, True])
def test_ladder_of_a_step_without_outcome_is_found_by_what_the_step_does(read_back: bool) -> None:
    journal = Journal(1)
    climbed(journal, Branch(journal).call("a"))
    if read_back:
        journal = reloaded(journal)
    else:
        journal.start_attempt(forget_failures=False)

    again = Branch(journal).call("a")

    assert again.outcome is None
    assert journal.ladder(again) == b"rungs"


def test_ladder_is_no_step_and_nothing_is_left_over_of_it() -> None:
    journal = Journal(1)
    branch = Branch(journal)
    branch.call("b", outcome=value("b"))
    climbed(journal, branch.call("a"))
    journal = reloaded(journal)

    assert journal.count == 2
    assert not journal.left_over(b"a")
    assert journal.left_over(b"b")


@pytest.mark.parametrize("outcome", [None, FAILED])
def test_new_attempt_by_policy_forgets_the_ladder_of_what_did_not_finish(outcome: Outcome | None) -> None:
    journal = Journal(1)
    ladder = climbed(journal, Branch(journal).call("a", outcome=outcome))

    forgotten = journal.start_attempt(forget_failures=True)

    assert ladder in forgotten
    assert journal.slots == {}


def test_ladder_is_kept_with_the_value_that_it_led_to() -> None:
    journal = Journal(1)
    step = Branch(journal).call("a", outcome=value("a"))
    climbed(journal, step)
    journal.keep_ladder(step)

    assert journal.start_attempt(forget_failures=True) == []
    assert journal.ladder(step) == b"rungs"


def test_ladder_of_which_the_new_attempt_is_a_rung_lasts_for_that_one() -> None:
    journal = Journal(1)
    step = Branch(journal).call("a")
    ladder = climbed(journal, step, lasts=True)

    assert journal.start_attempt(forget_failures=True) == []
    assert journal.ladder(Branch(journal).call("a")) == b"rungs"
    assert journal.start_attempt(forget_failures=True) == [ladder]


@pytest.mark.parametrize("ladder_first", [False, True])
def test_outcome_is_found_in_whatever_order_it_and_its_ladder_are_read(ladder_first: bool) -> None:
    journal = Journal(1)
    step = Branch(journal).call("a", outcome=value("a"))
    ladder = climbed(journal, step)
    assert ladder.outcome is not None
    assert step.outcome is not None
    rows = [JournalEntry(1, step.key, step.outcome), JournalEntry(1, ladder.key, ladder.outcome)]
    read = Journal(1)
    for row in reversed(rows) if ladder_first else rows:
        read.remember(row)

    assert Branch(read).call("a").outcome == value("a")


def test_damaged_ladder_begins_anew() -> None:
    journal = Journal(1)
    step = Branch(journal).call("a", outcome=value("a"))
    ladder = climbed(journal, step)
    ladder.outcome = UNKNOWN

    assert journal.ladder(step) is None
