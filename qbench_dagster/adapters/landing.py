"""The landing room: what the export held when it was last seen, written only where it differs."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from psycopg.types.json import Jsonb

from qbench_dagster.adapters.export_values import json_text
from qbench_dagster.adapters.postgres import Connection, Database, JsonText, fetch_value, hold_lock, lock_range
from qbench_dagster.adapters.sql import statement
from qbench_dagster.adapters.testrail_export import LOOKUP_TABLES, SourceRow, TestRailExport
from qbench_dagster.core.model import RejectReason, Section
from qbench_dagster.core.normalize import MAX_BYTES
from qbench_dagster.core.ranges import CaseRange, columns_of

GUARDED_CASES = 50
"""Fewer disappearing cases than this never stop a run: small partitions change by large shares."""
LONGEST_KEY = 200


class DeleteGuardError(RuntimeError):
    """So many cases are gone from the source that it looks truncated. Nothing of what it names was changed."""


@dataclass(slots=True)
class Landed:
    """What landing one partition did. Counts of cases, but for `rejected_rows`."""

    source_rows: int = 0
    added: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    rejected_rows: int = 0
    rows_written: int = 0
    replacement_characters: int = 0
    held: int = 0
    """Rows the landing room holds for the partition afterwards, as it counts them itself."""

    def counts(self) -> dict[str, int]:
        """The counts a person wants to see."""
        return asdict(self)


def land_lookups(
    database: Database,
    export: TestRailExport,
    paths: Callable[[Mapping[str, Section[str]]], Mapping[str, str]],
) -> int:
    """Bring the look-up tables up to date; returns rows written.

    `paths` gives the path of each section from its root, by key.
    """
    written = 0
    with database.connection("land look-ups", long=True) as connection, connection.transaction():
        hold_lock(connection, "look-ups")  # two runs that write the same rows in another order could deadlock
        for table in LOOKUP_TABLES:
            rows = _with_own_key(export.lookup(table))
            values = {"rows": json_text(rows)}
            content = {"name": table, "content_hash": hashlib.sha256(values["rows"].encode()).digest()}
            if fetch_value(connection, statement("land.sql", "lookup_hash"), name=table) == content["content_hash"]:
                continue
            query = statement("land.sql", "replace_lookup", table=table)
            if table == "sections":
                tree = {str(row.get("id")): Section(_text(row.get("name")), _key(row.get("parent_id"))) for row in rows}
                values["paths"] = json_text(paths(tree))
                query = statement("land.sql", "replace_sections")
            written += fetch_value(connection, query, **values)
            connection.execute(statement("land.sql", "record_lookup"), content)
        export.check_unchanged()
    return written


def _with_own_key(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows that can be referred to: with an id, short enough for an index; of equal ids the first."""
    found: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        key = _key(row.get("id"))
        if key is not None and len(key) <= LONGEST_KEY:
            found.setdefault(key, row)
    return list(found.values())


def _key(value: Any) -> str | None:
    return None if value is None else str(value)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def guard_deletes(
    database: Database, export: TestRailExport, ranges: Sequence[CaseRange], max_delete_share: float
) -> None:
    """Raise DeleteGuardError if too many cases of one of the `ranges`, or of all together, would go.

    Too many are more than `max_delete_share`, and at least 50. Asked once for a whole run, before anything is
    changed: a partition of fewer than 50 cases always passes the guard of its own.
    """
    bounds = columns_of(ranges)
    del bounds["keys"]
    with database.connection("guard deletes", long=True) as connection:
        known = [case_id for (case_id,) in connection.execute(statement("land.sql", "known_ids"), bounds, binary=True)]
    gone = sorted(set(known).difference(export.case_ids()))
    export.check_unchanged()
    if not gone:
        return
    for each in ranges:
        _guard_deletes(each.key, _within(gone, each), len(_within(known, each)), max_delete_share)
    if len(ranges) > 1:
        where = f"{len(ranges)} partitions from {ranges[0].key} to {ranges[-1].key}"
        _guard_deletes(where, gone, len(known), max_delete_share, many=True)


def _within(ids: Sequence[int], case_range: CaseRange) -> Sequence[int]:
    return ids[bisect_left(ids, case_range.lower) : bisect_left(ids, case_range.upper)]


