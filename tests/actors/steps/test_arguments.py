"""Arguments of steps by name: found without `inspect` where positions say it all, and the same as `inspect` finds."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from understudy import step


def plain(a: int, b: int) -> None: ...
def with_default(a: int, b: int = 2) -> None: ...
def by_position_only(a: int, /, b: int = 2) -> None: ...
def with_rest(a: int, *rest: int) -> None: ...
def with_named_rest(a: int, **rest: int) -> None: ...
def by_name_only(a: int, *, b: int) -> None: ...
def by_name_with_default(a: int, *, b: int = 2) -> None: ...
def nothing() -> None: ...


FUNCTIONS = [
    plain,
    with_default,
    by_position_only,
    with_rest,
    with_named_rest,
    by_name_only,
    by_name_with_default,
    nothing,
]
CALLS: list[tuple[tuple[int, ...], dict[str, int]]] = [
    ((), {}),
    ((1,), {}),
    ((1, 2), {}),
    ((1, 2, 3), {}),
    ((1,), {"b": 2}),
    ((), {"b": 2, "a": 1}),
    ((1,), {"c": 3}),
    ((1,), {"a": 3}),
]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("args", "kwargs"), CALLS)
def test_arguments_go_to_the_parameters_that_python_gives_them_to(
    function: Callable[..., Any], args: tuple[int, ...], kwargs: dict[str, int]
) -> None:
    by_name = step(function)._resolved().by_name
    try:
        expected = dict(inspect.signature(function).bind(*args, **kwargs).arguments)
    except TypeError as error:
        with pytest.raises(TypeError, match=str(error)):
            by_name(args, kwargs)
    else:
        assert list(by_name(args, kwargs).items()) == list(expected.items())
