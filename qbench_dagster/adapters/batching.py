"""Embedding by batches: each call takes in what the service has finished, sends what is missing, and goes home.

The two halves are `batch_results.py` and `batch_sending.py`; how the service is spoken to is `openai_batches.py`, how
PostgreSQL remembers it `batch_store.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass

from qbench_dagster.adapters import batch_store as store
from qbench_dagster.adapters.batch_results import Results
from qbench_dagster.adapters.batch_sending import Sending
from qbench_dagster.adapters.batch_service import BatchService, UnknownBatchError, find_made
from qbench_dagster.adapters.batch_store import Batch
from qbench_dagster.adapters.embedders import EmbeddingError
from qbench_dagster.adapters.ledger import Account, check_account, mark_lost
from qbench_dagster.adapters.postgres import Connection, Database, fetch_dicts
from qbench_dagster.adapters.space import KINDS, Kind, Space, rows_lacking_vectors, writing
from qbench_dagster.adapters.sql import statement
from qbench_dagster.core.batches import QUEUE_FULL
from qbench_dagster.core.ranges import CaseRange, columns_of
from qbench_dagster.core.tally import Embedded, Embedding

log = logging.getLogger(__name__)

SETTLED_S = 900.0
"""A batch that was not even sent, or that the account's full queue refused, is looked at again after a quarter hour:
a service that goes on refusing is not asked every minute."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """What is still to come of one kind: `texts` of the `total` wait in `batches` (for which `usd` is reserved).

    `unsent` are not even sent, because the account's queue at the service is full.
    """

    texts: int = 0
    unsent: int = 0
    total: int = 0
    batches: int = 0
    usd: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.texts or self.unsent)

    def __str__(self) -> str:
        rest = f", {self.unsent:,} more once the account's queue has room" if self.unsent else ""
        batches = "1 batch" if self.batches == 1 else f"{self.batches:,} batches"
        return (
            f"{self.texts:,} texts of {self.total:,} wait in {batches} at the service{rest}, reserved "
            f"${self.usd:,.4f}; run again later or keep `qbench ui` up"
        )


def has_batches(database: Database, space: Space) -> bool:
    """Whether texts are out in batches, of cases or of steps: a text may be both."""
    with database.connection("find batches") as connection:
        return bool(store.outstanding(connection, space.name))


def advance(
    database: Database,
    space: Space,
    kind: Kind,
    ranges: Sequence[CaseRange],
    service: BatchService,
    account: Account,
    done: Embedding,
    progress: Callable[[int], None],
) -> Waiting:
    """Take in what has ended of the batches of `kind`, and send what `ranges` lack and no batch has.

    Batches of the other kind are taken in where they hold texts of `ranges`. Nothing is sent unless `account` goes
    by batch. Nothing waits: what is not answered yet is for the next call. Raises BudgetReachedError after what
    fits the budget was sent, and EmbeddingError for what the service refused, after everything else was done; texts
    that were refused are free again, and sent again by the next call only.
    """
    with (
        writing(database, space) as storing,
        database.connection(f"read {kind} texts", long=True) as reading,
    ):
        if account.way == "batch":
            check_account(account, space.model)
        if lost := mark_lost(storing, space.name):
            log.warning("%d requests of a process that was killed may have been billed: counted as spent", lost)
        for row in fetch_dicts(reading, statement("embed.sql", f"wanted_{kind}s"), **columns_of(ranges)):
            done.partitions.setdefault(row["key"], Embedded(row["rows"], row["texts"]))
        results = Results(storing, space, service, account, done, progress)
        _settle_all(storing, space, kind, ranges, results, done)
        if account.way == "batch":
            try:
                Sending(storing, space, kind, service, account).send(reading, ranges, results.refused)
            except EmbeddingError as error:
                if not results.trouble:
                    raise
                results.trouble.append(str(error))
        if results.trouble:
            raise EmbeddingError("\n".join(results.trouble))
        return _waiting(storing, space, kind, ranges, account, done)


def look(database: Database, space: Space, service: BatchService, within_s: float = 30.0) -> tuple[int, list[Batch]]:
    """Ask after all batches of a space; returns how many are out, and those of them that a run has to see to.

    None while somebody writes to the space, who sees to them. Batches that cannot be asked after `within_s` seconds
    are for the next time.
    """
    began = time.monotonic()
    with database.connection("look at batches") as connection:
        batches = store.outstanding(connection, space.name)
        if store.in_use(connection, space):
            return len(batches), []
        ended = []
        for batch in batches:
            if time.monotonic() - began > within_s:
                break
            if batch.remote_id is None:
                ended += [batch] if batch.age_s > SETTLED_S else []
                continue
            try:
                remote = service.poll(batch.remote_id)
            except UnknownBatchError:
                ended.append(batch)  # the run tells what to do
                continue
            store.note_status(connection, batch, remote.status, remote.done)
            full = any(code == QUEUE_FULL for code, _ in remote.errors)
            if remote.ended and not (full and batch.age_s < SETTLED_S):
                ended.append(batch)
    return len(batches), ended


def keys_that_wait(database: Database, space: Space, ended: Sequence[Batch], ranges: Sequence[CaseRange]) -> set[str]:
    """Keys of the ranges that lack a vector, or that `ended` batches hold texts of."""
    lacking = [rows_lacking_vectors(database, space, kind, ranges) for kind in KINDS]
    with database.connection("find ranges that wait") as connection:
        held = store.keys_of(connection, ended)
    return held | {key for counts in lacking for key, count in counts.items() if count["missing"]}


def forget(
    database: Database,
    named: str,
    account: Account,
    service_of: Callable[[Batch], AbstractContextManager[BatchService]],
) -> Batch | None:
    """Give up a batch: its texts are free to be sent again, and what was reserved counts as perhaps billed.

    For one that the service does not know any more, or whose results it has lost: asked of `service_of` the batch,
    it says so, or EmbeddingError is raised. Returns None if there is no such batch, or it has ended.
    """
    with database.connection("find batch") as connection:
        batch = store.find_batch(connection, named)
    if batch is None or not batch.outstanding:
        return None
    with database.exclusive(f"{batch.space}.embeddings") as connection:
        batch = store.find_batch(connection, str(batch.id))  # who held the lock may have taken it in
        if batch is None or not batch.outstanding:
            return None
        with service_of(batch) as service:
            _check_lost(service, batch)
        # One that was never made cost nothing.
        at_risk = batch.tokens if batch.remote_id else 0
        store.end(connection, batch, account, "abandoned", error="given up by hand", tokens_at_risk=at_risk)
    return batch


def _check_lost(service: BatchService, batch: Batch) -> None:
    """Raise EmbeddingError for a batch whose results will come, or are there."""
    if batch.remote_id is None:
        remote = find_made(service, batch.id, batch.created_at, batch.file_id)
        if remote is None:
            return
    else:
        try:
            remote = service.poll(batch.remote_id)
            if remote.ended:
                for file_id in filter(None, (remote.output_file, remote.error_file)):
                    with closing(service.lines(file_id)) as lines:
                        next(lines, None)
        except UnknownBatchError:
            return
    told = f"Batch {remote.id} ({batch.id}) is at the service, {remote.status}"
    if remote.ended:
        raise EmbeddingError(f"{told}: it is not given up. `qbench run` takes in what it brought.")
    raise EmbeddingError(
        f"{told}, {remote.done:,} of {remote.total:,} lines done: it is not given up, for its texts would be paid for "
        "twice. To stop it, cancel it at the service; `qbench run` then takes in what it brought, and sends the rest."
    )


def _settle_all(
    connection: Connection, space: Space, kind: Kind, ranges: Sequence[CaseRange], results: Results, done: Embedding
) -> None:
    """Ask after every batch of the kind, then after those of the other kind that hold texts of `ranges`."""
    share = statement("embed.sql", f"share_{kind}s", space=space.name)
    batches = store.outstanding(connection, space.name)
    for batch in batches:
        if batch.kind == kind:
            results.settle(batch)
    done.shared += max(0, connection.execute(share).rowcount)
    held = store.waiting(connection, space, kind, ranges)
    others = [batch for batch in batches if batch.kind != kind and batch.id in held]
    for batch in others:
        results.settle(batch)
    if others:
        done.shared += max(0, connection.execute(share).rowcount)


def _waiting(
    connection: Connection,
    space: Space,
    kind: Kind,
    ranges: Sequence[CaseRange],
    account: Account,
    done: Embedding,
) -> Waiting:
    held = store.waiting(connection, space, kind, ranges)
    texts = sum(held.values())
    missing = store.missing(connection, space, kind, ranges)
    return Waiting(
        texts=texts,
        unsent=missing - texts if account.way == "batch" else 0,
        total=sum(done.partitions[each.key].texts for each in ranges),
        batches=len(held),
        usd=sum(batch.usd for batch in store.outstanding(connection, space.name) if batch.id in held),
    )
