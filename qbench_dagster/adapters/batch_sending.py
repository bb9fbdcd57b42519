"""Sending what a space lacks as batches: filled, entered and claimed before they go up, within budget and queue.

What comes back is `batch_results.py`.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Collection, Sequence
from contextlib import closing
from uuid import uuid4

from qbench_dagster.adapters import batch_store as store
from qbench_dagster.adapters.batch_service import BatchService, RefusedError, clear_files
from qbench_dagster.adapters.batch_store import Claim
from qbench_dagster.adapters.ledger import CENT_FRACTION, Account, spent
from qbench_dagster.adapters.missing import MissingText, missing_texts
from qbench_dagster.adapters.postgres import Connection
from qbench_dagster.adapters.space import Kind, Space
from qbench_dagster.core.batches import BatchLimits, Filling, custom_id, lines_of, request_line
from qbench_dagster.core.ranges import CaseRange
from qbench_dagster.core.requests import Limits

log = logging.getLogger(__name__)

LIMITS = BatchLimits()


class _Draft:
    """A batch that is being filled: its input on disk, its claims in memory."""

    def __init__(self, service: BatchService) -> None:
        self.id = uuid4()
        self.claims: list[Claim] = []
        self.filling = Filling()
        self.file = tempfile.TemporaryFile(prefix="qbench-batch-")  # noqa: SIM115 (closed by `close`)
        self._service = service

    def close(self) -> None:
        """Remove the file."""
        self.file.close()

    def add(self, line: Sequence[tuple[MissingText, int]], room: float) -> bool:
        """Write a line, unless it does not fit: False."""
        number = self.filling.lines
        written = request_line(
            custom_id(self.id, number), self._service.model, [text.parts[part] for text, part in line],
            self._service.asked_dimensions,
        )  # fmt: skip
        tokens = _tokens(line)
        if not self.filling.takes(len(line), len(written), tokens, LIMITS, room):
            return False
        self.filling.add(len(line), len(written), tokens)
        self.file.write(written)
        self.claims += [
            Claim(number, place, part, len(text.parts), text.text_hash, text.partition, text.sizes[part])
            for place, (text, part) in enumerate(line)
        ]
        return True


def _tokens(line: Sequence[tuple[MissingText, int]]) -> int:
    return sum(text.sizes[part] for text, part in line)


class Sending:
    """Sends batches of one kind of one space."""

    def __init__(
        self, connection: Connection, space: Space, kind: Kind, service: BatchService, account: Account
    ) -> None:
        self._connection = connection
        self._space = space
        self._kind: Kind = kind
        self._service = service
        self._account = account

    def send(self, reading: Connection, ranges: Sequence[CaseRange], without: Collection[bytes]) -> None:
        """Send what is missing but for the texts `without`, while the account's queue and the budget allow.

        Raises BudgetReachedError once the rest does not fit the budget, EmbeddingError when the service ends it.
        """
        queued, ceiling = store.queue(self._connection, self._space.model)
        limits = self._service.limits
        if ceiling is not None and ceiling < limits.tokens_per_request:
            limits = Limits(limits.inputs, limits.tokens_per_input, ceiling)
        draft = _Draft(self._service)
        try:
            with closing(missing_texts(reading, self._space, self._kind, ranges, self._service)) as texts:
                wanted = (text for text in texts if text.text_hash not in without)
                affordable = self._affordable()
                for line in lines_of(wanted, limits, LIMITS):
                    if draft.add(line, min(affordable, _room(queued, ceiling))):
                        continue
                    if draft.claims:
                        queued += draft.filling.tokens
                        self._submit(draft)
                        draft.close()
                        draft, affordable = _Draft(self._service), self._affordable()
                    if queued and _tokens(line) > _room(queued, ceiling):
                        return
                    # Over the budget, the ledger says so. Over the queue's limit alone, the service may take it.
                    draft.add(line, math.inf)
            if draft.claims:
                self._submit(draft)
        finally:
            draft.close()

    def _affordable(self) -> float:
        """Tokens that the rest of the budget pays for."""
        price, most = self._account.usd_per_million, self._account.max_usd
        if not price or most is None:
            return math.inf
        so_far = spent(self._connection, self._space.name)
        left: float = (most + CENT_FRACTION - so_far["usd"] - so_far["usd_at_risk"]) / price * 1_000_000
        return left

    def _submit(self, draft: _Draft) -> None:
        batch = store.enter(self._connection, draft.id, self._space, self._kind, self._account, draft.claims)
        file_id = None
        try:
            file_id = self._service.upload(f"qbench-{batch.id}.jsonl", draft.file)
            store.note_uploaded(self._connection, batch, file_id)
            remote = self._service.create(file_id, batch.id, batch.created_at)
        except RefusedError as error:
            store.end(self._connection, batch, self._account, "abandoned", error=str(error))
            clear_files(self._service, file_id)
            raise
        batch = store.note_submitted(self._connection, batch, remote.id, remote.status)
        log.info("batch %s sent: %d texts, %d tokens", batch.shown, batch.texts, batch.tokens)


def _room(queued: int, ceiling: int | None) -> float:
    """Tokens that the account's queue takes besides those `queued`."""
    return math.inf if ceiling is None else ceiling - queued
