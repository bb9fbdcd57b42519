"""The staging room: normalises what is due of a partition and writes it, a batch at a time."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from qbench_dagster.adapters.export_values import json_text
from qbench_dagster.adapters.postgres import Connection, Database, JsonText, fetch_dicts, fetch_value, lock_range
from qbench_dagster.adapters.sql import statement
from qbench_dagster.core.model import NORMALIZER_VERSION, Lookups, Reject, Section, TestDoc
from qbench_dagster.core.normalize import normalize
from qbench_dagster.core.ranges import CaseRange, columns_of
from qbench_dagster.core.texts import doc_text, step_text, text_hash

BATCH = 500
BATCH_CHARACTERS = 8_000_000
"""A batch is closed by whichever comes first, so that long rows do not raise the memory it takes."""
FETCH = 100

_DOCUMENT_TYPES = [
    "int8", "bytea", "int4", "bytea", "bytea", "text", "text", "text", "text", "text", "text",
    "text", "text[]", "text[]", "text", "int8", "int8", "int8", "text", "bool", "text",
    "jsonb", "timestamptz", "timestamptz", "text[]", "text[]", "text[]", "text[]",
]  # fmt: skip


@dataclass(slots=True)
class Staged:
    """What normalising one partition did."""

    normalized: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    steps: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    removed: int = 0
    rows_written: int = 0
    reject_samples: list[tuple[int, str, str]] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """The counts a person wants to see."""
        return {
            "normalized": self.normalized,
            "rejected": self.rejected.total(),
            "steps": self.steps,
            "with_notes": self.notes.total(),
            "removed": self.removed,
            "rows_written": self.rows_written,
        }


def load_lookups(database: Database) -> Lookups:
    """The look-up tables as landed. 10,000 sections take about 3 MB."""
    with database.connection("load look-ups") as connection, connection.transaction():
        connection.execute(statement("normalize.sql", "one_snapshot"))
        return _lookups(connection, fetch_value(connection, statement("normalize.sql", "lookups_version")))


def _lookups(connection: Connection, version: bytes) -> Lookups:
    sections = connection.execute(statement("normalize.sql", "sections")).fetchall()
    priorities = connection.execute(statement("normalize.sql", "priorities")).fetchall()
    case_types = connection.execute(statement("normalize.sql", "case_types")).fetchall()
    return Lookups(
        sections={
            number: Section(name or "", _integer(parent))
            for key, name, parent in sections
            if (number := _integer(key)) is not None
        },
        priorities={n: name for key, name in priorities if name and (n := _integer(key)) is not None},
        case_types={n: name for key, name in case_types if name and (n := _integer(key)) is not None},
        version=version,
    )


def stage_cases(database: Database, lookups: Lookups, case_range: CaseRange, progress: Callable[[int], None]) -> Staged:
    """Normalise the cases of a partition that are due, in one transaction. `progress` is told of each batch.

    `lookups` are read again if others have landed since: the names a case gets and the input hash it is stored
    under come of one snapshot.
    """
    staged = Staged()
    bounds = {"lower": case_range.lower, "upper": case_range.upper}
    with (
        database.connection(f"read {case_range.key}", long=True) as reading,
        database.connection(f"stage {case_range.key}", long=True) as writing,
        reading.transaction(),
        writing.transaction(),
    ):
        lock_range(writing, case_range.key, last=case_range.is_last)
        reading.execute(statement("normalize.sql", "one_snapshot"))
        version = fetch_value(reading, statement("normalize.sql", "lookups_version"))
        if version != lookups.version:
            lookups = _lookups(reading, version)
        staged.removed = fetch_value(writing, statement("normalize.sql", "delete_removed"), **bounds)
        staged.rows_written = staged.removed
        with reading.cursor(name="pending", binary=True) as cursor:
            cursor.execute(statement("normalize.sql", "pending_cases"), {**bounds, "recipe": NORMALIZER_VERSION})
            for rows in _batches(cursor):
                _write(writing, [(input_hash, normalize(raw, lookups)) for input_hash, raw in rows], staged)
                progress(len(rows))
    return staged


def _batches(cursor: Any) -> Iterator[list[tuple[bytes, dict[str, Any]]]]:
    """Rows (input hash, raw), closed by number or size; where rows are long, fewer are fetched at once."""
    batch: list[tuple[bytes, dict[str, Any]]] = []
    size, fetch = 0, FETCH
    while rows := cursor.fetchmany(fetch):
        longest = 1
        for _, input_hash, raw in rows:
            characters = sum([len(value) for value in raw.values() if isinstance(value, str)])
            longest = max(longest, characters)
            batch.append((input_hash, raw))
            size += characters
            if len(batch) >= BATCH or size >= BATCH_CHARACTERS:
                yield batch
                batch, size = [], 0
        fetch = max(1, min(FETCH, BATCH_CHARACTERS // longest))
    if batch:
        yield batch


def ranges_due(database: Database, ranges: Sequence[CaseRange]) -> set[str]:
    """Keys of the ranges that have something to normalise or to take away: one question about all of them."""
    with database.connection("find cases due", long=True) as connection:
        values = {**columns_of(ranges), "recipe": NORMALIZER_VERSION}
        return {key for (key,) in connection.execute(statement("normalize.sql", "due_ranges"), values)}


def staged_counts(database: Database, ranges: Sequence[CaseRange]) -> dict[str, dict[str, int]]:
    """By key: cases `landed`, and the `documents` and `rejects` that staging holds for them."""
    with database.connection("count staged", long=True) as connection:
        counted = fetch_dicts(connection, statement("normalize.sql", "staged_counts"), **columns_of(ranges))
    return {row.pop("key"): row for row in counted}


def _write(connection: Connection, results: Sequence[tuple[bytes, TestDoc | Reject]], staged: Staged) -> None:
    ids = [result.case_id for _, result in results]
    connection.execute(statement("normalize.sql", "delete_staged"), {"ids": ids})
    documents, steps, rejects = [], [], []
    for input_hash, result in results:
        if isinstance(result, Reject):
            rejects.append((result.case_id, input_hash, NORMALIZER_VERSION, result.reason.value, result.detail))
            staged.rejected[result.reason.value] += 1
            if len(staged.reject_samples) < 5:
                staged.reject_samples.append((result.case_id, result.reason.value, result.detail))
            continue
        staged.normalized += 1
        staged.notes.update(note.split(":", 1)[0] for note in result.notes)
        published, own_steps = _published_values(result), _step_rows(result)
        documents.append((
            result.case_id, input_hash, NORMALIZER_VERSION, doc_hash(published, own_steps),
            text_hash(doc_text(result.title, result.description)), *published, list(result.notes),
        ))  # fmt: skip
        steps += own_steps
    staged.steps += len(steps)
    staged.rows_written += len(documents) + len(steps) + len(rejects)
    _copy(connection, "copy_documents", _DOCUMENT_TYPES, documents)
    _copy(connection, "copy_steps", ["int8", "int4", "text", "text[]", "text", "bytea"], steps)
    _copy(connection, "copy_rejects", ["int8", "bytea", "int4", "text", "text"], rejects)


def _copy(connection: Connection, name: str, types: list[str], rows: Sequence[tuple[Any, ...]]) -> None:
    if not rows:
        return
    with connection.cursor() as cursor, cursor.copy(statement("normalize.sql", name)) as copy:
        copy.set_types(types)
        for row in rows:
            copy.write_row(row)


def _published_values(doc: TestDoc) -> tuple[Any, ...]:
    return (
        doc.uid, doc.jira_key, doc.title, doc.description, doc.summary, doc.test_type,
        doc.priority, list(doc.platforms), list(doc.tags), doc.folder_structure,
        doc.suite_id, doc.section_id, doc.project_id, doc.source, doc.is_automated, doc.refs,
        JsonText(json_text(doc.custom_fields)), doc.source_created_at, doc.source_updated_at,
        list(doc.preconditions), [issue.key for issue in doc.related_issues],
        [issue.kind for issue in doc.related_issues],
    )  # fmt: skip


def _step_rows(doc: TestDoc) -> list[tuple[Any, ...]]:
    return [
        (doc.case_id, index, step.action, list(step.expected), step.data,
         text_hash(step_text(step.action, step.expected)))
        for index, step in enumerate(doc.steps, 1)
    ]  # fmt: skip


def doc_hash(published: Sequence[Any], steps: Sequence[Any]) -> bytes:
    """SHA-256 of everything that is published for a case: equal hashes, nothing to write."""
    return hashlib.sha256(repr((published, steps)).encode()).digest()


def _integer(key: str | None) -> int | None:
    try:
        return int(key) if key is not None else None
    except ValueError:
        return None
