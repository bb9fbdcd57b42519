"""Embedding what a space lacks, under the space's lock and on behalf of an account.

How requests are sent and stored is `sending.py`, what was asked and paid `ledger.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing

from qbench_dagster.adapters.embedders import Embedder
from qbench_dagster.adapters.ledger import Account, check_account, mark_lost
from qbench_dagster.adapters.missing import missing_texts
from qbench_dagster.adapters.postgres import Database, fetch_dicts
from qbench_dagster.adapters.sending import Sender, whole_texts
from qbench_dagster.adapters.space import Kind, Space, writing
from qbench_dagster.adapters.sql import statement
from qbench_dagster.core.ranges import CaseRange, columns_of
from qbench_dagster.core.tally import Embedded, Embedding

log = logging.getLogger(__name__)


def embed_missing(
    database: Database,
    space: Space,
    kind: Kind,
    ranges: Sequence[CaseRange],
    embedder: Embedder,
    account: Account,
    progress: Callable[[int], None],
    done: Embedding,
) -> None:
    """Embed and store the distinct texts of `ranges` that the space lacks; `done` is told of all of it as it happens.

    One run at a time writes to a space, so a text that two partitions or both tables share is embedded once.
    Requests are filled across partitions, in the order of cases. Each answer is stored as it comes, in one
    transaction with its entry in the ledger: what is killed loses at most the requests in flight (and, of a text
    too long for one request, those answered before).
    Raises EmbeddingError when the service ends it or (BudgetReachedError) the budget does; what was answered
    is stored by then, and the next call goes on from there.
    """
    keyed = columns_of(ranges)
    with (
        writing(database, space) as storing,
        database.connection(f"read {kind} texts", long=True) as reading,
        database.connection(f"book {kind} requests", long=True) as booking,
    ):
        if embedder.paid:
            check_account(account, embedder.model)
            if lost := mark_lost(storing, space.name):
                log.warning("%d requests of a process that was killed may have been billed: counted as spent", lost)
        shared = storing.execute(statement("embed.sql", f"share_{kind}s", space=space.name)).rowcount
        done.shared += max(0, shared)
        for row in fetch_dicts(reading, statement("embed.sql", f"wanted_{kind}s"), **keyed):
            done.partitions.setdefault(row["key"], Embedded(row["rows"], row["texts"]))
        sender = Sender(storing, booking, space, kind, embedder, account, progress, done)
        with closing(missing_texts(reading, space, kind, ranges, embedder)) as texts:
            sender.send_all(whole_texts(texts, len(space.text_prefix)))
