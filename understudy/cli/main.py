"""The command `understudy`: a group of subcommands, each imported when it is used, so that help and completion are fast."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import click

# Name -> (module, attribute, one line of help). The line stands here, so that `--help` imports no subcommand.
COMMANDS: Final[dict[str, tuple[str, str, str]]] = {
    "approvals": (
        "understudy.cli.approvals",
        "approvals",
        "Look at tool calls that wait for a person; decide about them.",
    ),
    "dead": ("understudy.cli.dead", "dead", "Look at messages that were given up; try them again, or forget them."),
    "demo": ("understudy.cli.demo.command", "demo", "Kill an agent in the middle of its work and watch it go on."),
    "ps": ("understudy.cli.ps", "ps", "Draw the supervision tree: what runs, what is held, whose mail waits."),
    "raise": ("understudy.cli.raising", "raise_", "Raise the budget of a job or workflow; what it held goes on."),
    "resume": ("understudy.cli.resume", "resume", "Let a suspended or stopped actor go on."),
    "trace": ("understudy.cli.trace", "trace", "Draw what happened: every step, attempt, token and cent."),
}


class _LazyGroup(click.Group):
    """Imports a subcommand when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][2]) for name in self.list_commands(ctx)])


def _show_version(ctx: click.Context, _parameter: click.Parameter, is_asked: bool) -> None:  # noqa: FBT001 - click's signature
    if not is_asked or ctx.resilient_parsing:
        return
    try:
        number = version("understudy")
    except PackageNotFoundError:
        number = "(not installed, run from its source)"
    click.echo(f"understudy {number}")
    ctx.exit()


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version."
)
def main() -> None:
    """Look into the store of an Understudy system, while it runs or when it does not."""
