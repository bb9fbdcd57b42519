"""Asks the index of a table: how near what it returns is, and how long that takes; also over its ef_search.

What is kept of it is `measuring.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
from psycopg import sql

from qbench_dagster.adapters.postgres import Connection
from qbench_dagster.adapters.space import Space
from qbench_dagster.adapters.sql import statement
from qbench_dagster.adapters.vectors import sampled_vectors, scan_vectors, table_of, vector_text
from qbench_dagster.core.advice import EF_SEARCHES, Point
from qbench_dagster.core.agreement import summarize
from qbench_dagster.core.indexes import EXACT, MIN_CANDIDATES, IndexChoice, IndexSettings
from qbench_dagster.core.recall import ExactSearch, VectorHealth, perturb, recall

QUERIES = 70
"""Of each kind: recall is then known to about 0.01 (standard error).

What people ask is no stored vector, and lies farther from all of them than one moved a little: an index that found
0.99 of the neighbours of those found 0.86 of the steps nearest to titles of cases. So vectors of the other table are
queries too (`crossed`), which cost nothing to embed; what is enough for them, 250 candidates, is enough for titles.
"""
NOISE = 0.5
NEAR, DEEP = 10, 100
SOME = 5
"""Along a curve, recall@100 and latency are measured with every fifth query: they cost three times what @10 does."""


@dataclass(frozen=True, slots=True)
class Truth:
    """Queries, and how near the true neighbours of each are. `kinds` tells which are stored, perturbed, crossed."""

    texts: Sequence[str]
    thresholds: Mapping[int, Sequence[float]]
    health: VectorHealth
    kinds: Mapping[str, range]
    counters: Sequence[Mapping[str, Any]] = ()
    """`write_counters` from before the vectors were read, where the measurement is to be kept."""

    def shares(self, found: Sequence[Sequence[float]], k: int) -> dict[str, list[float]]:
        """recall@k of each query, by kind, from the true cosines of what each found."""
        thresholds, reachable = self.thresholds[k], min(k, self.health.rows)
        return {
            kind: recall([found[number] for number in part], [thresholds[number] for number in part], reachable)
            for kind, part in self.kinds.items()
        }

    def numbers(self, step: int) -> list[int]:
        """Every `step`-th query of each kind."""
        return [number for part in self.kinds.values() for number in part[::step]]

    def thinned(self, step: int) -> Truth:
        """Of those queries alone."""
        numbers = self.numbers(step)
        return replace(
            self,
            texts=[self.texts[number] for number in numbers],
            thresholds={k: [values[number] for number in numbers] for k, values in self.thresholds.items()},
            kinds=_consecutive({kind: len(part[::step]) for kind, part in self.kinds.items()}),
        )


def ground_truth(connection: Connection, space: Space, table: str, queries: int = QUERIES) -> Truth:
    """What exact search finds for up to `queries` of each kind, in one pass over the table."""
    stored = sampled_vectors(connection, space, table, queries)
    other = table_of("step" if table.startswith("doc") else "doc")
    asked = {
        "stored": stored,
        "perturbed": perturb(stored, NOISE, seed=729),
        "crossed": sampled_vectors(connection, space, other, queries if len(stored) else 0),
    }
    vectors = np.vstack(list(asked.values()))
    exact = ExactSearch(vectors, DEEP)
    for hashes, batch in scan_vectors(connection, space, table):
        exact.add(hashes, batch)
    thresholds = {k: exact.thresholds(k).tolist() for k in (NEAR, DEEP)}
    kinds = _consecutive({kind: len(part) for kind, part in asked.items()})
    return Truth([vector_text(query) for query in vectors], thresholds, exact.health, kinds)


def _consecutive(counts: Mapping[str, int]) -> dict[str, range]:
    ends = list(accumulate(counts.values()))
    return {kind: range(end - count, end) for (kind, count), end in zip(counts.items(), ends, strict=True)}


def search_curve(
    connection: Connection,
    space: Space,
    table: str,
    choice: IndexChoice,
    truth: Truth,
    settings: IndexSettings,
    progress: Callable[[str, int, int], None],
) -> list[Point]:
    """recall and latency by ef_search, rising, until one step after the target is met (of ivfflat: until it is).

    One point where ef_search is fixed.
    """
    points: list[Point] = []
    steps = _steps(choice, settings)
    for number, ef_search in enumerate(steps):
        progress(f"measuring {choice.strategy}", number, len(steps))
        points.append(_point(connection, space, table, choice.searched(ef_search, 0), truth, settings))
        beyond = 1 if choice.strategy == "ivfflat" else 2  # of ivfflat that one costs as much as all before
        if len(points) >= beyond and points[-beyond].recall_10_low >= settings.target_recall:
            break
    return points


def exact_point(connection: Connection, space: Space, table: str, truth: Truth, count: int) -> Point:
    """What exact search takes: measured with `count` queries, spread over all."""
    texts = truth.texts[:: max(1, len(truth.texts) // count)]
    latencies = _steady(connection, space, table, IndexChoice(EXACT), texts)
    return Point(0, 0, 1.0, 1.0, 1.0, percentile_of(latencies, 50), percentile_of(latencies, 95))


def _steps(choice: IndexChoice, settings: IndexSettings) -> list[int]:
    if settings.ef_search is not None:
        return [choice.ef_search]
    if choice.strategy == "ivfflat":
        lists = choice.lists or 1
        return sorted({min(2**step, lists) for step in range(lists.bit_length() + 1)})
    return list(EF_SEARCHES)


def _point(
    connection: Connection, space: Space, table: str, choice: IndexChoice, truth: Truth, settings: IndexSettings
) -> Point:
    """One point: the fewest candidates compared exactly that still meet the target at its ef_search."""
    depth = settings.rerank or (MIN_CANDIDATES if choice.ranks_exactly else max(choice.ef_search, MIN_CANDIDATES))
    deep = max(depth, 4 * DEEP)
    numbers = truth.numbers(SOME)
    limits = [depth] * len(truth.texts)
    for number in numbers:
        limits[number] = deep
    found = candidates_of(connection, space, table, choice, truth.texts, limits)
    reranks = {depth} if settings.rerank else {max(MIN_CANDIDATES, depth // share) for share in (1, 2, 4)}
    for rerank in sorted(reranks):
        shares = truth.shares([cosines[: max(rerank, 4 * NEAR)] for cosines in found], NEAR)
        summaries = [summary for part in shares.values() if (summary := summarize(part))]
        low = min((summary.low for summary in summaries), default=1.0)
        if low >= settings.target_recall:
            break
    some = truth.thinned(SOME)
    far = some.shares([found[number] for number in numbers], DEEP)
    latencies = _steady(connection, space, table, choice.searched(choice.ef_search, rerank), some.texts)
    return Point(
        choice.ef_search,
        rerank,
        min((summary.mean for summary in summaries), default=1.0),
        low,
        min((mean for part in far.values() if (mean := mean_of(part)) is not None), default=1.0),
        percentile_of(latencies, 50),
        percentile_of(latencies, 95),
    )


def candidates_of(
    connection: Connection,
    space: Space,
    table: str,
    choice: IndexChoice,
    texts: Sequence[str],
    limits: Sequence[int],
) -> list[list[float]]:
    """True cosines of what the index returns for each query, in its order."""
    query = search_statement("candidates", space, table, choice)
    with connection.transaction():
        set_search(connection, choice)
        return [
            [row[0] for row in connection.execute(query, {"query": text, "candidates": limit}).fetchall()]
            for text, limit in zip(texts, limits, strict=True)
        ]


def time_searches(
    connection: Connection, space: Space, table: str, choice: IndexChoice, texts: Sequence[str], k: int
) -> tuple[list[float], list[list[float]]]:
    """Milliseconds of each search for k, and the cosines of its results, best first."""
    query = search_statement("nearest", space, table, choice)
    latencies, found = [], []
    with connection.transaction():
        set_search(connection, choice)
        for text in texts:
            values = {"query": text, "k": k, "candidates": max(choice.rerank, 4 * k)}
            started = time.perf_counter()
            found.append([row[0] for row in connection.execute(query, values).fetchall()])
            latencies.append((time.perf_counter() - started) * 1000)
    return latencies, found


def _steady(connection: Connection, space: Space, table: str, choice: IndexChoice, texts: Sequence[str]) -> list[float]:
    """Milliseconds of each search for ten, the better of two: what else the machine is doing should not choose."""
    passes = [time_searches(connection, space, table, choice, texts, NEAR)[0] for _ in range(2)]
    return [min(pair) for pair in zip(*passes, strict=True)]


def set_search(connection: Connection, choice: IndexChoice) -> None:
    """Search as `choice` says until the transaction ends."""
    probes = choice.ef_search if choice.strategy == "ivfflat" else 1
    ef_search = 40 if choice.strategy in ("ivfflat", EXACT) else choice.ef_search
    connection.execute(statement("index.sql", "session_search"), {"ef_search": str(ef_search), "probes": str(probes)})


def search_statement(verb: str, space: Space, table: str, choice: IndexChoice) -> sql.Composed:
    """`nearest`, `candidates` or `explain` in the order of the index of `choice`."""
    order = "halfvec" if choice.strategy == "ivfflat" else choice.strategy
    return statement("index.sql", f"{verb}_{order}", space=space.name, table=table, dimensions=space.dimensions,
                     shortened=choice.shortened or 0)  # fmt: skip


def mean_of(values: Sequence[float]) -> float | None:
    """Mean of shares; None of none."""
    return round(sum(values) / len(values), 4) if values else None


def percentile_of(values: Sequence[float], percent: float) -> float:
    """A percentile of milliseconds; 0 of none."""
    return round(float(np.percentile(values, percent)), 3) if values else 0.0
