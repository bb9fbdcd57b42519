"""Measures the strategies on a sample of a table's own vectors. Which one that speaks for is `core/advice.py`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import psycopg

from qbench_dagster.adapters.building import Building, build_index, drop_index
from qbench_dagster.adapters.probing import Truth, exact_point, ground_truth, search_curve
from qbench_dagster.adapters.retiring import existing
from qbench_dagster.adapters.sql import statement
from qbench_dagster.core.advice import Advice, Trial, choose, pick
from qbench_dagster.core.indexes import EXACT, HNSW, choice_of

CHEAP = ("binary", "subvector", "ivfflat")
QUERIES = 20
"""Of each kind on the sample: enough to rank, the whole table is measured with more than three times as many."""
EXACT_QUERIES = 20


def advise(work: Building, rows: int) -> Advice:
    """Measure what has to be measured to choose how a table of `rows` vectors is indexed.

    Exact search first: where that is fast enough there is nothing to build. Then what is cheap; halfvec HNSW, the
    largest and slowest to build of all, only where no graph of less finds enough.
    """
    settings = work.settings
    with _sample(work, rows) as sample:
        size = min(settings.sample, rows)
        truth = ground_truth(work.connection, work.space, sample.table, QUERIES)
        point = exact_point(work.connection, work.space, sample.table, truth, EXACT_QUERIES)
        trials = [Trial(EXACT, size, rows, 0.0, 0, (), point, True)]
        if trials[0].meets(settings.target_p95_ms):
            return choose(trials, settings.target_p95_ms)
        skipped: dict[str, str] = {}
        unmeasured: list[str] = []
        for strategy in (*CHEAP, "halfvec"):
            if strategy == "halfvec" and any(trial.strategy in HNSW and trial.reaches_recall() for trial in trials):
                skipped[strategy] = "larger, slower to build and slower a candidate than one that finds enough"
                unmeasured.append(strategy)
                continue
            try:
                trials.append(_trial(sample, strategy, size, rows, truth))
            except psycopg.Error as error:  # too many dimensions, too little memory: one strategy less
                skipped[strategy] = str(error).strip().partition("\n")[0]
    return choose(trials, settings.target_p95_ms, skipped, unmeasured)


@contextmanager
def _sample(work: Building, rows: int) -> Iterator[Building]:
    """Where the strategies are tried: on a table of the sample's rows, dropped at the end.

    A run that was killed leaves it; the next one drops it.
    """
    table = f"{work.table}_sample"
    names = {"space": work.space.name, "table": work.table, "sample": table}
    drop = statement("index.sql", "drop_sample", **names)
    work.connection.execute(drop)
    try:
        work.connection.execute(statement("index.sql", "create_sample", **names))
        work.connection.execute(statement("index.sql", "fill_sample", size=min(work.settings.sample, rows), **names))
        work.connection.execute(statement("index.sql", "analyze", space=work.space.name, table=table))
        yield replace(work, table=table)
    finally:
        if not work.connection.broken:
            work.connection.execute(drop)


def _trial(sample: Building, strategy: str, size: int, rows: int, truth: Truth) -> Trial:
    connection, space, table = sample.connection, sample.space, sample.table
    choice = choice_of(sample.settings, strategy, space.dimensions, size)
    seconds = build_index(sample, name := f"{table}_{strategy}", choice, size)
    bytes_ = next(index["bytes"] for index in existing(sample) if index["name"] == name)
    with connection.transaction():
        connection.execute(statement("index.sql", "prefer_index"))  # small samples are read faster without
        curve = search_curve(connection, space, table, choice, truth, sample.settings, sample.progress)
    drop_index(connection, space, name)
    point, reaches = pick(curve, sample.settings.target_recall)
    return Trial(strategy, size, rows, seconds, bytes_, curve, point, reaches)
