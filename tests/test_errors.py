"""The tree of errors: drawn as it is, and every error survives pickling and copying with its facts."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from typing import Any

import pytest

import understudy
from understudy import errors
from understudy.actors.failures import to_error, to_failure
from understudy.errors import TurnEnded, UnderstudyError

ALL = [
    each
    for each in vars(errors).values()
    if isinstance(each, type) and issubclass(each, BaseException) and each.__module__ == errors.__name__
]
OWN = [each for each in ALL if issubclass(each, UnderstudyError)]
_LINE = re.compile(r"^((?:│   |    )*)(?:├── |└── )(\w+)\s+(\S.*)$")


def facts_of(cls: type[UnderstudyError]) -> dict[str, Any]:
    """A value for every fact that the class declares."""
    names = [name for base in cls.__mro__ for name in vars(base).get("__annotations__", {}) if not name.startswith("_")]
    return {name: f"<{name}>" for name in names}


def drawn() -> list[tuple[str, str]]:
    """(class, parent) as the docstring draws them."""
    found: list[tuple[str, str]] = []
    stack = ["UnderstudyError"]
    for line in (errors.__doc__ or "").splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        depth = len(match.group(1)) // 4
        del stack[depth + 1 :]
        found.append((match.group(2), stack[depth]))
        stack.append(match.group(2))
    return found


def test_docstring_draws_the_classes_as_they_are() -> None:
    real = [(each.__name__, each.__bases__[0].__name__) for each in OWN if each is not UnderstudyError]

    assert sorted(drawn()) == sorted(real)
    assert "TurnEnded (BaseException)" in (errors.__doc__ or "")


def test_second_bases_are_told_in_the_docstring() -> None:
    text = errors.__doc__ or ""
    for each in OWN:
        for base in each.__bases__[1:]:
            if each.__name__ in ("EncodingFailed", "NotFound"):
                continue  # Told by their own docstrings' family: a value, a look-up.
            line = next(line for line in text.splitlines() if f" {each.__name__} " in line)
            assert re.search(rf"\(also an? {base.__name__}\)", line)


def test_each_class_says_what_it_means() -> None:
    for each in ALL:
        assert each.__doc__, each
        assert inspect.getdoc(each) != inspect.getdoc(each.__mro__[1]), each


def test_turn_ended_is_no_exception_that_handlers_catch() -> None:
    assert not issubclass(TurnEnded, Exception)


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_error_is_public(cls: type[BaseException]) -> None:
    assert getattr(understudy, cls.__name__, None) is cls or getattr(errors, cls.__name__) is cls


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("cls", OWN, ids=lambda cls: cls.__name__)
def test_error_survives_pickling_with_its_facts(cls: type[UnderstudyError], protocol: int) -> None:
    facts = facts_of(cls)
    error = cls("what happened", **facts)

    again = pickle.loads(pickle.dumps(error, protocol))

    assert type(again) is cls
    assert str(again) == "what happened"
    assert {name: getattr(again, name) for name in facts} == facts


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy])
@pytest.mark.parametrize("cls", OWN, ids=lambda cls: cls.__name__)
def test_error_survives_copying_with_its_facts(cls: type[UnderstudyError], how: Any) -> None:
    facts = facts_of(cls)

    again = how(cls("what happened", **facts))

    assert (type(again), str(again), {name: getattr(again, name) for name in facts}) == (cls, "what happened", facts)


@pytest.mark.parametrize("cls", OWN, ids=lambda cls: cls.__name__)
def test_error_without_facts_has_their_defaults(cls: type[UnderstudyError]) -> None:
    error = pickle.loads(pickle.dumps(cls()))

    assert str(error) == ""
    for name in facts_of(cls):
        assert hasattr(error, name), name


@pytest.mark.parametrize("cls", OWN, ids=lambda cls: cls.__name__)
def test_error_crosses_a_boundary_as_data_with_its_facts(cls: type[UnderstudyError]) -> None:
    facts = facts_of(cls)

    again = to_error(to_failure(cls("what happened", **facts)), "account.deposit")

    assert type(again) is cls
    assert str(again) == "what happened"
    assert {name: getattr(again, name) for name in facts} == facts


def test_turn_ended_survives_pickling_and_copying() -> None:
    for again in (pickle.loads(pickle.dumps(TurnEnded("why"))), copy.copy(TurnEnded("why"))):
        assert type(again) is TurnEnded
        assert str(again) == "why"


@pytest.mark.parametrize("text", ["\ud800", "a\0b", "x" * 1_000_000, "", "ünïcode 🎭"])
def test_any_text_of_an_error_can_be_stored(text: str) -> None:
    failure = to_failure(RuntimeError(text))

    failure.message.encode()
    assert len(failure.message) <= 10_000


def test_error_that_cannot_be_printed_is_still_data() -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    failure = to_failure(Silent())

    assert failure.type.endswith("Silent")
