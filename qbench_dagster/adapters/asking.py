"""Asks an embedder for the vectors of a few texts beside the embedding stage: samples to compare, queries.

Each request of a paid one is entered into the ledger before it is sent. The stage itself is `sending.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qbench_dagster.adapters.embedders import Embedder, EmbeddingError
from qbench_dagster.adapters.ledger import Account, book_risk, reserve, settle
from qbench_dagster.adapters.postgres import Connection
from qbench_dagster.adapters.space import Space, check_vectors
from qbench_dagster.core.packing import Sized, average, in_parts, pack
from qbench_dagster.core.requests import Answer


class Asking:
    """One embedder asked on behalf of one space, and each request entered into the ledger if it costs money.

    Whoever asks a paid one holds the space's lock (`space.writing`): else another takes its requests for a dead run's.
    """

    def __init__(
        self,
        connection: Connection,
        space: Space,
        kind: str,
        embedder: Embedder,
        account: Account | None,
        *,
        prefix: str | None = None,
    ) -> None:
        """`kind` is what the ledger calls the texts: doc, step or query. `prefix` None: that of the space's texts."""
        self.connection = connection
        self.space = space
        self.kind = kind
        self.entered = account if embedder.paid else None
        self._embedder = embedder
        self._prefix = space.text_prefix if prefix is None else prefix
        self.tokens = 0

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Fresh unit vectors of a few texts, of long ones from pieces as they were stored. Raises EmbeddingError."""
        limits = self._embedder.limits.within(self._embedder.token_ceiling)
        divided = in_parts(texts, self._prefix, limits.tokens_per_input, self._embedder.count_tokens)
        items = [
            Sized((index, part), size)
            for index, (parts, sizes) in enumerate(divided)
            for part, size in zip(parts, sizes, strict=True)
        ]
        vectors = np.concatenate([self._request(request) for request in pack(items, limits)])
        if len(items) == len(texts):
            return vectors  # none was divided, and they come in order
        owners = np.asarray([item.value[0] for item in items])
        weights = np.asarray([max(1, item.tokens) for item in items])
        rows = [np.flatnonzero(owners == index) for index in range(len(texts))]
        return np.stack([average(vectors[own], weights[own].tolist()) for own in rows])

    def _request(self, request: Sequence[Sized[tuple[int, str]]]) -> NDArray[np.float32]:
        contents = [item.value[1] for item in request]
        answer = self._paid(contents, sum(item.tokens for item in request), self.entered)
        self.tokens += answer.tokens
        check_vectors(answer.vectors, len(contents), self.space.dimensions)
        return answer.vectors

    def _paid(self, contents: Sequence[str], tokens: int, account: Account | None) -> Answer:
        if account is None:
            return self._embedder.request(contents)
        to, space, booked = self.connection, self.space.name, 0
        entry = reserve(to, space, self.kind, self._embedder.model, account, texts=len(contents), tokens=tokens)

        def book(lately: int) -> None:
            nonlocal booked
            booked += lately
            book_risk(to, space, entry, account, texts=len(contents), tokens=lately)

        try:
            answer = self._embedder.request(contents, book)
        except EmbeddingError as error:
            settle(to, entry, account, state="failed", tokens=0, tokens_at_risk=error.tokens_at_risk - booked)
            raise
        settle(
            to, entry, account, state="answered", tokens=answer.tokens, tokens_at_risk=answer.tokens_at_risk - booked
        )
        return answer