def land_cases(database: Database, export: TestRailExport, case_range: CaseRange, *, max_delete_share: float) -> Landed:
    """Land one partition in one transaction. Rows whose content hash is known are not written.

    Raises DeleteGuardError, before anything is changed, if more than `max_delete_share` of the partition's
    cases (and at least 50) would go; ExportError, likewise, if the file is damaged or was written over meanwhile.
    """
    landed = Landed()
    bounds = {"lower": case_range.lower, "upper": case_range.upper}
    rejected: list[_RejectedRow] = []
    outgrown: list[int] = []
    with database.connection(f"land {case_range.key}", long=True) as connection, connection.transaction():
        lock_range(connection, case_range.key, last=case_range.is_last)
        known: dict[int, bytes] = dict(
            connection.execute(statement("land.sql", "known_hashes"), bounds, binary=True).fetchall()
        )
        before = len(known)
        previous: int | None = None
        id_column = export.columns.index("id")
        for batch in export.rows(case_range):
            incoming = []
            for row in batch:
                case_id = row.values[id_column]
                if case_id == previous:
                    rejected.append(_RejectedRow(row, case_id, RejectReason.DUPLICATE_ID))
                    continue
                previous = case_id
                last_seen = known.pop(case_id, None)
                if row.is_too_large:
                    rejected.append(_RejectedRow(row, case_id, RejectReason.TOO_LARGE))
                    outgrown += [case_id] if last_seen else []
                    continue
                if last_seen == row.content_hash:
                    landed.unchanged += 1
                else:
                    landed.added += last_seen is None
                    landed.changed += last_seen is not None
                    incoming.append((case_id, row))
            landed.source_rows += len(batch)
            if incoming:
                landed.replacement_characters += _copy(connection, export, incoming)
        without_id = export.rows_without_id() if case_range.is_first else []
        export.check_unchanged()  # everything was read
        _guard_deletes(case_range.key, known, before, max_delete_share)
        if landed.added or landed.changed:
            landed.rows_written += connection.execute(statement("land.sql", "upsert_cases")).rowcount
        if known or outgrown:
            gone = {"ids": [*known, *outgrown]}
            landed.removed = connection.execute(statement("land.sql", "bury_cases"), gone).rowcount
        landed.source_rows += len(without_id)
        rejected += [_RejectedRow(row, None, RejectReason.INVALID_ID) for row in without_id]
        landed.rows_written += landed.removed + _sync_rejected(connection, export, case_range, rejected)
        landed.rejected_rows = len(rejected)
        landed.held = fetch_value(
            connection, statement("land.sql", "count_held"), with_idless=case_range.is_first, **bounds
        )
    return landed


@dataclass(frozen=True, slots=True)
class _RejectedRow:
    row: SourceRow
    case_id: int | None
    reason: RejectReason


def _copy(connection: Connection, export: TestRailExport, incoming: Sequence[tuple[int, SourceRow]]) -> int:
    """COPY rows into the temporary table; returns how many U+FFFD they hold."""
    replaced = 0
    connection.execute(statement("land.sql", "create_incoming"))
    with connection.cursor() as cursor, cursor.copy(statement("land.sql", "copy_incoming")) as copy:
        copy.set_types(["int8", "bytea", "jsonb"])
        for case_id, row in incoming:
            text = json_text(export.raw(row))
            replaced += text.count("\ufffd")
            copy.write_row((case_id, row.content_hash, JsonText(text)))
    return replaced


def _guard_deletes(where: str, gone: Collection[int], before: int, max_share: float, *, many: bool = False) -> None:
    if len(gone) < GUARDED_CASES or len(gone) <= max_share * before:
        return
    its, whole = ("their", "them") if many else ("its", "this partition")
    examples = ", ".join(str(case_id) for case_id in sorted(gone)[:5])
    raise DeleteGuardError(
        f"{where}: {len(gone):,} of {its} {before:,} cases are gone from the export (for instance {examples}). "
        f"That is more than {max_share:.0%}, as if the export were cut off. Nothing of {whole} was changed. "
        "Check the export. If the cases are meant to go, run once with --allow-deletes "
        "(in the UI: allow_deletes: true in the config of sqlite_cases and of pg_tables)."
    )


def _sync_rejected(
    connection: Connection, export: TestRailExport, case_range: CaseRange, rejected: Sequence[_RejectedRow]
) -> int:
    """Make landing.rejected_rows hold exactly `rejected` for this range; returns rows written."""
    bounds = {"lower": case_range.lower, "upper": case_range.upper, "with_idless": case_range.is_first}
    known = set(connection.execute(statement("land.sql", "known_rejected_rows"), bounds).fetchall())
    seen: Counter[bytes] = Counter()
    written = 0
    for each in rejected:
        key = (each.row.content_hash, seen[each.row.content_hash])
        seen[each.row.content_hash] += 1
        if key in known:
            known.discard(key)
            continue
        written += connection.execute(
            statement("land.sql", "insert_rejected_row"),
            {
                "content_hash": key[0],
                "occurrence": key[1],
                "case_id": each.case_id,
                "reason": each.reason.value,
                "detail": _detail(export, each),
                "raw": Jsonb(export.raw(each.row)),
            },
        ).rowcount
    for content_hash, occurrence in known:
        written += connection.execute(
            statement("land.sql", "delete_rejected_row"),
            {"content_hash": content_hash, "occurrence": occurrence},
        ).rowcount
    return written


def _detail(export: TestRailExport, rejected: _RejectedRow) -> str:
    raw = export.raw(rejected.row)
    title = str(raw.get("title", ""))[:80]
    if rejected.case_id is None:
        return f"id is {raw.get('id')!r:.80}, not an integer from 1 to 2^47 - 1; title {title!r}"
    if rejected.reason is RejectReason.TOO_LARGE:
        return f"{rejected.row.size:,} bytes of text, the limit is {MAX_BYTES:,}; title {title!r}"
    return f"another row with id {rejected.case_id} comes first; title {title!r}"
