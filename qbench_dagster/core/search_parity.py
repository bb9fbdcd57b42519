"""What a parity report says of searches and of vectors by value: findings, from comparisons that are made already.

The findings about rows and rights are `parity.py`, how two searches are compared is `comparison.py`. Values only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qbench_dagster.core.comparison import Comparison, shares_compared
from qbench_dagster.core.parity import MAX_OFFENDERS, Finding

NAMES = {"doc": "documents", "step": "steps"}
QUERIES = {
    "stored": "stored vectors",
    "perturbed": "stored vectors moved",
    "crossed": "vectors of the other table",
    "titles": "titles of cases",
    "query log": "the query log",
}
NO_STORE = "no old store is named (QBENCH_QDRANT_URL, QBENCH_QDRANT_PATH, QBENCH_FAISS_DOCS, QBENCH_FAISS_STEPS)"


def measured_comparisons(measured: Mapping[str, Mapping[str, Any]], target: float) -> list[Comparison]:
    """What the index was measured to find, by kind, query and k. `measured` is measuring.Measured by kind.

    The gate is at ten, for which the candidates of a search are chosen; at a hundred it is told.
    """
    made = [
        shares_compared(
            shares,
            threshold=target if k == "10" else None,
            ours_ms=_latencies(found, queries) if k == "10" else (),
            name=f"{kind}_recall_{k}_{queries}",
            title=f"{NAMES[kind]}: recall@{k} of the index, {QUERIES[queries]} as queries",
            kind=kind,
            against="exact",
            queries_from=queries,
            filter=None,
            k=int(k),
            measure="recall",
        )
        for kind, found in measured.items()
        for queries, by_k in found["recall"].items()
        for k, shares in by_k.items()
    ]
    return [each for each in made if each is not None]


def _latencies(found: Mapping[str, Any], queries: str) -> Sequence[float]:
    """Those of one kind of query: they stand one kind after the other."""
    counts = {kind: len(by_k["10"]) for kind, by_k in found["recall"].items()}
    before = sum(counts[kind] for kind in list(counts)[: list(counts).index(queries)])
    latencies: Sequence[float] = found["latencies_ms"][before : before + counts[queries]]
    return latencies


def recall_reached(comparisons: Sequence[Comparison], target: float, error: str | None = None) -> Finding:
    """Invariant 7: what searches without a filter find of what exact search finds.

    `error` is what a search function said instead of an answer.
    """
    asked = [each for each in comparisons if each.against == "exact" and each.filter is None]
    low = [each for each in asked if not each.passed]
    at_ten = [each for each in asked if each.k <= 10]
    told = _lowest(at_ten) or "no vectors to search"
    offenders: list[dict[str, Any]] = [{"wrong": error}] if error else []
    offenders += [{**_told(each), "threshold": target} for each in low]
    kinds = {each.kind for each in low}
    offenders += [_differing(each, example) for each in asked if each.kind in kinds for example in each.worst]
    return Finding(
        "recall_reaches_target",
        f"recall@10 of searches is at least {target}",
        not low and error is None,
        f"{error}; {told}" if error else told,
        {
            **{each.name: each.summary.mean for each in asked},
            "recall_10_min": min((each.summary.mean for each in at_ten if each.threshold is not None), default=None),
            "target": target,
        },
        offenders[:MAX_OFFENDERS],
        len(low) + (error is not None),
    )


def filtered_complete(
    comparisons: Sequence[Comparison], asked: int, short: Sequence[Mapping[str, Any]], target: float, note: str | None
) -> Finding:
    """Invariant 8. `short` are the answers of `asked` that are not min(k, matching) long, each with filter and query.

    A filter may not cost recall either: it fails where even the upper end of the interval is below the target, and
    below what the same search finds without a filter. `note` tells why nothing was asked.
    """
    searched = [each for each in comparisons if each.against == "exact"]
    filtered = [each for each in searched if each.filter is not None]
    plain = {
        each.kind: each.summary.low for each in searched if each.filter is None and each.name == f"{each.kind}_search"
    }
    poor = [each for each in filtered if each.summary.high < min(target, plain.get(each.kind, target))]
    told = _lowest(filtered)
    summary = f"{asked:,} filtered searches, {len(short):,} short or empty" + (f"; {told}" if told else "")
    offenders = [*short, *({**_told(each), "filter": each.filter, "threshold": target} for each in poor)]
    offenders += [_differing(each, example) for each in poor for example in each.worst]
    return Finding(
        "filtered_search_is_complete",
        "A filtered search returns all there is, up to k",
        not short and not poor,
        note or summary,
        {
            "asked": asked,
            "short": len(short),
            "recall_filtered_min": min((each.summary.mean for each in filtered), default=None),
        },
        offenders[:MAX_OFFENDERS],
        len(short) + len(poor),
    )


def old_store_covered(
    stores: Sequence[Mapping[str, Any]], cases: Mapping[str, Mapping[str, Sequence[int]]], error: str | None
) -> Finding:
    """Every case of an old store that the source still has is published.

    `cases` are those each store names, by what became of them: `published`, `rejected`, `rolled back`,
    `not published`, `gone`.
    Those that are gone from the source are named and do not fail: the old store is behind. `error` tells why a store
    that is named was not read.
    """
    lost = [
        {"case_id": case_id, "wrong": f"{store} has it and so has the source, but it is {fate}: see qbench status"}
        for store, fates in cases.items()
        for fate in ("not published", "rejected")
        for case_id in sorted(fates.get(fate, ()))
    ]
    known = ("published", "rolled back", "gone")
    count = {fate: sum(len(fates.get(fate, ())) for fates in cases.values()) for fate in known}
    gone = sorted({case_id for fates in cases.values() for case_id in fates.get("gone", ())})
    points = sum(store["points"] for store in stores)
    summary = (
        f"{points:,} points name {sum(count.values()) + len(lost):,} cases: {count['published']:,} "
        f"published, {len(lost):,} in the source and not published, {count['gone']:,} gone from the source"
        + (f", {count['rolled back']:,} kept out by a rollback" if count["rolled back"] else "")
    )
    return Finding(
        "old_store_is_covered",
        "Every case of the old store that the source still has is published",
        not lost and error is None,
        f"not compared: {error}" if error else summary if stores else NO_STORE,
        {
            "points": points,
            "cases_published": count["published"],
            "cases_not_published": len(lost),
            "cases_gone": count["gone"],
            "gone": gone[:20],
            "only_there": sum(store["only_there"] for store in stores),
            "only_here": sum(store["only_here"] for store in stores),
        },
        ([{"wrong": error}] if error else lost)[:MAX_OFFENDERS],
        1 if error else len(lost),
    )


def vectors_of_their_texts(
    fresh: Mapping[str, int | float],
    stores: Sequence[Mapping[str, Any]],
    offenders: Sequence[Mapping[str, Any]],
    *,
    error: str | None,
    note: str | None,
) -> Finding:
    """Invariant 4, by value: stored vectors against fresh ones of their texts, and against the old stores'.

    `fresh` has `compared`, `wrong` and `smallest`; `note` tells why nothing was embedded, `error` why it failed.
    """
    different = sum(store["different"] for store in stores)
    same = sum(store["equal"] for store in stores)
    count = int(fresh["wrong"]) + different + (error is not None)
    told = [f"not all compared: {error}"] if error else []
    if fresh["compared"]:
        told.append(
            f"{fresh['compared']:,} texts embedded again, {fresh['wrong']:,} with another vector (smallest cosine "
            f"{fresh['smallest']:.4f})"
        )
    elif note and not error:
        told.append(note)
    if stores:
        told.append(f"{same:,} vectors equal an old store's, {different:,} do not")
    return Finding(
        "vectors_are_those_of_their_texts",
        "Every vector compared is that of its text",
        not count,
        "; ".join(told) or "nothing to compare",
        {
            "embedded_again": fresh["compared"],
            "of_another_text": fresh["wrong"],
            "smallest_cosine": fresh["smallest"] if fresh["compared"] else None,
            "equal_to_old_store": same,
            "different_from_old_store": different,
        },
        [*([{"wrong": error}] if error else []), *offenders][:MAX_OFFENDERS],
        count,
    )


def old_store_reached(
    comparisons: Sequence[Comparison], notes: Sequence[str], error: str | None, *, named: bool
) -> Finding:
    """Searches return what the old stores return, over what both hold. `notes` tell what cannot be compared."""
    made = [each for each in comparisons if each.against != "exact"]
    low = [each for each in made if not each.passed]
    told = [f"{each.name} {_interval(each)}, median {each.summary.median:.3f}" for each in made]
    told += [f"{each.name}: {each.empty:,} empty" for each in made if each.empty]
    summary = ", ".join(told) or ("" if named else NO_STORE)
    unseen = [f"not compared: {one}" for one in ([error] if error else [])]
    offenders: list[dict[str, Any]] = [{"wrong": one} for one in unseen]
    for each in low:
        offenders.append({**_told(each), "median": each.summary.median, "empty": each.empty})
        offenders += [_differing(each, example) for example in each.worst]
    return Finding(
        "search_reaches_old_store",
        "Searches find what the old store finds",
        not low and error is None,
        "; ".join(one for one in (*unseen, *notes, summary) if one),
        {
            **{each.name: each.summary.mean for each in made},
            "overlap_min": min((each.summary.mean for each in made), default=None),
            "empty": sum(each.empty for each in made),
        },
        offenders[:MAX_OFFENDERS],
        len(low) + (error is not None),
    )


def _lowest(comparisons: Sequence[Comparison]) -> str:
    """The worst of some comparisons, for a person; empty of none."""
    if not comparisons:
        return ""
    lowest = min(comparisons, key=lambda each: each.summary.mean)
    of = f"recall, lowest of {len(comparisons)}" if len(comparisons) > 1 else "recall"
    return f"{of}: {_interval(lowest)}, {lowest.title}"


def _interval(comparison: Comparison) -> str:
    summary = comparison.summary
    return f"{summary.mean:.3f} ({summary.low:.3f} to {summary.high:.3f})"


def _told(comparison: Comparison) -> dict[str, Any]:
    summary = comparison.summary
    return {
        "comparison": comparison.name,
        "mean": summary.mean,
        "low": summary.low,
        "high": summary.high,
        "threshold": comparison.threshold,
    }


def _differing(comparison: Comparison, example: Mapping[str, Any]) -> dict[str, Any]:
    """One of the worst queries, both lists of ids side by side."""
    return {
        "comparison": comparison.name,
        "query": example["query"],
        "share": example["share"],
        **{side: [result["id"] for result in example[side]] for side in ("ours", "theirs")},
    }
