"""The breaker by a clock of the test: when it opens, for how long, and whom it lets through."""

from __future__ import annotations

import random
from collections import deque

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from understudy import Breaker
from understudy.endpoint.breaker import BreakerState, Change, Pass
from understudy.errors import InvalidDefinition


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A breaker, its clock, and what it has told; no jitter."""

    def __init__(self, **facts) -> None:
        self.clock = Clock()
        self.changes: list[Change] = []
        self.state = BreakerState(Breaker(**facts), self.clock, dice=lambda: 0.5, changed=self.changes.append)

    def admitted(self) -> Pass:
        permission = self.state.admit()
        assert permission is not None
        return permission

    def fail(self, times: int = 1) -> None:
        for _ in range(times):
            self.state.failed(self.admitted(), 0.1, "boom")

    def succeed(self, times: int = 1, *, duration_s: float = 0.1) -> None:
        for _ in range(times):
            self.state.succeeded(self.admitted(), duration_s)

    def open(self) -> None:
        self.fail(self.state.settings.calls_min)
        assert self.state.state == "open"

    def wait_probe(self) -> Pass:
        self.clock.now = self.state.until
        probe = self.admitted()
        assert probe.is_probe
        return probe


def test_opens_when_enough_calls_have_failed_at_the_rate():
    bench = Bench(calls_min=10, failure_rate=0.5)

    bench.succeed(5)
    bench.fail(4)
    before = bench.state.state
    bench.fail(1)

    assert before == "closed"
    assert bench.state.state == "open"
    assert bench.changes == [Change("open", "5 of 10 calls failed within 30 s", 5.0)]
    assert bench.state.admit() is None


def test_few_calls_say_nothing():
    bench = Bench(calls_min=10)

    bench.fail(9)

    assert bench.state.state == "closed"


def test_failures_below_the_rate_say_nothing():
    bench = Bench(failure_rate=0.7)

    for _ in range(100):
        bench.succeed(4)
        bench.fail(6)

    assert bench.state.state == "closed"


def test_share_of_the_calls_is_met_as_it_is_written():
    bench = Bench(failure_rate=0.7, calls_min=10)

    bench.succeed(3)
    bench.fail(7)

    assert bench.state.state == "open"


def test_failures_outside_the_window_are_forgotten():
    bench = Bench(window_s=30.0, calls_min=10)

    bench.fail(9)
    bench.clock.now += 30.0
    bench.fail(9)
    bench.state.expire()

    assert bench.state.state == "closed"
    assert (bench.state.calls, bench.state.failures) == (9, 9)


def test_memory_does_not_grow_with_the_traffic():
    bench = Bench(window_s=30.0)

    for _ in range(20_000):
        bench.clock.now += 0.01
        bench.succeed()

    assert len(bench.state._buckets) <= 10
    assert 2_600 <= bench.state.calls <= 3_000


def test_slow_calls_open_it_only_where_slow_is_defined():
    patient, hasty = Bench(calls_min=10), Bench(calls_min=10, slow_s=20.0, slow_rate=0.8)

    for bench in (patient, hasty):
        bench.succeed(2)
        bench.succeed(8, duration_s=20.0)

    assert patient.state.state == "closed"
    assert hasty.state.state == "open"
    assert hasty.changes[0].reason == "8 of 10 calls took 20 s or longer"


def test_one_probe_goes_when_the_time_is_over_and_nobody_beside_it():
    bench = Bench()
    bench.open()

    bench.clock.now += 4.99
    early = bench.state.admit()
    bench.clock.now += 0.02
    probe = bench.admitted()
    beside = bench.state.admit()

    assert early is None
    assert probe.is_probe
    assert beside is None
    assert bench.state.is_probing
    assert bench.changes[-1].state == "half_open"


def test_success_of_the_probe_closes_with_an_empty_window():
    bench = Bench()
    bench.open()

    bench.state.succeeded(bench.wait_probe(), 0.1)

    assert bench.changes[-1] == Change("closed", "the probe succeeded")
    assert (bench.state.calls, bench.state.failures) == (0, 0)
    bench.fail(9)
    assert bench.state.state == "closed"


def test_failure_of_the_probe_opens_for_twice_as_long_up_to_the_longest():
    bench = Bench(open_s=5.0, open_max_s=60.0)
    bench.open()

    for _ in range(6):
        bench.state.failed(bench.wait_probe(), 0.1, "still down")

    assert [change.open_s for change in bench.changes if change.state == "open"] == [5, 10, 20, 40, 60, 60, 60]
    assert bench.changes[-1].reason == "the probe failed: still down"


def test_slow_probe_opens_again_where_slow_is_defined():
    bench = Bench(slow_s=20.0)
    bench.open()

    bench.state.succeeded(bench.wait_probe(), 25.0)

    assert bench.state.state == "open"


@pytest.mark.parametrize(("closed_s", "open_s"), [(29.9, 10.0), (30.0, 5.0)])
def test_long_openings_are_forgotten_after_a_whole_window_closed(closed_s, open_s):
    bench = Bench(window_s=30.0)
    bench.open()
    bench.state.succeeded(bench.wait_probe(), 0.1)

    bench.clock.now += closed_s
    bench.open()

    assert bench.changes[-1].open_s == open_s


def test_cancelled_probe_decides_nothing_and_frees_its_place():
    bench = Bench()
    bench.open()

    bench.state.dropped(bench.wait_probe())
    second = bench.admitted()

    assert second.is_probe
    assert bench.state.state == "half_open"
    assert [change.state for change in bench.changes] == ["open", "half_open"]


def test_calls_that_say_nothing_are_not_counted():
    bench = Bench(calls_min=1)

    for _ in range(50):
        bench.state.dropped(bench.admitted())

    assert bench.state.state == "closed"
    assert bench.state.calls == 0


def test_what_was_sent_before_it_opened_does_not_count_after():
    bench = Bench(calls_min=10)
    early = [bench.admitted() for _ in range(30)]
    bench.open()

    for permission in early[:10]:
        bench.state.succeeded(permission, 9.0)
    while_open = bench.state.state
    bench.state.succeeded(bench.wait_probe(), 0.1)
    for permission in early[10:]:
        bench.state.failed(permission, 9.0, "late")

    assert while_open == "open"
    assert bench.state.state == "closed"
    assert bench.state.calls == 0


def test_late_word_of_an_old_probe_does_not_free_the_place_of_the_new_one():
    bench = Bench()
    bench.open()
    old = bench.wait_probe()
    bench.state.dropped(old)
    bench.admitted()

    bench.state.dropped(old)
    bench.state.failed(old, 1.0, "late")

    assert bench.state.is_probing
    assert bench.state.state == "half_open"


def test_open_times_are_spread_but_never_longer_than_the_longest():
    lengths = set()
    for number in range(200):
        clock = Clock()
        state = BreakerState(Breaker(calls_min=1), clock, dice=random.Random(number).random)
        permission = state.admit()
        assert permission is not None
        state.failed(permission, 0.1, "")
        lengths.add(state.until - clock.now)
        for _ in range(8):
            clock.now = state.until
            probe = state.admit()
            assert probe is not None
            state.failed(probe, 0.1, "")
            assert state.until - clock.now <= 60.0

    assert len(lengths) > 100
    assert 4.5 <= min(lengths) < 4.7
    assert 5.3 < max(lengths) <= 5.5


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"window_s": 0}, "window_s=0 "),
        ({"failure_rate": 0.0}, "failure_rate=0.0"),
        ({"failure_rate": 1.5}, "failure_rate=1.5"),
        ({"calls_min": 0}, "calls_min=0"),
        ({"calls_min": 2.5}, "calls_min=2.5"),
        ({"calls_min": True}, "calls_min=True"),
        ({"slow_s": -1}, "slow_s=-1"),
        ({"slow_rate": "most"}, "slow_rate='most'"),
        ({"open_s": float("nan")}, "open_s=nan"),
        ({"open_s": float("inf")}, "open_s=inf"),
        ({"open_s": 90.0}, "open_max_s=60.0 .expected no less than open_s=90.0"),
        ({"window_s": -1, "open_s": 0}, "window_s=-1 .*open_s=0 "),
    ],
)
def test_settings_that_cannot_work_are_refused(facts, said):
    with pytest.raises(InvalidDefinition, match=said):
        Breaker(**facts)


class Model:
    """What a breaker is to do, written down plainly: every call of the window in a list."""

    def __init__(self, rules: Breaker, clock: Clock) -> None:
        self.rules = rules
        self.clock = clock
        self.calls: deque[tuple[int, bool]] = deque()
        self.phase = 0  # changes whenever earlier calls stop counting
        self.is_open = False
        self.openings = 0
        self.closed_at = float("-inf")
        self.until = 0.0
        self.probe: Pass | None = None

    def tenth(self) -> int:
        return int(self.clock.now * 10 / self.rules.window_s)

    def may_go(self) -> bool:
        return not self.is_open or (self.probe is None and self.clock.now >= self.until)

    def open(self) -> None:
        if not self.is_open and self.clock.now - self.closed_at >= self.rules.window_s:
            self.openings = 0
        self.until = self.clock.now + min(self.rules.open_s * 2**self.openings, self.rules.open_max_s)
        self.openings += 1
        self.is_open, self.phase = True, self.phase + 1
        self.calls.clear()

    def ended(self, permission: Pass, phase: int, failed: bool | None) -> None:
        if permission.is_probe:
            if permission is self.probe:
                self.probe = None
                if failed:
                    self.open()
                elif failed is False:
                    self.is_open, self.closed_at = False, self.clock.now
        elif failed is not None and phase == self.phase and not self.is_open:
            self.calls.append((self.tenth(), failed))
            recent = [bad for tenth, bad in self.calls if tenth > self.tenth() - 10]
            enough = len(recent) >= self.rules.calls_min
            if failed and enough and sum(recent) >= self.rules.failure_rate * len(recent) - 1e-9:
                self.open()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), st.integers(1, 6)),
        st.tuples(st.just("end"), st.tuples(st.integers(0, 50), st.sampled_from([True, True, False, None]))),
        st.tuples(st.just("wait"), st.sampled_from([0.0, 0.3, 1.0, 2.9, 5.0, 10.0, 31.0])),
    ),
    max_size=120,
)


@given(
    steps=STEPS,
    calls_min=st.integers(1, 6),
    failure_rate=st.sampled_from([0.1, 0.3, 0.5, 0.7, 1.0]),
    window_s=st.sampled_from([1.0, 10.0, 30.0]),
)
@settings(max_examples=300)
def test_any_history_agrees_with_the_plain_model(steps, calls_min, failure_rate, window_s):
    clock = Clock()
    rules = Breaker(calls_min=calls_min, failure_rate=failure_rate, window_s=window_s, open_s=2.0, open_max_s=9.0)
    state, model = BreakerState(rules, clock, dice=lambda: 0.5), Model(rules, clock)
    under_way: list[tuple[Pass, int]] = []

    for step, what in steps:
        if step == "wait":
            clock.now += what
        elif step == "begin":
            for _ in range(what):
                expected = model.may_go()
                permission = state.admit()
                assert (permission is not None) == expected
                if permission is None:
                    continue
                assert permission.is_probe == model.is_open
                if permission.is_probe:
                    assert model.probe is None  # Never two.
                    model.probe = permission
                under_way.append((permission, model.phase))
        elif under_way:
            place, failed = what
            permission, phase = under_way.pop(place % len(under_way))
            model.ended(permission, phase, failed)
            if failed is None:
                state.dropped(permission)
            elif failed:
                state.failed(permission, 0.1, "")
            else:
                state.succeeded(permission, 0.1)
        assert (state.state != "closed") == model.is_open
        assert state.is_probing == (model.probe is not None)
        if state.state == "open":
            assert state.until == pytest.approx(model.until)


def test_settings_are_data():
    assert msgspec.json.decode(msgspec.json.encode(Breaker(slow_s=3.0)), type=Breaker) == Breaker(slow_s=3.0)
