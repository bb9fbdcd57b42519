"""Whether searches read the index they are meant to: of plans, and of what the public functions really do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from qbench_dagster.adapters.measuring import choice_in
from qbench_dagster.adapters.postgres import Connection, Database, fetch_dicts, fetch_value
from qbench_dagster.adapters.probing import search_statement, set_search
from qbench_dagster.adapters.space import Kind, Space, active_space
from qbench_dagster.adapters.sql import statement
from qbench_dagster.adapters.vectors import table_of
from qbench_dagster.core.indexes import IndexChoice

FEW_ROWS = 10_000
"""Up to here PostgreSQL may rightly find a table read faster without its index."""


@dataclass(frozen=True, slots=True)
class IndexUse:
    """Whether the searches of one table use its index (None: exact search). `plan` is one that does not."""

    kind: str
    index: str | None
    used: bool
    told: str
    plan: str | None = None


def examine_use(database: Database, space: Space, kind: Kind) -> IndexUse:
    """Plan the search of `kind`; where `space` is read, also call the public function and plan the application's query.

    A table of few rows is planned as if reading it whole were dear: whether it can be used is what counts there.
    """
    read, table = active_space(database), table_of(kind)
    with database.connection(f"examine index {kind}", long=True) as connection:
        known = fetch_dicts(connection, statement("index.sql", "build_of"), space=space.name, kind=kind)
        if not known or known[0]["index_name"] is None:
            return IndexUse(kind, None, True, "exact search, no index is needed")
        name, choice = known[0]["index_name"], choice_in(known[0])
        if name not in indexes_used(connection, space, table, choice, prefer=True):
            told = f"{name} is missing, invalid, or on another expression than searches order by: run hnsw_index"
            return IndexUse(kind, name, False, told, _plan(connection, space, table, choice))
        few = fetch_value(connection, statement("index.sql", "count_rows", space=space.name, table=table)) <= FEW_ROWS
        if not few and name not in indexes_used(connection, space, table, choice, prefer=False):
            told = (
                f"PostgreSQL does not choose {name}: ANALYZE {space.name}.{table}; is random_page_cost that of disks?"
            )
            return IndexUse(kind, name, False, told, _plan(connection, space, table, choice))
        if read is None or read.name != space.name:
            return IndexUse(kind, name, True, f"{name} is used")
        with connection.transaction(force_rollback=True):
            if few:
                connection.execute(statement("index.sql", "prefer_index"))
            return _public(connection, space, kind, name, choice)


def indexes_used(
    connection: Connection, space: Space, table: str, choice: IndexChoice, *, prefer: bool
) -> dict[str, str]:
    """Names of the indexes that the plan of a search reads, each with the plan's text. `prefer`: if at all possible."""
    with connection.transaction():
        set_search(connection, choice)
        if prefer:
            connection.execute(statement("index.sql", "prefer_index"))
        plan = _explain(connection, search_statement("explain", space, table, choice), space)
    return dict.fromkeys(_names(plan), str(plan))


def _public(connection: Connection, space: Space, kind: Kind, name: str, choice: IndexChoice) -> IndexUse:
    function = "search_documents" if kind == "doc" else "search_steps"
    try:
        with connection.transaction():
            connection.execute(statement("index.sql", f"call_{function}"), {"query": _probe(space)})
    except psycopg.errors.UndefinedFunction:
        return IndexUse(kind, name, True, f"{name} is used; qbench.{function} is not there yet")
    if not fetch_value(connection, statement("index.sql", "scans_of"), space=space.name, index=name):
        return IndexUse(kind, name, False, f"qbench.{function} does not read {name}: run pg_tables, which renews it")
    if kind == "doc" and choice.strategy == "halfvec":
        plan = _explain(
            connection, statement("index.sql", "explain_search_of_view", dimensions=space.dimensions), space
        )
        if name not in _names(plan):
            told = f"the application's own query of qbench.test_documents does not use {name}"
            return IndexUse(kind, name, False, told, str(plan))
    return IndexUse(kind, name, True, f"{name} is used by qbench.{function}")


def _plan(connection: Connection, space: Space, table: str, choice: IndexChoice) -> str:
    return str(_explain(connection, search_statement("explain", space, table, choice), space))


def _explain(connection: Connection, query: sql.Composed, space: Space) -> Mapping[str, Any]:
    (plan,) = fetch_value(connection, query, query=_probe(space))
    return dict(plan["Plan"])


def _probe(space: Space) -> str:
    return "[" + ",".join(["1"] * space.dimensions) + "]"


def _names(node: Mapping[str, Any]) -> list[str]:
    own = [node["Index Name"]] if "Index Name" in node else []
    return own + [name for below in node.get("Plans", ()) for name in _names(below)]
