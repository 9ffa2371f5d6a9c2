"""What the demo shows: headings, one line per thing that happens, the report, the trace, the ledger."""

from __future__ import annotations

import sys
from typing import Final

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from understudy import events as happened
from understudy.cli.demo.program import Report
from understudy.trace import words
from understudy.trace.render import Drawing
from understudy.trace.tree import Trace

_WIDTH: Final = 100  # without a terminal: fits a log and half a screen
_WIDTH_MAX: Final = 120  # on a very wide one lines get hard to follow
_NAME: Final = 22
_NUMBERS: Final = 24


def console() -> Console:
    """Return the console; text that it cannot encode is shown with question marks."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
    made = Console(highlight=False, soft_wrap=False)
    made.width = min(made.width, _WIDTH_MAX) if made.is_terminal else _WIDTH
    return made


class Screen:
    """Prints the demo."""

    def __init__(self, made: Console) -> None:
        self._console = made
        self._names: dict[str, str] = {}  # span of a tool's turn -> its name
        self._phase = ""

    def title(self, text: str, below: str) -> None:
        """Print what this is."""
        self._console.print()
        self._console.print(Text(text, "bold"))
        self._console.print(Text(below))
        self._console.print()

    def facts(self, facts: dict[str, str]) -> None:
        """Print names and values in two columns."""
        table = Table.grid(padding=(0, 3, 0, 0))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in facts.items():
            table.add_row(name, Text(value))
        self._console.print(table)

    def heading(self, text: str, style: str = "cyan") -> None:
        """Print the title of a part."""
        self._console.print()
        self._console.rule(Text(f" {text} ", f"bold {style}"), align="left", style="dim")

    def say(self, text: str, style: str = "") -> None:
        """Print a sentence."""
        self._console.print(Text(text, style))

    def begin_life(self, number: int, pid: int, remark: str) -> None:
        """Print that a process was started."""
        self._phase = ""
        self.heading(f"Life {number}: process {pid}")
        if remark:
            self._console.print(Text(remark, "dim"))

    def show(self, event: happened.Event) -> None:
        """Print one line for an event that a newcomer wants to see; nothing for the others."""
        match event:
            case happened.TurnStarted(role="agent"):
                self._enter(event.kind)
            case happened.TurnStarted(role="tool"):
                self._names[event.span] = event.kind.removeprefix("tool:")
            case happened.TurnFinished() if event.span in self._names:
                self._line("tool", self._names[event.span], "", event.duration_s)
            case happened.ModelCalled(error=None):
                numbers = words.tokens(event.input_tokens + event.cache_read_tokens, event.output_tokens)
                cost = words.cost(event.usd_micros or 0, is_unknown=event.usd_micros is None)
                self._line("model", event.model, numbers, event.duration_s, Text(cost, "green"))
            case happened.ModelCalled():
                note = Text(f"FAILED {words.error(event.error or '')}", "bold red")
                self._line("model", event.model, "", event.duration_s, note)
            case happened.Amended():
                self._console.print(Text(f"         malformed answer; amended: {event.amendment}", "magenta"))
            case happened.StepReplayed():
                self._replayed(event)
            case happened.StepFinished(role="step"):
                self._enter(event.step)
                self._line("step", event.step, "", event.duration_s)
            case _:
                pass

    def carried_over(self, phase: str, model_calls: int, usd_micros: int) -> None:
        """Print that an agent's answer of an earlier life was used."""
        self._enter(phase)
        spared = (
            f"from the journal: {words.count(model_calls, 'model call')}, {words.money(usd_micros)}, not paid again"
        )
        self._line("answer", "", "", None, Text(spared, "yellow"))

    def killed(self, in_flight: str, paid: int) -> None:
        """Print that the process died."""
        line = Text("  ")
        line.append(" SIGKILL ", "bold white on red")
        line.append(f"  no handler, no clean-up; {in_flight} was under way, {words.count(paid, 'model call')} paid")
        self._console.print()
        self._console.print(line)

    def report(self, report: Report) -> None:
        """Print the answer."""
        self._console.print(Text(report.title, "bold"))
        self._console.print(Text(report.summary))
        for finding in report.findings:
            self._console.print()
            self._console.print(Text(finding.topic, "bold"))
            self._console.print(Padding(Text(finding.quote), (0, 4, 0, 2), expand=False))
            self._console.print(Text(f"  {finding.source}", "dim"))

    def trace(self, trace: Trace) -> None:
        """Print the tree of what happened."""
        self._console.print(Drawing(trace))

    def ledger(self, rows: list[tuple[str, str, str]]) -> None:
        """Print what was paid: what, how much, and a style for the number."""
        table = Table.grid(padding=(0, 3, 0, 0))
        table.add_column()
        table.add_column(justify="right", no_wrap=True)
        for what, number, style in rows:
            table.add_row(Text(what), Text(number, style))
        self._console.print(table)

    def _enter(self, phase: str) -> None:
        if phase != self._phase:
            self._phase = phase
            self._console.print(Text(phase, "bold"))

    def _replayed(self, event: happened.StepReplayed) -> None:
        paid = "not paid again" if event.role in ("model", "ask") else "not run again"
        name = event.step if event.role != "ask" else event.step.removeprefix("ask ")
        self._line(
            event.role, name if name != event.role else "", "", None, Text(f"from the journal, {paid}", "yellow")
        )

    def _line(self, role: str, name: str, numbers: str, duration_s: float | None, note: Text | None = None) -> None:
        line = Text("  ")
        line.append(f"{role:<7}", "cyan")
        line.append(name.ljust(_NAME))
        if duration_s is not None:
            line.append(numbers.rjust(_NUMBERS), "dim")
            line.append(words.duration(duration_s).rjust(10))
            line.append("   ")
        if note is not None:
            line.append_text(note)
        line.rstrip()
        line.truncate(self._console.width)
        self._console.print(line)
