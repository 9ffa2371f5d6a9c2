"""What the tree of supervisors starts and stops here: one actor, or all actors of a class that come to life on demand."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from understudy.actors import parking, standing, stopping, views
from understudy.errors import StateUndecodable
from understudy.events import ActorRestarted, ActorStopped, Escalated
from understudy.supervisor.intensity import RestartWindow
from understudy.supervisor.member import StoppedForGood
from understudy.supervisor.picture import Picture
from understudy.supervisor.policy import Policy
from understudy.supervisor.specs import Child
from understudy.supervisor.tree import RunningSupervisor

if TYPE_CHECKING:
    from understudy.actors.activation import Activation
    from understudy.actors.kinds import ActorType
    from understudy.actors.system import System


def _why(system: System) -> str:
    return "shutdown" if system.is_ending() else "stopped by its supervisor"


def policy_under(policy: Policy, supervisor: RunningSupervisor | None) -> Policy:
    """Return the rules for an actor with *policy*: its own, then its supervisors', from the nearest to the root."""
    rules = list(policy)
    while supervisor is not None:
        rules += supervisor.spec.policy or ()
        supervisor = supervisor.parent
    return Policy(*rules)


class StaticActor:
    """A static child: started by its supervisor, kept in memory, and its failures are the supervisor's to deal with."""

    def __init__(self, system: System, type: ActorType, spec: Child, supervisor: RunningSupervisor) -> None:
        self.child_id = spec.id
        self.incarnation = 0
        self.supervisor = supervisor
        self.retired: str | None = None  # why it does not come back by itself
        self.policy = policy_under(type.policy, supervisor)
        self.activation: Activation | None = None
        self._abandoned = 0  # how often
        self._preparing = False  # its on_start runs
        self._system = system
        self._type = type
        self._spec = spec
        type.statics[spec.id] = self

    def call_up(self) -> Activation:
        """Return the actor, in memory or on its way there."""
        type = self._type
        activation = type.live.get(self.child_id) or self._system.population.activate(type, self.child_id)
        activation.member = self
        self.activation = activation
        return activation

    def start(self) -> Coroutine[Any, Any, None] | None:
        """Make its object and run its `on_start`; raises what that raises."""
        self.retired = None
        activation = self.call_up()
        if not activation.ready:
            return self._start_loaded(activation)
        return self._start(activation)

    async def _start_loaded(self, activation: Activation) -> None:
        await activation.door.enter()
        pending = self._start(activation)
        if pending is not None:
            await pending

    def _start(self, activation: Activation) -> Coroutine[Any, Any, None] | None:
        if activation.status == "suspended":
            return None  # It is there, and held until somebody resumes it.
        if activation.status == "stopped":
            raise StoppedForGood(activation.reason)
        if activation.status == "waiting":
            parking.unpark(activation)  # A static child stays in memory, and waits there.
            activation.status = "down"
        if activation.status == "active" and stopping.has_to_end(activation):
            return self._take_over(activation)
        try:
            made = activation.new_object(activation.state.current())
        except StateUndecodable as error:
            standing.suspend(activation, str(error))
            return None
        if self._type.starts or activation.releasing:
            return self._prepare(activation, made)
        self._live(activation, made)
        return None

    async def _take_over(self, activation: Activation) -> None:
        """End what an actor does that was one on demand until now: an object is never replaced while a turn runs."""
        standing.go_down(activation)
        await stopping.stop_actors(self._system, [activation], self._spec.shutdown_s, "it becomes a static child")
        pending = self._start(activation)
        if pending is not None:
            await pending

    async def _prepare(self, activation: Activation, made: Any) -> None:
        abandoned = self._abandoned
        self._preparing = True
        try:
            if activation.releasing:
                await stopping.wait_released(activation.releasing, self._spec.shutdown_s)
            await views.prepare_object(activation, made)
        finally:
            if abandoned == self._abandoned:
                self._preparing = False
        if abandoned == self._abandoned:  # Else it has swallowed its cancellation, and others may run by now.
            self._live(activation, made)

    def _live(self, activation: Activation, made: Any) -> None:
        if activation.status == "suspended":
            return  # Meanwhile.
        activation.object = made
        activation.status, activation.reason = "active", ""
        if self.incarnation == 1:
            self._system.watching.notice(activation, "started", "")
        activation.pump()

    def stop(self, shutdown_s: float) -> Coroutine[Any, Any, None] | None:
        """End its turns and let its object release what it took, within *shutdown_s*."""
        activation = self.activation
        if activation is None:
            return None
        standing.go_down(activation)
        if not stopping.has_to_end(activation):
            activation.object = None
            return None
        return stopping.stop_actors(self._system, [activation], shutdown_s, _why(self._system))

    def abandon(self) -> None:
        """End it without waiting."""
        self._abandoned += 1
        if self.activation is not None:
            standing.go_down(self.activation)
            stopping.abandon_all(self.activation, _why(self._system))
            if self._preparing:
                self._preparing = False
                stopping.report_abandoned(self.activation, self._spec.shutdown_s)

    def retire(self, reason: str) -> None:
        """Refuse its mail from now on."""
        self.retired = reason
        activation = self.activation or self._type.live.get(self.child_id)  # It may be there from an earlier start.
        if activation is not None:
            was, why = activation.status, activation.reason
            standing.retire(activation, reason)
            # One that ended by itself has told the trace so.
            if was != activation.status and not (was == "down" and why == reason):
                self._system.recorder.emit_actor(ActorStopped, activation, reason=reason)

    def forget(self, reason: str) -> None:
        """Be no child any more: the actor may leave memory, and is one on demand if its class is a template too."""
        self.retire(reason)
        activation = self.activation or self._type.live.get(self.child_id)
        if self._type.statics.get(self.child_id) is self:
            del self._type.statics[self.child_id]
        self._system.supervision.expect_no_more(self._type, self.child_id)
        if activation is None or activation.member is not self:
            return
        activation.member = None
        group = self._type.group
        if activation.status == "retired" and group is not None and group.up:
            activation.status, activation.reason = "active", ""
            activation.pump()

    def is_held(self) -> bool:
        """Whether its actor is suspended, or stopped for good."""
        return self.activation is not None and self.activation.status in standing.HELD

    def revive(self) -> Callable[[str], None]:
        """Let it be started although it was held or stopped; return what undoes that."""
        activation = self.activation
        if activation is None or activation.status not in standing.HELD:
            return self.retire
        before = activation.status, activation.reason
        standing.revive(activation)
        return lambda _: standing.hold_again(activation, *before)

    def restarted(self, reason: str) -> None:
        """Tell the trace and who watches."""
        if self.activation is not None:
            self._system.recorder.emit_actor(ActorRestarted, self.activation, reason=reason)
            self._system.watching.notice(self.activation, "restarted", reason)

    def picture(self) -> Picture:
        """Return it as it can be drawn."""
        held = self.activation is not None and self.activation.status == "suspended"
        return Picture(
            role="child",
            name=self.child_id,
            kind=self._type.kind,
            id=self.child_id,
            status="suspended" if held else "running",
            restart=self._spec.restart,
        )


