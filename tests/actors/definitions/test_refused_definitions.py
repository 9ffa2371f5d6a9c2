"""A class that would not do what its author means is refused when it is defined, with a sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from understudy import Actor, InvalidDefinition, System, handler, query, step, tool


class Total(msgspec.Struct):
    cents: int = 0


class NoDefault(msgspec.Struct):
    cents: int


@dataclass
class Added:
    cents: int


def sync_handler() -> None:
    class Account(Actor):
        @handler  # type: ignore[arg-type]
        def deposit(self, cents: int) -> int:
            return cents


def sync_query() -> None:
    class Account(Actor):
        @query  # type: ignore[arg-type]
        def balance(self) -> int:
            return 0


def missing_parameter_annotation() -> None:
    class Account(Actor):
        @handler
        async def deposit(self, cents) -> int:  # type: ignore[no-untyped-def]
            return int(cents)


def missing_result_annotation() -> None:
    class Account(Actor):
        @handler
        async def deposit(self, cents: int):  # type: ignore[no-untyped-def]
            return cents


def variable_arguments() -> None:
    class Account(Actor):
        @handler
        async def deposit(self, *cents: int) -> int:
            return sum(cents)


def variable_keywords() -> None:
    class Account(Actor):
        @handler
        async def deposit(self, **cents: int) -> int:
            return sum(cents.values())


def public_coroutine() -> None:
    class Account(Actor):
        async def deposit(self, cents: int) -> int:
            return cents


def near_miss_setting() -> None:
    class Account(Actor):
        snapshot_evry = 5


def near_miss_policy() -> None:
    class Account(Actor):
        polcy = None


def wrong_concurrency() -> None:
    class Account(Actor):
        concurrency = 0


def setting_as_keyword() -> None:
    class Account(Actor, concurrency=3):
        pass


def concurrency_with_state() -> None:
    class Account(Actor[Total]):
        concurrency = 2


def events_without_apply() -> None:
    class Account(Actor[Total, Added]):
        pass


def wrong_policy() -> None:
    class Account(Actor):
        policy = "restart"  # type: ignore[assignment]


def wrong_kind() -> None:
    class Account(Actor, kind="a/b"):
        pass


def constructor_with_arguments() -> None:
    class Account(Actor):
        def __init__(self, cents: int) -> None:
            self.cents = cents


def wrong_raises() -> None:
    class Account(Actor):
        @handler(raises=["Overdrawn"])  # type: ignore[list-item]
        async def deposit(self) -> None: ...


def wrong_timeout() -> None:
    class Account(Actor):
        @handler(timeout_s=0)
        async def deposit(self) -> None: ...


def wrong_interrupted() -> None:
    @step(interrupted="never")  # type: ignore[arg-type]
    async def charge(cents: int) -> None: ...


def tool_without_annotation() -> None:
    @tool
    async def search(query) -> str:  # type: ignore[no-untyped-def]
        return str(query)


def tool_with_wrong_name() -> None:
    @tool(name="search the web")
    async def search(query: str) -> str:
        return query


@pytest.mark.parametrize(
    ("define", "says"),
    [
        (sync_handler, r"deposit is a plain 'def'; write 'async def' under @handler"),
        (sync_query, r"balance is a plain 'def'; write 'async def' under @query"),
        (missing_parameter_annotation, r"parameter 'cents' has no annotation; write its type, e.g. cents: int"),
        (missing_result_annotation, r"deposit has no return annotation; write '-> None'"),
        (variable_arguments, r"deposit takes \*cents: .*name every parameter"),
        (variable_keywords, r"deposit takes \*\*cents: .*name every parameter"),
        (
            public_coroutine,
            r"deposit is a public coroutine without a decorator; make it a @handler, .*call it _deposit",
        ),
        (near_miss_setting, r"snapshot_evry: no such setting; did you mean 'snapshot_every'\?"),
        (near_miss_policy, r"polcy: no such setting; did you mean 'policy'\?"),
        (wrong_concurrency, r"concurrency=0; expected a whole number, 1 or more"),
        (setting_as_keyword, r"Account: write concurrency = 3 in the body of the class"),
        (concurrency_with_state, r"concurrency=2 needs an actor without state"),
        (events_without_apply, r"records events but has no apply\(self, event\)"),
        (wrong_policy, r"policy='restart'; expected Policy"),
        (wrong_kind, r"kind='a/b'; expected 1 to 255 bytes without '/'"),
        (constructor_with_arguments, r"__init__ takes arguments; .* Use on_start"),
        (wrong_raises, r"raises= takes exception classes; got 'Overdrawn'"),
        (wrong_timeout, r"timeout_s=0; expected more than 0 seconds, or None"),
        (wrong_interrupted, r"interrupted must be one of 'rerun', 'fail'; got 'never'"),
        (tool_without_annotation, r"parameter 'query' has no annotation"),
        (tool_with_wrong_name, r"tool name 'search the web': expected 1 to 128 letters"),
    ],
)
def test_wrong_definition_is_refused_with_a_sentence(define: Callable[[], None], says: str) -> None:
    with pytest.raises(InvalidDefinition, match=says):
        define()


class Fine(Actor[Total], kind="fine"):
    """What a user may well write: helpers, constants, private coroutines, properties, hooks."""

    greeting = "hello"
    policies_of_the_bank = ("none",)

    @handler
    async def deposit(self, cents: int, *, note: str = "") -> int:
        return await self._helper(cents)

    async def _helper(self, cents: int) -> int:
        return cents

    def plain(self) -> None: ...

    async def on_start(self) -> None: ...

    @property
    def cents(self) -> int:
        return self.state.cents


class NeedsState(Actor[NoDefault], kind="needs_state"):
    pass


class Twin(Actor, kind="fine"):
    pass


class Unstorable(Actor, kind="unstorable"):
    @handler
    async def take(self, what: int | str | bytes | list[int] | set[int]) -> None: ...


class Forward(Actor, kind="forward"):
    @handler
    async def take(self, what: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("children", "settings", "says"),
    [
        ([Fine, Twin], {}, "have one kind, 'fine'"),
        ([NeedsState], {}, "Give every field of the state a default"),
        ([Unstorable], {}, "unstorable.take: a type in its signature cannot be stored"),
        ([Forward], {}, "forward.take: an annotation names 'Missing', which does not exist"),
        ([Total], {}, r"takes actor classes, tools, Child\(...\) and Supervisor\(...\); got <class '.*Total'>"),
        ([Actor], {}, "takes actor classes"),
        ([Fine], {"trace": "none"}, "trace must be one of 'steps', 'all'; got 'none'"),
    ],
)
def test_wrong_system_is_refused_before_it_opens(tmp_path: Any, children: Any, settings: Any, says: str) -> None:
    with pytest.raises(InvalidDefinition, match=says):
        System(tmp_path / "store.db", children, **settings)

    assert list(tmp_path.iterdir()) == []
