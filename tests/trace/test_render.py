from __future__ import annotations

import io
import subprocess
import sys
import textwrap

import pytest
from rich.console import Console

from tests.trace.tape import MODEL, Tape, crash, order, report
from understudy import events
from understudy.trace import words
from understudy.trace.render import lines, to_text
from understudy.trace.tree import build_trace


def picture(text: str) -> str:
    return textwrap.dedent(text).strip("\n")


def test_run_is_drawn_as_in_the_documentation():
    expected = """
        research-report  q-17                                     5.75 s   $0.042   1 retry
        ├─ gather_context                                         200 ms
        │  ├─ tool search_database                                 45 ms
        │  └─ tool fetch_document                                 120 ms
        ├─ analyze                                                 2.4 s
        │  ├─ model claude-sonnet-5-5      4,200 in / 890 out      2.1 s   $0.018
        │  └─ tool run_query                                      280 ms
        ├─ generate_report                                         3.1 s
        │  ├─ model claude-… (attempt 1)   4,900 in / 300 out      1.8 s   $0.008   FAILED malformed output
        │  └─ model claude-… (attempt 2)   5,100 in / 2,400 out    1.3 s   $0.016   amended: format reminder
        │                                                                           added
        └─ send_report                                             50 ms
    """

    assert str(build_trace("17", report())) == picture(expected)


def test_crash_is_a_line_between_what_ran_before_and_after_it():
    expected = """
        researcher  q-17                                       27.1 s   $0.070 + $?   killed once, went on
        │                                                                             in life 2
        ├─ model claude-sonnet-5-5      4,200 in / 890 out      2.1 s   $0.018
        ├─ tool search                                          45 ms
        ├─ tool search                                                  killed in flight
        ├─ writer  q-17                                                 killed
        │  ├─ model claude-sonnet-5-5   900 in / 300 out        1.2 s   $0.004
        │  └─ model claude-sonnet-5-5                                   $?       killed in flight
        ╞══ killed ══ life 2, 8 s later ══ 3 finished steps from the journal, $0.022 not paid again ══════
        ├─ tool search                                         300 ms   ran again
        ├─ writer  q-17                                         2.2 s   went on · 1 finished step from the
        │  │                                                            journal
        │  └─ model claude-sonnet-5-5   1,100 in / 600 out      1.9 s   $0.007   ran again
        └─ model claude-sonnet-5-5      9,100 in / 1,600 out    3.4 s   $0.041
    """

    assert str(build_trace("17", crash())) == picture(expected)


def test_attempts_of_a_turn_are_set_apart_by_a_thinner_line():
    expected = """
        order/o-1.place         3.72 s   2 retries · diverged: new step audit · FAILED ValueError, dead
        │                                letter: 3 of sku-11 wanted, 2 there
        ├─ reserve               50 ms
        ├─ charge (attempt 1)   350 ms   FAILED ConnectionError, retry in 1 s: reset
        ├─ charge (attempt 2)   300 ms   FAILED ConnectionError: reset by peer
        ├── FAILED StepFailed, restart in 200 ms ── attempt 2 ── 1 finished step from the journal, not run…
        └─ audit                 20 ms
    """

    assert str(build_trace("40", order())) == picture(expected)


def test_several_roots_stand_below_the_id_that_they_share():
    tape = Tape("november").turn("17", None, "researcher/q-17", "agent")
    tape.model("17/m#1", "17", 2.0, 100, 20, usd_micros=4_000_000).done("17", 2.1)
    tape.turn("18", None, "researcher/q-18", "agent").step("18/s#1", "18", "slow")
    expected = """
        november                                                  $4.00   1 running
        ├─ researcher  q-17                               2.1 s   $4.00
        │  └─ model claude-sonnet-5-5   100 in / 20 out     2 s   $4.00
        └─ researcher  q-18                                       running
           └─ slow                                                running
    """

    assert str(build_trace("november", tape.events)) == picture(expected)


def test_narrow_page_puts_the_notes_below_and_drops_the_tokens():
    expected = """
        research-report  q-17              5.75 s   $0.042
        │    1 retry
        ├─ gather_context                  200 ms
        │  ├─ tool search_database          45 ms
        │  └─ tool fetch_document          120 ms
        ├─ analyze                          2.4 s
        │  ├─ model claude-sonnet-5-5       2.1 s   $0.018
        │  └─ tool run_query               280 ms
        ├─ generate_report                  3.1 s
        │  ├─ model claude-… (attempt 1)    1.8 s   $0.008
        │  │       FAILED malformed output
        │  └─ model claude-… (attempt 2)    1.3 s   $0.016
        │          amended: format reminder added
        └─ send_report                      50 ms
    """

    assert to_text(build_trace("17", report()), 50) == picture(expected)


def test_crashed_run_that_nobody_started_again_says_so():
    tape = Tape().turn("17", None, "researcher/q-17", "agent").step("17/s#1", "17", "slow")
    expected = """
        researcher  q-17   killed once, not started again yet
        └─ slow            killed in flight
    """

    assert str(build_trace("17", tape.events, is_live=False)) == picture(expected)


