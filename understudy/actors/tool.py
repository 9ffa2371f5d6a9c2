"""Tools: functions that a model may call. Each is an actor of its own, whose body is a step.

Its signature and docstring are what the model reads. Called by hand inside a handler, a tool is a message to its
actor; outside any turn it is a plain call.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar, overload

import msgspec

from understudy.actors import approvals
from understudy.actors.actor import Actor
from understudy.actors.body import run_function
from understudy.actors.handler import PLAIN, tool_name
from understudy.actors.kinds import ActorType, BoundHandler
from understudy.actors.performing import Interrupted, Spec, perform
from understudy.actors.signature import Signature, Wire, check_annotations
from understudy.actors.step import Arguments, Step
from understudy.actors.turn import Turn, current_turn, scope
from understudy.codec import Codec
from understudy.errors import (
    ApprovalRejected,
    EncodingFailed,
    InvalidDefinition,
    LimitExceeded,
    OutcomeUnknown,
    StepFailed,
    StepTimeout,
)
from understudy.supervisor.policy import Policy, answer, on

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

SHARED = "shared"  # id of a tool's one actor


class Rate(msgspec.Struct, frozen=True):
    """At most `count` calls per `per_s` seconds."""

    count: float
    per_s: float = 1.0


class ToolActor(Actor):
    """The actor of one tool: no state, several turns at a time; what its body raises is its answer."""

    policy = Policy(on((StepFailed, StepTimeout, OutcomeUnknown, EncodingFailed, LimitExceeded), answer()))


class Tool(Step[P, R_co]):
    """A function that a model may call."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        timeout_s: float | None = None,
        concurrency: int = 8,
        rate: Rate | None = None,
        raises: Sequence[type[Exception]] = (),
        interrupted: Interrupted = "rerun",
        policy: Policy | None = None,
        approval: approvals.Asks = "never",
    ) -> None:
        super().__init__(
            function, name=name, timeout_s=timeout_s, policy=policy, raises=raises, interrupted=interrupted
        )
        check_annotations(function, f"tool {self.name}", method=False)
        if self.name != tool_name(self.name) or not self.name:
            raise InvalidDefinition(
                f"tool name {self.name!r}: expected 1 to 128 letters, digits, '_' or '-', as models take them."
            )
        if concurrency < 1:
            raise InvalidDefinition(f"tool {self.name}: concurrency={concurrency}; expected 1 or more.")
        if rate is not None and not (rate.count > 0 and rate.per_s > 0):
            raise InvalidDefinition(f"tool {self.name}: {rate}; expected a count and seconds above 0.")
        approvals.check_asks(approval, self.name, list(inspect.signature(function).parameters))
        if approval != "never" and any(each.amendment is not None for rule in policy or () for each in rule.reactions):
            raise InvalidDefinition(
                f"tool {self.name}: its policy amends arguments, and approval={approval!r} binds them to what a person has "
                "seen. Take out one of the two."
            )
        self.approval: approvals.Asks = approval
        self.concurrency = concurrency
        self.rate = rate
        self.kind = f"tool:{self.name}"

    @property
    def tool_name(self) -> str:
        """What a model calls it by."""
        return self.name

    def signature(self) -> Signature:
        """Return its parameters and result, resolved."""
        return self._resolved().signature

    async def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        turn = scope.get()
        if turn is None:
            return await run_function(self.function, args, kwargs)
        turn.check(f"tool {self.name}")
        if self.approval != "never":
            await self._wait_approval(turn, args, kwargs)
        return await turn.activation.system.tool_target(self).ask("call", PLAIN, args, kwargs)

    async def _wait_approval(self, turn: Turn, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Wait until a person has approved a call by hand, if they are to be asked; raises `ApprovalRejected`."""
        wire = turn.activation.system.tool_target(self).type.handlers["call"].wire
        _, arguments = wire.encode(args, kwargs)
        rejected = await self.rejection(turn, arguments, wire.digest(arguments))
        if rejected is not None:
            raise ApprovalRejected(
                f"a person rejected the call of tool {self.name}: {rejected}", tool=self.name, reason=rejected
            )

    async def rejection(
        self, turn: Turn, arguments: Any, match: bytes, shown: dict[str, Any] | None = None
    ) -> str | None:
        """Wait for a person if this call needs one; return why it was rejected, or None.

        *match* tells this call from others of the turn; *shown* are the arguments as their author wrote them.
        """
        given = {name: getattr(arguments, name) for name in arguments.__struct_fields__}
        if not approvals.is_needed(turn, self.approval, self.name, given, match):
            return None
        decision = await approvals.ask(turn, self.name, given if shown is None else shown, match)
        return None if decision.approved else decision.reason


class ToolType(ActorType):
    """One tool in one system."""

    def __init__(self, tool: Tool[..., Any], codec: Codec) -> None:
        namespace = {"concurrency": tool.concurrency, "__doc__": tool.__doc__}
        cls = type(f"Tool_{tool.name}", (ToolActor,), namespace, kind=tool.kind)
        super().__init__(cls, codec, "tool")
        self.tool = tool
        self._limiter: tuple[asyncio.AbstractEventLoop, Any] | None = None
        bound = BoundHandler.__new__(BoundHandler)
        bound.name = "call"
        bound.where = tool.name
        bound.raises = tool.raises
        bound.timeout_s = None
        bound.alone = 0
        bound.wire = Wire(tool.signature(), codec)
        bound.function = functools.partial(self._call, bound)
        self.handlers["call"] = bound

    async def _call(self, bound: BoundHandler, _actor: Any, *args: Any) -> Any:
        tool = self.tool
        turn = current_turn()
        given = dict(zip(bound.wire.parameters, args, strict=True))
        body = functools.partial(tool.function, **given)
        # The body is a step: it starts after the commit that covers its message and the answer that caused it.
        spec = Spec(
            tool.name,
            body,
            timeout_s=tool.timeout_s,
            policies=tool.policies(turn),
            raises=tool.raises,
            interrupted=tool.interrupted,
            role="tool",
            quiet=True,
            gate=self._wait_rate if tool.rate is not None else None,
        )
        spec.input = functools.partial(Arguments, tool, turn, given)
        return await perform(turn, spec, b"", bound.wire.decode_result)

    async def _wait_rate(self) -> None:
        from aiolimiter import AsyncLimiter

        loop = asyncio.get_running_loop()
        if self._limiter is None or self._limiter[0] is not loop:
            assert self.tool.rate is not None
            self._limiter = (loop, AsyncLimiter(self.tool.rate.count, self.tool.rate.per_s))
        await self._limiter[1].acquire()


class _ToolMaker(Protocol):
    @overload
    def __call__(self, function: Callable[P, Awaitable[R]], /) -> Tool[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Tool[P, R]: ...


@overload
def tool(function: Callable[P, Awaitable[R]], /) -> Tool[P, R]: ...
@overload
def tool(function: Callable[P, R], /) -> Tool[P, R]: ...
@overload
def tool(
    *,
    name: str | None = None,
    timeout_s: float | None = None,
    concurrency: int = 8,
    rate: Rate | None = None,
    raises: Sequence[type[Exception]] = (),
    interrupted: Interrupted = "rerun",
    policy: Policy | None = None,
    approval: approvals.Asks = "never",
) -> _ToolMaker: ...
def tool(function: Any = None, /, **options: Any) -> Any:
    """Make a function a tool: the model reads its docstring and signature; its body is a journaled step.

    Args:
        name: What the model and the store call it (default: the function's name).
        timeout_s: Longer runs end as `StepTimeout`.
        concurrency: How many calls run at a time in the whole system.
        rate: How often calls may start.
        raises: Errors that arrive as themselves.
        interrupted: What a crash while it runs means: "rerun" runs it again; "fail" tells the model that nobody knows.
        policy: What becomes of failures of its body.
        approval: "always" lets each call inside a turn wait until a person approves it with exactly these arguments;
            a function of the arguments by name, not async, says of each call whether to ask. A call outside any turn is a
            plain call, and asks nobody.
    """

    def make(wrapped: Callable[..., Any]) -> Tool[..., Any]:
        return Tool(wrapped, **options)

    if function is None:
        return make
    return make(function)
