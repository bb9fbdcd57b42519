"""How far long work is: told in the run's log here, drawn as bars in the terminal (`cli/run.py`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dagster as dg

LOG_EVERY_S = 10.0

Context = dg.AssetExecutionContext | dg.AssetCheckExecutionContext


class Progress:
    """Tells the run's log every ten seconds."""

    @contextmanager
    def track(self, context: Context, what: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """Yields a function to be told of each further piece done."""
        done, told = 0, time.monotonic()

        def advance(pieces: int) -> None:
            nonlocal done, told
            done += pieces
            if time.monotonic() - told > LOG_EVERY_S:
                told = time.monotonic()
                context.log.info(f"{what}: {done:,}" + (f" of {total:,}" if total else ""))

        yield advance

    @contextmanager
    def track_phases(self, context: Context, what: str) -> Iterator[Callable[[str, int, int], None]]:
        """Yields a function to be told the phase that long work is in, and how much of it is done."""
        told = time.monotonic()

        def tell(phase: str, done: int, total: int) -> None:
            nonlocal told
            if time.monotonic() - told > LOG_EVERY_S:
                told = time.monotonic()
                context.log.info(f"{what}: {phase}, {done:,} of {total:,}")

        yield tell
