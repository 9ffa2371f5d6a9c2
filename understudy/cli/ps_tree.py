"""The rows that `understudy ps` draws: the tree, the actors in it that are worth seeing, and what has no place in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from understudy.cli.columns import Column, TreeRow
from understudy.mailbox.census import Census, KindCount, Seen
from understudy.supervisor.picture import Picture
from understudy.trace import words

COLUMNS: Final = (
    Column("status", "left"),
    Column("alive", drop=3),
    Column("stored", drop=4),
    Column("mail"),
    Column("delayed", drop=5),
    Column("oldest", drop=1),
)
_STYLES: Final = {
    "running": "green",
    "busy": "cyan",
    "waiting": "cyan",
    "restarting": "yellow",
    "suspended": "yellow",
    "stopped": "red",
}
_CHILDREN_MAX: Final = 20  # static children of one supervisor; of more, fewer idle ones are drawn
_IDLE: Final = (3, 0)  # rank of a child that nobody need look at
_BRANCHES_MAX: Final = 500  # supervisors and templates of one supervisor: as many as somebody has written down


class RunningTurn(msgspec.Struct):
    """A turn that the owner runs now."""

    kind: str
    id: str
    handler: str
    message: str
    attempt: int
    running_s: float
    waits_for: str = ""  # outside, when it does nothing else


class Live(msgspec.Struct):
    """What only the owner of a store knows."""

    pid: int
    life: int
    picture: Picture
    kinds: list[str]  # of the classes that are registered with it
    alive: int
    running: int
    turns: list[RunningTurn]  # those that have run for longest


class Shown(msgspec.Struct, frozen=True):
    """All that is drawn. Without a *live* owner the picture is the stored one, if there is one."""

    picture: Picture | None
    live: Live | None
    census: Census
    now: float
    shown_max: int  # actors of one kind

    def unknown(self) -> list[str]:
        """Return the kinds that no code is known for: nobody handles their mail."""
        if self.picture is None:
            return []
        known = _kinds(self.picture) | set(self.live.kinds if self.live is not None else ())
        return sorted(kind for kind in self.census.kinds if kind not in known)

    def beside(self) -> list[str]:
        """Return the kinds that are registered and in no tree."""
        if self.picture is None or self.live is None:
            return []
        return sorted(set(self.census.kinds) & set(self.live.kinds) - _kinds(self.picture))


def actors_of(picture: Picture | None) -> Iterator[Picture]:
    """Return the static children of the tree."""
    if picture is None:
        return
    if picture.role == "child":
        yield picture
    for child in picture.children:
        yield from actors_of(child)


def _kinds(picture: Picture) -> set[str]:
    found: set[str] = set(picture.also)
    if picture.role != "supervisor":
        found.add(picture.kind)
    return found.union(*(_kinds(child) for child in picture.children))


def rows(shown: Shown) -> list[TreeRow]:
    """Return the rows of the whole page."""
    return list(_Drawing(shown).page())


class _Drawing:
    def __init__(self, shown: Shown) -> None:
        self._shown = shown
        self._is_live = shown.live is not None
        self._kinds = shown.census.kinds
        self._turns: dict[tuple[str, str], RunningTurn] = {}  # of each actor the one that has run for longest
        for turn in shown.live.turns if shown.live is not None else ():
            self._turns.setdefault((turn.kind, turn.id), turn)

    def page(self) -> Iterator[TreeRow]:
        shown = self._shown
        if shown.picture is None:
            yield from self._section("actors by kind", sorted(self._kinds), "")
            if not self._kinds:
                yield TreeRow(name="no actors yet", style="dim")
            return
        yield from self._node(shown.picture, "", "")
        yield from self._section(
            "under no supervisor", shown.beside(), "tools that only static children reach, or nobody lists"
        )
        yield from self._section("waiting for code", shown.unknown(), "no class of these kinds is registered")

    def _section(self, title: str, kinds: Sequence[str], note: str) -> Iterator[TreeRow]:
        if not kinds:
            return
        yield TreeRow()
        yield TreeRow(name=title, style="bold yellow" if title == "waiting for code" else "bold", note=note)
        for place, kind in enumerate(kinds):
            guide, below = _guides("", is_last=place == len(kinds) - 1)
            yield from self._template(Picture(role="template", name=kind, kind=kind), guide, below, is_in_tree=False)

    # --- the tree ------------------------------------------------------------------------------------------------

    def _node(self, picture: Picture, guide: str, below: str) -> Iterator[TreeRow]:
        match picture.role:
            case "supervisor":
                yield from self._supervisor(picture, guide, below)
            case "child":
                yield self._child(picture, guide, below)
            case "template":
                yield from self._template(picture, guide, below, is_in_tree=True)

    def _supervisor(self, picture: Picture, guide: str, below: str) -> Iterator[TreeRow]:
        note, style = picture.kind, "dim"
        cells: dict[str, str] = {}
        if self._is_live:
            note += (
                f" · {picture.restarts:,} of {words.count(picture.max_restarts, 'restart')} in {picture.within_s:g} s"
            )
            style = "yellow" if picture.restarts else "dim"
            cells["status"] = picture.status
        drawn, hidden = self._drawn(picture.children)
        yield TreeRow(
            guide=guide,
            below=below + ("│ " if drawn else ""),
            name=words.one_line(picture.name),
            style="bold",
            cells=cells,
            styles={"status": _STYLES.get(picture.status, "")},
            note=note,
            note_style=style,
            spread=True,
        )
        for place, child in enumerate(drawn):
            yield from self._node(child, *_guides(below, is_last=not hidden and place == len(drawn) - 1))
        if hidden:
            told, _ = _guides(below, is_last=True)
            yield TreeRow(guide=told, name=self._more_children(hidden), style="dim")

    def _drawn(self, children: Sequence[Picture]) -> tuple[list[Picture], list[Picture]]:
        """Return the children to be drawn and those that are only counted: what needs a look goes first."""
        ranked = sorted((self._rank(child), place) for place, child in enumerate(children) if child.role == "child")
        limit = self._shown.shown_max
        if len(ranked) <= _CHILDREN_MAX:
            limit = _CHILDREN_MAX
        elif limit < _CHILDREN_MAX:
            noted = sum(1 for rank, _ in ranked if rank < _IDLE)
            limit = min(max(noted, limit), _CHILDREN_MAX)
        branches = [place for place, child in enumerate(children) if child.role != "child"]
        kept = {place for _, place in ranked[:limit]} | set(branches[:_BRANCHES_MAX])
        return (
            [child for place, child in enumerate(children) if place in kept],
            [child for place, child in enumerate(children) if place not in kept],
        )

    def _rank(self, child: Picture) -> tuple[int, int]:
        seen = self._shown.census.statics.get((child.kind, child.id))
        if child.status != "running" or (seen is not None and seen.status != "active"):
            return 0, 0
        if (child.kind, child.id) in self._turns:
            return 1, 0
        return (2, -seen.mail) if seen is not None and seen.mail else _IDLE

    def _more_children(self, hidden: Sequence[Picture]) -> str:
        mailed = sum(1 for child in hidden if self._rank(child) < _IDLE)
        told = f"… and {words.count(len(hidden), 'more child', 'more children')}"
        return f"{told}, {mailed:,} of them not idle" if mailed else f"{told}, idle"

    def _child(self, picture: Picture, guide: str, below: str) -> TreeRow:
        seen = self._shown.census.statics.get((picture.kind, picture.id)) or Seen(0, picture.kind, picture.id)
        status = picture.status if self._is_live else "" if seen.status == "active" else seen.status
        row = self._actor(seen, guide, below, name=f"{picture.kind}/{picture.id}", status=status)
        if picture.restart not in ("", "permanent"):
            row.aside = row.aside or not row.note
            row.note = f"{picture.restart} · {row.note}" if row.note else picture.restart
        return row

    def _template(self, picture: Picture, guide: str, below: str, *, is_in_tree: bool) -> Iterator[TreeRow]:
        count = self._kinds.get(picture.kind, KindCount())
        also = [kind for kind in picture.also if kind in self._kinds]
        listed = [*count.held, *count.deepest]
        # The only actor of its kind, such as a tool's, stands in the row of the kind.
        only = listed[0] if count.stored == 1 and len(listed) == 1 else None
        chosen = [] if only is not None else self._chosen(count)
        more = "" if only is not None else _more(count, chosen)
        lines = len(chosen) + bool(more) + len(also)
        row = TreeRow(
            guide=guide,
            below=below + ("│ " if lines else ""),
            name=words.one_line(picture.kind),
            cells={"stored": f"{count.stored:,}", **self._mail(count.mail, count.later, count.oldest_at)},
        )
        if self._is_live and is_in_tree:
            row.cells["status"], row.styles["status"] = picture.status, _STYLES.get(picture.status, "")
            row.cells["alive"] = f"{picture.instances:,}"
        if only is not None:
            self._say(row, only, "")
        yield row
        place = 0
        for seen in chosen:
            place += 1
            yield self._actor(seen, *_guides(below, is_last=place == lines), name=seen.id, status="")
        if more:
            place += 1
            told, _ = _guides(below, is_last=place == lines)
            yield TreeRow(guide=told, name=more, style="dim")
        for kind in also:
            place += 1
            reached = Picture(role="template", name=kind, kind=kind)
            yield from self._template(reached, *_guides(below, is_last=place == lines), is_in_tree=False)

    def _chosen(self, count: KindCount) -> list[Seen]:
        """Return the actors worth seeing: held ones, but not only them, then those with most mail."""
        room = self._shown.shown_max
        held = count.held[: max(room // 2, room - len(count.deepest))]
        return [*held, *count.deepest[: room - len(held)]]

    # --- one actor -----------------------------------------------------------------------------------------------

    def _actor(self, seen: Seen, guide: str, below: str, *, name: str, status: str) -> TreeRow:
        row = TreeRow(guide=guide, below=below, name=words.one_line(name))
        row.cells = self._mail(seen.mail, seen.later, seen.oldest_at)
        self._say(row, seen, status)
        return row

    def _say(self, row: TreeRow, seen: Seen, status: str) -> None:
        """Say in the row how the actor is, and why."""
        turn = self._turns.get((seen.kind, seen.id))
        if seen.status != "active":
            status = seen.status
            row.note = words.one_line(seen.reason)
            row.note_style = _STYLES.get(status, "")
        elif turn is not None and turn.waits_for:
            status, row.note, row.note_style = "waiting", words.one_line(turn.waits_for), _STYLES["waiting"]
        elif turn is not None:
            status = f"busy {words.duration(turn.running_s)}"
            row.note = f"{turn.handler}, attempt {turn.attempt}" if turn.attempt > 1 else turn.handler
            row.aside = True
        elif not status and seen.mail:
            status = "waiting"
        if status:
            row.cells["status"] = status
            row.styles["status"] = _STYLES.get(status.partition(" ")[0], "")

    def _mail(self, mail: int, later: int, oldest_at: float | None) -> dict[str, str]:
        cells: dict[str, str] = {}
        if mail:
            cells["mail"] = f"{mail:,}"
        if later:
            cells["delayed"] = f"{later:,}"
        if oldest_at is not None:
            cells["oldest"] = words.duration(self._shown.now - oldest_at)
        return cells


def _more(count: KindCount, chosen: Sequence[Seen]) -> str:
    """Return how many actors of the kind are not listed, and what they do."""
    parts: list[str] = []
    hidden = 0
    for status, total in (("suspended", count.suspended), ("stopped", count.stopped), ("active", count.mailed)):
        # Who waits for the outside has mail: the message that waits.
        missing = total - sum(1 for seen in chosen if seen.status.replace("waiting", "active") == status)
        if missing > 0:
            hidden += missing
            parts.append(f"{missing:,} {'with mail' if status == 'active' else status}")
    idle = count.stored - count.suspended - count.stopped - count.mailed
    if not chosen and not parts:
        return ""  # All of them are idle, and the row of the kind has their number.
    if idle > 0:
        parts.append(f"{idle:,} idle" if parts else f"{idle:,} more idle")
    if not parts:
        return ""
    return f"… and {', '.join(parts)}" if not hidden else f"… and {hidden + max(idle, 0):,} more: {', '.join(parts)}"


def _guides(below: str, *, is_last: bool) -> tuple[str, str]:
    """Return the guides of a child, and of what is below it."""
    return (f"{below}└─ ", f"{below}   ") if is_last else (f"{below}├─ ", f"{below}│  ")
