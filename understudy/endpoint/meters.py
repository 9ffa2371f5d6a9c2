"""What one key may still send to one model family: our own count of it, beside what the service tells.

Both views stand side by side, and the lower one decides. *Ours* holds the configured limits and everything we sent.
*Theirs* holds what the newest answer's headers said, less the calls that the service cannot have counted yet; newer
headers replace it, upwards too, so that a view that was too careful does not stay. Without headers only ours counts,
without configured limits only theirs, without either nothing ever waits. Pure: every question names its time.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from understudy.endpoint.bucket import Bucket
from understudy.endpoint.model import Allowance, Meter
from understudy.errors import InvalidDefinition

_MINUTE_S = 60.0

# Headers do not know of calls that were sent after their own, and a call may be on its way for a while. One that is
# open for longer than this has been counted. Being careful for a sixth of a minute costs a sixth of the burst, never
# rate: the service's bucket then idles that much above zero. All open calls, however old, would be more than a whole
# bucket when answers take minutes, and would throttle.
_ARRIVED_AFTER_S = 10.0
# Output is counted while it is written, which headers come before. Half a minute writes most answers, and the reserve
# for half a minute is half a bucket: careful, and still no loss of rate.
_WRITTEN_AFTER_S = 30.0


class RateLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one key and model family, per minute; None means unknown, to be learnt from the service's headers.

    `burst_s` says how much may start at once after a pause, in seconds of refill. The default, a minute's worth, is
    what the service's own buckets hold. Services may enforce a limit over shorter times (60 a minute as 1 a second):
    when calls are refused although the minute is not used up, make it smaller. It costs burst, not rate.
    """

    requests_per_min: float | None = None
    input_tokens_per_min: float | None = None
    output_tokens_per_min: float | None = None
    burst_s: float = _MINUTE_S

    def __post_init__(self) -> None:
        wrong = [
            f"{name}={value!r} (expected a number above 0, or None to learn it from the service)"
            for name in ("requests_per_min", "input_tokens_per_min", "output_tokens_per_min")
            if (value := getattr(self, name)) is not None and not _is_number(value, 1e15)
        ]
        if not _is_number(self.burst_s, _MINUTE_S):
            wrong.append(f"burst_s={self.burst_s!r} (expected seconds above 0, at most {_MINUTE_S:g})")
        if wrong:
            raise InvalidDefinition(f"RateLimits is out of range: {', '.join(wrong)}.")


class Need(msgspec.Struct, frozen=True):
    """What one request is thought to need; the request itself counts as one."""

    input_tokens: int
    output_tokens: int


# Of each meter the part that counts when the request arrives, and the part that counts while the answer is written:
# requests, input tokens, output tokens, both kinds of tokens together.
_Parts = tuple[tuple[float, float], ...]


def _parts(requests: float, input_tokens: float, output_tokens: float) -> _Parts:
    return ((requests, 0.0), (input_tokens, 0.0), (0.0, output_tokens), (input_tokens, output_tokens))


class Reservation:
    """One open call. `seen` tells of each meter which parts the service has counted by itself in our view of it."""

    __slots__ = ("at", "number", "parts", "seen")

    def __init__(self, number: int, parts: _Parts, at: float) -> None:
        self.number = number
        self.parts = parts
        self.at = at
        self.seen: list[tuple[bool, bool]] = [(False, False)] * len(parts)


