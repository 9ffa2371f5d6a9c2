"""Awkward values at every way in: each comes out exactly as it went in, or is refused before anything is stored.

Annotations are evaluated here at once (no `from __future__`): the classes below are made for one type each.
"""

import dataclasses
import datetime as dt
import decimal
import enum
import math
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import attrs
import msgspec
import pytest

from understudy import Actor, EncodingFailed, InvalidArguments, System, handler, query, step
from understudy.codec import Codec, decode_or_suspend, digest, encode, text_bytes
from understudy.errors import StateUndecodable

try:
    import pydantic
except ImportError:  # pragma: no cover - an optional package
    pydantic = None  # type: ignore[assignment]

pytestmark = pytest.mark.anyio


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1


class Flag(enum.IntFlag):
    A = 1
    B = 2


class Point(msgspec.Struct, frozen=True):
    x: int
    y: float = 0.0


class Tree(msgspec.Struct):
    children: list["Tree"] = []


class Cat(msgspec.Struct, tag=True):
    lives: int = 9


class Dog(msgspec.Struct, tag=True):
    name: str = ""


@dataclasses.dataclass
class Data:
    name: str
    when: dt.date
    tags: set[str] = dataclasses.field(default_factory=set)


@attrs.define
class Attrs:
    amount: decimal.Decimal
    parts: tuple[int, ...] = ()


class Typed(TypedDict, total=False):
    a: int
    b: bytes


class Named(NamedTuple):
    first: str
    second: int = 2


def deep(depth: int) -> Tree:
    tree = Tree()
    for _ in range(depth):
        tree = Tree([tree])
    return tree


def circular() -> list[Any]:
    items: list[Any] = []
    items.append(items)
    return items


UTC = dt.UTC
PLUS_FIVE = dt.timezone(dt.timedelta(hours=5, minutes=30))
KEEPS: list[tuple[str, Any, Any]] = [
    ("none", None, None),
    ("bool", bool, True),
    ("zero", int, 0),
    ("largest int", int, 2**64 - 1),
    ("smallest int", int, -(2**63)),
    ("infinity", float, math.inf),
    ("minus zero", float, -0.0),
    ("nan", float, math.nan),
    ("smallest float", float, 5e-324),
    ("empty text", str, ""),
    ("text with nul", str, "a\0b"),
    ("astral text", str, "🎭\u200d\U0010ffff"),
    ("long text", str, "x" * 70_000),
    ("bytes", bytes, bytes(range(256))),
    ("bytearray", bytearray, bytearray(b"\0\xff")),
    ("list", list[int | None], [1, None]),
    ("tuple", tuple[int, str], (1, "a")),
    ("open tuple", tuple[int, ...], ()),
    ("set", set[int], {3, 1, 2}),
    ("frozenset", frozenset[str], frozenset({"a", "b"})),
    ("set of tuples", set[tuple[int, str]], {(1, "a"), (2, "b")}),
    ("dict with int keys", dict[int, str], {1: "a", -1: "b"}),
    ("dict with date keys", dict[dt.date, int], {dt.date(2026, 1, 1): 1}),
    ("dict in its order", dict[str, int], {"b": 1, "a": 2}),
    ("datetime", dt.datetime, dt.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)),
    ("datetime elsewhere", dt.datetime, dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=PLUS_FIVE)),
    ("naive datetime", dt.datetime, dt.datetime(1, 1, 1, 0, 0, 0, 1)),  # noqa: DTZ001 - is data too
    ("last datetime", dt.datetime, dt.datetime.max.replace(tzinfo=UTC)),
    ("date", dt.date, dt.date(1, 1, 1)),
    ("time", dt.time, dt.time(23, 59, 59, 999999)),
    ("timedelta", dt.timedelta, dt.timedelta(days=-1, microseconds=1)),
    ("decimal", decimal.Decimal, decimal.Decimal("0.10")),
    ("large decimal", decimal.Decimal, decimal.Decimal("1E+1000")),
    ("decimal infinity", decimal.Decimal, decimal.Decimal("Infinity")),
    ("uuid", uuid.UUID, uuid.UUID(int=1)),
    ("enum", Colour, Colour.BLUE),
    ("int enum", Level, Level.LOW),
    ("flag", Flag, Flag.B),
    ("literal", Literal["a", 1], 1),
    ("struct", Point, Point(1, 2.5)),
    ("recursive struct", Tree, deep(50)),
    ("union of structs", Cat | Dog, Dog("Rex")),
    ("dataclass", Data, Data("a", dt.date(2026, 1, 1), {"x"})),
    ("attrs", Attrs, Attrs(decimal.Decimal("1.50"), (1, 2))),
    ("typed dict", Typed, {"b": b"\xff"}),
    ("named tuple", Named, Named("a")),
    ("any", Any, {"a": [1, "x", None, True, 1.5, b"y"]}),
]
REFUSED: list[tuple[str, Any, Any]] = [
    ("lone surrogate", str, "\ud800"),
    ("surrogate in a key", dict[str, int], {"\udfff": 1}),
    ("int beyond 64 bits", int, 2**64),
    ("int below 64 bits", int, -(2**63) - 1),
    ("int beyond, nested", list[int], [1, 2**100]),
    ("text for a number", int, "5"),
    ("fraction for a number", int, 0.5),
    ("bool for a number", int, True),
    ("none for a number", int, None),
    ("text for bytes", bytes, "text"),
    ("wrong element", list[int], [1, "a"]),
    ("wrong length", tuple[int, int], (1,)),
    ("unknown member", Literal["a"], "b"),
    ("member of another enum", Level, 7),
    ("wrong field", Point, {"x": "a"}),
    ("constraint", Annotated[int, msgspec.Meta(ge=0)], -1),
    ("any: object", Any, object()),
    ("any: function", Any, len),
    ("any: class", Any, int),
    ("any: lone surrogate", Any, ["\ud800"]),
    ("any: complex", Any, 1j),
    ("any: circular", Any, circular()),
    ("too deep", Tree, deep(100_000)),
    ("generator", list[int], (number for number in range(3))),
]
if pydantic is not None:

    class Model(pydantic.BaseModel):
        name: str
        when: dt.datetime
        amounts: list[decimal.Decimal] = []

    KEEPS.append(
        ("pydantic model", Model, Model(name="a", when=dt.datetime(2026, 1, 1, tzinfo=UTC), amounts=["1.10"]))  # type: ignore[list-item]
    )
    KEEPS.append(("pydantic models", list[Model], [Model(name="b", when=dt.datetime(2026, 1, 1, tzinfo=UTC))]))


