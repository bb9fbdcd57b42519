"""Searches an old store and ours with the same query vectors, over what both can find, and compares the answers.

What both can find is found out by `old_store.py`; what is enough, `core/search_parity.py` says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Hashable, Sequence
from functools import partial
from typing import Any

from qbench_dagster.adapters.old_store import Key, OldStore
from qbench_dagster.adapters.postgres import Connection
from qbench_dagster.adapters.public_search import MAX_K, PublicSearch, cosines_of, titles_of
from qbench_dagster.adapters.queries import Question
from qbench_dagster.adapters.space import Space
from qbench_dagster.adapters.vector_pass import K
from qbench_dagster.core.comparison import Answer, Comparison, answers_compared
from qbench_dagster.core.nearest import Nearest
from qbench_dagster.core.queries import Filter
from qbench_dagster.core.reuse import read_claim

MAX_POINTS = 10_000
"""What an old store is asked for at most, where much of what it finds is not here."""
Search = Callable[[int], tuple[list[tuple[Hashable, float]], float]]
"""A search for k results of one query: (key, score), nearest first; and the milliseconds it took."""


def compare_with_old(
    connection: Connection,
    space: Space,
    old: OldStore,
    questions: Sequence[Question],
    only: Filter | None,
    exact: Nearest,
    *,
    public: PublicSearch | None,
    thresholds: tuple[float, float],
    named: dict[str, Any],
) -> tuple[Comparison | None, int]:
    """Both sides' ten nearest to every question, of what both hold and `only` lets through; None where that is nothing.

    And how many questions the old store answered with nothing that is held here: they are not compared.

    `exact` has our answers over just that: they stand in where our search finds too little of it among its 1,000
    nearest, and where the space is not the one that is read (`public` None). Raises SourceError, psycopg.Error.
    """
    among, held = (None, old.held) if only is None else old.by_filter[only]
    reachable = min(K, len(held))
    if not questions or not reachable:
        return None, 0
    answers, ours_ms, theirs_ms = [], [], []
    _theirs(old, questions[0], among)(K)  # the first answer of either opens files and loads pages
    if public is not None:
        public(questions[0].vector, K, only)
    for question, best in zip(questions, exact.results(), strict=True):
        results, took, _ = _found(_theirs(old, question, among), held, reachable, min(MAX_POINTS, old.points))
        theirs_ms.append(took)
        ours = best[:reachable]
        if public is not None:
            found, took, all_there_is = _found(partial(_ours, public, question, only), held, reachable, MAX_K)
            ours_ms.append(took)
            # What a search that gave everything lacks is not behind its thousand nearest.
            ours = found if len(found) == reachable or all_there_is else ours
        if results:
            answers.append(_answer(connection, space, old, question, ours, results))
    made = answers_compared(
        answers,
        threshold=thresholds[0],
        median_threshold=thresholds[1],
        ours_ms=ours_ms,
        theirs_ms=theirs_ms,
        titles=partial(titles_of, connection, old.kind),
        **named,
    )
    return made, len(questions) - len(answers)


def _ours(
    public: PublicSearch, question: Question, only: Filter | None, k: int
) -> tuple[list[tuple[Hashable, float]], float]:
    return public(question.vector, k, only)


def _theirs(old: OldStore, question: Question, among: Sequence[str] | None) -> Search:
    def search(k: int) -> tuple[list[tuple[Hashable, float]], float]:
        started = time.perf_counter()
        hits = old.source.search(old.kind, question.vector, k, among)
        took = (time.perf_counter() - started) * 1000
        named: dict[Hashable, float] = {}
        for hit in hits:
            claim = read_claim(old.kind, hit.payload)
            key: Key | None = claim.case_id if old.kind == "doc" else claim.text_hash
            if key is not None:
                named.setdefault(key, hit.score)  # of several points of one text the nearest
        return list(named.items()), took

    return search


def _found(
    search: Search, held: Container[Hashable], wanted: int, most: int
) -> tuple[list[tuple[Hashable, float]], float, bool]:
    """The first `wanted` results that both sides can find, the milliseconds of a plain search for ten, and whether the
    last search gave all there is.
    """
    found, took = search(K)
    kept = [(key, score) for key, score in found if key in held]
    asked = K
    while len(kept) < wanted and asked < most:
        asked = min(most, asked * 10)
        found, _ = search(asked)
        kept = [(key, score) for key, score in found if key in held]
    return kept[:wanted], took, len(found) < asked


def _answer(
    connection: Connection,
    space: Space,
    old: OldStore,
    question: Question,
    ours: Sequence[tuple[Hashable, float]],
    theirs: Sequence[tuple[Hashable, float]],
) -> Answer:
    """Both answers by one yardstick: our cosines. Theirs may rank by another metric, or by vectors of other lengths."""
    cosines = dict(ours)
    if missing := [key for key, _ in theirs if key not in cosines]:
        cosines |= cosines_of(connection, space, old.kind, question.vector, missing)
    measured = [(key, cosines.get(key, -1.0)) for key, _ in theirs]
    return Answer(question.label, ours, measured, len(theirs), K, [score for _, score in theirs])
