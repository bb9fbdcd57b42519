"""The queries that searches are compared with, as vectors: from a query log, or drawn from the data.

What a log says is `core/queries.py`; what is done with the queries is `comparing.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qbench_dagster.adapters.asking import Asking
from qbench_dagster.adapters.embedders import Embedder
from qbench_dagster.adapters.ledger import Account, check_account
from qbench_dagster.adapters.postgres import Connection, Database, fetch_dicts, fetch_value
from qbench_dagster.adapters.space import Kind, Space, writing
from qbench_dagster.adapters.sql import statement
from qbench_dagster.core.queries import Filter, Query, QueryLogError, draw_filters, parse_log, sample
from qbench_dagster.core.recall import perturb
from qbench_dagster.core.reuse import unit
from qbench_dagster.core.texts import text_hash

NOISE = 0.5
"""As where the index is measured: a stored vector moved by half its length is what no text has."""
BATCH = 256


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """One query as both searches get it."""

    label: str
    vector: NDArray[np.float32]
    """(dimensions,), of length 1."""
    k: int = 10
    filter: Filter | None = None


def read_log(path: Path, count: int, space: Space) -> list[Query]:
    """At most `count` distinct queries of a log. Raises QueryLogError, which names file and line."""
    try:
        content = path.read_bytes().decode()
    except OSError as error:
        raise QueryLogError(f"QBENCH_QUERY_LOG: {path}: {error.strerror}. Name a file of queries.") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise QueryLogError(f"{path}, line {line} is no UTF-8. Save the file as UTF-8.") from None
    queries = parse_log(content, str(path))
    for query in queries:
        if query.vector is not None and len(query.vector) != space.dimensions:
            raise QueryLogError(
                f"{path}, line {query.line}: the vector has {len(query.vector)} dimensions, {space.name} has "
                f"{space.dimensions}. Log the query's text, or vectors of {space.model}."
            )
    return sample(queries, count)


def embed_log(
    database: Database, space: Space, queries: Sequence[Query], embedder: Embedder | None, account: Account | None
) -> list[Question]:
    """The logged queries with their vectors, in order. What a vector cost money for is kept for the next report.

    Raises QueryLogError without an embedder for words, EmbeddingError where the service fails or the budget ends.
    """
    with database.connection("embed queries", long=True) as connection:
        prefix = query_prefix(connection, space)
        texts = list(dict.fromkeys(query.text for query in queries if query.text is not None))
        found = _embed(database, connection, space, texts, prefix, embedder, account) if texts else {}
    vectors = (
        np.asarray(query.vector, dtype=np.float64) if query.text is None else found[query.text] for query in queries
    )
    return [
        Question(query.label, unit(vector[None])[0], query.k, query.filter)
        for query, vector in zip(queries, vectors, strict=True)
    ]


def draw_questions(
    connection: Connection, space: Space, kind: Kind, count: int, embedder: Embedder | None
) -> tuple[str, list[Question]]:
    """What they are (`titles` or `perturbed`), and up to `count` questions, the same of the same rows.

    Titles where words cost nothing to embed; else stored vectors, moved so that no text has them.
    """
    if embedder is not None and not embedder.paid:
        titles = [row[0] for row in connection.execute(statement("compare.sql", "draw_titles"), {"limit": count})]
        if not titles:
            return "titles", []
        asking = Asking(connection, space, kind, embedder, None, prefix=query_prefix(connection, space))
        parts = [asking.vectors(titles[start : start + BATCH]) for start in range(0, len(titles), BATCH)]
        return "titles", [
            Question(title[:200], vector) for title, vector in zip(titles, unit(np.concatenate(parts)), strict=True)
        ]
    query = statement("compare.sql", f"draw_vectors_{kind}s", space=space.name)
    drawn = sorted((bytes(key), vector) for key, vector in connection.execute(query, {"limit": count}, binary=True))
    sound = [(key, vector) for key, vector in drawn if any(vector) and np.isfinite(vector).all()]
    if not sound:
        return "perturbed", []
    stored = unit(np.asarray([vector for _, vector in sound]))
    moved = perturb(stored, NOISE, seed=730)
    return "perturbed", [
        Question(f"near {key.hex()[:12]}", vector) for (key, _), vector in zip(sound, moved, strict=True)
    ]


def filters_of_data(connection: Connection) -> list[Filter]:
    """A common, a medium and a rare filter of the published cases, as far as there are such."""
    rows = connection.execute(statement("compare.sql", "filter_values")).fetchall()
    return draw_filters(rows, fetch_value(connection, statement("compare.sql", "count_docs")))


def query_prefix(connection: Connection, space: Space) -> str:
    """What is put before a query that is embedded for the space."""
    known = fetch_dicts(connection, statement("embed.sql", "describe"), name=space.name)
    return str(known[0]["query_prefix"]) if known else space.query_prefix or ""


def _embed(
    database: Database,
    connection: Connection,
    space: Space,
    texts: Sequence[str],
    prefix: str,
    embedder: Embedder | None,
    account: Account | None,
) -> dict[str, NDArray[np.float32]]:
    names = {text: text_hash(prefix + text) for text in texts}
    known = statement("compare.sql", "known_queries")
    values = {"space": space.name, "hashes": list(names.values())}
    kept = {
        bytes(key): np.asarray(vector, dtype=np.float32)
        for key, vector in connection.execute(known, values, binary=True)
    }
    due = [text for text in texts if names[text] not in kept]
    if due and embedder is None:
        raise QueryLogError("The query log holds words, and there is nothing here to embed them with: log vectors.")
    if due and embedder is not None and not embedder.paid:
        asking = Asking(connection, space, "query", embedder, None, prefix=prefix)
        for start in range(0, len(due), BATCH):
            part = due[start : start + BATCH]
            kept |= zip((names[text] for text in part), asking.vectors(part), strict=True)
    elif due and embedder is not None:
        if account is None:
            raise ValueError("paid queries need the account they are entered for")
        check_account(account, space.model)
        with writing(database, space):
            asking = Asking(connection, space, "query", embedder, account, prefix=prefix)
            for start in range(0, len(due), BATCH):
                part = due[start : start + BATCH]
                for text, vector in zip(part, asking.vectors(part), strict=True):
                    kept[names[text]] = vector
                    keep = {"space": space.name, "text_hash": names[text], "embedding": vector.tolist()}
                    connection.execute(statement("compare.sql", "keep_query"), keep)
    return {text: kept[name] for text, name in names.items()}