def same(one: Any, other: Any) -> bool:
    """Of one type and equal, also in what `==` does not look at: the sign of zero, the digits of a decimal."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float) and math.isnan(one):
        return math.isnan(other)
    if isinstance(one, (float, decimal.Decimal)):
        return repr(one) == repr(other)
    if isinstance(one, dict):
        return list(one.items()) == list(other.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def echo_class(of: Any) -> type[Any]:
    """An actor whose messages, replies, state, events and steps are of the type."""

    class Holder(msgspec.Struct):
        items: list[of] = []

    @step
    async def make(produce: int) -> of:
        return BOX[produce]

    class Echo(Actor[Holder], kind="echo"):
        @handler
        async def echo(self, value: of) -> of:
            return value

        @handler
        async def keep(self, value: of) -> int:
            self.state.items = [value]
            return 1

        @handler
        async def kept(self) -> of:
            return self.state.items[0]

        @handler
        async def reply(self, number: int) -> of:
            return BOX[number]

        @handler
        async def put(self, number: int) -> int:
            self.state.items = [BOX[number]]
            return 1

        @handler
        async def by_step(self, number: int) -> of:
            return await make(number)

        @query
        async def ask(self, value: of) -> of:
            return value

        @query
        async def read(self, number: int) -> of:
            return BOX[number]

    return Echo


BOX: list[Any] = [None]


@pytest.mark.parametrize(("of", "value"), [pytest.param(of, value, id=name) for name, of, value in KEEPS])
async def test_value_comes_out_exactly_as_it_went_in(tmp_path: Path, of: Any, value: Any) -> None:
    cls = echo_class(of)
    path = tmp_path / "a.db"
    BOX[0] = value
    async with System(path, [cls]) as system:
        echo = system.actor(cls, "e")
        job = await echo.echo.submit(value)
        keyed = echo.echo.options(key="k")
        outs = {
            "ask": await echo.echo(value),
            "submit": await job,
            "key": await keyed(value),
            "same key again": await keyed(value),
            "query": await echo.ask(value),
            "step": await echo.by_step(0),
            "reply": await echo.reply(0),
        }
        await echo.keep(value)
    async with System(path, [cls]) as system:
        echo = system.actor(cls, "e")
        outs |= {
            "job after a restart": await system.job(job.id, cls.echo),
            "key after a restart": await echo.echo.options(key="k")(value),
            "state after a restart": await echo.kept(),
        }

    wrong = {where: out for where, out in outs.items() if not same(value, out)}
    assert not wrong


@pytest.mark.parametrize(("of", "value"), [pytest.param(of, value, id=name) for name, of, value in REFUSED])
@pytest.mark.parametrize("how", ["ask", "tell", "submit", "key", "query"])
async def test_value_that_is_no_data_is_refused_before_anything_is_stored(
    tmp_path: Path, of: Any, value: Any, how: str
) -> None:
    cls = echo_class(of)
    async with System(tmp_path / "a.db", [cls]) as system:
        echo = system.actor(cls, "e")
        calls: dict[str, Callable[[Any], Any]] = {
            "ask": echo.echo,
            "tell": echo.echo.tell,
            "submit": echo.echo.submit,
            "key": echo.echo.options(key="k"),
            "query": echo.ask,
        }
        with pytest.raises((EncodingFailed, InvalidArguments)) as caught:
            await calls[how](value)

        assert "echo." in str(caught.value)
        assert [row async for row in system.actors()] == []


@pytest.mark.parametrize(("of", "value"), [pytest.param(of, value, id=name) for name, of, value in REFUSED])
@pytest.mark.parametrize("how", ["reply", "submit", "step", "state", "query"])
async def test_result_or_state_that_is_no_data_is_refused_and_the_actor_goes_on(
    tmp_path: Path, of: Any, value: Any, how: str
) -> None:
    cls = echo_class(of)
    BOX[0] = value
    async with System(tmp_path / "a.db", [cls]) as system:
        echo = system.actor(cls, "e")

        async def call() -> Any:
            match how:
                case "reply":
                    return await echo.reply(0)
                case "submit":
                    return await (await echo.reply.submit(0))
                case "step":
                    return await echo.by_step(0)
                case "state":
                    return await echo.put(0)
                case _:
                    return await echo.read(0)

        with pytest.raises(EncodingFailed):
            await call()

        assert system.failure is None
        (row,) = [row async for row in system.actors()] or [None]
        assert row is None or row.status == "active"


def test_digest_is_the_same_for_equal_values_in_any_order() -> None:
    assert digest({"a": 1, "b": {3, 1, 2}}) == digest({"b": {2, 3, 1}, "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert digest([1, 2]) != digest([2, 1])
    assert digest({1: "a", 2: "b"}) == digest({2: "b", 1: "a"})
    assert digest({1: "a", 2: "b"}) != digest({1: "b", 2: "a"})


def test_encoded_dict_keeps_its_order() -> None:
    assert list(msgspec.msgpack.decode(encode({"b": 1, "a": 2}))) == ["b", "a"]


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", b"\x80", b"\xd9\xff", b"\x01\x01", b"\xdf\xff\xff\xff\xff", b"\x91" * 100_000]
)
def test_bytes_that_are_no_value_are_an_error_that_names_them(body: bytes) -> None:
    decode = Codec(lambda _cls, _data: NotImplemented).decoder(Tree if body[:1] == b"\x91" else Point)

    with pytest.raises(StateUndecodable, match="the state of x"):
        decode_or_suspend(decode, body, "the state of x")


def test_error_of_a_users_hook_is_an_error_that_names_the_bytes() -> None:
    class Picky(msgspec.Struct):
        x: int

        def __post_init__(self) -> None:
            raise KeyError("picky")

    decode = Codec(lambda _cls, _data: NotImplemented).decoder(Picky)

    with pytest.raises(StateUndecodable, match="picky"):
        decode_or_suspend(decode, b"\x81\xa1x\x01", "a state")


@pytest.mark.parametrize(("text", "size"), [("", 0), ("a", 1), ("ü", 2), ("🎭", 4), ("\0", 1)])
def test_names_are_measured_in_bytes(text: str, size: int) -> None:
    assert text_bytes(text, "a name") == size
