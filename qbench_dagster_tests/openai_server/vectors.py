"""What the server's model is: deterministic unit vectors, and a token count. No HTTP, no state but the pools.

A text's vector follows from (model, dimensions, text) alone, so a test can say what it must be.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

POOL = 4096
WORD = re.compile(r"\w+|[^\w\s]")


def count_words(text: str) -> int:
    """Stand-in for a tokenizer: words and marks, at least one."""
    return len(WORD.findall(text)) or 1


@lru_cache(maxsize=4)  # 50 MB each at 3,072 dimensions
def _pool(dimensions: int) -> NDArray[np.float32]:
    return np.random.default_rng(dimensions).standard_normal((POOL, dimensions), dtype=np.float32)


def vectors_of(texts: Sequence[str], dimensions: int, model: str = "text-embedding-3-large") -> NDArray[np.float32]:
    """Unit vectors (len(texts), dimensions): two rows of a fixed pool each, mixed as the text's SHA-256 says.

    Drawing 2,048 x 3,072 random numbers a request would take 60 ms and hashing them out of the text 200 ms; two
    rows to choose and an angle to mix them keep 2**56 texts apart.
    """
    prefix = f"{model}\0".encode()
    digests = b"".join(hashlib.sha256(prefix + text.encode("utf-8", "surrogatepass")).digest()[:8] for text in texts)
    words = np.frombuffer(digests, dtype="<u4").reshape(-1, 2)
    first = words[:, 0] % POOL
    second = (first + 1 + (words[:, 0] >> 12) % (POOL - 1)) % POOL  # never the first again
    angle = words[:, 1] * (2 * np.pi / 2**32)
    pool = _pool(dimensions)
    vectors: NDArray[np.float32] = pool[first]
    vectors *= np.cos(angle).astype(np.float32)[:, None]
    other = pool[second]
    other *= np.sin(angle).astype(np.float32)[:, None]
    vectors += other
    vectors /= np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
    return vectors


def vector_of(text: str, dimensions: int, model: str = "text-embedding-3-large") -> NDArray[np.float32]:
    """The vector (dimensions,) that the server answers `text` with."""
    vector: NDArray[np.float32] = vectors_of([text], dimensions, model)[0]
    return vector
