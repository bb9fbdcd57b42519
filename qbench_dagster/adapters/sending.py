"""Keeps requests to an embedder in flight and stores what they bring, each answer with its entry in the ledger.

Which texts are sent is `missing.py`; how an embedder answers one request is its own module.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field
from functools import partial
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from qbench_dagster.adapters.embedders import Embedder, EmbeddingError, RequestTooLargeError
from qbench_dagster.adapters.ledger import Account, BudgetReachedError, book_risk, reserve, settle
from qbench_dagster.adapters.missing import MissingText
from qbench_dagster.adapters.postgres import Connection
from qbench_dagster.adapters.space import Kind, Space, check_vectors, store_vectors
from qbench_dagster.core.packing import Sized, average, pack, prefixed_pieces
from qbench_dagster.core.requests import Answer, Limits
from qbench_dagster.core.tally import Embedding

log = logging.getLogger(__name__)

SMALLEST_PIECE = 16
"""Tokens below which a text is not divided further when the service goes on refusing its size."""


@dataclass(slots=True, eq=False)
class _Text:
    """A text on its way, in so many `parts`; `vectors` are those of the pieces that were answered."""

    partition: str
    text_hash: bytes
    characters: int
    parts: int
    vectors: dict[_Piece, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every part was answered."""
        return len(self.vectors) == self.parts

    def vector(self) -> NDArray[np.float32]:
        """The text's vector: its only one, or the average of its pieces', weighted by their tokens."""
        if self.parts == 1:
            return next(iter(self.vectors.values()))
        return average(np.stack(list(self.vectors.values())), [max(1, piece.tokens) for piece in self.vectors])


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """One input of a request: what is sent, and what of it is the text, without the prefix a model wants."""

    text: _Text
    content: str
    bare: str
    tokens: int


