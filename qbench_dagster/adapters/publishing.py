"""The store room and its public face: publishes complete cases, and makes what the application reads."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import psycopg

from qbench_dagster.adapters.postgres import Connection, Database, DatabaseError, fetch_dicts
from qbench_dagster.adapters.space import Space
from qbench_dagster.adapters.sql import read_file, script, statement
from qbench_dagster.core.parity import PartitionRow
from qbench_dagster.core.ranges import CaseRange, columns_of

log = logging.getLogger(__name__)

FACE = ("face.sql", "search.sql", "reader.sql")


@dataclass(slots=True)
class Published:
    """What publishing one partition did (cases `written` and `removed`), and what it holds afterwards."""

    written: int = 0
    removed: int = 0
    source_cases: int = 0
    published: int = 0
    rejected: int = 0
    incomplete: int = 0
    steps: int = 0
    rows_written: int = 0


def publish_cases(database: Database, space: Space, case_range: CaseRange) -> Published:
    """Publish the complete cases of a partition that changed, and take away what is gone: one transaction."""
    result = Published()
    bounds = {"lower": case_range.lower, "upper": case_range.upper}
    with database.connection(f"publish {case_range.key}", long=True) as connection, connection.transaction():

        def rows(name: str) -> int:
            query = statement("publish.sql", name, space=space.name)
            values = bounds if name in ("delete_gone", "select_due") else None
            return max(0, connection.execute(query, values).rowcount)

        connection.execute(statement("setup.sql", "lock_range"), {"key": case_range.key})
        result.removed = rows("delete_gone")
        rows("create_due")
        result.written = rows("select_due")
        result.rows_written = result.removed
        if result.written:
            rows("analyze_due")
            result.rows_written += rows("upsert_documents")
            for child in ("steps", "preconditions", "related_issues"):
                rows(f"delete_{child}")
                result.rows_written += rows(f"insert_{child}")
        held = counts_of(connection, [case_range])[case_range.key]
    for name, count in asdict(held).items():
        if name != "key":
            setattr(result, name, count)
    return result


def ranges_due(database: Database, ranges: Sequence[CaseRange]) -> set[str]:
    """Keys of the ranges that have something to publish or to take away: one question about all of them."""
    with database.connection("find ranges due", long=True) as connection:
        return {key for (key,) in connection.execute(statement("publish.sql", "due_ranges"), columns_of(ranges))}


def partition_counts(database: Database, ranges: Sequence[CaseRange]) -> dict[str, PartitionRow]:
    """By key: what the source has and what is published and rejected of it."""
    with database.connection("count partitions", long=True) as connection:
        return counts_of(connection, ranges)


def incomplete_cases(database: Database, case_range: CaseRange) -> list[int]:
    """Up to ten cases of the range that are not published as they are now."""
    bounds = {"lower": case_range.lower, "upper": case_range.upper}
    with database.connection("find incomplete cases") as connection:
        return [case_id for (case_id,) in connection.execute(statement("publish.sql", "incomplete_cases"), bounds)]


def counts_of(connection: Connection, ranges: Sequence[CaseRange]) -> dict[str, PartitionRow]:
    """The same, inside the caller's transaction."""
    counted = fetch_dicts(connection, statement("publish.sql", "partition_counts"), **columns_of(ranges))
    return {row["key"]: PartitionRow(**row) for row in counted}


def analyze_store(database: Database) -> None:
    """Refresh the planner's statistics after a load."""
    with database.connection("analyze store", long=True) as connection:
        connection.execute(statement("publish.sql", "analyze_documents"))


def column_types(database: Database, schema: str, relation: str) -> list[tuple[str, str]]:
    """(column, type) of a table or view, in order."""
    with database.connection("describe") as connection:
        query = statement("publish.sql", "column_types")
        return [
            (str(name), str(kind)) for name, kind in connection.execute(query, {"relation": f"{schema}.{relation}"})
        ]


def publish_face(database: Database, space: Space) -> bool:
    """Point the views and functions of `qbench` at `space`, in one transaction; False if they are already.

    They leave another space only for one that has the vectors of all published rows: until then, False as well.
    Raises DatabaseError if the role qbench_reader is missing and may not be created.
    """
    variables: dict[str, str | int] = {
        "space": space.name,
        "vector_type": space.vector_type,
        "vector_schema": database.vector_schema,
        "dimensions": space.dimensions,
    }
    digest = hashlib.sha256(repr((variables, [read_file(name) for name in FACE])).encode()).digest()
    with database.exclusive("public face"), database.connection("publish face", long=True) as connection:
        known = fetch_dicts(connection, statement("embed.sql", "describe"), name=space.name)[0]
        missing = fetch_dicts(
            connection, statement("parity.sql", "missing_privileges"), vector_schema=database.vector_schema
        )
        if known["active"] and known["face_hash"] == digest and not missing:
            return False
        if not known["active"] and fetch_dicts(connection, statement("embed.sql", "active")):
            lacking = fetch_dicts(connection, statement("parity.sql", "completeness", space=space.name))[0]
            if lacking["documents_without_vector"] or lacking["steps_without_vector"]:
                log.warning("reads stay where they are: %s does not have all vectors yet (%s)", space.name, lacking)
                return False
        try:
            with connection.transaction():
                shown = dict(column_types(database, "qbench", "test_documents")).get("embedding", space.vector_type)
                if shown.rpartition(".")[2] != space.vector_type:  # the schema is named where it is not searched
                    connection.execute(statement("publish.sql", "drop_views"))  # a view cannot change a column's type
                for name in FACE:
                    connection.execute(script(name, **variables))
                connection.execute(statement("embed.sql", "deactivate_others"), {"name": space.name})
                connection.execute(statement("embed.sql", "activate"), {"name": space.name, "face_hash": digest})
        except psycopg.errors.InsufficientPrivilege as error:
            raise DatabaseError(
                f"The public face cannot be made: {str(error).strip()}. If the role is missing, ask a DBA to run: "
                "CREATE ROLE qbench_reader NOLOGIN;"
            ) from None
    return True
