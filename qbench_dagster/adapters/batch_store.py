"""Batches as PostgreSQL remembers them: what was sent, whose texts are claimed, what came back.

Nothing is asked of the service here. Whoever writes holds the lock of `space.writing`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from qbench_dagster.adapters.ledger import Account, reserve, settle
from qbench_dagster.adapters.postgres import Connection, Database, fetch_dicts, fetch_value
from qbench_dagster.adapters.space import Kind, Space, check_vectors, store_vectors
from qbench_dagster.adapters.sql import statement
from qbench_dagster.core.packing import average
from qbench_dagster.core.ranges import CaseRange, columns_of


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch that was entered. `created_at` in seconds of the epoch, `age_s` by the server's clock."""

    id: UUID
    space: str
    kind: Kind
    model: str
    state: str
    usd_per_million: float | None
    texts: int
    lines: int
    tokens: int
    file_id: str | None
    remote_id: str | None
    created_at: float
    age_s: float

    @property
    def shown(self) -> str:
        """How a person finds it, here and at the service."""
        return f"{self.remote_id} ({self.id})" if self.remote_id else str(self.id)

    @property
    def outstanding(self) -> bool:
        """Whether its texts are not all taken in, as far as was known when it was read."""
        return self.state in ("preparing", "submitted")

    @property
    def usd(self) -> float:
        """Dollars reserved for it."""
        return self.tokens * (self.usd_per_million or 0.0) / 1_000_000


@dataclass(frozen=True, slots=True)
class Claim:
    """An input of a line: a text, or one of its `parts`."""

    line: int
    place: int
    part: int
    parts: int
    text_hash: bytes
    key: str
    tokens: int


def enter(
    connection: Connection, batch_id: UUID, space: Space, kind: Kind, account: Account, claims: Sequence[Claim]
) -> Batch:
    """Enter a batch, reserve its price and claim its texts, in one transaction, before anything is sent.

    Raises BudgetReachedError if it would exceed the budget: then nothing is entered.
    """
    tokens = sum(claim.tokens for claim in claims)
    texts = sum(claim.part == 0 for claim in claims)
    with connection.transaction():
        request = reserve(connection, space.name, kind, space.model, account, texts=texts, tokens=tokens)
        values = {"id": batch_id, "space": space.name, "kind": kind, "model": space.model, "request_id": request,
                  "usd_per_million": account.usd_per_million, "texts": texts, "tokens": tokens,
                  "lines": len({claim.line for claim in claims})}  # fmt: skip
        connection.execute(statement("batch.sql", "enter"), values)
        with connection.cursor() as cursor, cursor.copy(statement("batch.sql", "copy_claims")) as copy:
            for claim in claims:
                copy.write_row(
                    (space.name, batch_id, claim.line, claim.place, claim.part, claim.parts, claim.text_hash,
                     claim.key, claim.tokens)
                )  # fmt: skip
    return next(batch for batch in outstanding(connection, space.name) if batch.id == batch_id)


def outstanding(connection: Connection, space: str) -> list[Batch]:
    """The batches of a space whose texts are not all taken in, oldest first."""
    return [Batch(**row) for row in fetch_dicts(connection, statement("batch.sql", "outstanding"), space=space)]


def find_batch(connection: Connection, named: str) -> Batch | None:
    """The batch of this id, ours or the service's; None if there is none."""
    found = fetch_dicts(connection, statement("batch.sql", "find_batch"), id=named)
    return Batch(**found[0]) if found else None


def list_batches(database: Database, limit: int = 50) -> list[dict[str, Any]]:
    """Batches of all spaces as rows to show, newest first."""
    with database.connection("list batches") as connection:
        return fetch_dicts(connection, statement("batch.sql", "list_batches"), limit=limit)


def note_uploaded(connection: Connection, batch: Batch, file_id: str) -> None:
    """Remember the input file at the service."""
    connection.execute(statement("batch.sql", "uploaded"), {"id": batch.id, "file_id": file_id})


