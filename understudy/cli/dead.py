"""`understudy dead`: look at the messages that were given up, try them again, or forget them.

What changes something is asked of the process that owns the store. Without one the command owns it itself for a moment.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click
from rich.table import Table
from rich.text import Text

from understudy.cli.columns import Column, TreeRow, draw
from understudy.cli.facts import ListGroup, ago, as_json_option, decoded, heading, print_arguments, when
from understudy.cli.moving import Move, alone, through_owner
from understudy.cli.owner import as_json
from understudy.cli.terminal import console, either, near, store_at
from understudy.errors import NotFound, StoreRefused
from understudy.mailbox import letters, reading
from understudy.mailbox.commit import DeadLetter
from understudy.mailbox.journal import JournalEntry
from understudy.mailbox.store import Standing
from understudy.mailbox.visitor import is_owned, visit
from understudy.trace import words
from understudy.trace.layout import fit

_DONE: Final = {"redeliver": "redelivered", "discard": "discarded"}
_COLUMNS: Final = (Column("given up", "left", drop=2), Column("handler", "left"), Column("tries", drop=1))
_HANDLER_WIDTH: Final = 36
_ERROR_LENGTH: Final = 160
_SEARCHED: Final = 1_000  # newest ids among which a mistyped one is looked for
_ERASED: Final = Standing("?", "?", "active", "")  # an actor that was erased between two reads

_ids = click.argument("ids", nargs=-1, metavar="[ID]...")
_all = click.option("--all", "is_all", is_flag=True, help="Do it with every dead letter.")
_yes = click.option("-y", "--yes", "is_sure", is_flag=True, help="Do not ask before --all.")


@click.group(cls=ListGroup, subcommand_metavar="[list | show ID | redeliver ID... | discard ID...]")
@click.argument("file", type=click.Path(path_type=Path))
@click.pass_context
def dead(ctx: click.Context, file: Path) -> None:
    """Messages of the store FILE that were given up: look at them, try them again, or forget them.

    Works while a process owns the store (it is asked to do it), and when none does.
    """
    ctx.obj = file


@dead.command("list", short_help="List them, the newest messages first (the default).")
@click.option("-n", "--limit", default=20, show_default=True, type=click.IntRange(min=1), help="Lines of the table.")
@as_json_option
@click.pass_obj
def list_letters(file: Path, limit: int, is_json: bool) -> None:  # noqa: FBT001 - click's signature
    """List the dead letters, the newest messages first."""
    with _look(file) as connection:
        found = reading.newest_letters(connection, limit)
        more = len(reading.letter_numbers(connection)) - len(found)
        owners = reading.standing(connection, (letter.envelope.actor for letter in found))
        store_id = reading.store_id(connection)
    if is_json:
        for letter in found:
            click.echo(as_json(_facts(letter, owners.get(letter.envelope.actor, _ERASED), store_id)))
        return
    if not found:
        click.echo(f"{file} has no dead letters.")
        return
    page = console()
    rows = [_row(letter, owners.get(letter.envelope.actor, _ERASED), store_id) for letter in found]
    for line in draw(rows, _COLUMNS, page.width, names="id", notes="error"):
        page.print(line, no_wrap=True, crop=True)
    if more:
        page.print(Text(f"… and {words.count(more, 'older one')}: -n {len(found) + more}", "dim"))
    page.print()
    page.print(Text(f"understudy dead {file} show | redeliver | discard ID", "dim"), soft_wrap=True)


@dead.command("show", short_help="Show all that is known of one.")
@click.argument("id")
@as_json_option
@click.pass_obj
def show_letter(file: Path, id: str, is_json: bool) -> None:  # noqa: FBT001 - click's signature
    """Show all that is known of one dead letter: its arguments, its error, and what it had done."""
    with _look(file) as connection:
        (no,) = _known(connection, [id], file)
        letter = _letter(connection, no)
        owner = reading.standing(connection, [letter.envelope.actor]).get(letter.envelope.actor, _ERASED)
        store_id = reading.store_id(connection)
        steps = _steps(reading.journal(connection, no))
    if is_json:
        click.echo(as_json({**_facts(letter, owner, store_id), "steps": steps}))
        return
    _print_letter(file, letter, owner, steps, letters.name_of(no, store_id))


@dead.command("redeliver", short_help="Try them again: back into their mailboxes.")
@_ids
@_all
@_yes
@click.pass_obj
def redeliver(file: Path, ids: tuple[str, ...], is_all: bool, is_sure: bool) -> None:  # noqa: FBT001 - click's signature
    """Put dead letters back at the end of their actors' mailboxes, as if they had not been tried.

    Steps that had finished are not done again.
    """
    _move(file, "redeliver", ids, is_all=is_all, is_sure=is_sure)


@dead.command("discard", short_help="Forget them for good.")
@_ids
@_all
@_yes
@click.pass_obj
def discard(file: Path, ids: tuple[str, ...], is_all: bool, is_sure: bool) -> None:  # noqa: FBT001 - click's signature
    """Forget dead letters for good, with all that their turns had done; their keys are free again."""
    _move(file, "discard", ids, is_all=is_all, is_sure=is_sure)


# --- looking ---------------------------------------------------------------------------------------------------------


@contextmanager
def _look(file: Path) -> Iterator[sqlite3.Connection]:
    """Visit one state of the store; what cannot be read ends the command."""
    try:
        with visit(store_at(file)) as connection, reading.one_state(connection):
            yield connection
    except StoreRefused as error:
        raise click.ClickException(str(error)) from error


def _row(letter: DeadLetter, owner: Standing, store_id: str) -> TreeRow:
    envelope, failure = letter.envelope, letter.failure
    return TreeRow(
        name=letters.name_of(envelope.no, store_id),
        cells={
            "given up": when(letter.at),
            "handler": fit(words.one_line(f"{owner.name}.{envelope.handler}"), _HANDLER_WIDTH),
            "tries": f"{_attempts(letter):,}",
        },
        note=words.one_line(f"{words.error(failure.type)}: {failure.message}", _ERROR_LENGTH),
        note_style="red",
    )


def _letter(connection: sqlite3.Connection, no: int) -> DeadLetter:
    (letter,) = reading.dead_letters(connection, no - 1, 1)
    return letter


def _known(connection: sqlite3.Connection, ids: Iterable[str], file: Path) -> list[int]:
    """Return the numbers of these dead letters, each once; if one is wrong, that ends the command."""
    store_id = reading.store_id(connection)
    known = reading.letter_numbers(connection)
    there = set(known)
    found: dict[int, None] = {}
    for id in ids:
        try:
            no = letters.number_of(id, store_id)
        except NotFound as error:
            raise click.ClickException(f"{error}{_hint(id, known, store_id, file)} Nothing was changed.") from error
        if no not in there:
            raise click.ClickException(
                f"{id} is no dead letter of {file}{_place(connection, no)}.{_hint(id, known, store_id, file)} "
                "Nothing was changed."
            )
        found[no] = None
    return list(found)


def _place(connection: sqlite3.Connection, no: int) -> str:
    """Return what has become of a message that is no dead letter."""
    try:
        waiting = connection.execute("SELECT 1 FROM message WHERE no = ?", (no,)).fetchone()
        result = connection.execute("SELECT state FROM result WHERE no = ?", (no,)).fetchone()
    except sqlite3.Error:
        return ""
    if waiting is not None:
        return ": it waits in its actor's mailbox"
    return f": it has ended, {result[0]}" if result is not None else ""


def _hint(id: str, known: Sequence[int], store_id: str, file: Path) -> str:
    if not known:
        return f" {file} has no dead letters."
    names = [letters.name_of(no, store_id) for no in reversed(known[-_SEARCHED:])]
    meant = near(id, names) or near(id.partition("-")[0], names)
    if meant:
        return f" Did you mean {either(meant)}?"
    return f" The newest is {names[0]}; `understudy dead {file}` lists them."


def _attempts(letter: DeadLetter) -> int:
    return letter.envelope.attempts + 1  # The last one is not counted there any more.


def _steps(journal: Iterable[JournalEntry]) -> dict[str, int]:
    """Return how many outcomes of each kind the letter's journal holds."""
    found = {"finished": 0, "failed": 0, "unknown": 0}
    for entry in journal:
        failure = entry.outcome.failure
        if failure is not None:
            found["unknown" if failure.type == "OutcomeUnknown" else "failed"] += 1
        elif entry.outcome.value is not None:
            found["finished"] += 1
    return found


