"""What turns texts into vectors. Each embedder is an outside system, or stands in for one.

An embedder knows nothing of cases, spaces or PostgreSQL: texts in, unit vectors out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Embedder(Protocol):
    """Turns texts into unit vectors of `dimensions`, shape (len(texts), dimensions), in order."""

    model: str
    dimensions: int
    provenance: str
    """What a vector's row records as its origin, e.g. `lexical`."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]: ...


class LexicalEmbedder:
    """The offline embedder: hashed n-grams, deterministic, free. See `core/lexical.py`."""

    model = "lexical-v1"  # changes whenever the vectors do: two recipes must not meet in one space
    provenance = "lexical"

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors of `texts`."""
        # scikit-learn takes a second to import, which a run with nothing to embed need not spend.
        from qbench_dagster.core import lexical  # noqa: PLC0415

        return lexical.embed(texts, self.dimensions)
