"""When the next request may go: a mirror of the token buckets a service keeps for an account.

Pure: the time is passed in, in seconds of any steady clock. Waiting is `adapters/gate.py`; nothing is sent from here.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

KINDS = ("requests", "tokens")
"""The two buckets of an account; a request takes one of the first and its tokens of the second."""

_MINUTE_S = 60.0
_SLACK = 1e-6  # a wait computed in floats may end a rounding error short of the level it was for
# A service that counts 3 % more tokens than we do would refuse two of three requests, each just too early: a few
# refusals teach to leave a margin. Another client of the account that takes half would do the same (a refusal for each
# request, simulated; 7 % with this): then the mirror fills more slowly, and a little faster with each answer. What was
# held back too long shows in the next reading.
_JUST, _MARGIN_STEP, _MOST_MARGIN = 0.98, 1.01, 1.25
_SLOWER, _FASTER, _SLOWEST = 0.9, 0.0005, 0.1
_UNITS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = re.compile(r"(\d+(?:\.\d*)?)(ms|us|µs|ns|d|h|m|s)", re.ASCII)
_NUMBER = re.compile(r"\d+(?:\.\d*)?", re.ASCII)


def duration(text: str) -> float | None:
    """Seconds of `6m0s`, `1.2s`, `20ms`, `1h2m`, or of a bare number; None for anything else."""
    text = text.strip()
    if _NUMBER.fullmatch(text):
        return float(text)
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def retry_after(headers: Mapping[str, str], wall_clock: float) -> float | None:
    """Seconds the answer asks to wait (0 or more), or None. Header names in lower case.

    `retry-after-ms`, else `retry-after` in seconds or as an HTTP date. A date is compared with the answer's own
    `date`, so that a wrong clock here does no harm, else with `wall_clock`, seconds since 1970.
    """
    milliseconds = headers.get("retry-after-ms", "").strip()
    if _NUMBER.fullmatch(milliseconds):
        return float(milliseconds) / 1000
    given = headers.get("retry-after", "").strip()
    if _NUMBER.fullmatch(given):
        return float(given)
    until = _timestamp(given)
    if until is None:
        return None
    sent = _timestamp(headers.get("date", ""))
    return max(0.0, until - (wall_clock if sent is None else sent))


def _timestamp(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


@dataclass(frozen=True, slots=True)
class Reading:
    """What an answer says of one bucket. `reset_s`: seconds until it is full, where said."""

    limit: float
    remaining: float
    reset_s: float | None


def reading(headers: Mapping[str, str], kind: str) -> Reading | None:
    """The reading of bucket `kind` from an answer's headers (names in lower case), or None."""
    limit, remaining = (headers.get(f"x-ratelimit-{what}-{kind}", "").strip() for what in ("limit", "remaining"))
    if not (_NUMBER.fullmatch(limit) and _NUMBER.fullmatch(remaining)) or float(limit) <= 0:
        return None
    return Reading(float(limit), float(remaining), duration(headers.get(f"x-ratelimit-reset-{kind}", "")))


class Bucket:
    """One bucket as it must look at the service: refilled steadily, emptied by what is sent."""

    def __init__(self, first: Reading, now: float, later: float) -> None:
        """As the first answer shows it; `later` was sent after the request that was answered."""
        self._ratio: float | None = None
        self._pace = self._margin = 1.0
        self.limit = self.rate = self.capacity = 0.0
        self._learn(first)
        self.level = min(self.capacity, first.remaining) - later
        self._at = now

    def wait(self, cost: float, now: float) -> float:
        """Seconds until it holds `cost`. Of a cost above its size, until it is full: more it will never hold."""
        self._refill(now)
        missing = min(cost * self._margin, self.capacity) - self.level
        return missing / (self.rate * self._pace) if missing > _SLACK else 0.0

    def take(self, cost: float, now: float) -> None:
        self._refill(now)
        self.level -= cost

    def correct(self, seen: Reading, now: float, *, sent_at: float, later: float, others: float | None) -> None:
        """Believe an answer, without counting twice what is still on its way.

        The service read its level at some moment after `sent_at`. What was sent `later` is surely to be taken off,
        and at most the time since can have been refilled: no more than that remains. And no less than the reading
        without all the `others` still in flight, which it may or may not have counted; they are None where a later
        request has been answered already, for then the reading is an old one.
        """
        self._refill(now)
        self._learn(seen)
        most = min(self.capacity, seen.remaining + self.rate * (now - sent_at)) - later
        self.level = min(self.level, most)
        if others is not None:
            self.level = max(self.level, min(self.capacity, seen.remaining) - others)

    def refuse(self, cost: float, remaining: float) -> None:
        """A request came too early, just or by far. With enough of this left, it was for another reason."""
        if _JUST * cost < remaining < _MOST_MARGIN * cost:
            self._margin = min(_MOST_MARGIN, self._margin * _MARGIN_STEP)
        elif remaining <= _JUST * cost:
            self._pace = max(_SLOWEST, self._pace * _SLOWER)

    def serve(self) -> None:
        """A request came in time."""
        self._pace = min(1.0, self._pace + _FASTER)

    def _learn(self, seen: Reading) -> None:
        """Rate and size. A limit is one of a minute, unless the time until full tells of a longer window.

        A limit of requests a day comes under the same name: 1 of 200 gone and full in `7m12s` is 1 in 432 s. And a
        bucket may hold less than a minute's worth: full sooner than the minute's rate explains is a smaller one.
        Rounded times make the rate look slower, never faster than the minute's, so the fastest seen is believed.
        """
        if seen.limit != self.limit:
            self.limit, self._ratio, self.capacity = seen.limit, None, 0.0
        used = seen.limit - seen.remaining
        if used > 0 and seen.reset_s:
            self._ratio = max(self._ratio or 0.0, used / seen.reset_s)
        by_the_minute = seen.limit / _MINUTE_S
        self.rate = by_the_minute if self._ratio is None else min(by_the_minute, self._ratio)
        size = seen.limit if seen.reset_s is None else min(seen.limit, seen.remaining + seen.reset_s * self.rate)
        self.capacity = max(self.capacity, size, 1.0)

    def _refill(self, now: float) -> None:
        self.level = min(self.capacity, self.level + self.rate * self._pace * max(0.0, now - self._at))
        self._at = max(self._at, now)