class Group:
    """A template: all actors of a class, and of the tools and agents that only it reaches."""

    def __init__(self, system: System, types: Sequence[ActorType], supervisor: RunningSupervisor | None) -> None:
        self.child_id = types[0].kind if types else "tools"
        self.incarnation = 0
        self.up = False
        self.retired: str | None = None
        self.supervisor = supervisor
        self._system = system
        self._types = list(types)
        spec = supervisor.spec if supervisor is not None else None
        self._limit = (spec.max_restarts, spec.within_s) if spec is not None else (3, 5.0)
        self._escalates = spec is not None and spec.on_exceeded == "escalate"
        self._window = RestartWindow(*self._limit)
        for type in types:
            self._take(type)

    def _take(self, type: ActorType) -> None:
        type.group = self
        type.turn_policy = policy_under(type.policy, self.supervisor)

    def adopt(self, type: ActorType) -> None:
        """Take one more class of actors."""
        self._types.append(type)
        self._take(type)

    def kinds(self) -> tuple[str, ...]:
        """Return the kinds of its actors."""
        return tuple(type.kind for type in self._types)

    def start(self) -> None:
        """Let its actors come to life, those with waiting mail at once."""
        self.up, self.retired = True, None
        self._window = RestartWindow(*self._limit)
        for activation in self._live():
            if activation.ready and activation.member is None and activation.status in ("down", "retired"):
                activation.status, activation.reason = "active", ""
                activation.pump()

    def _live(self) -> list[Activation]:
        return [each for type in self._types for each in type.live.values() if each.member is None]

    def stop(self, shutdown_s: float) -> Coroutine[Any, Any, None] | None:
        """End the turns of all its actors side by side, under one timer: the system's grace period."""
        self.up = False
        busy: list[Activation] = []
        for activation in self._live():
            standing.go_down(activation)
            if stopping.has_to_end(activation):
                busy.append(activation)
            else:
                activation.object = None
        if not busy:
            return None
        return stopping.stop_actors(self._system, busy, self._system.limits.grace_s, _why(self._system))

    def abandon(self) -> None:
        """End all its actors without waiting."""
        self.up = False
        for activation in self._live():
            standing.go_down(activation)
            stopping.abandon_all(activation, _why(self._system))

    def retire(self, reason: str) -> None:
        """Refuse the mail of all its actors from now on."""
        self.retired = reason
        for activation in self._live():
            standing.retire(activation, reason)

    def forget(self, reason: str) -> None:
        """Refuse the mail of all its actors: the class is no child any more."""
        self.retire(reason)

    def is_held(self) -> bool:
        """Never: what is held is one of its actors, not the class."""
        return False

    def revive(self) -> Callable[[str], None]:
        """Return what retires it again."""
        return self.retire

    def restarted(self, reason: str) -> None:
        """Tell the trace of each actor that is in memory."""
        for activation in self._live():
            if activation.depth:
                self._system.recorder.emit_actor(ActorRestarted, activation, reason=reason)
                self._system.watching.notice(activation, "restarted", reason)

    def ended_badly(self, activation: Activation, error: BaseException) -> None:
        """Count a message that ended badly; too many hold the actor, or fail the whole class as one child."""
        now_s = self._system.loop.time()
        if self._escalates:
            if self.up and not self._window.note(now_s) and self.supervisor is not None:
                reason = self._too_many(error)
                self._system.supervision.note(Escalated, self.supervisor.name, child=self.child_id, reason=reason)
                self.supervisor.child_exited(self, reason, error)
            return
        window = self._system.failing.get(activation.no)
        if window is None:
            window = self._system.failing[activation.no] = RestartWindow(*self._limit)
        if not window.note(now_s):
            del self._system.failing[activation.no]
            standing.suspend(activation, f"too many failures: {self._too_many(error)}.")

    def _too_many(self, error: BaseException) -> str:
        count, within_s = self._limit
        return f"more than {count} messages ended badly within {within_s:g} s, the last one with {type(error).__name__}: {error}"

    def picture(self) -> Picture:
        """Return it as it can be drawn."""
        first, *others = self._types
        return Picture(
            role="template",
            name=self.child_id,
            kind=first.kind,
            instances=sum(
                1
                for each in first.live.values()
                if each.member is None and each.status in ("active", "waiting", "suspended")
            ),
            restart="permanent",
            also=tuple(each.kind for each in others),
        )