@dataclass(slots=True, eq=False)
class _Request:
    """A request on its way: its entry in the ledger, and what was booked there of attempts that may have cost."""

    pieces: list[_Piece]
    entry: int | None = None
    booked: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of all its pieces."""
        return sum(piece.tokens for piece in self.pieces)

    def complete_texts(self) -> list[_Text]:
        """Those of its texts of which every part was answered."""
        return [text for text in dict.fromkeys(piece.text for piece in self.pieces) if text.complete]


class Sender:
    """As many requests in flight as the embedder takes at once, for one table of one space."""

    def __init__(
        self,
        storing: Connection,
        booking: Connection,
        space: Space,
        kind: Kind,
        embedder: Embedder,
        account: Account,
        progress: Callable[[int], None],
        done: Embedding,
    ) -> None:
        self._storing = storing
        self._booking = booking
        """For the threads that ask: what they book is no part of a transaction that stores."""
        self._booking_lock = Lock()
        self._space = space
        self._kind: Kind = kind
        self._embedder = embedder
        self._account = account
        self._progress = progress
        self._done = done
        self._waiting: deque[list[_Request]] = deque()
        """In groups: the requests of one text are all entered before the first is sent."""
        self._flying: dict[Future[Answer], _Request] = {}

    def send_all(self, texts: Iterable[Sized[list[_Piece]]]) -> None:
        """Send every text. Whatever ends it early, answers that are still to come are waited for and stored."""
        with ThreadPoolExecutor(self._embedder.concurrency, thread_name_prefix="embed") as self._pool:
            try:
                for packed in pack(texts, self._limits):
                    self._waiting.append(self._requests([piece for text in packed for piece in text.value]))
                    self._keep_flying(until=self._embedder.concurrency)
                self._keep_flying(until=0)
            except BudgetReachedError:
                self._land_all()
                raise
            except BaseException:
                self._break_off()
                raise

    def _requests(self, pieces: list[_Piece]) -> list[_Request]:
        """One request; several of a single text that is larger than one may be."""
        sized = (Sized(piece, piece.tokens) for piece in pieces)
        return [_Request([item.value for item in request]) for request in pack(sized, self._limits)]

    def _limits(self) -> Limits:
        return self._embedder.limits.within(self._embedder.token_ceiling)

    def _keep_flying(self, until: int) -> None:
        """Send what waits, and collect until at most `until` requests are on their way.

        One more than the embedder works on at once is handed to it: while that is answered, the one before is stored.
        """
        while self._waiting or len(self._flying) > until:
            if self._waiting and len(self._flying) <= self._embedder.concurrency:
                self._send(self._waiting.popleft())
            else:
                self._collect()

    def _send(self, group: list[_Request]) -> None:
        if self._embedder.paid:
            self._enter(group)
        for request in group:
            contents = [piece.content for piece in request.pieces]
            self._flying[self._pool.submit(self._embedder.request, contents, partial(self._book, request))] = request

    def _enter(self, group: list[_Request]) -> None:
        """Enter all requests of a group into the ledger, or none."""
        try:
            for request in group:
                request.entry = reserve(
                    self._storing, self._space.name, self._kind, self._embedder.model, self._account,
                    texts=len(request.pieces), tokens=request.tokens,
                )  # fmt: skip
        except BudgetReachedError:
            for request in group:
                self._failed(request, EmbeddingError("not sent"))
            raise

    def _book(self, request: _Request, tokens: int) -> None:
        """An attempt may have cost `tokens`, and another would: in the thread that asks, which this may end."""
        if request.entry is not None:
            request.booked += tokens
            with self._booking_lock:
                book_risk(self._booking, self._space.name, request.entry, self._account,
                          texts=len(request.pieces), tokens=tokens)  # fmt: skip

    def _collect(self) -> None:
        for future in wait_for(self._flying, return_when=FIRST_COMPLETED).done:
            request = self._flying[future]
            try:
                answer = future.result()
                self._store(request, answer)  # interrupted (Ctrl-C), it is still in flight, and stored on landing
            except RequestTooLargeError as error:
                self._failed(self._flying.pop(future), error)
                self._waiting.extendleft(reversed(self._smaller(request.pieces, error)))
            except EmbeddingError as error:
                self._failed(self._flying.pop(future), error)
                raise
            except Exception:
                del self._flying[future]  # only this one: others that are answered are stored on landing
                raise
            else:
                del self._flying[future]
                self._told(request, answer)

    def _land_all(self) -> None:
        """Let all that the budget allowed come to its end; an interruption (Ctrl-C) breaks it off."""
        try:
            self._land()
        except BaseException:
            self._break_off()
            raise

    def _break_off(self) -> None:
        """Take back what was not sent yet, end what waits for its turn or a retry, and store what is answered."""
        self._embedder.stop()
        for future in list(self._flying):
            if future.cancel():
                self._failed(self._flying.pop(future), EmbeddingError("not sent"))
        self._land()

    def _land(self) -> None:
        """Wait for what is in flight and store it. An error has led here already: it is told, not these."""
        while self._flying:
            try:
                self._collect()
            except EmbeddingError as error:
                log.debug("another request ended too: %s", error)
            except Exception as error:
                log.warning("an answer could not be stored, it counts as perhaps paid for: %s", error)

    def _failed(self, request: _Request, error: EmbeddingError) -> None:
        self._done.usd_at_risk += self._account.usd(error.tokens_at_risk) or 0.0
        if request.entry is not None:
            settle(self._storing, request.entry, self._account, state="failed", tokens=0,
                   tokens_at_risk=error.tokens_at_risk - request.booked)  # fmt: skip

    def _smaller(self, sent: list[_Piece], error: RequestTooLargeError) -> list[list[_Request]]:
        """The same texts in smaller requests: some texts each, or a single text in more requests, or more pieces."""
        texts = list(dict.fromkeys(piece.text for piece in sent))
        if len(texts) > 1:
            first = set(texts[: len(texts) // 2])
            return [
                [_Request([piece for piece in sent if (piece.text in first) is wanted])] for wanted in (True, False)
            ]
        if len(sent) > 1:
            return [[_Request(sent[: len(sent) // 2]), _Request(sent[len(sent) // 2 :])]]
        (piece,) = sent
        counts = self._embedder.count_tokens
        prefix = piece.content.removesuffix(piece.bare)
        parts = prefixed_pieces(piece.bare, prefix, piece.tokens // 2, lambda text: counts([text])[0])
        if piece.tokens < SMALLEST_PIECE or len(parts) < 2:
            raise error
        piece.text.parts += len(parts) - 1
        sizes = counts(parts)
        return [
            [
                _Request([_Piece(piece.text, part, part.removeprefix(prefix), tokens)])
                for part, tokens in zip(parts, sizes, strict=True)
            ]
        ]

    def _store(self, request: _Request, answer: Answer) -> None:
        """Store an answer and settle its entry, together. Interrupted, it can be done again."""
        check_vectors(answer.vectors, len(request.pieces), self._space.dimensions)
        for piece, vector in zip(request.pieces, answer.vectors, strict=True):
            piece.text.vectors[piece] = vector
        complete = request.complete_texts()
        with self._storing.transaction():
            if complete:
                store_vectors(
                    self._storing, self._space, self._kind, [text.text_hash for text in complete],
                    np.stack([text.vector() for text in complete]), self._embedder.provenance,
                    [text.parts for text in complete],
                )  # fmt: skip
            if request.entry is not None:
                settle(self._storing, request.entry, self._account, state="answered", tokens=answer.tokens,
                       tokens_at_risk=answer.tokens_at_risk - request.booked)  # fmt: skip

    def _told(self, request: _Request, answer: Answer) -> None:
        self._done.requests += 1
        self._done.tokens += answer.tokens
        self._done.usd += self._account.usd(answer.tokens) or 0.0
        self._done.usd_at_risk += self._account.usd(answer.tokens_at_risk) or 0.0
        billed = answer.tokens / max(1, request.tokens)
        for piece in request.pieces:
            partition = self._done.partitions[piece.text.partition]
            partition.tokens += piece.tokens * billed
            partition.usd += (self._account.usd_per_million or 0.0) / 1e6 * piece.tokens * billed
        complete = request.complete_texts()
        for text in complete:
            partition = self._done.partitions[text.partition]
            partition.embedded += 1
            partition.characters += text.characters
            self._done.in_pieces += text.parts > 1
            text.vectors.clear()
        self._progress(len(complete))


def whole_texts(texts: Iterable[MissingText], prefix: int) -> Iterator[Sized[list[_Piece]]]:
    """Each text with all its parts, the first `prefix` characters of which are no part of it."""
    for text in texts:
        whole = _Text(text.partition, text.text_hash, text.characters, len(text.parts))
        pieces = [_Piece(whole, part, part[prefix:], size) for part, size in zip(text.parts, text.sizes, strict=True)]
        yield Sized(pieces, sum(text.sizes), len(pieces))