def test_shutdown_is_told_from_a_crash():
    tape = Tape().turn("17", None, "researcher/q-17", "agent").step("17/a#1", "17", "fetch")
    tape.stepped("17/a#1", "17", "fetch", 1.5).put(events.TurnEndedBySystem, "17", reason="shutdown").next_life(
        5 * 3600
    )
    tape.turn("17", None, "researcher/q-17", "agent").replayed("17/a#1", "17", "fetch").done("17", 1.0)

    assert "╘══ stopped: shutdown ══ life 2, 5 h 0 min later ══ 1 finished step from the journal, not run again" in str(
        build_trace("17", tape.events)
    )


def test_tokens_from_the_cache_count_as_read_and_are_noted():
    tape = Tape().turn("17", None, "a/x", "agent")
    tape.model("17/m#1", "17", 1.0, 300, 20, cache_read_tokens=3_900, usd_micros=1_000)

    text = str(build_trace("17", tape.events))

    assert "4,200 in / 20 out" in text
    assert "3,900 cached" in text


def test_text_of_strangers_is_neither_markup_nor_commands_to_the_terminal():
    tape = Tape().turn("17", None, "order/\x1b[31mred\n[bold]o-1[/bold].place")
    tape.failed("17", "Boom", "dead_letter", message="\x1b]0;title\x07 [/] [link=x]\u202e", duration_s=0.1)
    out = io.StringIO()

    Console(file=out, width=100, force_terminal=True, color_system=None).print(build_trace("17", tape.events))

    assert "\x1b" not in out.getvalue()
    assert "\x07" not in out.getvalue()
    assert "\u202e" not in out.getvalue()
    assert "[link=x]" in out.getvalue()
    assert len(out.getvalue().splitlines()) == 1


def test_long_error_is_cut_after_a_few_lines():
    tape = Tape().turn("17", None, "a/x").failed("17", "Boom", "dead_letter", message="word " * 5_000)

    text = str(build_trace("17", tape.events))

    assert len(text.splitlines()) == 3
    assert text.endswith("…")


def test_wide_characters_keep_the_columns_aligned():
    tape = Tape().turn("17", None, "事業/東京.働く").step("17/s#1", "17", "短い")
    tape.stepped("17/s#1", "17", "短い", 0.5).done("17", 0.75)

    first, second = lines(build_trace("17", tape.events), 80)

    assert first.cell_len == second.cell_len
    assert (first.plain[-6:], second.plain[-6:]) == ("750 ms", "500 ms")


def test_terminal_without_unicode_gets_plain_lines():
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="replace")

    Console(file=out, width=100).print(build_trace("17", crash()))

    out.seek(0)
    assert "|- tool search" in out.read()


def test_colours_say_what_failed_and_what_was_killed():
    out = io.StringIO()

    console = Console(file=out, width=100, force_terminal=True, color_system="standard", legacy_windows=False)
    console.print(build_trace("17", crash()))
    console.print(build_trace("40", order()))

    assert "\x1b[1;33mkilled in flight" in out.getvalue()
    assert "\x1b[1;31mFAILED ConnectionError" in out.getvalue()


def test_str_is_the_same_in_every_environment(monkeypatch):
    text = str(build_trace("17", report()))

    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("FORCE_COLOR", "1")

    assert str(build_trace("17", report())) == text


def test_building_a_trace_does_not_import_rich():
    code = "import sys, understudy.trace.tree; sys.exit('rich' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_model_that_was_replaced_by_a_fallback_is_named_on_its_own_row():
    tape = Tape().turn("17", None, "a/x", "agent")
    tape.model("17/m#1", "17", 0.1, error="Overloaded", decision="fallback", usd_micros=0)
    tape.model("17/m#1", "17", 1.0, 10, 5, attempt=2, model="claude-haiku-4-5", usd_micros=10)

    text = to_text(build_trace("17", tape.events), 140)

    assert f"model {MODEL} (attempt 1)" in text
    assert "FAILED overloaded, fallback" in text
    assert "model claude-haiku-4-5 (attempt 2)" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0004, "<1 ms"),
        (0.0012, "1.2 ms"),
        (0.045, "45 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1 s"),
        (2.4, "2.4 s"),
        (5.75, "5.75 s"),
        (28.61, "28.6 s"),
        (59.97, "1 min 0 s"),
        (192, "3 min 12 s"),
        (3599.7, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (100_000, "1 d 3 h"),
        (-1.0, "<1 ms"),
    ],
)
def test_durations_are_said_as_a_person_reads_them(seconds, text):
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("usd_micros", "text"),
    [
        (0, "$0"),
        (7, "$0.000007"),
        (420, "$0.00042"),
        (3_100, "$0.0031"),
        (9_990, "$0.01"),
        (18_000, "$0.018"),
        (999_600, "$1.00"),
        (12_500_000, "$12.50"),
        (1_234_567_890, "$1,234.57"),
    ],
)
def test_money_has_as_many_places_as_tell_the_amount(usd_micros, text):
    assert words.money(usd_micros) == text


def test_unknown_cost_is_a_question_mark_beside_what_is_known():
    assert words.cost(0, is_unknown=True) == "$?"
    assert words.cost(18_000, is_unknown=True) == "$0.018 + $?"
    assert words.cost(0, is_unknown=False) == ""
