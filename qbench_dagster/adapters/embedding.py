"""Embedding what a space lacks: texts are read, packed into requests, sent side by side, stored as they are answered.

How an embedder answers one request is its own module; what was asked and paid is `ledger.py`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from qbench_dagster.adapters.embedders import Embedder, EmbeddingError, RequestTooLargeError
from qbench_dagster.adapters.ledger import Account, BudgetReachedError, check_account, mark_lost, reserve, settle
from qbench_dagster.adapters.missing import MissingText, missing_texts
from qbench_dagster.adapters.postgres import Connection, Database, fetch_dicts
from qbench_dagster.adapters.space import Kind, Space, check_vectors, store_vectors, writing
from qbench_dagster.adapters.sql import statement
from qbench_dagster.core.packing import Sized, average, pack, pieces
from qbench_dagster.core.ranges import CaseRange, columns_of
from qbench_dagster.core.requests import Answer, Limits

log = logging.getLogger(__name__)

SMALLEST_PIECE = 16
"""Tokens below which a text is not divided further when the service goes on refusing its size."""


@dataclass(slots=True)
class Embedded:
    """What embedding did to one partition: its `rows` hold `texts` distinct texts, `embedded` were missing."""

    rows: int = 0
    texts: int = 0
    embedded: int = 0
    characters: int = 0

    def counts(self) -> dict[str, int]:
        """The counts a person wants to see."""
        return {
            "rows_with_text": self.rows,
            "texts": self.texts,
            "texts_embedded": self.embedded,
            "characters_embedded": self.characters,
            "rows_written": self.embedded,
        }


@dataclass(slots=True)
class Embedding:
    """What one call of `embed_missing` did so far, partition by partition and in all."""

    partitions: dict[str, Embedded] = field(default_factory=dict)
    shared: int = 0
    """Vectors taken over from the other table of the space, which has the same text."""
    in_pieces: int = 0
    """Texts above the token limit, embedded in pieces and averaged."""
    requests: int = 0
    tokens: int = 0
    usd: float = 0.0
    usd_at_risk: float = 0.0
    """Of attempts that may have been billed, though no usable answer came."""

    @property
    def embedded(self) -> int:
        """Texts embedded in all partitions."""
        return sum(done.embedded for done in self.partitions.values())

    def spending(self) -> dict[str, float]:
        """Requests, tokens and dollars, as numbers that the UI plots over runs."""
        return {
            "requests": self.requests,
            "tokens": self.tokens,
            "texts_in_pieces": self.in_pieces,
            "texts_shared": self.shared,
            "usd": round(self.usd, 6),
            "usd_at_risk": round(self.usd_at_risk, 6),
        }


@dataclass(slots=True, eq=False)
class _Text:
    """A text on its way: the vectors of those of its pieces that were answered, and how many are still out."""

    partition: str
    text_hash: bytes
    characters: int
    out: int
    vectors: list[NDArray[np.float32]] = field(default_factory=list)
    weights: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    text: _Text
    content: str
    tokens: int


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
    transaction with its entry in the ledger: what is killed loses at most the requests in flight.
    Raises EmbeddingError when the service ends it or (BudgetReachedError) the budget does; what was answered
    is stored by then, and the next call goes on from there.
    """
    keyed = columns_of(ranges)
    with (
        writing(database, space),
        database.connection(f"read {kind} texts", long=True) as reading,
        database.connection(f"embed {kind}s", long=True) as storing,
    ):
        if embedder.paid:
            check_account(account, embedder.model)
            if lost := mark_lost(storing, space.name):
                log.warning("%d requests of a process that was killed may have been billed: counted as spent", lost)
        shared = storing.execute(statement("embed.sql", f"share_{kind}s", space=space.name)).rowcount
        done.shared += max(0, shared)
        for row in fetch_dicts(reading, statement("embed.sql", f"wanted_{kind}s"), **keyed):
            done.partitions.setdefault(row["key"], Embedded(row["rows"], row["texts"]))
        sender = _Sender(storing, space, kind, embedder, account, progress, done)
        with closing(missing_texts(reading, space, kind, ranges, embedder)) as texts:
            sender.send_all(_pieces(texts))


