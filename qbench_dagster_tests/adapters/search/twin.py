"""What the searches are compared with: the same questions answered from lists in memory, with nothing clever."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import sql
from psycopg.rows import dict_row

from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.reading import Filters
from qbench_dagster.adapters.space import KINDS, Space
from qbench_dagster_tests.support import rows

STRATEGIES = ["exact", "binary", "halfvec", "subvector", "ivfflat"]
RERANK, EF_SEARCH, SHORTENED, LISTS, PROBES = 100, 100, 256, 20, 8

_INDEXES = {
    "binary": "hnsw ((binary_quantize(embedding)::bit({d})) bit_hamming_ops) WITH (m = 16, ef_construction = 64)",
    "halfvec": "hnsw (({half}) halfvec_cosine_ops) WITH (m = 16, ef_construction = 64)",
    "subvector": "hnsw ((subvector(embedding, 1, {s})::halfvec({s})) halfvec_cosine_ops) "
    "WITH (m = 16, ef_construction = 64)",
    "ivfflat": "ivfflat (({half}) halfvec_cosine_ops) WITH (lists = {lists})",
}


def index_as(database: Database, space: Space, strategy: str) -> None:
    """Index both tables of a space as the searches expect them to be, and say so; nothing where they are."""
    for kind in KINDS:
        table, name = f"{space.name}.{kind}_embeddings", f"{kind}_embeddings_{strategy}"
        known = rows(
            database, "SELECT strategy FROM store.index_builds WHERE space = %s AND kind = %s", space.name, kind
        )
        if known == [(strategy,)]:
            continue
        with database.connection("test") as connection, connection.transaction():
            for (old,) in connection.execute(
                "SELECT c.oid::regclass::text FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid "
                "JOIN pg_am a ON a.oid = c.relam "
                "WHERE a.amname IN ('hnsw', 'ivfflat') AND x.indrelid = %s::regclass",
                [table],
            ).fetchall():
                connection.execute(f"DROP INDEX {old}")  # type: ignore[call-overload]
            if strategy != "exact":
                half = "embedding" if space.vector_type == "halfvec" else f"embedding::halfvec({space.dimensions})"
                index = _INDEXES[strategy].format(d=space.dimensions, half=half, s=SHORTENED, lists=LISTS)
                connection.execute(f"CREATE INDEX {name} ON {table} USING {index}")  # type: ignore[call-overload]
            connection.execute("DELETE FROM store.index_builds WHERE space = %s AND kind = %s", [space.name, kind])
            connection.execute(
                sql.SQL(
                    "INSERT INTO store.index_builds (space, kind, strategy, ef_search, rerank, rows, bytes, seconds, "
                    "shortened, lists, index_name) SELECT %s, %s, %s, %s, %s, count(*), 0, 0, %s, %s, %s FROM {}"
                ).format(sql.Identifier(space.name, f"{kind}_embeddings")),
                [space.name, kind, strategy, PROBES if strategy == "ivfflat" else EF_SEARCH, RERANK,
                 SHORTENED if strategy == "subvector" else None, LISTS if strategy == "ivfflat" else None, name],
            )  # fmt: skip


@dataclass
class Words:
    """A query's words: each a phrase of tokens; `required` are those in quotation marks."""

    plain: list[tuple[str, ...]]
    required: list[tuple[str, ...]]


