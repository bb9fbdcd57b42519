"""What the report's page shows, from the report's JSON: sums, groups, key figures, plots. How it looks is `templates/`.

A report kept in the database may be of an older version: whatever it lacks is left out, never an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from qbench_dagster.adapters import report_search_plots as search_plots
from qbench_dagster.adapters.report_plots import KINDS, plots, unaccounted
from qbench_dagster.adapters.report_text import label_of, milliseconds, share
from qbench_dagster.core.decision import BLOCKERS, REMEDIES, decision
from qbench_dagster.core.model import RejectReason

Values = Mapping[str, Any]
_DETAILS = ("indexes", "settings", "versions", "thresholds", "old_store", "export", "run_id", "seconds")
_SUMS = ("source_cases", "brought_back", "published", "rejected", "off", "incomplete", "steps", "held")
SIDE_BY_SIDE = 10
"""Results of a search that are listed on each side; the JSON has all of them."""


def page(report: Values) -> dict[str, Any]:
    """Everything the template needs, of a report in its JSON form."""
    found = report.get("details") or {}
    details = {**dict.fromkeys(_DETAILS), **found}
    partitions = [
        {"held": 0, "brought_back": 0, **row, "off": unaccounted(row)} for row in report.get("partitions") or []
    ]
    findings = [{**finding, "remedy": REMEDIES.get(finding["name"])} for finding in failed_first(report)]
    comparisons = [_comparison(one) for one in details.get("comparisons") or []]
    history = _history(report, details)
    return {
        "passed": report["passed"] and bool(findings),
        "decision": decision(report),
        "created_at": report.get("created_at"),
        "space": report.get("space"),
        "findings": findings,
        "failed": [finding for finding in findings if not finding["passed"]],
        "figures": figures(report),
        "partitions": partitions,
        "totals": {name: sum(row[name] for row in partitions) for name in _SUMS},
        "rejects": report.get("rejects") or [],
        "rejects_by_reason": _rejects(report.get("rejects") or []),
        "details": details,
        "comparisons": comparisons,
        "recall": [] if comparisons else _former_recall(details),
        "indexes": [_index(index, details.get("target_recall")) for index in details["indexes"] or []],
        "run_url": run_link(details),
        "history": history,
        "history_plot": search_plots.history_plot(history[::-1]),
        "plots": plots(partitions, details),
        "search_plots": _search_plots(comparisons, details),
    }


def failed_first(report: Values) -> list[dict[str, Any]]:
    """The findings, those that fail first."""
    return sorted(report.get("findings") or [], key=lambda finding: bool(finding["passed"]))


def figures(report: Values) -> list[dict[str, Any]]:
    """The few numbers to decide by: value, label, note, and whether it is not what was asked for."""
    details = report.get("details") or {}
    comparisons = details.get("comparisons") or []
    shown = []
    if recall := _recall_at_ten(details):
        least = min(recall, key=lambda one: float(one["summary"]["mean"]))
        shown.append(_figure(least, f"recall@10, the lowest of {len(recall)}" if len(recall) > 1 else "recall@10"))
    elif old := _former_recall(details):
        least = min(row["mean"] for row in old)
        target = details.get("target_recall")
        wrong = target is not None and least < target
        shown.append({"value": share(least), "label": "recall@10, the lowest", "wrong": wrong,
                      "note": f"asked for: {target:g}" if target is not None else ""})  # fmt: skip
    overlap = [one for one in comparisons if one["against"] != "exact" and one["k"] == 10 and one["summary"]]
    if overlap:
        least = min(overlap, key=lambda one: float(one["summary"]["mean"]))
        shown.append(_figure(least, f"overlap with {least['against']}, top 10"))
    timed = [one["latency_ms"] for one in comparisons if one["k"] == 10 and (one.get("latency_ms") or {}).get("ours")]
    if timed:
        slowest = max(timed, key=lambda one: float(one["ours"]["p95"]))
        theirs = f"; there {milliseconds(slowest['theirs']['p95'])} ms" if slowest["theirs"] else ""
        shown.append({"value": f"{milliseconds(slowest['ours']['p95'])} ms", "label": "p95 of a search, the slowest",
                      "note": f"median {milliseconds(slowest['ours']['p50'])} ms{theirs}", "wrong": False})  # fmt: skip
    vectors = next((one for one in report.get("findings") or [] if one["name"] == "vectors_complete_and_sound"), None)
    if vectors and "vectors" in vectors["numbers"]:
        unsound = vectors["numbers"].get("unsound_vectors") or 0
        note = f"{unsound:,} unsound" if unsound else "all of them sound"
        shown.append({"value": f"{vectors['numbers']['vectors']:,}", "label": "vectors examined",
                      "note": note, "wrong": bool(unsound)})  # fmt: skip
    return shown


def run_link(details: Values) -> str | None:
    """The run's address in the UI. What is no http address is no link."""
    url = str(details.get("run_url") or "")
    return url if urlsplit(url).scheme in ("http", "https") and not set(url) & set("<> \n\t\"'") else None


