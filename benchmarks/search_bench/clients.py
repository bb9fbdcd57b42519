"""How a search is timed: one client, many clients, how deep to search for a recall. What is searched is an `Engine`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from benchmarks.search_bench.corpus import FILTERS, Corpus, Filter, Truth

K = 10
CLIENTS = (1, 4, 16)
PATIENCE_S = 10.0
"""Of a measurement of single searches: exact ones take half a second each. Twenty are timed in any case."""
Hits = list[tuple[int, float]]
"""(row, cosine), the nearest first."""
Search = Callable[[int, Filter | None], Hits]
"""The ten nearest to query number n, of those rows that match."""


FALLBACK = 0.95
"""Recall at which an engine is measured that does not reach the target at any depth."""


@dataclass(frozen=True, slots=True)
class Built:
    """What storing and indexing took: seconds, bytes of the index and of everything, and how it is known to be used."""

    load_s: float
    build_s: float
    index_bytes: int
    total_bytes: int
    proof: str


class Engine(Protocol):
    """One way to search. `depths` are the candidates to try, fewest first; empty for exact search."""

    name: str
    about: str
    depths: Sequence[int]

    def build(self, corpus: Corpus) -> Built:
        """Take the corpus in and index it."""

    def set_depth(self, depth: int) -> None:
        """How many candidates searches look at from now on."""

    def client(self) -> AbstractContextManager[Search]:
        """A client of its own, as each thread of an application has one."""

    def close(self) -> None:
        """Let go of its memory."""


@dataclass(frozen=True, slots=True)
class Timed:
    """Searches one after the other: what they found, and milliseconds of each."""

    recall: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    short: int = 0
    """Answers with fewer rows than there are to find."""
    searches: int = 0


@dataclass(slots=True)
class Result:
    """One engine on one corpus. `filtered` is by the name of the filter, `qps` by the number of clients."""

    name: str
    about: str
    rows: int
    built: Built
    depth: int | None = None
    reached: bool = True
    single: Timed | None = None
    curve: list[tuple[int, Timed]] = field(default_factory=list)
    qps: dict[int, float] = field(default_factory=dict)
    filtered: dict[str, Timed] = field(default_factory=dict)


def measure(
    engine: Engine,
    corpus: Corpus,
    truth: Truth,
    built: Built,
    *,
    target: float,
    seconds: float,
    tell: Callable[[str], None],
    repeats: int = 3,
) -> Result:
    """Everything about one engine, at the least depth that finds `target` of the ten nearest.

    Where none of its depths does, at the least that finds FALLBACK, which is what the project asks for by default.
    """
    result = Result(engine.name, engine.about, corpus.rows, built)
    with engine.client() as search:
        for depth in engine.depths:
            engine.set_depth(depth)
            point = timed(search, corpus, truth, None)
            result.curve.append((depth, point))
            result.depth = depth
            if point.recall >= target:
                break
        else:
            enough = [depth for depth, point in result.curve if point.recall >= FALLBACK]
            if enough:
                result.depth = enough[0]
                engine.set_depth(enough[0])
        result.single = timed(search, corpus, truth, None, repeats=repeats)
        result.reached = result.single.recall >= target
        tell(
            f"{engine.name}: depth {result.depth}, recall {result.single.recall:.3f}, p50 {result.single.p50_ms:.1f} ms"
        )
        for each in FILTERS:
            result.filtered[each.name] = timed(search, corpus, truth, each, repeats=1)
    for clients in CLIENTS:
        result.qps[clients] = throughput(engine, corpus, clients, seconds)
    tell(f"{engine.name}: " + ", ".join(f"{rate:,.0f}/s with {n}" for n, rate in result.qps.items()))
    return result


def timed(search: Search, corpus: Corpus, truth: Truth, only: Filter | None, repeats: int = 1) -> Timed:
    """Every query of the corpus after a few to warm up, `repeats` times over, or as many as PATIENCE_S allows."""
    began = time.perf_counter()
    for query in range(min(5, corpus.queries)):
        search(query, only)
    name = only.name if only else ""
    matching = corpus.matching(only) if only else None
    reachable = min(K, corpus.rows if matching is None else int(matching.sum()))
    took, found, short = [], [], 0
    for number in range(repeats * corpus.queries):
        started = time.perf_counter()
        hits = search(number % corpus.queries, only)
        took.append((time.perf_counter() - started) * 1000)
        short += len(hits) < reachable
        if matching is not None and not all(matching[row] for row, _ in hits):
            raise AssertionError(f"a search for {name} found a row that does not match")
        if number < corpus.queries:
            found.append([cosine for _, cosine in hits])
        if number >= 19 and time.perf_counter() - began > PATIENCE_S:
            break
    p50, p95, p99 = (float(value) for value in np.percentile(took, (50, 95, 99)))
    return Timed(truth.recall(found, name), p50, p95, p99, short, len(took))


def throughput(engine: Engine, corpus: Corpus, clients: int, seconds: float) -> float:
    """Searches a second that so many clients get done together."""
    together = threading.Barrier(clients + 1)
    done: list[tuple[int, float]] = []
    failed: list[Exception] = []

    def work(first: int) -> None:
        try:
            with engine.client() as search:
                search(first % corpus.queries, None)
                together.wait()
                started, count = time.perf_counter(), 0
                for query in _round(first, corpus.queries):
                    search(query, None)
                    count += 1
                    if (elapsed := time.perf_counter() - started) > seconds:
                        break
                done.append((count, elapsed))
        except threading.BrokenBarrierError:
            return  # another one failed
        except Exception as error:
            failed.append(error)
            together.abort()

    threads = [threading.Thread(target=work, args=(number * 31,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    with suppress(threading.BrokenBarrierError):
        together.wait()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return sum(count / elapsed for count, elapsed in done)


def _round(first: int, count: int) -> Iterator[int]:
    while True:
        yield first % count
        first += 1
