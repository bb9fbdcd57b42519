"""Asks the search functions of `qbench` as an application would, and notes how long each answer takes.

What is compared with the answers is in `comparing.py` and `old_search.py`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qbench_dagster.adapters.postgres import Connection
from qbench_dagster.adapters.space import Kind, Space
from qbench_dagster.adapters.sql import statement
from qbench_dagster.adapters.vectors import vector_text
from qbench_dagster.core.queries import Filter
from qbench_dagster.core.texts import step_text, text_hash

MAX_K = 1000
"""What a search function gives at most."""


class PublicSearch:
    """The search function of one kind, asked over one connection."""

    def __init__(self, connection: Connection, space: Space, kind: Kind) -> None:
        self._connection = connection
        self._space = space
        self._kind = kind
        self._query = statement("compare.sql", f"search_{kind}s")

    def __call__(
        self, vector: NDArray[np.float32], k: int, only: Filter | None
    ) -> tuple[list[tuple[Hashable, float]], float]:
        """(case id, or hash of the step's text; cosine) of the k nearest, and the milliseconds it took.

        Raises psycopg.Error where the function does.
        """
        values: dict[str, Any] = (only or Filter()).parameters()
        values |= {"query": vector_text(vector), "k": k, "model": self._space.model}
        started = time.perf_counter()
        rows = self._connection.execute(self._query, values).fetchall()
        took = (time.perf_counter() - started) * 1000
        if self._kind == "doc":
            return [(case_id, _number(similarity)) for case_id, similarity in rows], took
        return [
            (text_hash(step_text(action, expected)), _number(similarity)) for action, expected, similarity in rows
        ], took


def titles_of(connection: Connection, kind: Kind, keys: Sequence[Hashable]) -> dict[Hashable, str]:
    """What a person knows results by: titles of cases, actions of steps."""
    query = statement("compare.sql", f"titles_{kind}s")
    return dict(connection.execute(query, {"keys": list(dict.fromkeys(keys))}, binary=True).fetchall())


def cosines_of(
    connection: Connection, space: Space, kind: Kind, vector: NDArray[np.float32], keys: Sequence[Hashable]
) -> dict[Hashable, float]:
    """Our cosine of each result with a query."""
    query = statement("compare.sql", f"cosines_{kind}s", space=space.name)
    values = {"query": vector_text(vector), "keys": list(keys)}
    return {key: _number(cosine) for key, cosine in connection.execute(query, values, binary=True)}


def _number(cosine: float) -> float:
    """A zero vector has no cosine: it is farther than any other."""
    return cosine if math.isfinite(cosine) else -1.0