def _recall_at_ten(details: Values) -> list[Values]:
    """Comparisons with exact search over whole tables, at ten."""
    return [one for one in details.get("comparisons") or []
            if one["measure"] == "recall" and one["k"] == 10 and one["filter"] is None and one["summary"]]  # fmt: skip


def _figure(comparison: Values, label: str) -> dict[str, Any]:
    found, asked = comparison["summary"], comparison.get("threshold")
    note = f"95 % interval {share(found['low'])}–{share(found['high'])}"
    return {
        "value": share(found["mean"]),
        "label": label,
        "note": note + (f"; asked for: {asked:g}" if asked is not None else ""),
        "wrong": not comparison["passed"],
    }


def _comparison(one: Values) -> dict[str, Any]:
    worst = [
        {
            **case,
            "sides": [
                {
                    "name": name,
                    "results": (case.get(side) or [])[:SIDE_BY_SIDE],
                    "more": max(len(case.get(side) or []) - SIDE_BY_SIDE, 0),
                }
                for name, side in (("Here", "ours"), (_against(one), "theirs"))
            ],
        }
        for case in one.get("worst") or []
    ]
    return {
        **one,
        "label": label_of(one),
        "summary": one["summary"] or {},
        "worst": worst,
    }


def _against(one: Values) -> str:
    return "Exact search" if one["against"] == "exact" else str(one["against"]).capitalize()


def _search_plots(comparisons: Sequence[Values], details: Values) -> list[dict[str, Any]]:
    rows = [{**one, **one["summary"]} for one in comparisons if one["summary"]]
    exact = [row for row in rows if row["against"] == "exact"]
    old = [row for row in rows if row["against"] != "exact"]
    drawn = [
        search_plots.agreement_plot("recall", "Found of what exact search finds", exact or _former_recall(details)),
        search_plots.agreement_plot("overlap", "Found of what the old store finds", old),
        search_plots.latency_plot(comparisons),
    ]
    return [plot for plot in drawn if plot]


def _former_recall(details: Values) -> list[dict[str, Any]]:
    """recall@10 as reports held it before comparisons did: one number for each kind and kind of query."""
    target = details.get("target_recall")
    return [
        {"label": f"{KINDS.get(kind, kind)}, {told}", "mean": float(found[name]), "threshold": target}
        for kind, found in (details.get("recall") or {}).items()
        for name, told in (("stored", "stored vectors"), ("perturbed", "moved vectors"))
        if found and found.get(name) is not None
    ]


def _index(index: Values, target: float | None) -> dict[str, Any]:
    advice = index.get("advice") or {}
    asked = advice.get("target_recall") or target
    drawn = [search_plots.curve_plot(index, asked), search_plots.advice_plot(index)]
    names = ("strategy", "m", "ef_construction", "lists", "shortened", "ef_search", "rerank", "rows", "bytes",
             "seconds", "built_at") if index["strategy"] != "exact" else ("strategy", "rows")  # fmt: skip
    labels = {
        "ef_construction": "ef_construction", "m": "m", "shortened": "dimensions indexed",
        "ef_search": "probes" if index["strategy"] == "ivfflat" else "ef_search", "bytes": "index size",
        "seconds": "built in, s", "built_at": "built",
    }  # fmt: skip
    return {
        "kind": KINDS.get(index["kind"], index["kind"]),
        "facts": [(labels.get(name, name), name, index[name]) for name in names if index.get(name) is not None],
        "why": advice.get("why"),
        "chosen": advice.get("chosen"),
        "strategies": advice.get("strategies") or [],
        "skipped": advice.get("skipped") or {},
        "plots": [plot for plot in drawn if plot],
    }


def _history(report: Values, details: Values) -> list[dict[str, Any]]:
    """This report and those before it, newest first. Empty where reports were not kept in the report."""
    if details.get("history") is None:
        return []
    published = sum(row["published"] for row in report.get("partitions") or [])
    recall = [one["summary"]["mean"] for one in _recall_at_ten(details)]
    now = {
        "created_at": report.get("created_at"),
        "space": report.get("space"),
        "passed": report["passed"],
        "failed": [finding["name"] for finding in failed_first(report) if not finding["passed"]],
        "numbers": {"published": published, "recall_10_min": min(recall, default=None)},
    }
    return [
        {**entry, "failed": [BLOCKERS.get(name, name) for name in entry["failed"]]}
        for entry in [now, *details["history"]]
    ]


def _rejects(rows: Sequence[Values]) -> list[dict[str, Any]]:
    """Rejects by reason, each with what to do. A reason of another version has no remedy here."""
    reasons = sorted({str(row["reason"]) for row in rows})
    known = {reason.value: reason.remedy for reason in RejectReason}
    return [
        {
            "reason": reason,
            "remedy": known.get(reason),
            "rows": [row for row in rows if str(row["reason"]) == reason],
        }
        for reason in reasons
    ]
