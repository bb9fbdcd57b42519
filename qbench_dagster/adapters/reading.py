"""What is read for people: search results, and how the database stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray

from qbench_dagster.adapters.postgres import Database, DatabaseError, fetch_dicts, fetch_value
from qbench_dagster.adapters.sql import statement
from qbench_dagster.adapters.vectors import vector_text

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Filters:
    """What results have to match; None matches everything, a list matches any of its values."""

    priority: Sequence[str] | None = None
    tags: Sequence[str] | None = None
    platforms: Sequence[str] | None = None
    test_type: Sequence[str] | None = None
    folder: str | None = None
    """A prefix of the path."""
    project: Sequence[int] | None = None
    suite: Sequence[int] | None = None
    updated_since: datetime | None = None
    """As TestRail dates the case; naive: in the server's time zone."""


def search(
    database: Database,
    vector: Vector,
    k: int,
    filters: Filters,
    *,
    steps: bool = False,
    model: str | None = None,
    min_similarity: float | None = None,
) -> list[dict[str, Any]]:
    """The k documents (or distinct steps) nearest to a query vector, as qbench_reader would see them.

    `model` made the vector: another than the active space's is refused; without it only other dimensions are.
    Raises DatabaseError with what PostgreSQL says of a query it cannot answer; so do the others.
    """
    name = "search_steps" if steps else "search_documents"
    return _ask(database, name, k, filters, query=vector_text(vector), model=model, min_similarity=min_similarity)


def hybrid(
    database: Database,
    text: str,
    vector: Vector | None,
    k: int,
    filters: Filters,
    *,
    model: str | None = None,
    min_similarity: float | None = None,
    vector_weight: float = 1.0,
    text_weight: float = 1.0,
) -> list[dict[str, Any]]:
    """The k documents that match a text best by its words and its vector; without a vector by its words alone."""
    query = None if vector is None else vector_text(vector)
    return _ask(
        database, "search_hybrid", k, filters, text=text, query=query, model=model, min_similarity=min_similarity,
        vector_weight=vector_weight, text_weight=text_weight,
    )  # fmt: skip


def similar(
    database: Database, case_id: int, k: int, filters: Filters, *, min_similarity: float | None = None
) -> list[dict[str, Any]]:
    """The k documents nearest to a published one, which is not among them."""
    return _ask(database, "similar_documents", k, filters, case_id=case_id, min_similarity=min_similarity)


def find_by_jira_key(database: Database, key: str, k: int, filters: Filters) -> list[dict[str, Any]]:
    """The documents with that Jira key (or a link to it), those that are its own before those that refer to it."""
    return _ask(database, "find_by_jira_key", k, filters, key=key)


def matched_steps(
    database: Database, case_ids: Sequence[int], text: str, vector: Vector | None
) -> dict[int, list[dict[str, Any]]]:
    """By case id: the step nearest to a query, and the one that holds most of its words, in the order of the case."""
    found: dict[int, list[dict[str, Any]]] = {}
    values = {"case_ids": list(case_ids), "text": text, "query": None if vector is None else vector_text(vector)}
    for row in _rows(database, "matched_steps", values):
        found.setdefault(row.pop("test_case_id"), []).append(row)
    return found


def _ask(database: Database, name: str, k: int, filters: Filters, **values: Any) -> list[dict[str, Any]]:
    chosen = {name: list(v) if isinstance(v, Sequence) and not isinstance(v, str) else v
              for name, v in asdict(filters).items()}  # fmt: skip
    return _rows(database, name, {**chosen, **values, "k": k})


def _rows(database: Database, name: str, values: dict[str, Any]) -> list[dict[str, Any]]:
    with database.connection("search") as connection:
        try:
            return fetch_dicts(connection, statement("read.sql", name), **values)
        except (psycopg.errors.UndefinedFunction, psycopg.errors.InvalidSchemaName, psycopg.errors.UndefinedTable):
            if fetch_dicts(connection, statement("embed.sql", "active")):
                raise DatabaseError(
                    "The search functions are those of another version of qbench: `qbench run` renews them."
                ) from None
            raise DatabaseError("Nothing is published yet: run `qbench run --export PATH` first.") from None
        except (psycopg.DataError, psycopg.errors.NoDataFound) as error:
            said = error.diag.message_primary or str(error)  # without the server: a NUL in a text
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
