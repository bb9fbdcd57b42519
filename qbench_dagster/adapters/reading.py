"""What is read for people: search results, and how the database stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray

from qbench_dagster.adapters.indexing import vector_text
from qbench_dagster.adapters.postgres import Database, DatabaseError, fetch_dicts, fetch_value
from qbench_dagster.adapters.sql import statement


@dataclass(frozen=True, slots=True)
class Filters:
    """What results have to match; None matches everything, a list matches any of its values."""

    priority: Sequence[str] | None = None
    tags: Sequence[str] | None = None
    platforms: Sequence[str] | None = None
    test_type: Sequence[str] | None = None
    folder: str | None = None
    project: Sequence[int] | None = None


def search(
    database: Database,
    vector: NDArray[np.float32],
    k: int,
    filters: Filters,
    *,
    steps: bool = False,
    model: str | None = None,
) -> list[dict[str, Any]]:
    """The k documents (or distinct steps) nearest to a query vector, as qbench_reader would see them.

    `model` made the vector: another than the active space's is refused; without it only other dimensions are.
    Raises DatabaseError with what PostgreSQL says of a query it cannot answer.
    """
    name = "search_steps" if steps else "search_documents"
    values = {name: list(v) if isinstance(v, Sequence) and not isinstance(v, str) else v
              for name, v in asdict(filters).items()}  # fmt: skip
    with database.connection("search") as connection:
        try:
            query = statement("read.sql", name)
            return fetch_dicts(connection, query, query=vector_text(vector), k=k, model=model, **values)
        except (psycopg.errors.UndefinedFunction, psycopg.errors.InvalidSchemaName):
            if fetch_dicts(connection, statement("embed.sql", "active")):
                raise DatabaseError(
                    "The search functions are those of another version of qbench: `qbench run` renews them."
                ) from None
            raise DatabaseError("Nothing is published yet: run `qbench run --export PATH` first.") from None
        except psycopg.DataError as error:
            said = str(error.diag.message_primary)
            raise DatabaseError(f"{said}. {error.diag.message_hint}" if error.diag.message_hint else said) from None


def status(database: Database) -> dict[str, Any]:
    """How the database stands: totals, rejects by reason, spaces with their indexes, size."""
    with database.connection("status", long=True) as connection:
        return {
            **fetch_dicts(connection, statement("read.sql", "totals"))[0],
            "rejects": fetch_dicts(connection, statement("read.sql", "rejects_by_reason")),
            "spaces": fetch_dicts(connection, statement("read.sql", "spaces")),
            "database_bytes": fetch_value(connection, statement("read.sql", "database_bytes")),
        }
