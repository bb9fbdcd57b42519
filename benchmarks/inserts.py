"""The same rows written twice: one INSERT each with vectors as text, and the way the pipeline writes them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from qbench_dagster.adapters.embedders import LexicalEmbedder
from qbench_dagster.adapters.landing import land_cases, land_lookups
from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.publishing import publish_cases
from qbench_dagster.adapters.sample_writer import write_sample
from qbench_dagster.adapters.space import KINDS, Kind, Space, ensure_space, store_vectors
from qbench_dagster.adapters.sql import statement
from qbench_dagster.adapters.staging import load_lookups, stage_cases
from qbench_dagster.adapters.testrail_export import TestRailExport
from qbench_dagster.adapters.vectors import vector_text
from qbench_dagster.core.folders import section_paths
from qbench_dagster.core.ranges import CaseRange, range_key, ranges_of
from qbench_dagster.core.texts import doc_text, step_text

SPACE = Space("space_lexical_3072", LexicalEmbedder.model, 3072, "halfvec")
TABLES = ("test_documents", "test_steps", "test_preconditions", "test_related_issues")


@dataclass(frozen=True)
class Writing:
    """Rows a second, vectors included."""

    row_by_row: float
    set_based: float

    @property
    def ratio(self) -> float:
        """How many times as fast the pipeline writes."""
        return self.set_based / self.row_by_row


def compare_writing(row_by_row_url: str, set_based_url: str, export: Path, cases: int) -> Writing:
    """Write `cases` sample cases into both databases; only the writing is timed, not what is computed before."""
    write_sample(export, cases, 729)
    with Database(set_based_url) as ours, Database(row_by_row_url) as theirs:
        case_range = _staged(ours, export)
        vectors = {kind: _vectors(ours, kind, case_range) for kind in KINDS}
        started = time.perf_counter()
        for kind, (hashes, matrix) in vectors.items():
            with ours.connection("bench", long=True) as connection:
                store_vectors(connection, SPACE, kind, hashes, matrix, LexicalEmbedder.provenance)
        publish_cases(ours, SPACE, case_range)
        set_based = time.perf_counter() - started
        ensure_space(theirs, SPACE)
        copies = {table: _rows(ours, table) for table in TABLES}
        started = time.perf_counter()
        count = _insert_all(theirs, copies, vectors)
        row_by_row = time.perf_counter() - started
    return Writing(count / row_by_row, count / set_based)


def _staged(database: Database, export: Path) -> CaseRange:
    with TestRailExport(export) as source:
        (case_range,) = ranges_of([range_key(1)]).values()
        land_lookups(database, source, section_paths)
        land_cases(database, source, case_range, max_delete_share=1)
    stage_cases(database, load_lookups(database), case_range, lambda _: None)
    ensure_space(database, SPACE)
    return case_range


def _vectors(database: Database, kind: Kind, case_range: CaseRange) -> tuple[list[bytes], Any]:
    with database.connection("bench", long=True) as connection:
        query = statement("embed.sql", f"missing_{kind}s", space=SPACE.name)
        bounds = {"lower": case_range.lower, "upper": case_range.upper}
        rows = connection.execute(query, bounds, binary=True).fetchall()
    make = doc_text if kind == "doc" else step_text
    return [row[0] for row in rows], LexicalEmbedder(SPACE.dimensions).embed([make(row[1], row[2]) for row in rows])


def _rows(database: Database, table: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    with database.connection("bench", long=True) as connection:
        cursor = connection.execute(sql.SQL("SELECT * FROM store.{}").format(sql.Identifier(table)))
        assert cursor.description is not None
        return [column.name for column in cursor.description], cursor.fetchall()


def _insert_all(database: Database, copies: dict[str, Any], vectors: dict[Kind, tuple[list[bytes], Any]]) -> int:
    """One INSERT a row, each committed, as the system this replaces wrote them; returns the rows."""
    count = 0
    with database.connection("bench", long=True) as connection:
        for kind, (hashes, matrix) in vectors.items():
            insert = sql.SQL("INSERT INTO {}.{} (text_hash, embedding, provenance) VALUES (%s, %s, 'lexical')").format(
                sql.Identifier(SPACE.name), sql.Identifier(f"{kind}_embeddings")
            )
            for text_hash, vector in zip(hashes, matrix, strict=True):
                connection.execute(insert, (text_hash, vector_text(vector)))
                count += 1
        for table, (columns, rows) in copies.items():
            insert = sql.SQL("INSERT INTO store.{} ({}) VALUES ({})").format(
                sql.Identifier(table),
                sql.SQL(", ").join(map(sql.Identifier, columns)),
                sql.SQL(", ").join([sql.Placeholder()] * len(columns)),
            )
            for row in rows:
                connection.execute(insert, [_plain(value) for value in row])
                count += 1
    return count


def _plain(value: Any) -> Any:
    return Jsonb(value) if isinstance(value, dict) else value