class _Sender:
    """Keeps requests in flight, as many as the embedder takes at once, and stores what they bring."""

    def __init__(
        self,
        connection: Connection,
        space: Space,
        kind: Kind,
        embedder: Embedder,
        account: Account,
        progress: Callable[[int], None],
        done: Embedding,
    ) -> None:
        self._connection = connection
        self._space = space
        self._kind: Kind = kind
        self._embedder = embedder
        self._account = account
        self._progress = progress
        self._done = done
        self._waiting: deque[list[_Piece]] = deque()
        self._flying: dict[Future[Answer], tuple[list[_Piece], int | None]] = {}

    def send_all(self, items: Iterable[Sized[_Piece]]) -> None:
        """Send every piece. Whatever ends it early, answers that are still to come are waited for and stored."""
        with ThreadPoolExecutor(self._embedder.concurrency, thread_name_prefix="embed") as self._pool:
            try:
                for request in pack(items, self._limits):
                    self._waiting.append([item.value for item in request])
                    self._keep_flying(until=self._embedder.concurrency)
                self._keep_flying(until=0)
            except BudgetReachedError:
                self._land()
                raise
            except BaseException:
                self._embedder.stop()
                self._land()
                raise

    def _limits(self) -> Limits:
        limits, ceiling = self._embedder.limits, self._embedder.token_ceiling
        if ceiling is None or ceiling >= limits.tokens_per_request:
            return limits
        return replace(limits, tokens_per_request=ceiling)

    def _keep_flying(self, until: int) -> None:
        """Send what waits, and collect until at most `until` requests are on their way.

        One more than the embedder works on at once is handed to it: while that is answered, the one before is stored.
        """
        while self._waiting or len(self._flying) > until:
            if self._waiting and len(self._flying) <= self._embedder.concurrency:
                self._send(self._waiting.popleft())
            else:
                self._collect()

    def _send(self, request: list[_Piece]) -> None:
        entry = None
        if self._embedder.paid:
            tokens = sum(piece.tokens for piece in request)
            entry = reserve(
                self._connection, self._space.name, self._kind, self._embedder.model, self._account,
                texts=len(request), tokens=tokens,
            )  # fmt: skip
        future = self._pool.submit(self._embedder.request, [piece.content for piece in request])
        self._flying[future] = (request, entry)

    def _collect(self) -> None:
        for future in wait_for(self._flying, return_when=FIRST_COMPLETED).done:
            request, entry = self._flying.pop(future)
            try:
                answer = future.result()
            except RequestTooLargeError as error:
                self._failed(entry, error)
                self._waiting.extendleft(reversed(self._smaller(request, error)))
            except EmbeddingError as error:
                self._failed(entry, error)
                raise
            else:
                self._store(request, entry, answer)

    def _land(self) -> None:
        """Wait for what is in flight and store it; take back what was not sent yet. The first error is being told."""
        for future in list(self._flying):
            if future.cancel():
                self._failed(self._flying.pop(future)[1], EmbeddingError("not sent"))
        while self._flying:
            with suppress(EmbeddingError):
                self._collect()

    def _failed(self, entry: int | None, error: EmbeddingError) -> None:
        self._done.usd_at_risk += self._account.usd(error.tokens_at_risk) or 0.0
        if entry is not None:
            settle(self._connection, entry, self._account, state="failed", tokens=0,
                   tokens_at_risk=error.tokens_at_risk)  # fmt: skip

    def _smaller(self, request: list[_Piece], error: RequestTooLargeError) -> list[list[_Piece]]:
        """The same texts in smaller requests: half each, or a single text in more pieces."""
        if len(request) > 1:
            return [request[: len(request) // 2], request[len(request) // 2 :]]
        (piece,) = request
        counts = self._embedder.count_tokens
        parts = pieces(piece.content, piece.tokens // 2, lambda text: counts([text])[0])
        if piece.tokens < SMALLEST_PIECE or len(parts) < 2:
            raise error
        piece.text.out += len(parts) - 1
        return [[_Piece(piece.text, part, tokens)] for part, tokens in zip(parts, counts(parts), strict=True)]

    def _store(self, request: list[_Piece], entry: int | None, answer: Answer) -> None:
        check_vectors(answer.vectors, len(request), self._space.dimensions)
        complete = []
        for piece, vector in zip(request, answer.vectors, strict=True):
            text = piece.text
            text.vectors.append(vector)
            text.weights.append(max(1, piece.tokens))
            text.out -= 1
            if not text.out:
                complete.append(text)
        with self._connection.transaction():
            if complete:
                vectors = np.stack([
                    text.vectors[0] if len(text.vectors) == 1 else average(np.stack(text.vectors), text.weights)
                    for text in complete
                ])  # fmt: skip
                store_vectors(
                    self._connection, self._space, self._kind, [text.text_hash for text in complete], vectors,
                    self._embedder.provenance, [len(text.vectors) for text in complete],
                )  # fmt: skip
            if entry is not None:
                settle(self._connection, entry, self._account, state="answered", tokens=answer.tokens,
                       tokens_at_risk=answer.tokens_at_risk)  # fmt: skip
        self._told(complete, answer)

    def _told(self, complete: Sequence[_Text], answer: Answer) -> None:
        self._done.requests += 1
        self._done.tokens += answer.tokens
        self._done.usd += self._account.usd(answer.tokens) or 0.0
        self._done.usd_at_risk += self._account.usd(answer.tokens_at_risk) or 0.0
        for text in complete:
            partition = self._done.partitions[text.partition]
            partition.embedded += 1
            partition.characters += text.characters
            self._done.in_pieces += len(text.vectors) > 1
            text.vectors.clear()
        self._progress(len(complete))


def _pieces(texts: Iterable[MissingText]) -> Iterator[Sized[_Piece]]:
    """The texts in pieces, each of which may go in another request."""
    for text in texts:
        whole = _Text(text.partition, text.text_hash, text.characters, len(text.parts))
        for part, size in zip(text.parts, text.sizes, strict=True):
            yield Sized(_Piece(whole, part, size), size)
