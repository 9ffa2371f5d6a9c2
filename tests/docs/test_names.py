"""The pages name only what there is, and the page of the API names all of it."""

from __future__ import annotations

import builtins
import inspect
import re
from pathlib import Path

import pytest

import understudy
from tests.docs.pages import PAGES, ROOT, blocks, code_words, prose
from understudy import errors, events, testing

API = ROOT / "docs" / "api.md"
EXPORTED = {
    *understudy.__all__,
    *testing.__all__,
    *(name for module in (errors, events) for name in vars(module) if not name.startswith("_")),
}
# Names in the examples of the pages, of the language, and of others.
KNOWN = {*dir(builtins), "CancelledError", "SIGKILL"}
# "Not yet" in the README: what each of them would be called.
NOT_YET = {
    "PostgreSQL store": "PostgreSQLStore",
}


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_page_names_only_what_exists(page):
    defined = {name for each in PAGES for block in blocks(each) for name in re.findall(r"\bclass (\w+)", block.code)}
    named = {name for word in code_words(page) for name in re.findall(r"(?<![\w.])[A-Z][a-z]\w*", word)}

    assert named - EXPORTED - KNOWN - defined - {"Account", "Ledger", "Order", "Index", "Payment"} == set()


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_page_names_only_members_that_exist(page):
    turn = {"self.turn": understudy.Turn, "system": understudy.System, "Limits": understudy.Limits}

    wrong = [
        f"{owner}.{member}"
        for word in code_words(page)
        for owner, member in re.findall(r"(self\.turn|\bsystem|\bLimits)\.(\w+)", word)
        if not hasattr(turn[owner], member)
    ]

    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_settings_in_a_page_are_parameters_of_what_they_are_given_to(page):
    wrong = []
    for word in code_words(page):
        called = re.fullmatch(r"@?(?:\w+\.)?(\w+)\((.*)\)", word)
        if called is None:
            continue
        target = getattr(understudy, called[1], None) or getattr(understudy.Bound, called[1], None)
        if not callable(target):
            continue
        options = {"step": understudy.Step, "tool": understudy.Tool, "handler": understudy.Handler}
        target = options.get(called[1], target)
        known = {*inspect.signature(target).parameters}
        flat = called[2]
        while (shorter := re.sub(r"\w+\([^()]*\)", "", flat)) != flat:
            flat = shorter  # What stands in the parentheses of nested calls is given to somebody else.
        wrong += [f"{word}: {name}" for name in re.findall(r"\b(\w+)=", flat) if name not in known]

    assert not wrong


def test_page_of_the_api_names_everything_that_is_public():
    named = {name for word in code_words(API) for name in re.findall(r"\w+", word)}

    assert EXPORTED & {*understudy.__all__, *testing.__all__} - named == set()
    assert {
        name for name, each in vars(events).items() if inspect.isclass(each) and each.__module__ == events.__name__
    } <= named
    assert {name for name, each in vars(errors).items() if inspect.isclass(each)} - {"Any"} <= named


def test_errors_stand_in_their_branches():
    for line in prose(API).splitlines():
        branch = re.match(r"\| `(RetryLater|ModelFailure|ChangeCall|GiveUp)`: [^|]*\|(.*)\|", line)
        if branch:
            for name in re.findall(r"`(\w+)`", branch[2]):
                assert issubclass(getattr(errors, name), getattr(errors, branch[1])), name


def test_readme_does_not_call_missing_what_exists():
    missing = " ".join(prose(ROOT / "README.md").partition("## Not yet")[2].partition("##")[0].split())

    for words, name in NOT_YET.items():
        assert words in missing, f"NOT_YET and the README differ: {words}"
        assert not hasattr(understudy, name), f"{name} exists now: take {words!r} out of the README's 'Not yet'"


def test_promises_of_the_readme_are_eight_and_each_has_its_rule():
    promises = prose(ROOT / "README.md").partition("## What is promised")[2].partition("\n## ")[0]

    assert re.findall(r"^(\d)\. \*\*", promises, re.MULTILINE) == list("12345678")


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#\s]+)", prose(page))

    assert not [target for target in targets if "://" not in target and not (page.parent / target).exists()]


def test_commands_in_the_pages_exist():
    from understudy.cli.main import COMMANDS

    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    for page in PAGES:
        for word in code_words(page):
            if word.startswith("make "):
                assert word.split()[1] in targets, f"{page.name}: {word}"
            if word.startswith("understudy "):
                assert word.split()[1] in COMMANDS, f"{page.name}: {word}"


def test_trace_in_the_readme_is_one_that_the_library_draws():
    _, drawn = [block.code for block in blocks(ROOT / "README.md") if block.language == "text"]

    assert drawn.startswith("research_report/q-17.run")
    assert "╞══ killed ══ life 2" in drawn
    assert all(len(line) <= 100 for line in drawn.splitlines())


def test_pages_are_named_in_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")

    assert [page.name for page in PAGES[1:] if f"docs/{page.name}" not in readme] == []
    assert Path(ROOT / "examples").is_dir()
