"""The store room and its public face: publishes complete cases, and makes what the application reads."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field

import psycopg

from qbench_dagster.adapters.postgres import Database, DatabaseError, fetch_dicts
from qbench_dagster.adapters.space import Space
from qbench_dagster.adapters.sql import read_file, script, statement
from qbench_dagster.core.ranges import CaseRange

FACE = ("face.sql", "search.sql", "reader.sql")


@dataclass(slots=True)
class Published:
    """What publishing one partition did, and what it holds afterwards. Counts of cases but for the last two."""

    written: int = 0
    removed: int = 0
    source_cases: int = 0
    published: int = 0
    rejected: int = 0
    incomplete: int = 0
    incomplete_samples: list[int] = field(default_factory=list)
    steps: int = 0
    rows_written: int = 0

    def counts(self) -> dict[str, int]:
        """The counts a person wants to see."""
        return {name: count for name, count in asdict(self).items() if isinstance(count, int)}

    def shortfall(self) -> str:
        """What does not add up, for a person."""
        told = f"{self.source_cases} source cases, {self.published} published, {self.rejected} rejected"
        if self.incomplete:
            told += (
                f"; {self.incomplete} cases are not published as they are now, because they or a step of theirs has "
                f"no vector (for instance {', '.join(map(str, self.incomplete_samples[:5]))}): materialise "
                "doc_embeddings and step_embeddings"
            )
        return told


def publish_cases(database: Database, space: Space, case_range: CaseRange) -> Published:
    """Publish the complete cases of a partition that changed, and take away what is gone: one transaction."""
    result = Published()
    bounds = {"lower": case_range.lower, "upper": case_range.upper}
    with database.connection(f"publish {case_range.key}", long=True) as connection, connection.transaction():

        def rows(name: str) -> int:
            query = statement("publish.sql", name, space=space.name)
            values = bounds if name in ("delete_gone", "select_due") else None
            return max(0, connection.execute(query, values).rowcount)

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
        counts = fetch_dicts(
            connection,
            statement("publish.sql", "partition_counts"),
            with_idless=case_range.is_first,
            **bounds,
        )[0]
        for name, count in counts.items():
            setattr(result, name, count)
        if result.incomplete:
            found = connection.execute(statement("publish.sql", "incomplete_cases"), bounds).fetchall()
            result.incomplete_samples = [case_id for (case_id,) in found]
    return result


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

    Raises DatabaseError if the role qbench_reader is missing and may not be created.
    """
    variables: dict[str, str | int] = {
        "space": space.name,
        "vector_type": space.vector_type,
        "vector_schema": database.vector_schema,
        "dimensions": space.dimensions,
    }
    digest = hashlib.sha256(repr((variables, [read_file(name) for name in FACE])).encode()).digest()
    with database.connection("publish face", long=True) as connection:
        known = fetch_dicts(connection, statement("embed.sql", "describe"), name=space.name)[0]
        if known["active"] and known["face_hash"] == digest:
            return False
        try:
            with connection.transaction():
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
