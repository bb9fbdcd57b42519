"""What one request to an embedding service may hold, and what an answered one brought.

Values only. How texts are packed into requests is `packing.py`, how tokens are counted `tokens.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Limits:
    """What a service takes. The defaults are those of OpenAI's embedding models."""

    inputs: int = 2048
    tokens_per_input: int = 8192
    tokens_per_request: int = 300_000

    def within(self, ceiling: int | None) -> Limits:
        """The same, but no request of more tokens than `ceiling`; None: none is known."""
        if ceiling is None or ceiling >= self.tokens_per_request:
            return self
        return replace(self, tokens_per_request=ceiling)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answered request: unit vectors (inputs, dimensions) in the order of the inputs, and what was billed.

    `tokens_at_risk` are those of earlier attempts of the same request whose fate nobody knows (a time-out, a
    dropped connection) or that were billed for an answer that could not be used.
    """

    vectors: NDArray[np.float32]
    tokens: int
    tokens_at_risk: int = 0
