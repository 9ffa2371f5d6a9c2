"""A durable handle to one message: await it, ask for its status, cancel it, today or after a restart."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator
from typing import Any, Generic, Literal, Protocol

import msgspec
from typing_extensions import TypeVar

from understudy.actors.approval import Approval
from understudy.events import StreamEvent

R_co = TypeVar("R_co", covariant=True)
JobState = Literal["queued", "running", "waiting", "suspended", "done", "failed", "cancelled"]


class JobStatus(msgspec.Struct, frozen=True):
    """Where a job is: `waiting` is a timer, a backoff, or the outside; `reason` tells for what, or of a suspension or
    failure.

    `usd` is what the runs of its turn, and all below them, have spent so far; None when it made none, or nobody knows.
    """

    state: JobState
    reason: str | None = None
    usd: float | None = None


class JobKeeper(Protocol):
    """What a job needs of its system."""

    async def wait_job(self, id: str, returns: Any) -> Any:
        """Return the decoded result, or raise the failure."""
        ...

    async def job_status(self, id: str) -> JobStatus:
        """Return where the job is."""
        ...

    async def cancel_job(self, id: str) -> None:
        """Cancel the message unless it has ended."""
        ...

    async def raise_job(self, id: str, limits: dict[str, Any]) -> None:
        """Set higher limits of its runs' budgets."""
        ...

    def stream_job(self, id: str) -> AsyncIterator[StreamEvent]:
        """Return a stream of what the job does."""
        ...

    async def job_approvals(self, id: str) -> list[Approval]:
        """Return the approvals that the job, and what it caused, wait for."""
        ...


class Job(Generic[R_co]):
    """A message that was submitted. Can be stored in state and passed in messages."""

    __slots__ = ("_keeper", "_returns", "id")

    def __init__(self, keeper: JobKeeper, id: str, returns: Any = Any) -> None:
        self._keeper = keeper
        self._returns = returns
        self.id = id

    def __await__(self) -> Generator[Any, None, R_co]:
        return self.result().__await__()

    async def result(self) -> R_co:
        """Wait for the outcome and return it; a cancelled waiter leaves the job alone.

        Raises:
            HandlerFailed: The message was given up; it is kept as a dead letter.
            JobCancelled: It was cancelled.
            ActorSuspended: Its actor is held; await again after `system.resume(...)`.
            NotFound: The id is unknown, or the outcome has expired.
        """
        result: R_co = await self._keeper.wait_job(self.id, self._returns)
        return result

    async def status(self) -> JobStatus:
        """Return where the job is now; raises `NotFound` for an unknown or expired id."""
        return await self._keeper.job_status(self.id)

    async def cancel(self) -> None:
        """Cancel it: withdrawn when queued, its turn cancelled when running, nothing when it has ended.

        Returns once the cancellation is durable. What its finished steps did stays done.
        """
        await self._keeper.cancel_job(self.id)

    async def raise_budget(
        self,
        *,
        usd: float | None = None,
        model_calls: int | None = None,
        tokens: int | None = None,
        wall_s: float | None = None,
    ) -> None:
        """Set higher limits of its agent's budget, for this run, and let the actors go on that it holds.

        Returns once that is durable; no finished step is repeated. `system.job(id)` takes the id of any message whose
        turn is a run, so also the one that `BudgetExceeded` names for what was told or asked.

        Raises:
            InvalidArguments: A limit is lower than before, or there was none; or it has ended and holds no actor.
            NotFound: It has made no run of an agent, or what is kept of it has expired.
        """
        limits = {"usd": usd, "model_calls": model_calls, "tokens": tokens, "wall_s": wall_s}
        await self._keeper.raise_job(self.id, limits)

    def stream(self) -> AsyncIterator[StreamEvent]:
        """Stream what an agent writes and calls for this job, as it happens, to be shown to people; ends with `Finished`.

        It may be attached at any time, today or after a restart, and by many. It starts with the newest answer as far as
        it has come, then goes on live:

        - `TextDelta` is the next piece of the text, not durable yet (JSON, of an agent with an output type).
        - `ToolCalled` ends that text: the answer that it belongs to is kept. Another text may follow.
        - `ApprovalRequested`: the job waits for a person, perhaps for long.
        - `Restarted` takes back all text since the last `ToolCalled`: another attempt begins, and what counts comes again.
        - `Finished`: the outcome, good or bad, is durable; await the job for it. A job that has ended says so at once.

        What an agent's sub-agents write is not in it; what they need a person for is. A job that is no agent's has
        `Finished` only. Leaving the loop leaves nothing behind, and the job alone.

        Raises:
            ActorSuspended: Its actor is held, so nothing comes for now; attach again after `system.resume(...)`.
            LimitExceeded: The reader fell too far behind; attach again.
            NotFound: The id is unknown, or the outcome has expired.
            SystemClosed: The system has ended before the job; attach again in its next life.
        """
        return self._keeper.stream_job(self.id)

    async def approvals(self) -> list[Approval]:
        """Return the calls of tools in the job's tree of messages that wait for a person's approval, oldest first."""
        return await self._keeper.job_approvals(self.id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"Job({self.id!r})"

    def __understudy_data__(self) -> str:
        return self.id
