"""What the figures are meant to be, as ratios where they depend on the machine. Aims are never adjusted to a result."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator

import msgspec

from benchmarks.case import FLUSHED, OURS, PROCESS, Figure, Key, Scale
from benchmarks.floors import bare_sdk, group_commits, single_commits, upserts
from benchmarks.machine import Machine
from benchmarks.peers.catalogue import PEERS
from benchmarks.workloads import (
    agent_history,
    asks,
    growth,
    idle_memory,
    model_calls,
    reopening,
    supervision,
    tells,
    workflows,
)

ASKS_PER_S_MIN = 25_000
ASKS_FLUSH_US = 200  # on a machine where a flush takes about so long
FLUSHES_PER_ASK_MIN = 0.99  # alone: each ask is a commit of its own; one may be under way when the clock stops
FLUSHES_PER_ASK_OF_OTHERS_MIN = 0.9
ASKS_OF_FLOOR_MIN = 0.25
ALONE_COMMITS_MAX = 2.5
WORKFLOW_COMMITS_MAX = 10.0
IDLE_BYTES_MAX = 2_048
# Tracing itself and resized tables leave a few bytes per actor; one forgotten object of any kind is larger.
PASSIVATED_BYTES_MAX = 16
SERVED_BYTES_MAX = 200e6
REOPENED_S_MAX = 2.0
FIRST_ANSWER_S_MAX = 0.5
GROWTH_OF_FLOOR_MIN = 0.8
HISTORY_RATIO_MAX = 1.2
MODEL_CALL_RATIO_MAX = 1.25
CHILDREN_RATIO_MAX = 60.0  # for 50 times as many
FAILURE_RATIO_MAX = 1.5  # among 1,000 times as many: none but the noise of caches


class Aim(msgspec.Struct, frozen=True):
    """One aim and what came of it."""

    what: str
    value: str
    aim: str
    met: bool
    note: str = ""


class _Medians:
    """Medians by key; a figure that was not measured is None."""

    def __init__(self, figures: Iterable[Figure]) -> None:
        self._by_key = {figure.key: statistics.median(figure.samples) for figure in figures}

    def of(self, workload: str, case: str, figure: str, contender: str = OURS) -> float | None:
        return self._by_key.get(Key(workload, case, figure, contender))

    def ratio(self, over: tuple[str, str, str, str], under: tuple[str, str, str, str]) -> float | None:
        above, below = self.of(*over), self.of(*under)
        return above / below if above is not None and below else None


def judge(figures: Iterable[Figure], machine: Machine, scale: Scale) -> list[Aim]:
    """Return every aim whose figures were measured."""
    figures = list(figures)
    medians = _Medians(figures)
    return [
        *_asks(medians, machine),
        *_flushes(figures, medians),
        *_workflows(medians),
        *_over_peers(medians),
        *_memory(medians, scale),
        *_reopening(medians, scale),
        *_growth(medians, scale),
        *_history(medians, scale),
        *_model_calls(medians),
        *_supervision(medians, scale),
    ]


def _asks(medians: _Medians, machine: Machine) -> Iterator[Aim]:
    many, alone = asks.case_name(256), asks.case_name(1)
    rate = medians.of(asks.NAME, many, "rate")
    if rate is not None:
        yield Aim(
            "durable asks/s, 256 callers",
            f"{rate:,.0f}",
            f"≥ {ASKS_PER_S_MIN:,}",
            rate >= ASKS_PER_S_MIN,
            f"for a flush of about {ASKS_FLUSH_US} µs; here {machine.fdatasync_p50_us:.0f} µs",
        )
    ratio = medians.ratio((asks.NAME, many, "rate", OURS), (asks.NAME, many, "rate", group_commits.NAME))
    if ratio is not None:
        yield Aim(
            "the same, of the group-committing floor",
            f"{ratio:.2f}",
            f"≥ {ASKS_OF_FLOOR_MIN}",
            ratio >= ASKS_OF_FLOOR_MIN,
        )
    ratio = medians.ratio((asks.NAME, alone, "p50", OURS), (asks.NAME, alone, "p50", single_commits.NAME))
    if ratio is not None:
        yield Aim(
            "an ask alone, p50, in single aiosqlite commits",
            f"{ratio:.2f}",
            f"≤ {ALONE_COMMITS_MAX:g}",
            ratio <= ALONE_COMMITS_MAX,
        )


def _flushes(figures: Iterable[Figure], medians: _Medians) -> Iterator[Aim]:
    """Check that whatever says that its answers are on disk has told the disk."""
    note = "as the disk counts them"
    alone = (asks.NAME, asks.case_name(1))
    per_call, rate = medians.of(*alone, "flushes per call", PROCESS), medians.of(*alone, "rate", PROCESS)
    if per_call is not None and rate is not None:
        # It hardly flushes itself, so what came while it ran hides a missing flush of the others just as well.
        note += f"; up to {per_call * rate:,.0f} a second were other programs'"
    for figure in figures:
        workload, case, name, contender = figure.key
        if (workload, case, name) == (
            asks.NAME,
            asks.case_name(1),
            "flushes per call",
        ) and figure.durability == FLUSHED:
            # The least of the samples: flushes of other programs are counted with ours, and can only be too many.
            least = min(figure.samples)
            least_min = FLUSHES_PER_ASK_MIN if contender == OURS else FLUSHES_PER_ASK_OF_OTHERS_MIN
            whose = "" if contender == OURS else f", {contender}"
            yield Aim(
                f"flushes per durable ask, alone{whose}",
                f"{least:.2f}",
                f"≥ {least_min}",
                least >= least_min,
                note,
            )


def _workflows(medians: _Medians) -> Iterator[Aim]:
    ours, commit = (workflows.NAME, workflows.case_name(1), "p50", OURS), single_commits.NAME
    ratio = medians.ratio(ours, (asks.NAME, asks.case_name(1), "p50", commit))
    if ratio is not None:
        yield Aim(
            "a workflow of five steps alone, p50, in single aiosqlite commits",
            f"{ratio:.1f}",
            f"≤ {WORKFLOW_COMMITS_MAX:g}",
            ratio <= WORKFLOW_COMMITS_MAX,
        )


class _Over(msgspec.Struct, frozen=True):
    """How much more of something we do than a peer; of its settings that are as durable as ours, than the fastest."""

    workload: str
    case: str
    peer: str
    ratio_min: float

    @property
    def settings(self) -> Iterator[str]:
        """The names of what is compared; of a peer that keeps nothing on disk, its own."""
        durable = [each.name for each in PEERS if _family(each.name) == self.peer and each.durability == FLUSHED]
        yield from durable or (self.peer,)


def _family(peer: str) -> str:
    return peer.partition(",")[0]


_MANY = asks.case_name(256)
OVER_PEERS = (
    _Over(asks.NAME, _MANY, "DBOS", 100),
    _Over(asks.NAME, _MANY, "LangGraph", 80),
    _Over(asks.NAME, _MANY, "Restate", 15),
    _Over(asks.NAME, _MANY, "NATS JetStream", 4),
    _Over(asks.NAME, _MANY, "autogen-core", 3),
    _Over(tells.NAME, tells.one_to_one_name(), "autogen-core", 2),
    _Over(tells.NAME, tells.one_to_one_name(), "xoscar", 1),
    _Over(workflows.NAME, workflows.case_name(workflows.CALLERS), "DBOS", 50),
)


def _over_peers(medians: _Medians) -> Iterator[Aim]:
    for over in OVER_PEERS:
        ours = medians.of(over.workload, over.case, "rate")
        theirs = {name: medians.of(over.workload, over.case, "rate", name) for name in over.settings}
        measured = {name: rate for name, rate in theirs.items() if rate is not None}
        if ours is None or not measured:
            continue
        fastest = max(measured, key=measured.__getitem__)
        ratio = ours / measured[fastest]
        yield Aim(
            f"{over.workload}, {over.case}, to {fastest}",
            f"{ratio:.1f}",
            f"≥ {over.ratio_min:g}",
            ratio >= over.ratio_min,
        )


def _memory(medians: _Medians, scale: Scale) -> Iterator[Aim]:
    idle = medians.of(idle_memory.NAME, "idle actor", "in memory")
    if idle is not None:
        yield Aim("bytes per idle actor in memory", f"{idle:,.0f}", f"< {IDLE_BYTES_MAX:,}", idle < IDLE_BYTES_MAX)
    gone = medians.of(idle_memory.NAME, "idle actor", "passivated")
    if gone is not None:
        yield Aim(
            "bytes per passivated actor",
            f"{round(gone):,}",
            "0",
            gone <= PASSIVATED_BYTES_MAX,
            f"up to {PASSIVATED_BYTES_MAX} are the measurement's own",
        )
    on_disk = scale.growth_actors[-1]
    peak = medians.of(idle_memory.NAME, idle_memory.on_disk_name(on_disk), idle_memory.PEAK)
    if peak is not None:
        yield Aim(
            f"MB of a process that serves {on_disk:,} actors on disk",
            f"{peak / 1e6:,.0f}",
            f"≤ {SERVED_BYTES_MAX / 1e6:,.0f}",
            peak <= SERVED_BYTES_MAX,
        )


def _reopening(medians: _Medians, scale: Scale) -> Iterator[Aim]:
    all_s = medians.of(reopening.NAME, reopening.case_name(scale), "all answered")
    if all_s is not None:
        yield Aim(
            f"{reopening.case_name(scale)} answered after opening",
            f"{all_s:.2f} s",
            f"≤ {REOPENED_S_MAX:g} s",
            all_s <= REOPENED_S_MAX,
        )
    for actors in reopening.pending_actors(scale):
        case = reopening.pending_name(scale.pending_messages, actors)
        for figure in (reopening.FRESH, reopening.FIRST):
            first_s = medians.of(reopening.NAME, case, figure)
            if first_s is not None:
                yield Aim(
                    f"{figure} after opening {case}",
                    f"{first_s:.2f} s",
                    f"≤ {FIRST_ANSWER_S_MAX:g} s",
                    first_s <= FIRST_ANSWER_S_MAX,
                )


def _growth(medians: _Medians, scale: Scale) -> Iterator[Aim]:
    small, large = scale.growth_actors[0], scale.growth_actors[-1]
    for spread in (growth.NEIGHBOURS, growth.SCATTERED):
        kept: dict[str, float] = {}
        for contender in (OURS, upserts.NAME):
            ratio = medians.ratio(
                (growth.NAME, growth.case_name(large, spread), "rate", contender),
                (growth.NAME, growth.case_name(small, spread), "rate", contender),
            )
            if ratio is not None:
                kept[contender] = ratio
        if len(kept) == 2:
            yield Aim(
                f"speed kept from {small:,} to {large:,} actors, {spread}",
                f"{kept[OURS]:.2f}",
                f"≥ {GROWTH_OF_FLOOR_MIN} × the floor's",
                kept[OURS] >= GROWTH_OF_FLOOR_MIN * min(1.0, kept[upserts.NAME]),
                f"{upserts.NAME} keep {kept[upserts.NAME]:.2f}",
            )


def _history(medians: _Medians, scale: Scale) -> Iterator[Aim]:
    short, long = scale.history_items[0], scale.history_items[-1]
    for figure in (agent_history.WRITTEN, agent_history.WORKED):
        ratio = medians.ratio(
            (agent_history.NAME, agent_history.case_name(long), figure, OURS),
            (agent_history.NAME, agent_history.case_name(short), figure, OURS),
        )
        if ratio is not None:
            yield Aim(
                f"an agent's {figure}, {long:,} to {short:,} items",
                f"{ratio:.2f}",
                f"≤ {HISTORY_RATIO_MAX}",
                ratio <= HISTORY_RATIO_MAX,
                "without the request's encoding" if figure == agent_history.WORKED else "",
            )


def _model_calls(medians: _Medians) -> Iterator[Aim]:
    for transport in model_calls.TRANSPORTS:
        ratio = medians.ratio(
            (model_calls.NAME, transport, model_calls.FIGURE, OURS),
            (model_calls.NAME, transport, model_calls.FIGURE, bare_sdk.HELPER),
        )
        if ratio is not None:
            yield Aim(
                f"CPU time of an agent's model call to the bare SDK's, {transport}",
                f"{ratio:.2f}",
                f"≤ {MODEL_CALL_RATIO_MAX}",
                ratio <= MODEL_CALL_RATIO_MAX,
                "with the helper that its documentation streams with",
            )


def _supervision(medians: _Medians, scale: Scale) -> Iterator[Aim]:
    few, many = scale.static_children
    for cls in supervision.CLASSES:
        for figure in ("start", "stop"):
            ratio = medians.ratio(
                (supervision.NAME, supervision.children_name(many, cls), figure, OURS),
                (supervision.NAME, supervision.children_name(few, cls), figure, OURS),
            )
            if ratio is not None:
                yield Aim(
                    f"{figure} of {many:,} {cls} static children to {few:,}",
                    f"{ratio:.1f}",
                    f"≤ {CHILDREN_RATIO_MAX:g}",
                    ratio <= CHILDREN_RATIO_MAX,
                )
    few, many = scale.failure_actors
    for how in supervision.FAILURES:
        ratio = medians.ratio(
            (supervision.NAME, supervision.failure_name(many), how, OURS),
            (supervision.NAME, supervision.failure_name(few), how, OURS),
        )
        if ratio is not None:
            yield Aim(
                f"a {how} among {many:,} actors to {few:,}",
                f"{ratio:.2f}",
                f"≤ {FAILURE_RATIO_MAX}",
                ratio <= FAILURE_RATIO_MAX,
            )