def _own_facts(letter: DeadLetter) -> dict[str, Any]:
    """Return what an error of the library's own tells beside its text, such as the traceback of a failed step."""
    failure = letter.failure
    if failure.kind != "own" or failure.arguments is None:
        return {}
    return decoded(failure.arguments) or {}


def _traceback(letter: DeadLetter) -> str:
    inner = _own_facts(letter).get("traceback")
    return inner if isinstance(inner, str) and inner else letter.failure.traceback


def _facts(letter: DeadLetter, owner: Standing, store_id: str) -> dict[str, Any]:
    envelope, failure = letter.envelope, letter.failure
    amended = None if envelope.amended is None else decoded(envelope.amended)
    return {
        "id": letters.name_of(envelope.no, store_id),
        "kind": owner.kind,
        "actor": owner.id,
        "actor_status": owner.status,
        "handler": envelope.handler,
        "arguments": decoded(envelope.body),
        "amended_arguments": amended,
        "error": failure.type,
        "message": failure.message,
        "traceback": _traceback(letter),
        "attempts": _attempts(letter),
        "crashes": envelope.crashes,
        "given_up_at": letter.at,
        "sent_at": envelope.head.sent_at,
        "key": envelope.key,
        "trace": envelope.head.correlation or letters.name_of(envelope.no, store_id),
        "damaged": letter.damaged,
    }


