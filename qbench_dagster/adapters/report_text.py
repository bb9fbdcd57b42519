"""Values of a report as text for a reader: numbers, dates, names, Markdown; and what no text may hold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from qbench_dagster.adapters.report_plots import KINDS, bytes_text

_FIRST = (
    *("case_id", "kind", "object", "queries", "source_cases", "published", "rejected", "vectors"),
    *("strategy", "rows", "bytes", "seconds", "doc_stored", "doc_perturbed", "step_stored", "step_perturbed"),
)
"""Columns and numbers that come first, in this order; the others follow by name."""
_QUERIES = {
    "stored": "stored vectors",
    "perturbed": "moved vectors",
    "crossed": "vectors of the other table",
    "titles": "titles of cases",
}
_UNSHOWABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""What HTML forbids, SVG refuses or UTF-8 cannot encode: control characters, halves of surrogate pairs."""


def clean(value: Any) -> Any:
    """JSON values with each character that no page may hold replaced by U+FFFD."""
    if isinstance(value, str):
        return _UNSHOWABLE.sub("\ufffd", value)
    if isinstance(value, list):
        return [clean(one) for one in value]
    return {clean(name): clean(one) for name, one in value.items()} if isinstance(value, dict) else value


def when(created_at: object) -> str:
    """A moment in UTC to the second; what is no moment stays as it is."""
    try:
        return datetime.fromisoformat(str(created_at)).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except ValueError:
        return str(created_at)


def markdown(text: object) -> str:
    """Text of any content as one line of Markdown that says just that."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(str(text).split()))


def show(value: Any, name: str = "") -> str:
    """A value for a reader. Ids and keys are never grouped by commas: they get copied into queries."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(show(one) for one in value)
    if isinstance(value, dict):
        return ", ".join(f"{words(key)} {show(one)}" for key, one in ordered(value))
    return _number(value, name) if isinstance(value, int | float) else str(value)


def _number(value: float, name: str) -> str:
    if name.endswith("bytes"):
        return bytes_text(value)
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e6 else f"{value:,.6g}"
    return str(value) if name.endswith("id") else f"{value:,}"


def share(value: float | None) -> str:
    """A share or cosine to three places, so that columns align."""
    return "–" if value is None else f"{value:.3f}"


def milliseconds(value: float | None) -> str:
    """Milliseconds to as many places as say something: 0.84, 4.6, 132."""
    return (
        "–" if value is None else f"{value:.2f}" if value < 1 else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"
    )


def label_of(comparison: Mapping[str, Any]) -> str:
    """A comparison of searches in a few words: steps @10 qdrant, titles of cases."""
    what = f"{KINDS.get(comparison['kind'], comparison['kind'])} @{comparison['k']}"
    if comparison["against"] != "exact":
        what += f" {comparison['against']}"
    queries = _QUERIES.get(comparison["queries_from"], str(comparison["queries_from"]))
    return ", ".join([what, comparison["filter"] or queries])


def words(name: str) -> str:
    """The name of a column or number, spelt for reading."""
    return name.replace("_", " ")


def ordered(numbers: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Named numbers, the important ones first."""
    return sorted(numbers.items(), key=lambda pair: _rank(pair[0]))


def columns(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Every column that a row has, the important ones first."""
    return sorted({name for row in rows for name in row}, key=_rank)


def _rank(name: str) -> tuple[int, str]:
    return (_FIRST.index(name) if name in _FIRST else len(_FIRST), name)