class Meters:
    """The meters of one key and model family."""

    def __init__(self, limits: RateLimits, now: float) -> None:
        self._burst = limits.burst_s / _MINUTE_S
        configured = (limits.requests_per_min, limits.input_tokens_per_min, limits.output_tokens_per_min, None)
        self._ours = [None if limit is None else self._bucket(limit, now) for limit in configured]
        self._theirs: list[Bucket | None] = [None] * len(configured)
        self._open: dict[int, Reservation] = {}
        self._started = 0
        self._newest_heard = 0

    @property
    def open_calls(self) -> int:
        """How many calls have started and not ended."""
        return len(self._open)

    def levels(self, now: float) -> tuple[float | None, ...]:
        """Return what is left of requests, input tokens, output tokens, tokens; None where nothing is known."""
        return tuple(
            min((bucket.level(now) for bucket in pair if bucket is not None), default=None) for pair in self._pairs()
        )

    def wait_s(self, need: Need, now: float, *, ahead: Sequence[Need] = ()) -> float:
        """Return the seconds until a call may start after those *ahead*, if nothing else changes."""
        wanted = _parts(1, need.input_tokens, need.output_tokens)
        before = _parts(len(ahead), sum(each.input_tokens for each in ahead), sum(each.output_tokens for each in ahead))
        return max(
            (
                bucket.wait_s(sum(part), now, ahead=sum(first))
                for pair, part, first in zip(self._pairs(), wanted, before, strict=True)
                for bucket in pair
                if bucket is not None
            ),
            default=0.0,
        )

    def start(self, need: Need, now: float) -> Reservation:
        """Reserve what the call is thought to need."""
        self._started += 1
        reservation = Reservation(self._started, _parts(1, need.input_tokens, need.output_tokens), now)
        self._open[reservation.number] = reservation
        for pair, parts in zip(self._pairs(), reservation.parts, strict=True):
            for bucket in pair:
                if bucket is not None:
                    bucket.take(sum(parts), now)
        return reservation

    def end(self, reservation: Reservation, requests: int, input_tokens: int, output_tokens: int, now: float) -> None:
        """Put what the call really used in the place of its reservation."""
        del self._open[reservation.number]
        real = _parts(requests, input_tokens, output_tokens)
        for index, (reserved, used) in enumerate(zip(reservation.parts, real, strict=True)):
            ours, theirs = self._ours[index], self._theirs[index]
            if ours is not None:
                ours.refund(sum(reserved) - sum(used), now)
            if theirs is not None:  # What the service has counted itself is in its numbers at its real size.
                unseen = [a - b for a, b, seen in zip(reserved, used, reservation.seen[index], strict=True) if not seen]
                theirs.refund(sum(unseen), now)

    def learn(self, allowance: Allowance, answered: Reservation | None, now: float) -> None:
        """Take over what an answer's headers say; *answered* is the call that they answer, when it is known."""
        number = answered.number if answered is not None else self._newest_heard
        # Answers overtake each other. Headers of an earlier call may be older, and then count only if they say less.
        newest = number >= self._newest_heard
        self._newest_heard = max(number, self._newest_heard)
        told = (allowance.requests, allowance.input_tokens, allowance.output_tokens, allowance.tokens)
        for index, meter in enumerate(told):
            if meter is not None:
                self._learn(index, meter, number, now, newest=newest)

    def hold(self, until: float, now: float) -> None:
        """The service refused a call until then, and says nothing else: our count of it was too high.

        By how much, nobody tells. So what we counted is gone, and gains nothing until then while the service's does:
        afterwards calls start at the pace of the refill instead of all at once, and the two counts stay that far apart.
        """
        for ours, theirs in self._pairs():
            if ours is not None and theirs is None:
                ours.put(min(ours.level(now), 0.0), now)
                ours.pause(until, now)

    def _learn(self, index: int, meter: Meter, answered: int, now: float, *, newest: bool) -> None:
        bucket = self._theirs[index]
        if meter.limit is not None:
            if bucket is None:
                # Full, but for what is open: better than nothing until the service says what remains.
                bucket = self._theirs[index] = self._bucket(meter.limit, now)
                bucket.take(sum(sum(each.parts[index]) for each in self._open.values()), now)
            else:
                bucket.resize(meter.limit * self._burst, meter.limit / _MINUTE_S, now)
        elif bucket is None and (ours := self._ours[index]) is not None:
            bucket = self._theirs[index] = Bucket(ours.capacity, ours.per_s, now)
        if bucket is None or meter.remaining is None:
            return
        seen = {each: _seen(each, answered, now) for each in self._open.values()}
        unseen = sum(
            part
            for each, flags in seen.items()
            for part, counted in zip(each.parts[index], flags, strict=True)
            if not counted
        )
        level = meter.remaining - unseen
        if meter.remaining == 0:
            level = min(level, bucket.level(now))  # Headers know no debt: after a large call they say zero for long.
        if newest or level < bucket.level(now):
            bucket.put(level, now)
            for each, flags in seen.items():
                each.seen[index] = flags

    def _bucket(self, per_min: float, now: float) -> Bucket:
        return Bucket(per_min * self._burst, per_min / _MINUTE_S, now)

    def _pairs(self) -> list[tuple[Bucket | None, Bucket | None]]:
        return list(zip(self._ours, self._theirs, strict=True))


def _seen(reservation: Reservation, answered: int, now: float) -> tuple[bool, bool]:
    """Whether headers that answer call number *answered* know of the reservation's request, and of its output."""
    age_s = now - reservation.at
    return reservation.number <= answered or age_s >= _ARRIVED_AFTER_S, age_s >= _WRITTEN_AFTER_S


def _is_number(value: object, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= most
