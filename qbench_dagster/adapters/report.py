"""Writes a parity report as `parity.json` and as `parity.html`: one page, no script, nothing loaded.

What the report says is `core/parity.py`, how it is evaluated `adapters/parity.py`; what its page shows is
`report_view.py`, how that looks `templates/`. The JSON's fields are in `schemas/parity.schema.json`.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from qbench_dagster.adapters import report_text
from qbench_dagster.adapters.report_plots import bytes_text
from qbench_dagster.adapters.report_view import failed_first, figures, page, run_link
from qbench_dagster.core.decision import decision
from qbench_dagster.core.parity import ParityReport

SCHEMA_VERSION = 2
"""Raise when a field of the JSON changes its name or meaning, and the schema with it."""


def write_report(report: ParityReport | Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write `parity.html` and `parity.json` into `folder`: readers see the old file or the new."""
    plain = document(report.as_json() if isinstance(report, ParityReport) else report)
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


def document(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report as JSON values in one order, verdict first: equal reports give equal bytes. NaN becomes null.

    A report of before comparisons were made keeps the fields it has, and says so by `schema_version` 1.
    """
    text = json.dumps(report, default=str, sort_keys=True)
    values: dict[str, Any] = report_text.clean(json.loads(text, parse_constant=lambda _: None))
    version = SCHEMA_VERSION if "comparisons" in (values.get("details") or {}) else 1
    return {"passed": values.pop("passed", False), "schema_version": version, **values}


def schema() -> dict[str, Any]:
    """The JSON Schema of `parity.json`."""
    text = files("qbench_dagster").joinpath("schemas", "parity.schema.json").read_text(encoding="utf-8")
    values: dict[str, Any] = json.loads(text)
    return values


def render_html(report_json: Mapping[str, Any]) -> str:
    """The report as one HTML page. Takes the JSON form, so that a report kept in the database renders too."""
    return _template().render(page(document(report_json)))


def summary_markdown(report_json: Mapping[str, Any]) -> str:
    """Verdict, key numbers and one line a finding, as Markdown for Dagster's metadata."""
    report = document(report_json)
    mark = "✅" if report["passed"] else "❌"
    lines = [f"{mark} **{report_text.markdown(decision(report))}**", ""]
    told = [report_text.markdown(report.get("space")), report_text.when(report.get("created_at"))]
    told += [report_text.markdown(f"{shown['label']} {shown['value']}") for shown in figures(report)]
    if link := run_link(report.get("details") or {}):
        told.append(f"[run](<{link}>)")
    lines += [" · ".join(told), ""]
    for finding in failed_first(report):
        mark = "✅" if finding["passed"] else "❌"
        lines.append(
            f"- {mark} **{report_text.markdown(finding['title'])}**: {report_text.markdown(finding['summary'])}"
        )
    return "\n".join(lines) + "\n"


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("qbench_dagster.adapters"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        show=report_text.show, bytes=bytes_text, ordered=report_text.ordered, columns=report_text.columns,
        words=report_text.words, when=report_text.when, share=report_text.share, ms=report_text.milliseconds,
    )  # fmt: skip
    return environment.get_template("parity.html.j2")