def note_submitted(connection: Connection, batch: Batch, remote_id: str, status: str) -> Batch:
    """Remember the batch at the service."""
    values = {"id": batch.id, "remote_id": remote_id, "status": status}
    connection.execute(statement("batch.sql", "submitted"), values)
    return replace(batch, remote_id=remote_id, state="submitted")


def note_status(connection: Connection, batch: Batch, status: str, lines_done: int) -> None:
    """Remember how the service says it stands."""
    connection.execute(
        statement("batch.sql", "note_status"), {"id": batch.id, "status": status, "lines_done": lines_done}
    )


def end(
    connection: Connection,
    batch: Batch,
    account: Account,
    state: str,
    *,
    error: str | None = None,
    queue_ceiling: int | None = None,
    tokens_at_risk: int = 0,
) -> set[bytes]:
    """Close a batch: what it still claims is free again (and returned), and what was reserved is settled as billed.

    One that is closed already stays as it is.
    """
    values = {"id": batch.id, "state": state, "error": error, "queue_ceiling": queue_ceiling}
    with connection.transaction():
        ended = fetch_dicts(connection, statement("batch.sql", "ended"), **values)
        if not ended:
            return set()
        [row] = ended
        released = connection.execute(statement("batch.sql", "release_batch"), {"id": batch.id}, binary=True).fetchall()
        price = replace(account, usd_per_million=batch.usd_per_million)
        settle(
            connection, row["request_id"], price, tokens=row["tokens_billed"],
            state="answered" if row["tokens_billed"] else "failed",
            tokens_at_risk=row["tokens_at_risk"] + tokens_at_risk,
        )  # fmt: skip
    return {bytes(row[0]) for row in released}


def lines_left(connection: Connection, batch: Batch) -> set[int]:
    """Lines whose texts are not stored yet."""
    return {row[0] for row in connection.execute(statement("batch.sql", "lines_left"), {"id": batch.id})}


def claims_of(connection: Connection, batch: Batch, line: int) -> list[Claim]:
    """The inputs of a line, in their order."""
    found = connection.execute(statement("batch.sql", "line"), {"id": batch.id, "line": line}, binary=True)
    return [Claim(line, *row) for row in found]


def store_line(
    connection: Connection,
    space: Space,
    batch: Batch,
    claims: Sequence[Claim],
    vectors: NDArray[np.float32],
    tokens: int,
    provenance: str,
) -> list[str]:
    """Store the vectors of a line and release its texts, in one transaction; returns the key of each text stored.

    A text in parts is stored once all of them are answered.
    """
    check_vectors(vectors, len(claims), space.dimensions)
    complete = [
        (claim.text_hash, claim.key, vector, 1) for claim, vector in zip(claims, vectors, strict=True)
        if claim.parts == 1
    ]  # fmt: skip
    with connection.transaction():
        complete += _whole_texts(connection, batch, claims, vectors)
        hashes = [text_hash for text_hash, *_ in complete]
        query = statement("batch.sql", f"stored_{batch.kind}s", space=space.name)
        stored = {bytes(row[0]) for row in connection.execute(query, {"hashes": hashes}, binary=True)}
        new = [text for text in complete if text[0] not in stored]  # an old store or the other table was faster
        if new:
            store_vectors(
                connection, space, batch.kind, [text_hash for text_hash, *_ in new],
                np.stack([vector for _, _, vector, _ in new]), provenance, [parts for *_, parts in new],
            )  # fmt: skip
        connection.execute(statement("batch.sql", "release_texts"), {"id": batch.id, "hashes": hashes})
        connection.execute(statement("batch.sql", "forgive"), {"space": space.name, "hashes": hashes})
        _note_billed(connection, batch, tokens, 0)
    return [key for _, key, *_ in new]


