"""What the server saw and what it would have billed. The truth that tests hold a client's own ledger against."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Seen:
    """One request under /v1."""

    at: float
    """Seconds on the server's monotonic clock."""
    method: str
    path: str
    inputs: int = 0
    tokens: int = 0
    outcome: str = "unanswered"
    """"ok", or the reason or the fault it ended with."""


class Ledger:
    """Thread-safe counts of one server.

    A text is billed when it was answered with vectors, damaged or not, or processed for an answer that never
    arrived (faults "hang" and "reset-mid-body"). A page that a proxy served ("not-json") is not billed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.billed: Counter[str] = Counter()
        self.billed_by_batch: Counter[str] = Counter()
        self.tokens = 0
        self.tokens_by_batch = 0
        self.refused: Counter[str] = Counter()
        """Requests that were refused, by reason; an injected fault counts as `fault:<kind>`."""
        self.seen: list[Seen] = []
        self.max_concurrency = 0
        self.in_flight = 0

    @contextmanager
    def request(self, method: str, path: str) -> Iterator[Seen]:
        """Note a request, in flight until the block ends."""
        seen = Seen(time.monotonic(), method, path)
        with self._lock:
            self.seen.append(seen)
            self.in_flight += 1
            self.max_concurrency = max(self.max_concurrency, self.in_flight)
        try:
            yield seen
        finally:
            with self._lock:
                self.in_flight -= 1

    def refuse(self, seen: Seen, reason: str) -> None:
        """Note that a request was refused."""
        with self._lock:
            seen.outcome = reason
            self.refused[reason] += 1

    def bill(self, seen: Seen, texts: Sequence[str], tokens: int) -> None:
        """Note texts that a request had embedded."""
        with self._lock:
            seen.inputs, seen.tokens = len(texts), tokens
            self.billed.update(texts)
            self.tokens += tokens

    def bill_batch(self, texts: Sequence[str], tokens: int) -> None:
        """Note texts that a batch had embedded."""
        with self._lock:
            self.billed_by_batch.update(texts)
            self.tokens_by_batch += tokens

    def clear(self) -> None:
        """Forget everything but what is in flight."""
        with self._lock:
            for counts in (self.billed, self.billed_by_batch, self.refused, self.seen):
                counts.clear()
            self.tokens = self.tokens_by_batch = 0
            self.max_concurrency = self.in_flight

    def summary(self, *, texts: bool = False, times: bool = False) -> dict[str, Any]:
        """Counts as JSON; `texts` adds every billed text, `times` every request."""
        with self._lock:
            counts: dict[str, Any] = {
                "requests": len(self.seen),
                "requests_by_outcome": dict(Counter(seen.outcome for seen in self.seen)),
                "refused": dict(self.refused),
                "tokens": self.tokens,
                "tokens_by_batch": self.tokens_by_batch,
                "texts": self.billed.total(),
                "distinct_texts": len(self.billed),
                "texts_by_batch": self.billed_by_batch.total(),
                "distinct_texts_by_batch": len(self.billed_by_batch),
                "max_concurrency": self.max_concurrency,
            }
            if texts:
                counts |= {"billed": dict(self.billed), "billed_by_batch": dict(self.billed_by_batch)}
            if times:
                counts["seen"] = [
                    {name: getattr(seen, name) for name in Seen.__slots__} for seen in self.seen
                ]  # fmt: skip
            return counts