class Twin:
    """The published cases and steps, with their vectors."""

    def __init__(self, database: Database) -> None:
        with database.connection("test") as connection, connection.cursor(row_factory=dict_row) as cursor:
            self.cases: list[dict[str, Any]] = cursor.execute(
                "SELECT d.*, d.embedding::real[] AS vector FROM qbench.test_documents d ORDER BY test_case_id"
            ).fetchall()
            self.steps: list[dict[str, Any]] = cursor.execute(
                "SELECT test_case_id, step_index, action, expected, data, embedding::real[] AS vector "
                "FROM qbench.test_steps ORDER BY test_case_id, step_index"
            ).fetchall()
            keys = cursor.execute(
                "SELECT test_case_id, issue_key FROM qbench.test_related_issues ORDER BY id"
            ).fetchall()
        self.by_id = {row["test_case_id"]: row for row in self.cases}
        self.vectors = np.array([row["vector"] for row in self.cases], dtype=np.float64)
        self.step_vectors = np.array([row["vector"] for row in self.steps], dtype=np.float64)
        self.issues: dict[int, list[str]] = {}
        for row in keys:
            self.issues.setdefault(row["test_case_id"], []).append(row["issue_key"])
        self._tokens: dict[int, list[str]] | None = None

    def matching(self, filters: Filters) -> list[dict[str, Any]]:
        """The cases that match, in the order of their ids."""
        return [row for row in self.cases if matches(row, filters)]

    def nearest(
        self, query: NDArray[np.float32], filters: Filters, minimum: float | None = None, but: int | None = None
    ) -> list[tuple[int, float]]:
        """(id, cosine) of all cases that match, the nearest first, then by id."""
        cosines = cosines_of(self.vectors, query)
        found = [(row["test_case_id"], float(cosine)) for row, cosine in zip(self.cases, cosines, strict=True)
                 if matches(row, filters) and row["test_case_id"] != but
                 and (minimum is None or cosine >= minimum)]  # fmt: skip
        return sorted(found, key=lambda pair: (-round(pair[1], 6), pair[0]))

    def nearest_steps(
        self, query: NDArray[np.float32], filters: Filters, minimum: float | None = None
    ) -> dict[tuple[str, tuple[str, ...]], tuple[float, list[int]]]:
        """(cosine, ids of the cases that hold it) of each distinct step."""
        allowed = {row["test_case_id"] for row in self.matching(filters)}
        found: dict[tuple[str, tuple[str, ...]], tuple[float, list[int]]] = {}
        for row, cosine in zip(self.steps, cosines_of(self.step_vectors, query), strict=True):
            if row["test_case_id"] in allowed and (minimum is None or cosine >= minimum):
                _, holders = found.setdefault((row["action"], tuple(row["expected"])), (float(cosine), []))
                if row["test_case_id"] not in holders[-1:]:
                    holders.append(row["test_case_id"])
        return found

    @property
    def tokens(self) -> dict[int, list[str]]:
        """By case id its words in order, a gap between texts that are indexed apart."""
        if self._tokens is None:
            self._tokens = {}
            for row in self.cases:
                key = row["test_case_id"]
                texts = [
                    [row["title"], row["jira_key"], f"C{key}", row["uid"], row["refs"], *self.issues.get(key, [])],
                    [row["folder_structure"], *row["tags"], row["summary"], row["description"]],
                ]
                self._tokens[key] = tokens(" ".join(" ".join(filter(None, part)) for part in texts))
            for row in self.steps:
                text = [row["action"], *row["expected"], row["data"]]
                self._tokens[row["test_case_id"]] += tokens(" ".join(filter(None, text)))
        return self._tokens

    def holds(self, case_id: int, phrase: tuple[str, ...]) -> bool:
        """Whether the words stand side by side in a case."""
        words = self.tokens[case_id]
        return any(tuple(words[n : n + len(phrase)]) == phrase for n, word in enumerate(words) if word == phrase[0])


def cosines_of(vectors: NDArray[np.float64], query: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosines as halfvec has them: of the query rounded to 16 bits."""
    rounded = query.astype(np.float16).astype(np.float64)
    result: NDArray[np.float64] = vectors @ rounded / (np.linalg.norm(vectors, axis=1) * np.linalg.norm(rounded))
    return result


def matches(row: dict[str, Any], filters: Filters) -> bool:
    """Whether a case passes."""

    def among(value: Any, wanted: Sequence[Any] | None) -> bool:
        return wanted is None or (value is not None and value in wanted)

    since: datetime | None = filters.updated_since
    return (
        among(row["priority"], filters.priority)
        and (filters.tags is None or bool(set(row["tags"]) & set(filters.tags)))
        and (filters.platforms is None or bool(set(row["platforms"]) & set(filters.platforms)))
        and among(row["test_type"], filters.test_type)
        and (filters.folder is None or (row["folder_structure"] or "\0").startswith(filters.folder))
        and among(row["project_id"], filters.project)
        and among(row["suite_id"], filters.suite)
        and (since is None or (row["source_updated_at"] is not None and row["source_updated_at"] >= since))
    )


_SPACELESS = re.compile("[\u0e00-\u0eff\u3005-\u3007\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff]")


def tokens(text: str) -> list[str]:
    """The words of a text of letters, digits and punctuation, as people would part them."""
    folded = "".join(char for char in unicodedata.normalize("NFKD", text) if not "\u0300" <= char <= "\u036f")
    spaced = _SPACELESS.sub(lambda match: f" {match[0]} ", unicodedata.normalize("NFC", folded))
    return re.findall(r"[^\W_]+", spaced.lower())


def words_of(query: str) -> Words:
    """The words of a query, each once."""
    required = dict.fromkeys(tuple(tokens(phrase)) for phrase in re.findall('"([^"]*)"', query))
    plain = dict.fromkeys(tuple(tokens(word)) for word in re.sub('"[^"]*"', " ", query).split())
    return Words([w for w in plain if w and w not in required], [w for w in required if w])


def idf(total: int, holders: float) -> float:
    """What a word says."""
    return math.log(1 + total / max(holders, 1)) ** 2
