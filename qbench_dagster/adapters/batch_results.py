"""What batches bring: asked after, and taken in a line at a time once they have ended, whichever way.

How they were sent is `batch_sending.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from qbench_dagster.adapters import batch_store as store
from qbench_dagster.adapters.batch_service import BatchService, UnknownBatchError, clear_files, find_made
from qbench_dagster.adapters.batch_store import Batch, Claim
from qbench_dagster.adapters.ledger import Account
from qbench_dagster.adapters.postgres import Connection
from qbench_dagster.adapters.space import Space
from qbench_dagster.core.answers import AnswerError, DimensionError, take_vectors
from qbench_dagster.core.batches import RemoteBatch, Result, line_number, queue_ceiling, read_result
from qbench_dagster.core.tally import Embedded, Embedding

log = logging.getLogger(__name__)

SHOWN_ERRORS = 3


@dataclass(slots=True)
class _Refusals:
    """What a batch brought that nobody can use and that is not simply sent again."""

    texts: int = 0
    told: list[str] = field(default_factory=list)

    def add(self, texts: int, told: str) -> None:
        self.texts += texts
        if len(self.told) < SHOWN_ERRORS and told not in self.told:
            self.told.append(told)


class Results:
    """Takes in the batches of a space. `trouble` is for a person, about texts that are not to be sent again at once.

    `refused` are those among them that no batch claims any more.
    """

    def __init__(
        self,
        connection: Connection,
        space: Space,
        service: BatchService,
        account: Account,
        done: Embedding,
        progress: Callable[[int], None],
    ) -> None:
        self._connection = connection
        self._space = space
        self._service = service
        self._account = account
        self._done = done
        self._progress = progress
        self.trouble: list[str] = []
        self.refused: set[bytes] = set()

    def settle(self, batch: Batch) -> None:
        """Ask after a batch, and take it in if it has ended."""
        try:
            remote = self._recover(batch) if batch.remote_id is None else self._service.poll(batch.remote_id)
        except UnknownBatchError as error:
            self.trouble.append(self._lost(batch, error))
            return
        if remote is None:
            return
        if batch.remote_id is None:
            batch = store.note_submitted(self._connection, batch, remote.id, remote.status)
        store.note_status(self._connection, batch, remote.status, remote.done)
        if remote.status == "failed":
            self._failed(batch, remote)
            clear_files(self._service, batch.file_id)
        elif remote.ended:
            if self._take_in(batch, remote):
                clear_files(self._service, remote.output_file, remote.error_file, batch.file_id)
        else:
            log.info("batch %s: %s, %d of %d lines done", batch.shown, remote.status, remote.done, remote.total)

    def _recover(self, batch: Batch) -> RemoteBatch | None:
        """The batch that a killed process made and could not note; None, and its texts are free, if it made none."""
        found = find_made(self._service, batch.id, batch.created_at, batch.file_id)
        if found is None:
            store.end(self._connection, batch, self._account, "abandoned", error="its process ended before it was sent")
            log.info("batch %s was never sent: its %d texts are sent anew", batch.shown, batch.texts)
        return found

    def _lost(self, batch: Batch, error: UnknownBatchError) -> str:
        return (
            f"Batch {batch.shown}, with {batch.texts:,} texts: {error} Its texts are not sent again while it may be "
            f"found. To give it up, and have them sent (and billed) again: qbench batches --forget {batch.id}"
        )

    def _failed(self, batch: Batch, remote: RemoteBatch) -> None:
        """The service refused the batch as a whole; nothing is billed."""
        told = "; ".join(text for _, text in remote.errors[:SHOWN_ERRORS]) or "no reason given"
        queued, _ = store.queue(self._connection, batch.model)
        ceiling = queue_ceiling(remote.errors, batch.tokens, queued)
        alone = batch.texts == 1 and queued == batch.tokens  # it cannot be made smaller
        if ceiling is not None and not alone:
            store.end(self._connection, batch, self._account, "failed", error=told, queue_ceiling=ceiling)
            log.warning(
                "The account's queue is full (%s). At most %d tokens are queued from now on, the rest later.",
                told, ceiling,
            )  # fmt: skip
            return
        self.refused |= store.end(
            self._connection, batch, self._account, "failed", error=told, queue_ceiling=ceiling
        )  # fmt: skip
        self.trouble.append(
            f"Batch {batch.shown}, with {batch.texts:,} texts, was refused by the service: {told}. Nothing of it was "
            "billed. Put right what it names (QBENCH_MODEL, QBENCH_DIMENSIONS, the account's limits), and run again: "
            "its texts are sent again then. With QBENCH_OPENAI_MODE=requests they need no batch."
        )

    def _take_in(self, batch: Batch, remote: RemoteBatch) -> bool:
        """Store what an ended batch brought, a line a transaction: who is killed goes on with the lines left.

        False if its results are not there.
        """
        left = store.lines_left(self._connection, batch)
        refusals = _Refusals()
        try:
            for file_id in (remote.output_file, remote.error_file):
                if file_id is not None and left:
                    self._take_file(batch, file_id, left, refusals)
        except UnknownBatchError as error:
            self.trouble.append(self._lost(batch, error))
            return False
        if remote.status == "completed":
            for number in sorted(left):
                self._unusable(batch, store.claims_of(self._connection, batch, number), "no result", refusals)
        told = "; ".join(refusals.told) or None
        released = store.end(self._connection, batch, self._account, "taken_in", error=told)
        log.info(
            "batch %s: %s, taken in; %d texts of it are sent again", batch.shown, remote.status, len(released)
        )  # fmt: skip
        if refusals.texts:
            self.trouble.append(
                f"Of batch {batch.shown}, {refusals.texts:,} of {batch.texts:,} texts were not embedded: {told}. The "
                "others are stored. Put right what it names, and run again: these texts are sent again then."
            )
        return True

    def _take_file(self, batch: Batch, file_id: str, left: set[int], refusals: _Refusals) -> None:
        with closing(self._service.lines(file_id)) as lines:
            for line in lines:
                try:
                    result = read_result(line)
                except AnswerError as error:
                    log.warning("file %s of batch %s: %s", file_id, batch.shown, error)
                    continue
                number = line_number(result.name, batch.id)
                if number in left:
                    left.discard(number)
                    self._take_line(batch, number, result, refusals)
                if not left:
                    return

    def _take_line(self, batch: Batch, number: int, result: Result, refusals: _Refusals) -> None:
        claims = store.claims_of(self._connection, batch, number)
        if not claims:  # parts of a text whose other parts failed: all of it is sent again
            return
        if result.outcome == "answered":
            try:
                vectors, billed = take_vectors(result.body, len(claims), self._space.dimensions)
            except DimensionError as error:
                told = f"{error} where the space has {self._space.dimensions} (QBENCH_DIMENSIONS)"
                self._unusable(batch, claims, told, refusals, final=True)
            except AnswerError as error:
                self._unusable(batch, claims, str(error), refusals)
            else:
                tokens = sum(claim.tokens for claim in claims) if billed is None else billed
                keys = store.store_line(
                    self._connection, self._space, batch, claims, vectors, tokens, self._service.provenance
                )
                self._told(batch, keys, claims, tokens)
        else:
            store.release(self._connection, batch, claims)
            if result.outcome == "refused":
                self.refused |= {claim.text_hash for claim in claims}
                refusals.add(_texts(claims), result.told)

    def _unusable(
        self, batch: Batch, claims: Sequence[Claim], told: str, refusals: _Refusals, *, final: bool = False
    ) -> None:
        """An answer that cannot be used was billed: it is asked for once more, then a person is told."""
        twice = store.release_unusable(self._connection, batch, claims)
        log.warning("batch %s: an unusable answer: %s", batch.shown, told)
        self._done.usd_at_risk += _cost(batch, sum(claim.tokens for claim in claims))
        if final or twice:
            self.refused |= {claim.text_hash for claim in claims} if final else twice
            refusals.add(_texts(claims) if final else len(twice), told + ("" if final else " (twice)"))

    def _told(self, batch: Batch, keys: Sequence[str], claims: Sequence[Claim], tokens: int) -> None:
        self._done.requests += 1
        self._done.tokens += tokens
        self._done.usd += _cost(batch, tokens)
        self._done.in_pieces += sum(claim.parts > 1 and claim.part == 0 for claim in claims)
        for key in keys:
            partition = self._done.partitions.setdefault(key, Embedded())
            partition.embedded += 1
            partition.tokens += tokens / len(keys)
            partition.usd += _cost(batch, tokens) / len(keys)
        self._progress(len(keys))


def _cost(batch: Batch, tokens: int) -> float:
    return tokens * (batch.usd_per_million or 0.0) / 1_000_000


def _texts(claims: Sequence[Claim]) -> int:
    return len({claim.text_hash for claim in claims})
