"""Which strategy to take: what was measured of each on a sample, projected to the whole table, and the choice. Pure.

How it is measured is `adapters/advising.py`; what strategies there are is `indexes.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from qbench_dagster.core.indexes import EXACT, HNSW, MAX_EF_SEARCH, IndexSettings

EF_SEARCHES = (40, 64, 100, 160, 250, 400, 640, 1000)
"""Steps of 1.6: what is chosen costs at most as much more than the best there is."""
GROWTH = 0.25
"""Candidates an HNSW index needs for the same recall grow with this power of the rows: real texts needed ef_search 40
of 5,000 and 64 to 400 of 32,563, by the build (ADR 17). It only has to rank: an index is measured when it is built."""


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a curve: how far it was searched, what that found and took.

    `recall_10` is the lowest of the means over the kinds of query, `recall_10_low` the lower end of its
    95 % interval, `recall_100` likewise the lowest mean.
    """

    ef_search: int
    rerank: int
    recall_10: float
    recall_10_low: float
    recall_100: float
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True, slots=True)
class Trial:
    """What one strategy did on a sample of `sample` rows of a table of `rows`, and what that says of the table."""

    strategy: str
    sample: int
    rows: int
    build_seconds: float
    bytes: int
    curve: Sequence[Point]
    point: Point
    """The cheapest that meets the target recall, or the best there is."""
    reaches: bool
    """Whether `point` meets it."""

    @property
    def growth(self) -> float:
        """How many times the sample's rows the table has."""
        return max(1.0, self.rows / self.sample) if self.sample else 1.0

    @property
    def candidates(self) -> float:
        """ef_search that the whole table is going to need."""
        return self.point.ef_search * (self.growth**GROWTH if self.strategy in HNSW else 1.0)

    @property
    def projected_p95_ms(self) -> float:
        """Of HNSW as its candidates and layers grow; the others read a share of the rows, so linear."""
        if self.strategy not in HNSW:
            return self.point.p95_ms * self.growth
        layers = math.log(max(self.rows, 2)) / math.log(max(self.sample, 2))
        return self.point.p95_ms * self.candidates / self.point.ef_search * max(1.0, layers)

    @property
    def projected_build_seconds(self) -> float:
        """Linear, for HNSW times the logarithm of the rows."""
        layers = math.log(max(self.rows, 2)) / math.log(max(self.sample, 2)) if self.strategy in HNSW else 1.0
        return self.build_seconds * self.growth * max(1.0, layers)

    @property
    def bytes_per_row(self) -> float:
        """Of its index."""
        return self.bytes / self.sample if self.sample else 0.0

    @property
    def cost(self) -> float:
        """What is compared: seconds of build times bytes, so that neither needs a price. Nothing for exact search."""
        return self.projected_build_seconds * self.bytes_per_row

    def reaches_recall(self) -> bool:
        """Whether it will find enough in the whole table, as far as a sample tells."""
        return self.reaches and (self.strategy not in HNSW or self.candidates <= MAX_EF_SEARCH)

    def meets(self, target_p95_ms: float) -> bool:
        """Whether it will find enough, fast enough."""
        return self.reaches_recall() and self.projected_p95_ms <= target_p95_ms


@dataclass(frozen=True, slots=True)
class Advice:
    """A choice, why, and in which `order` to try when the whole table turns out otherwise than its sample."""

    order: Sequence[str]
    why: str
    trials: Sequence[Trial]
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def chosen(self) -> str:
        """The strategy to build first."""
        return self.order[0]

    def as_json(self, settings: IndexSettings, rows: int) -> dict[str, Any]:
        """As store.index_builds keeps it. `asked` and `rows` tell later whether it still holds."""
        return {
            "sample": max((trial.sample for trial in self.trials), default=0),
            "rows": rows,
            "asked": asked(settings),
            "target_recall": settings.target_recall,
            "target_p95_ms": settings.target_p95_ms,
            "chosen": self.chosen,
            "why": self.why,
            "order": list(self.order),
            "skipped": dict(self.skipped),
            "strategies": [_trial_json(trial, settings.target_p95_ms) for trial in self.trials],
        }


def choose(
    trials: Sequence[Trial],
    target_p95_ms: float,
    skipped: Mapping[str, str] | None = None,
    unmeasured: Sequence[str] = (),
) -> Advice:
    """The cheapest strategy that meets both targets; else the fastest that finds enough. Exact search always does.

    `trials` hold one of exact search. `unmeasured` are tried before it, should those that were measured disappoint.
    """
    meeting = sorted((trial for trial in trials if trial.meets(target_p95_ms)), key=lambda trial: trial.cost)
    finding = sorted(
        (trial for trial in trials if trial.reaches_recall() and trial not in meeting),
        key=lambda trial: trial.projected_p95_ms,
    )
    best = (meeting or finding)[0]
    rows = f"{best.rows:,} rows"
    if best.strategy == EXACT and meeting:
        why = (
            f"exact search of {rows} keeps {target_p95_ms:g} ms ({best.projected_p95_ms:.1f} ms), so no index is needed"
        )
    elif meeting:
        why = (
            f"{best.strategy} is the cheapest to build and keep of those that reach the recall within "
            f"{target_p95_ms:g} ms: on {best.sample:,} vectors recall@10 {best.point.recall_10:.3f} at ef_search "
            f"{best.point.ef_search}; about {best.projected_p95_ms:.1f} ms for {rows}"
        )
    else:
        why = (
            f"no strategy reaches the recall within {target_p95_ms:g} ms; {best.strategy} is the fastest that reaches "
            f"it, at about {best.projected_p95_ms:.1f} ms for {rows}"
        )
    order = [trial.strategy for trial in [*meeting, *finding]]
    order = order[: order.index(EXACT)]
    return Advice([*order, *(unmeasured if order else ()), EXACT], why, trials, skipped or {})


def still_holds(advice: Mapping[str, Any], settings: IndexSettings, rows: int) -> bool:
    """Whether advice of before answers what is asked today, of a table that neither doubled nor halved."""
    if advice["asked"] != asked(settings):
        return False
    before = max(int(advice["rows"]), 1)
    return before / 2 < max(rows, 1) < before * 2


def asked(settings: IndexSettings) -> list[Any]:
    """What the advice depends on besides the vectors."""
    return [settings.m, settings.ef_construction, settings.ef_search, settings.rerank, settings.shortened,
            settings.lists, settings.target_recall, settings.target_p95_ms, settings.sample]  # fmt: skip


def pick(curve: Sequence[Point], target: float) -> tuple[Point, bool]:
    """The point of the fewest candidates that meets the target, its interval included; else the one that finds most."""
    for point in curve:
        if point.recall_10_low >= target:
            return point, True
    return max(curve, key=lambda point: (point.recall_10_low, point.recall_10, -point.ef_search)), False


def _trial_json(trial: Trial, target_p95_ms: float) -> dict[str, Any]:
    return {
        "strategy": trial.strategy,
        "recall_10": trial.point.recall_10,
        "recall_100": trial.point.recall_100,
        "p95_ms": trial.point.p95_ms,
        "projected_p95_ms": round(trial.projected_p95_ms, 2),
        "build_seconds": round(trial.build_seconds, 3),
        "projected_build_seconds": round(trial.projected_build_seconds, 1),
        "bytes_per_row": round(trial.bytes_per_row),
        "ef_search": trial.point.ef_search,
        "rerank": trial.point.rerank,
        "meets": trial.meets(target_p95_ms),
        "curve": [asdict(point) for point in trial.curve],
    }