def _whole_texts(
    connection: Connection, batch: Batch, claims: Sequence[Claim], vectors: NDArray[np.float32]
) -> list[tuple[bytes, str, NDArray[np.float32], int]]:
    """Keep the vectors of parts, and return the texts they complete: (hash, key, vector, parts)."""
    hashes = {claim.text_hash for claim in claims if claim.parts > 1}
    if not hashes:
        return []
    for claim, vector in zip(claims, vectors, strict=True):
        if claim.parts > 1:
            values = {"id": batch.id, "line": claim.line, "place": claim.place, "vector": vector.tobytes()}
            connection.execute(statement("batch.sql", "keep_part"), values)
    found = connection.execute(
        statement("batch.sql", "whole_texts"), {"id": batch.id, "hashes": list(hashes)}, binary=True
    )
    texts = []
    for text_hash, rows in groupby(found, key=lambda row: bytes(row[0])):
        parts = list(rows)
        kept = np.stack([np.frombuffer(row[2], dtype=np.float32) for row in parts])
        texts.append((text_hash, parts[0][1], average(kept, [max(1, row[3]) for row in parts]), len(parts)))
    return texts


def release(connection: Connection, batch: Batch, claims: Iterable[Claim]) -> None:
    """Free the texts of a line that was not billed: they are missing again, with all their parts."""
    hashes = list({claim.text_hash for claim in claims})
    connection.execute(statement("batch.sql", "release_texts"), {"id": batch.id, "hashes": hashes})


def release_unusable(connection: Connection, batch: Batch, claims: Sequence[Claim]) -> set[bytes]:
    """Free the texts of a line that was billed for an answer nobody can use.

    Returns those for which it is the second time in a row.
    """
    hashes = list({claim.text_hash for claim in claims})
    with connection.transaction():
        marked = connection.execute(
            statement("batch.sql", "mark_unusable"), {"space": batch.space, "hashes": hashes}, binary=True
        ).fetchall()
        connection.execute(statement("batch.sql", "release_texts"), {"id": batch.id, "hashes": hashes})
        _note_billed(connection, batch, 0, sum(claim.tokens for claim in claims))
    return {bytes(row[0]) for row in marked}


def _note_billed(connection: Connection, batch: Batch, tokens: int, tokens_at_risk: int) -> None:
    values = {"id": batch.id, "tokens": tokens, "tokens_at_risk": tokens_at_risk}
    connection.execute(statement("batch.sql", "note_billed"), values)


def queue(connection: Connection, model: str) -> tuple[int, int | None]:
    """(tokens that wait in our batches of a model, how many may: None where no batch was refused for it)."""
    queued = fetch_value(connection, statement("batch.sql", "queued_tokens"), model=model)
    return int(queued), fetch_value(connection, statement("batch.sql", "queue_ceiling"), model=model)


def waiting(connection: Connection, space: Space, kind: Kind, ranges: Sequence[CaseRange]) -> dict[UUID, int]:
    """Texts of `ranges` without vector that wait in batches, by batch: also in one of the other kind."""
    query = statement("batch.sql", f"waiting_{kind}s", space=space.name)
    return {row["id"]: row["texts"] for row in fetch_dicts(connection, query, **_bounds(ranges), space=space.name)}


def missing(connection: Connection, space: Space, kind: Kind, ranges: Sequence[CaseRange]) -> int:
    """Texts of `ranges` without vector, whether they wait or not."""
    query = statement("batch.sql", f"missing_count_{kind}s", space=space.name)
    return int(fetch_value(connection, query, **_bounds(ranges)))


def _bounds(ranges: Sequence[CaseRange]) -> dict[str, Any]:
    columns = columns_of(ranges)
    return {"lowers": columns["lowers"], "uppers": columns["uppers"]}


def keys_of(connection: Connection, batches: Iterable[Batch]) -> set[str]:
    """Partitions whose texts wait in `batches`."""
    ids = [batch.id for batch in batches]
    return {row[0] for row in connection.execute(statement("batch.sql", "keys_in_batches"), {"ids": ids})}


def in_use(connection: Connection, space: Space) -> bool:
    """Whether somebody writes vectors of the space now."""
    return bool(fetch_value(connection, statement("batch.sql", "in_use"), name=f"{space.name}.embeddings"))
