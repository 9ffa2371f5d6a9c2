from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest
from click.testing import CliRunner

from understudy.cli import main


def test_version_is_that_of_the_package():
    result = CliRunner().invoke(main, ["--version"])

    assert (result.exit_code, result.output) == (0, f"understudy {version('understudy')}\n")


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_lists_the_commands(option):
    result = CliRunner().invoke(main, [option])

    assert result.exit_code == 0
    assert "trace      Draw what happened" in result.output


def test_help_imports_no_command():
    code = (
        "import sys; from understudy.cli import main; main(['--help'], standalone_mode=False);"
        "sys.exit('understudy.cli.trace' in sys.modules or 'rich' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


def test_unknown_command_is_refused():
    result = CliRunner().invoke(main, ["frace"])

    assert result.exit_code == 2
    assert "No such command 'frace'" in result.output
