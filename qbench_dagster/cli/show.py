"""How results look in a terminal. Values in, tables out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from qbench_dagster.cli.run import RunSummary

MIB = 2**20


def show_run(console: Console, summary: RunSummary) -> None:
    """A line for each stage, then what stands in the database."""
    result = summary.as_json()
    table = Table(title="What this run did", title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("stage", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("rows written", justify="right")
    table.add_column("what")
    for stage, counts in summary.stages.items():
        if stage == "reused_vectors" and not counts["points"]:
            continue  # there is no old store
        table.add_row(stage, f"{counts['seconds']:.1f}", f"{counts.get('rows_written', 0):,}", _told(stage, counts))
    console.print(table)
    if "pg_tables" in summary.stages:
        console.print(
            f"\n{result['source_cases']:,} source cases{_beside(summary.stages['pg_tables'])} = "
            f"{result['published']:,} published + "
            f"{result['rejected']:,} rejected; {result['steps']:,} steps; "
            f"{result['texts_embedded']:,} texts embedded; {result['rows_written']:,} rows written; "
            f"{result['wall_seconds']:.1f} s",
            highlight=False,
        )
    if summary.report:
        console.print(f"parity report: {summary.report}", highlight=False, soft_wrap=True)
    for note in [*summary.waiting, *summary.warnings]:
        console.print(f"[yellow]note:[/] {escape(note)}", highlight=False)
    if not summary.failures and not summary.waiting:
        console.print("[bold green]every check passed[/]")


def show_plan(console: Console, plan: Mapping[str, Any]) -> None:
    """The plan's table, and what it does not say; then the same of the other space that is kept complete."""
    _show_plan(console, plan, "What embedding will take")
    for other in plan["also"]:
        _show_plan(console, other, f"\n{other['space']}, which is read, gets the vectors of new texts too")


def _show_plan(console: Console, plan: Mapping[str, Any], title: str) -> None:
    (first, *heading), *rows = plan["table"]
    console.print(title, style="table.title", highlight=False, markup=False, soft_wrap=True)
    table = Table(first, show_edge=False, pad_edge=False)
    for name in heading:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for note in plan["notes"]:
        console.print(f"- {note}", highlight=False, markup=False, soft_wrap=True)


def _told(stage: str, counts: Mapping[str, Any]) -> str:
    wanted = {
        "testrail_mirror": ("added", "changed", "removed", "requests"),
        "sqlite_cases": ("added", "changed", "removed", "unchanged", "rejected_rows"),
        "normalized_testdocs": ("normalized", "rejected", "steps", "with_notes"),
        "reused_vectors": ("points", "taken"),
        "doc_embeddings": ("texts", "texts_embedded", "requests", "tokens"),
        "step_embeddings": ("texts", "texts_embedded", "requests", "tokens"),
        "pg_tables": ("published", "rejected", "removed"),
        "hnsw_index": ("strategy", "index_bytes"),
        "parity_report": (),
    }[stage]
    parts = [
        f"{counts[name] / MIB:,.1f} MiB of index"
        if name == "index_bytes"
        else f"{counts[name]:,} {name.replace('_', ' ')}"
        if isinstance(counts[name], int)
        else str(counts[name])
        for name in wanted
        if counts.get(name)
    ]
    if stage == "parity_report":
        parts = ["evaluated" if counts.get("fresh") else "nothing was written since the last one, which stands"]
    rates = [
        f"{value:,.0f} {name.removesuffix('_per_second').replace('_', ' ')}/s"
        for name, value in counts.items()
        if name.endswith("_per_second") and value
    ]
    if counts.get("usd"):
        parts.append(f"${counts['usd']:,.4f}")
    recall = [value for name, value in counts.items() if name.startswith("recall_")]
    return ", ".join(parts + rates + ([f"recall@10 {min(recall):.3f} or better"] if recall else []))


def show_status(console: Console, found: Mapping[str, Any]) -> None:
    """Totals, rejects and spaces."""
    waiting = found["source_cases"] + found["brought_back"] - found["published"] - found["rejected"]
    console.print(
        f"[bold]{escape(str(found['database']))}[/]  {found['database_bytes'] / MIB:,.0f} MiB",
        highlight=False,
    )
    console.print(
        f"{found['source_cases']:,} source cases{_beside(found)} = {found['published']:,} published + "
        f"{found['rejected']:,} rejected"
        f"{f' + {waiting:,} not published yet' if waiting > 0 else ''} ({found['tombstones']:,} removed); "
        f"{found['steps']:,} steps, {found['preconditions']:,} preconditions, "
        f"{found['related_issues']:,} related issues; last published {found['last_published_at'] or 'never'}",
        highlight=False,
    )
    if found["held"]:
        console.print(
            f"{found['held']:,} cases are held by a rollback until they change in TestRail: see qbench history",
            highlight=False,
        )
    if found["rejects"]:
        table = Table("reason", "cases", "for instance", title="Rejects", title_justify="left", show_edge=False)
        for row in found["rejects"]:
            table.add_row(row["reason"], f"{row['cases']:,}", escape(row["example"]))
        console.print(table)
    for space in found["spaces"]:
        console.print(
            f"{space['name']}{' (active)' if space['active'] else ''}: {space['model']}, "
            f"{space['dimensions']} dimensions",
            highlight=False,
        )
        for kind, index in sorted(space["indexes"].items()):
            console.print(f"  {kind}: {index['rows']:,} vectors, {_indexed(index)}", highlight=False)