@dataclass(slots=True, eq=False)
class Turn:
    """A request's place in the queue; once sent, what had been taken of each of KINDS by then."""

    tokens: int
    number: int = 0
    sent_at: float = 0.0
    sent_by_then: tuple[int, int] = (0, 0)

    @property
    def costs(self) -> tuple[int, int]:
        """What it takes of each of KINDS."""
        return 1, self.tokens


class Pacer:
    """Lets requests go in the order they came, each once both buckets hold what it needs.

    Until the first answer tells the limits, one request is in flight. An answer that names none: no pacing.
    Not thread-safe.
    """

    def __init__(self) -> None:
        self._waiting: deque[Turn] = deque()
        self._flying: list[Turn] = []
        self._buckets: dict[str, Bucket] = {}
        self._learnt = False
        self._closed_until = -math.inf
        self._sent = (0, 0)
        self._numbers = 0
        self._newest_answered = 0
        self._ceiling: int | None = None

    @property
    def ceiling(self) -> int | None:
        """Tokens of the largest request the account can ever send; None where none is known."""
        return self._ceiling

    def lower_ceiling(self, tokens: int) -> None:
        """The service says that more than `tokens` in a request it will never take."""
        self._ceiling = tokens if self._ceiling is None else min(self._ceiling, tokens)

    def refused_as_too_large(self, tokens: int, named: int) -> None:
        """The service called a request of `tokens` too large for the account, and `named` a limit (0: none)."""
        known = [named, *(int(bucket.capacity) for kind, bucket in self._buckets.items() if kind == "tokens")]
        self.lower_ceiling(min((limit for limit in known if 0 < limit < tokens), default=max(1, tokens // 2)))

    def arrive(self, tokens: int) -> Turn:
        """Join the queue."""
        turn = Turn(tokens)
        self._waiting.append(turn)
        return turn

    def depart(self, turn: Turn) -> None:
        """Leave the queue without having been sent."""
        self._waiting.remove(turn)

    def delay(self, turn: Turn, now: float) -> float | None:
        """Seconds until `turn` may be sent, 0 for now; None: not before another is sent, departs or is answered."""
        if self._waiting[0] is not turn or (self._flying and not self._learnt):
            return None
        waits = (
            bucket.wait(cost, now)
            for kind, cost in zip(KINDS, turn.costs, strict=True)
            if (bucket := self._buckets.get(kind))
        )
        return max(0.0, self._closed_until - now, *waits)

    def send(self, turn: Turn, now: float) -> None:
        """`turn`, the first of the queue, goes now."""
        self._waiting.remove(turn)
        self._numbers += 1
        requests, tokens = self._sent
        self._sent = requests + 1, tokens + turn.tokens
        turn.number, turn.sent_at, turn.sent_by_then = self._numbers, now, self._sent
        self._flying.append(turn)
        for kind, cost in zip(KINDS, turn.costs, strict=True):
            if kind in self._buckets:
                self._buckets[kind].take(cost, now)

    def answer(
        self, turn: Turn, now: float, headers: Mapping[str, str], *, served: bool, refused: bool = False
    ) -> None:
        """`turn` is back, with these headers (none: no answer came).

        `served`: it was not an error. `refused`: it came too early for the account's limits.
        """
        self._flying.remove(turn)
        newest = turn.number > self._newest_answered
        seen = {kind: found for kind in KINDS if (found := reading(headers, kind))}
        costs = dict(zip(KINDS, turn.costs, strict=True))
        for index, kind in enumerate(KINDS):
            if kind not in seen:
                continue
            later = self._sent[index] - turn.sent_by_then[index]
            if kind not in self._buckets:
                self._buckets[kind] = Bucket(seen[kind], now, later)
            else:
                others = sum(other.costs[index] for other in self._flying) if newest else None
                self._buckets[kind].correct(seen[kind], now, sent_at=turn.sent_at, later=later, others=others)
            if served:
                self._buckets[kind].serve()
        if refused and seen:
            scarcest = min(seen, key=lambda kind: seen[kind].remaining / max(1, costs[kind]))
            self._buckets[scarcest].refuse(costs[scarcest], seen[scarcest].remaining)
        if "tokens" in seen:
            self.lower_ceiling(int(seen["tokens"].limit))
        if seen:
            self._newest_answered = max(self._newest_answered, turn.number)
        self._learnt = self._learnt or served or bool(seen)

    def close_until(self, moment: float) -> None:
        """Nothing goes before `moment`."""
        self._closed_until = max(self._closed_until, moment)
