"""Writes a parity report as `parity.json` and as `parity.html`: one page, no script, nothing loaded.

What the report says is `core/parity.py`, how it is evaluated `adapters/parity.py`, how it looks
`templates/parity.html.j2` and, for its plots, `adapters/report_plots.py`.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from qbench_dagster.adapters.report_plots import KINDS, bytes_text, plots
from qbench_dagster.core.model import RejectReason
from qbench_dagster.core.parity import ParityReport

_FIRST = (
    *("case_id", "kind", "object", "queries", "source_cases", "published", "rejected", "vectors"),
    *("strategy", "rows", "bytes", "seconds", "doc_stored", "doc_perturbed", "step_stored", "step_perturbed"),
)
"""Columns and numbers that come first, in this order; the others follow by name."""
_DETAILS = ("indexes", "settings", "versions", "export", "run_id", "seconds")


def write_report(report: ParityReport | Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write `parity.html` and `parity.json` into `folder`: readers see the old file or the new."""
    plain = _plain(report.as_json() if isinstance(report, ParityReport) else report)
    texts = {
        folder / "parity.html": render_html(plain),
        folder / "parity.json": json.dumps(plain, ensure_ascii=False, indent=2) + "\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    written = {path: path.with_name(f".{path.name}.{secrets.token_hex(4)}") for path in texts}
    try:
        for path, text in texts.items():
            written[path].write_text(text, encoding="utf-8", newline="\n")
        for path, temporary in written.items():
            temporary.replace(path)
    finally:
        for temporary in written.values():
            temporary.unlink(missing_ok=True)
    return folder / "parity.html", folder / "parity.json"


def render_html(report_json: Mapping[str, Any]) -> str:
    """The report as one HTML page. Takes the JSON form, so that a report kept in the database renders too."""
    report = _plain(report_json)
    details = {**dict.fromkeys(_DETAILS), **(report.get("details") or {})}
    partitions = [
        {**row, "off": row["source_cases"] - row["published"] - row["rejected"]}
        for row in report.get("partitions") or []
    ]
    findings = sorted(report.get("findings") or [], key=lambda finding: bool(finding["passed"]))
    names = ("source_cases", "published", "rejected", "off", "incomplete", "steps")
    recall = details.get("recall") or {}
    return _template().render(
        passed=report["passed"],
        created_at=_when(str(report.get("created_at"))),
        space=report.get("space"),
        findings=findings,
        failed=[finding for finding in findings if not finding["passed"]],
        partitions=partitions,
        totals={name: sum(row[name] for row in partitions) for name in names},
        rejects=report.get("rejects") or [],
        rejects_by_reason=_rejects(report.get("rejects") or []),
        details=details,
        recall=[{"kind": KINDS.get(kind, kind), **found} for kind, found in recall.items() if found],
        plots=plots(partitions, details),
    )


def summary_markdown(report_json: Mapping[str, Any]) -> str:
    """Verdict and one line a finding, as Markdown for Dagster's metadata."""
    report = _plain(report_json)
    verdict = "PASSED" if report["passed"] else "FAILED"
    lines = [f"**{verdict}** in {_markdown(report.get('space'))}, {_when(str(report.get('created_at')))}", ""]
    for finding in sorted(report.get("findings") or [], key=lambda finding: bool(finding["passed"])):
        mark = "✅" if finding["passed"] else "❌"
        lines.append(f"- {mark} **{_markdown(finding['title'])}**: {_markdown(finding['summary'])}")
    return "\n".join(lines) + "\n"


def _plain(report: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values in one order, verdict first: equal reports give equal bytes. NaN becomes null."""
    text = json.dumps(report, default=str, sort_keys=True)
    values: dict[str, Any] = json.loads(text, parse_constant=lambda _: None)
    return {"passed": values.pop("passed", False), **values}


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("qbench_dagster.adapters"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(show=_show, bytes=bytes_text, ordered=_ordered, columns=_columns, words=_words)
    return environment.get_template("parity.html.j2")


def _when(created_at: str) -> str:
    try:
        return datetime.fromisoformat(created_at).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except ValueError:
        return created_at


def _markdown(text: object) -> str:
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(str(text).split()))


def _show(value: Any, name: str = "") -> str:
    """A value for a reader. Ids and keys are never grouped by commas: they get copied into queries."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_show(one) for one in value)
    if isinstance(value, int | float) and name.endswith("bytes"):
        return bytes_text(value)
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e6 else f"{value:,.6g}"
    return f"{value:,}" if isinstance(value, int) and not name.endswith("id") else str(value)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _rank(name: str) -> tuple[int, str]:
    return (_FIRST.index(name) if name in _FIRST else len(_FIRST), name)


def _ordered(numbers: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(numbers.items(), key=lambda pair: _rank(pair[0]))


def _columns(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return sorted({name for row in rows for name in row}, key=_rank)


def _rejects(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
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
