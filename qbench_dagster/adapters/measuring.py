"""How well the index of a table answers as it is searched now: recall, latency, the vectors' health. Kept and told.

Asking it is `probing.py`, building `building.py`, what to build `indexing.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from psycopg.types.json import Jsonb

from qbench_dagster.adapters.postgres import Connection, Database, fetch_dicts
from qbench_dagster.adapters.probing import (
    DEEP,
    NEAR,
    QUERIES,
    Truth,
    candidates_of,
    ground_truth,
    mean_of,
    percentile_of,
    time_searches,
)
from qbench_dagster.adapters.space import Kind, Space
from qbench_dagster.adapters.sql import statement
from qbench_dagster.adapters.vectors import table_of
from qbench_dagster.core.indexes import EXACT, IndexChoice
from qbench_dagster.core.recall import VectorHealth

EXACT_QUERIES = 20
"""Of each kind of query where a table of more than EXACT_ROWS is searched exactly: 1.2 s each at 1,000,000 rows."""
EXACT_ROWS = 20_000


@dataclass(frozen=True, slots=True)
class Measured:
    """What the measurement of one table found. Shares and latencies are of each query, in the order of the queries.

    `recall` is by kind of query (stored, perturbed, crossed: see probing.QUERIES) and by k ("10", "100").
    `ef_search` are the probes of ivfflat.
    """

    kind: str
    strategy: str
    ef_search: int
    rerank: int
    rows: int
    queries: int
    recall: Mapping[str, Mapping[str, Sequence[float]]]
    latencies_ms: Sequence[float]
    health: VectorHealth
    fresh: bool

    @property
    def means(self) -> dict[str, float]:
        """Mean recall@10 by kind of query, of those there were."""
        means = {kind: mean_of(by_k["10"]) for kind, by_k in self.recall.items()}
        return {kind: mean for kind, mean in means.items() if mean is not None}

    @property
    def p50_ms(self) -> float:
        """Median of the latencies."""
        return percentile_of(self.latencies_ms, 50)

    @property
    def p95_ms(self) -> float:
        """95th percentile of the latencies."""
        return percentile_of(self.latencies_ms, 95)

    def reaches(self, target: float) -> bool:
        """Whether all means are at least `target`."""
        return all(mean >= target for mean in self.means.values())

    def as_json(self) -> dict[str, Any]:
        """As store.index_builds keeps it."""
        return {**asdict(self), "means": self.means, "p50_ms": self.p50_ms, "p95_ms": self.p95_ms}


def measure(database: Database, space: Space, kind: Kind, truth: Truth | None = None) -> Measured:
    """recall@10 and @100 of one table as it is searched now, and the health of every vector in it.

    The last measurement stands while no row was written, and index and ef_search are the same.
    """
    table = table_of(kind)
    counted = truth.counters if truth else write_counters(database, space)
    counters = [row for row in counted if row["table"] == f"{space.name}.{table}"]
    with database.connection(f"measure {kind}", long=True) as connection:
        indexes = fetch_dicts(connection, statement("index.sql", "existing"), space=space.name, table=table)
        known = fetch_dicts(connection, statement("index.sql", "build_of"), space=space.name, kind=kind)
        choice = choice_in(known[0]) if known else IndexChoice(EXACT)
        state = {
            "counters": counters,
            "indexes": sorted(index["oid"] for index in indexes),
            "searched": [choice.strategy, choice.ef_search, choice.rerank],
            "queries": QUERIES,
        }
        if counters and known and known[0]["recall"] and known[0]["recall"].get("state") == state:
            return _kept(known[0]["recall"]["measured"])
        truth = truth or ground_truth(connection, space, table)
        measured = _measured(connection, space, kind, choice, truth)
        connection.execute(
            statement("index.sql", "record_recall"),
            {"recall": Jsonb({"state": state, "measured": measured.as_json()}), "space": space.name, "kind": kind},
        )
    return measured


def write_counters(database: Database, space: Space) -> list[dict[str, Any]]:
    """Counters that any write to our tables moves, and when they began; empty where the server does not count."""
    with database.connection("write counters") as connection:
        connection.execute(statement("setup.sql", "flush_counters"))
        return fetch_dicts(connection, statement("index.sql", "write_counters"), space=space.name)


def search_curves(database: Database, space: Space) -> list[dict[str, Any]]:
    """How each table is indexed, the curve of its index, and what was advised, by kind."""
    with database.connection("read curves") as connection:
        return fetch_dicts(connection, statement("index.sql", "builds"), space=space.name)


def choice_in(row: Mapping[str, Any]) -> IndexChoice:
    """The choice that a row of store.index_builds holds."""
    return IndexChoice(**{field.name: row[field.name] for field in fields(IndexChoice)})


def _measured(connection: Connection, space: Space, kind: Kind, choice: IndexChoice, truth: Truth) -> Measured:
    table = table_of(kind)
    if choice.exact:
        truth = truth.thinned(QUERIES // EXACT_QUERIES) if truth.health.rows > EXACT_ROWS else truth
        latencies, far = time_searches(connection, space, table, choice, truth.texts, DEEP)
        near = far
    else:
        limits = [max(choice.rerank, 4 * DEEP)] * len(truth.texts)
        latencies, _ = time_searches(connection, space, table, choice, truth.texts, NEAR)
        far = candidates_of(connection, space, table, choice, truth.texts, limits)
        near = [cosines[: max(choice.rerank, 4 * NEAR)] for cosines in far]
    shares = {str(k): truth.shares(found, k) for found, k in ((near, NEAR), (far, DEEP))}
    return Measured(
        kind=kind,
        strategy=choice.strategy,
        ef_search=choice.ef_search,
        rerank=choice.rerank,
        rows=truth.health.rows,
        queries=len(latencies),
        recall={
            name: {k: [round(share, 4) for share in by_kind[name]] for k, by_kind in shares.items()}
            for name in truth.kinds
        },
        latencies_ms=[round(latency, 3) for latency in latencies],
        health=truth.health,
        fresh=True,
    )


def _kept(found: Mapping[str, Any]) -> Measured:
    values = {field.name: found[field.name] for field in fields(Measured)}
    return Measured(**{**values, "health": VectorHealth(**values["health"]), "fresh": False})
