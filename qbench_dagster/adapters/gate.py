"""Where the threads of an embedder wait for their turn, and how they are all sent home at once.

When a turn comes is `core/pacing.py`. Nothing of HTTP is here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

from qbench_dagster.adapters.embedders import EmbeddingError, RequestTooLargeError
from qbench_dagster.core.pacing import Pacer, Turn

log = logging.getLogger(__name__)

_WORTH_SAYING_S = 10.0


class Gate:
    """Thread-safe. `sleep` replaces the waiting in tests with simulated time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] | None = None):
        self._pacer = Pacer()
        self._changed = threading.Condition()
        self._stopped = False
        self._clock = clock
        self._sleep = sleep

    @property
    def ceiling(self) -> int | None:
        """Tokens of the largest request the account can ever send; None where none is known."""
        with self._changed:
            return self._pacer.ceiling

    def enter(self, tokens: int) -> Turn:
        """Wait until a request of `tokens` may be sent. Every turn must be given back by `leave`.

        Raises RequestTooLargeError if it never may, EmbeddingError once `stop` was called.
        """
        with self._changed:
            turn = self._pacer.arrive(tokens)
            said = False
            try:
                while True:
                    self._check_open()
                    if self._pacer.ceiling is not None and tokens > self._pacer.ceiling:
                        raise RequestTooLargeError(
                            f"A request of {tokens:,} tokens is more than the account may send in a minute "
                            f"({self._pacer.ceiling:,} tokens). Send smaller requests (QBENCH_MAX_REQUEST_TOKENS)."
                        )
                    delay = self._pacer.delay(turn, self._clock())
                    if delay == 0:
                        self._pacer.send(turn, self._clock())
                        return turn
                    if delay is not None and delay > _WORTH_SAYING_S and not said:
                        log.info("Waiting %.0f s for the account's rate limit.", delay)
                        said = True
                    self._wait(delay)
            except BaseException:
                self._pacer.depart(turn)
                raise
            finally:
                self._changed.notify_all()

    def leave(
        self, turn: Turn, headers: Mapping[str, str], *, served: bool, refused: bool = False, closed_s: float = 0.0
    ) -> None:
        """The request of `turn` is over: see `Pacer.answer`. Nobody enters for `closed_s` seconds."""
        with self._changed:
            now = self._clock()
            self._pacer.answer(turn, now, headers, served=served, refused=refused)
            if closed_s > 0:
                self._pacer.close_until(now + closed_s)
            self._changed.notify_all()

    def refused_as_too_large(self, tokens: int, named: int) -> None:
        """See `Pacer`."""
        with self._changed:
            self._pacer.refused_as_too_large(tokens, named)
            self._changed.notify_all()

    def pause(self, seconds: float) -> None:
        """Wait outside the queue. Raises EmbeddingError as soon as `stop` is called."""
        with self._changed:
            until = self._clock() + seconds
            while True:
                self._check_open()
                left = until - self._clock()
                if left <= 0:
                    return
                self._wait(left)

    def stop(self) -> None:
        """Whoever waits, now or later, gets an EmbeddingError instead."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _check_open(self) -> None:
        if self._stopped:
            raise EmbeddingError("stopped")

    def _wait(self, seconds: float | None) -> None:
        if self._sleep is None or seconds is None:
            self._changed.wait(seconds)
            return
        self._changed.release()
        try:
            self._sleep(seconds)
        finally:
            self._changed.acquire()
