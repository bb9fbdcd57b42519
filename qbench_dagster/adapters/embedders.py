"""What turns texts into vectors. Each embedder is an outside system, or stands in for one.

An embedder knows nothing of cases, spaces or PostgreSQL: texts in, unit vectors out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qbench_dagster.core.requests import Answer, Limits


class EmbeddingError(RuntimeError):
    """The texts cannot be embedded; the text says what was found and what to do. It holds no key.

    `tokens_at_risk` may have been billed for the request that failed.
    """

    def __init__(self, message: str, *, tokens_at_risk: int = 0) -> None:
        super().__init__(message)
        self.tokens_at_risk = tokens_at_risk


class RequestTooLargeError(EmbeddingError):
    """The service refused the size of one request: smaller ones would be taken."""


AtRisk = Callable[[int], None]
"""Told, before a request is tried again, how many tokens the last attempt may have been billed for; may raise."""


class Embedder(Protocol):
    """Turns texts into unit vectors of `dimensions`, in order."""

    model: str
    dimensions: int
    provenance: str
    """What a vector's row records as its origin, e.g. `lexical`, `openai`."""
    limits: Limits
    """What one request holds. An embedder on this machine sets them for memory's sake."""
    concurrency: int
    """Requests that may be in flight at once."""
    paid: bool
    """Whether a request costs money, so that it is entered into the ledger before it is sent."""

    @property
    def token_ceiling(self) -> int | None:
        """The largest request the account can ever send, once that is known; it may be below `limits`."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, as the service would bill them or as an estimate."""
        ...

    def request(self, texts: Sequence[str], at_risk: AtRisk | None = None) -> Answer:
        """One request. Blank texts are embedded as one space. Thread-safe.

        `at_risk` is asked before another attempt, where the last one may have cost something: it may end it.
        Raises EmbeddingError when it is given up, RequestTooLargeError when smaller requests would do.
        """
        ...

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors (len(texts), dimensions) of a few texts, a query for instance. Nothing is entered anywhere."""
        ...

    def stop(self) -> None:
        """End requests that wait for their turn or for a retry: they raise EmbeddingError. For another thread."""
        ...

    def close(self) -> None:
        """Stop, and let go of connections. Nothing is asked of it afterwards."""
        ...


class LexicalEmbedder:
    """The offline embedder: hashed n-grams, deterministic, free. See `core/lexical.py`."""

    model = "lexical-v1"  # changes whenever the vectors do: two recipes must not meet in one space
    provenance = "lexical"
    # No service, no limit of its own: batches of a size that keeps memory low. Its "tokens" are characters.
    limits = Limits(inputs=1024, tokens_per_input=2**31, tokens_per_request=1_000_000)
    concurrency = 1
    paid = False
    token_ceiling = None

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Characters of each text."""
        return [len(text) for text in texts]

    def request(self, texts: Sequence[str], at_risk: AtRisk | None = None) -> Answer:  # noqa: ARG002
        """Unit vectors of `texts`; nothing is billed."""
        return Answer(self.embed(texts), 0)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors of `texts`."""
        # scikit-learn takes a second to import, which a run with nothing to embed need not spend.
        from qbench_dagster.core import lexical  # noqa: PLC0415

        return lexical.embed(texts, self.dimensions)

    def stop(self) -> None:
        """Nothing ever waits here."""

    def close(self) -> None:
        """Nothing is held."""
