"""One comparison of two searches over the same queries: its numbers, its verdict, and where the two differ most.

How shares are computed is `agreement.py`; which comparisons there are, the adapters say.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from qbench_dagster.core.agreement import Summary, overlap, percentiles, spearman, summarize

WORST = 5
LATENCIES = 1000

Results = Sequence[tuple[Hashable, float]]
"""(key, cosine) of what a search returned, nearest first."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What two searches answered to one query. `reachable` is how many results there can be: min(k, matching)."""

    query: str
    ours: Results
    theirs: Results
    reachable: int
    k: int = 10
    scores: Sequence[float] | None = None
    """The other store's own scores of `theirs`, where its cosines are not what it ranks by."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One line of the report: numbers of `summary` are shares of 1, latencies are milliseconds."""

    name: str
    title: str
    kind: str
    against: str
    """`exact`, or the provenance of an old store: `qdrant`, `faiss`."""
    queries_from: str
    """`stored`, `perturbed`, `query log` or `titles`."""
    filter: str | None
    k: int
    measure: str
    """`recall` or `overlap`."""
    threshold: float | None
    passed: bool
    summary: Summary
    spearman: float | None = None
    empty: int = 0
    """Queries that ours answered with nothing though there is something to find."""
    latency_ms: Mapping[str, Any] = field(default_factory=lambda: {"ours": None, "theirs": None})
    latencies_ms: Mapping[str, Any] = field(default_factory=lambda: {"ours": [], "theirs": None})
    worst: Sequence[Mapping[str, Any]] = ()

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def shares_compared(
    shares: Sequence[float], *, threshold: float | None, ours_ms: Sequence[float] = (), **named: Any
) -> Comparison | None:
    """A comparison of which only the share of each query is known; None without queries. `named` as in Comparison."""
    summary = summarize(shares)
    if summary is None:
        return None
    return Comparison(
        **named, threshold=threshold, passed=threshold is None or summary.mean >= threshold, summary=summary,
        latency_ms={"ours": percentiles(ours_ms), "theirs": None},
        latencies_ms={"ours": rounded(ours_ms), "theirs": None},
    )  # fmt: skip


def answers_compared(
    answers: Sequence[Answer],
    *,
    threshold: float | None,
    median_threshold: float | None = None,
    ours_ms: Sequence[float],
    theirs_ms: Sequence[float] | None,
    titles: Callable[[Sequence[Hashable]], Mapping[Hashable, str]],
    **named: Any,
) -> Comparison | None:
    """A comparison of the answers to every query; None without queries.

    `titles` is asked once, for what is shown of the worst queries. An empty answer fails where there is a threshold.
    """
    agreed = [overlap(answer.ours, answer.theirs, reachable=answer.reachable) for answer in answers]
    summary = summarize([each.share for each in agreed])
    if summary is None:
        return None
    empty = sum(not answer.ours and answer.reachable > 0 for answer in answers)
    passed = threshold is None or (
        not empty and summary.mean >= threshold and (median_threshold is None or summary.median >= median_threshold)
    )
    order = sorted(range(len(answers)), key=lambda index: agreed[index].share)
    worst = [index for index in order[:WORST] if agreed[index].share < 1]
    named_ones = titles([key for index in worst for key, _ in (*answers[index].ours, *answers[index].theirs)])
    correlations = [
        rho for answer in answers
        if answer.scores is not None and (rho := spearman([s for _, s in answer.theirs], answer.scores)) is not None
    ]  # fmt: skip
    return Comparison(
        **named,
        k=max(answer.k for answer in answers),
        threshold=threshold,
        passed=passed,
        summary=summary,
        spearman=round(sum(correlations) / len(correlations), 4) if correlations else None,
        empty=empty,
        latency_ms={"ours": percentiles(ours_ms), "theirs": None if theirs_ms is None else percentiles(theirs_ms)},
        latencies_ms={"ours": rounded(ours_ms), "theirs": None if theirs_ms is None else rounded(theirs_ms)},
        worst=[
            {
                "query": answers[index].query[:200],
                "share": round(agreed[index].share, 4),
                "ours": _shown(answers[index].ours, agreed[index].shared, named_ones),
                "theirs": _shown(answers[index].theirs, agreed[index].shared, named_ones),
            }
            for index in worst
        ],
    )


def rounded(milliseconds: Sequence[float]) -> list[float]:
    """Latencies as the report keeps them: at most a thousand."""
    return [round(each, 3) for each in milliseconds[:LATENCIES]]


def _shown(results: Results, shared: frozenset[Hashable], titles: Mapping[Hashable, str]) -> list[dict[str, Any]]:
    return [
        {
            "id": key.hex() if isinstance(key, bytes) else key,
            "title": titles.get(key, ""),
            "similarity": round(score, 4),
            "shared": key in shared,
        }
        for key, score in results
    ]