def _print_letter(file: Path, letter: DeadLetter, owner: Standing, steps: dict[str, int], name: str) -> None:
    envelope, failure = letter.envelope, letter.failure
    page = console()
    page.print(Text("dead letter ", "dim").append(name, "bold"))
    page.print()
    facts = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    actor = Text(words.one_line(owner.name))
    if owner.status != "active":
        actor.append(f"   {owner.status}: {words.one_line(owner.reason)}", "yellow")
    facts.add_row("actor", actor)
    facts.add_row("handler", Text(words.one_line(envelope.handler)))
    tried = words.count(_attempts(letter), "attempt")
    if envelope.crashes:
        tried += f" and {words.count(envelope.crashes, 'crash', 'crashes')} of the process"
    facts.add_row("given up", f"{when(letter.at)} ({ago(letter.at)}), after {tried}")
    facts.add_row("sent", f"{when(envelope.head.sent_at)} ({ago(envelope.head.sent_at)})")
    if envelope.key is not None:
        facts.add_row("key", Text(words.one_line(envelope.key)))
    facts.add_row("steps", _told(steps))
    trace = words.one_line(envelope.head.correlation or name)
    facts.add_row("trace", Text(f"understudy trace {file} {trace}"))
    page.print(facts)
    heading(page, "error")
    page.print(Text(f"{failure.type}: ", "bold red").append(_printable(failure.message), "not bold default"))
    if traceback := _traceback(letter):
        page.print(Text(_printable(traceback).rstrip(), "dim"), soft_wrap=True)
    print_arguments(page, "arguments", envelope.body)
    if envelope.amended is not None:
        print_arguments(page, "arguments as they were amended for the last attempt", envelope.amended)
    page.print()
    for move, what in (("redeliver", "to try it again"), ("discard", "to forget it")):
        page.print(Text(f"understudy dead {file} {move} {name}").append(f"   {what}", "dim"), soft_wrap=True)


def _told(steps: dict[str, int]) -> str:
    if not any(steps.values()):
        return "none had finished"
    parts: list[str] = []
    if steps["finished"]:
        parts.append(f"{steps['finished']:,} finished: not done again when it is redelivered")
    if steps["failed"]:
        parts.append(f"{steps['failed']:,} failed: tried again")
    if steps["unknown"]:
        parts.append(f"{steps['unknown']:,} with unknown outcome: stays so")
    return "; ".join(parts)


def _printable(text: str) -> str:
    """Return *text* with its lines, without characters that would command the terminal."""
    lines = text.expandtabs(4).split("\n")
    return "\n".join("".join(each if each.isprintable() else "�" for each in line) for line in lines)


# --- moving ----------------------------------------------------------------------------------------------------------


def _move(file: Path, move: Move, ids: Sequence[str], *, is_all: bool, is_sure: bool) -> None:
    """Redeliver or discard; nothing is changed when an id is wrong."""
    if bool(ids) == is_all:
        raise click.UsageError(f"name the dead letters to {move}, or give --all.")
    with _look(file) as connection:
        numbers = reading.letter_numbers(connection) if is_all else _known(connection, ids, file)
        store_id = reading.store_id(connection)
    if not numbers:
        click.echo(f"{file} has no dead letters.")
        return
    if is_all and not is_sure:
        verb = move.capitalize()
        click.confirm(f"{verb} {words.count(len(numbers), 'dead letter')} of {file}?", abort=True)
    store = store_at(file)
    owned = is_owned(store)
    results = through_owner(store, move, numbers, store_id) if owned else alone(store, move, numbers)
    failed = 0
    done = 0
    for no, error in results:
        name = letters.name_of(no, store_id)
        if error:
            failed += 1
            click.echo(f"{name} was not {_DONE[move]}: {error}", err=True)
        else:
            done += 1
            if not is_all:
                click.echo(f"{_DONE[move]} {name}")
    if is_all:
        click.echo(f"{_DONE[move]} {words.count(done, 'dead letter')}")
    if done and move == "redeliver" and not owned:
        click.echo("No process owns the store now: what was redelivered is handled when its program starts.", err=True)
    if failed:
        raise click.exceptions.Exit(1)