def _beside(counts: Mapping[str, Any]) -> str:
    """What is published although the source has it no more."""
    brought_back = int(counts.get("brought_back", 0))
    return f" + {brought_back:,} that a rollback brought back" if brought_back else ""


def _indexed(index: Mapping[str, Any]) -> str:
    """How a table is searched, and how well."""
    if index["strategy"] == "exact":
        told = "searched exactly"
    else:
        far = "probes" if index["strategy"] == "ivfflat" else "ef_search"
        size, ef_search, rerank = index["bytes"] / MIB, index["ef_search"], index["rerank"]
        told = f"{index['strategy']} ({size:,.1f} MiB), {far} {ef_search}, rerank {rerank}"
    recall = index["recall"] or {}
    if not recall.get("means"):
        return told
    means = " / ".join(f"{mean:.3f} {queries}" for queries, mean in recall["means"].items())
    return f"{told}; recall@10 {means}, p95 {recall['p95_ms']:.1f} ms"


def show_spaces(console: Console, listed: Sequence[Mapping[str, Any]]) -> None:
    """Embedding spaces, two lines each."""
    if not listed:
        console.print("no embedding space yet: `qbench run` makes the one the settings name")
    for space in listed:
        marks = {"active": space["active"], "way back": space["previous"], "settings": space["of_settings"]}
        told = ", ".join(name for name, holds in marks.items() if holds)
        coverage = "nothing published" if space["coverage_percent"] is None else f"{space['coverage_percent']:.2f} %"
        origins = ", ".join(f"{name} {count:,}" for name, count in space["provenance"].items())
        shares = [share for found in space["recall"].values() for share in found.values() if share is not None]
        cost = f"${space['usd']:,.4f}, {space['tokens']:,} tokens"
        if space["usd_at_risk"]:
            cost += f", ${space['usd_at_risk']:,.4f} perhaps billed without an answer"
        console.print(
            f"[bold]{escape(space['name'])}[/]{f' ({told})' if told else ''}: {escape(space['model'])}, "
            f"{space['vector_type']}({space['dimensions']}){escape(_prefixes(space))}, "
            f"{space['documents']:,} documents and {space['steps']:,} steps ({origins or 'empty'}), covers {coverage}",
            highlight=False,
            soft_wrap=True,
        )
        console.print(
            f"  {space['bytes'] / MIB:,.1f} MiB ({space['index_bytes'] / MIB:,.1f} of indexes), "
            f"recall@10 {f'{min(shares):.3f} or better' if shares else 'not measured'}, {cost}, "
            f"made {space['created_at']:%Y-%m-%d %H:%M}",
            highlight=False,
            soft_wrap=True,
        )


def _prefixes(space: Mapping[str, Any]) -> str:
    told = [f"{what} after {space[name]!r}" for what, name in (("texts", "text_prefix"), ("queries", "query_prefix"))
            if space[name]]  # fmt: skip
    return f", {' and '.join(told)}" if told else ""


def show_cutover(console: Console, done: Mapping[str, Any]) -> None:
    """Where reads are now."""
    if done["moved"]:
        told = f"reads moved from {done['from_space']} to {done['to_space']}; back: qbench cutover --back"
    else:
        told = f"reads are on {done['to_space']} already"
    console.print(told, highlight=False, soft_wrap=True)
    if done["html"]:
        console.print(f"parity report: {done['html']}", highlight=False, soft_wrap=True)


def purge_question(space: Mapping[str, Any]) -> str:
    """What is lost with a space."""
    lost = f"{space['documents'] + space['steps']:,} vectors, {space['bytes'] / MIB:,.1f} MiB"
    if space["usd"]:
        lost += f", which cost ${space['usd']:,.4f}"
    question = f"Drop {space['name']} ({lost})?"
    if space["open_batches"]:
        question += (
            f" {space['open_batches']} batches of it are at the service: paid for, and their vectors thrown away."
        )
    if space["previous"]:
        question += " `qbench cutover --back` returns to it, and could not any more."
    return question


def show_purged(console: Console, purged: Mapping[str, Any]) -> None:
    """What was freed."""
    console.print(
        f"{purged['name']} is dropped: {purged['bytes'] / MIB:,.1f} MiB ({purged['bytes']:,} bytes) freed",
        highlight=False,
    )
