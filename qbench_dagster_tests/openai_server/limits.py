"""Rate limits: token buckets for requests and tokens a minute, and the headers that tell of them. No HTTP."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

from qbench_dagster_tests.openai_server.replies import duration, rate_limited, request_too_large

MINUTE = 60.0


class Bucket:
    """Refilled without a pause at `per_minute`, and holds `burst_seconds` of that. Not thread-safe."""

    def __init__(self, unit: str, per_minute: int, burst_seconds: float, now: float) -> None:
        self.unit = unit
        self.per_minute = per_minute
        self.rate = per_minute / MINUTE
        self.capacity = max(1.0, self.rate * burst_seconds)
        self.level = self.capacity
        self.filled_at = now

    def refill(self, now: float) -> None:
        """Add what came in since the last call."""
        self.level = min(self.capacity, self.level + max(0.0, now - self.filled_at) * self.rate)
        self.filled_at = now

    def wait_for(self, amount: float) -> float:
        """Seconds until `amount` is there."""
        return max(0.0, (amount - self.level) / self.rate)

    def headers(self) -> dict[str, str]:
        """OpenAI's three headers of this unit."""
        return {
            f"x-ratelimit-limit-{self.unit}": str(self.per_minute),
            f"x-ratelimit-remaining-{self.unit}": str(max(0, math.floor(self.level))),
            f"x-ratelimit-reset-{self.unit}": duration(self.wait_for(self.capacity)),
        }


class RateLimits:
    """The buckets of one server. A refused request takes nothing from them (OpenAI's may take a request)."""

    def __init__(
        self,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        burst_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets = [
            Bucket(unit, per_minute, burst_seconds, clock())
            for unit, per_minute in (("requests", requests_per_minute), ("tokens", tokens_per_minute))
            if per_minute is not None
        ]

    def take(self, model: str, tokens: int) -> None:
        """Count one request of `tokens`. Raises RefusalError where a bucket does not hold it."""
        with self._lock:
            now = self._clock()
            asked = {"requests": 1, "tokens": tokens}
            for bucket in self._buckets:
                bucket.refill(now)
                if asked[bucket.unit] > bucket.capacity:
                    raise request_too_large(model, int(bucket.capacity), tokens)
            for bucket in self._buckets:
                # 1e-9: a client that waited exactly as long as it was told must not fail by a rounding
                if (wait := bucket.wait_for(asked[bucket.unit])) > 1e-9:
                    used = int(bucket.capacity - bucket.level)
                    raise rate_limited(
                        model, bucket.unit, bucket.per_minute, used, asked[bucket.unit], wait
                    )  # fmt: skip
            for bucket in self._buckets:
                bucket.level -= asked[bucket.unit]

    def headers(self) -> dict[str, str]:
        """Headers of an answer, as of now."""
        with self._lock:
            now = self._clock()
            for bucket in self._buckets:
                bucket.refill(now)
            return {name: value for bucket in self._buckets for name, value in bucket.headers().items()}
