"""How a message gets to an actor: checked, encoded, and handed over, from outside or from inside a turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from understudy.actors import asking, keys, views
from understudy.actors.handler import Options
from understudy.actors.job import Job
from understudy.actors.turn import scope
from understudy.errors import LimitExceeded

if TYPE_CHECKING:
    from understudy.actors.activation import Activation
    from understudy.actors.kinds import ActorType, BoundHandler
    from understudy.actors.system import System


class ActorTarget:
    """One actor of one system, as its refs see it."""

    __slots__ = ("cls", "id", "kind", "system", "type")

    def __init__(self, system: System, type: ActorType, id: str) -> None:
        self.system = system
        self.type = type
        self.id = id
        self.kind = type.kind
        self.cls = type.cls

    @property
    def name(self) -> str:
        """How errors and logs call it."""
        return f"{self.kind}/{self.id}"

    def here(self) -> Activation | None:
        """Return the actor when it is in memory and a sender may go on at once."""
        activation = self.type.live.get(self.id)
        return activation if activation is not None and activation.is_open() else None

    async def enter(self) -> Activation:
        """Return the actor in memory, loaded; go on without an await after it, so that the order of senders holds."""
        activation = self.type.live.get(self.id)
        if activation is None:
            activation = self.system.population.activate(self.type, self.id)
        if not activation.is_open():
            await activation.door.enter()
        return activation

    def _encoded(self, handler: BoundHandler, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes, Any]:
        body, arguments = handler.wire.encode(args, kwargs)
        limit = self.system.limits.payload_bytes
        if len(body) > limit:
            raise LimitExceeded(
                f"the arguments of {handler.where} are {len(body)} bytes, more than Limits.payload_bytes={limit}; "
                "nothing was stored. Store large data elsewhere and send its address.",
                limit="payload_bytes",
                value=len(body),
                value_max=limit,
            )
        return body, arguments

    async def ask(self, name: str, options: Options, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Send and wait for the reply."""
        system = self.system
        system.check_usable()
        handler = self.type.handlers[name]
        turn = scope.get()
        if turn is not None and turn.activation.system is system:
            turn.check(handler.where)
            body, arguments = self._encoded(handler, args, kwargs)
            return await asking.ask(turn, self, handler, options, body, arguments)
        system.check_accepting()
        body, arguments = self._encoded(handler, args, kwargs)
        if system.committer.behind():
            await system.committer.wait_room()
        activation = self.here() or await self.enter()
        if options.key is not None:
            no = await keys.send_keyed(activation, handler, options, body, arguments)
            return handler.reply(await system.jobs.outcome(no))
        waiter = system.loop.create_future()
        activation.send(handler, options, body, arguments, waiter=waiter)
        try:
            return await waiter
        finally:
            del waiter  # An error that it holds knows this frame by its traceback.

    async def tell(self, name: str, options: Options, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Send; return when the message is stored."""
        system = self.system
        system.check_usable()
        handler = self.type.handlers[name]
        turn = scope.get()
        if turn is not None and turn.activation.system is system:
            turn.check(handler.where)
            body, arguments = self._encoded(handler, args, kwargs)
            activation = await self.enter()
            if options.key is not None:
                taken = await keys.find_key(activation, handler, options.key, handler.wire.digest(arguments))
                activation.door.release()
                if taken is not None:
                    return
            turn.check(handler.where)
            await turn.tell(activation, handler, options, body, arguments)
            return
        system.check_accepting()
        body, arguments = self._encoded(handler, args, kwargs)
        if system.committer.behind():
            await system.committer.wait_room()
        activation = self.here() or await self.enter()
        if options.key is not None:
            await keys.send_keyed(activation, handler, options, body, arguments)
        else:
            activation.send(handler, options, body, arguments)
        if (durable := system.committer.durable_soon()) is not None:
            await durable

    async def submit(self, name: str, options: Options, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Job[Any]:
        """Send; return a durable handle when the message is stored."""
        system = self.system
        system.check_usable()
        handler = self.type.handlers[name]
        turn = scope.get()
        returns = handler.wire.signature.returns
        if turn is not None and turn.activation.system is system:
            turn.check(handler.where)
            body, arguments = self._encoded(handler, args, kwargs)
            return Job(system.jobs, await asking.submit(turn, self, handler, options, body, arguments), returns)
        system.check_accepting()
        body, arguments = self._encoded(handler, args, kwargs)
        if system.committer.behind():
            await system.committer.wait_room()
        activation = self.here() or await self.enter()
        if options.key is not None:
            no = await keys.send_keyed(activation, handler, options, body, arguments)
        else:
            no = activation.send(handler, options, body, arguments, keep=True).no
        await system.committer.wait_durable()
        return Job(system.jobs, system.job_id(no), returns)

    async def ask_query(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Read beside the running turn."""
        system = self.system
        system.check_usable()
        handler = self.type.queries[name]
        turn = scope.get()
        if turn is not None and (turn.within is not None or turn.activation.system is not system):
            turn = None
        _, arguments = self._encoded(handler, args, kwargs)
        activation = await self.enter()
        return await views.query(activation, handler, arguments, turn)
