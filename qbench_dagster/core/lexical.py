"""The offline embedding: hashed word and character n-grams made dense. Texts in, unit vectors out.

Lexical, not semantic: texts that share words or parts of words are near each other, synonyms are not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct
from scipy.sparse import csr_matrix, diags_array
from sklearn.feature_extraction.text import HashingVectorizer

_WORD = re.compile(r"\w+")
_SIGN_SEED = 729


def embed(texts: Sequence[str], dimensions: int) -> NDArray[np.float32]:
    """Unit vectors of `texts`, shape (len(texts), dimensions), the same on every machine.

    Word 1-2-grams and character 3-5-grams (inside words) are hashed into `dimensions` signed buckets
    each, log-damped, normalised and summed. Signs are then flipped at random (fixed seed) and an
    orthonormal DCT spreads each bucket over all dimensions: cosines stay as they were, and every
    coordinate gets a useful sign, without which binary quantisation would see mostly zeros.
    """
    if not texts:
        return np.empty((0, dimensions), dtype=np.float32)
    lowered = [text.lower() for text in texts]
    total = _unit_rows(_damped(_word_grams(lowered, dimensions)))
    total = total + _unit_rows(_damped(_character_grams(lowered, dimensions)))
    dense = np.asarray(total.todense(), dtype=np.float32)
    empty = ~dense.any(axis=1)
    if empty.any():
        # Nothing to hash (no text at all), or grams that cancelled out: a zero vector has no cosine.
        dense[empty, 0] = 1.0
    dense *= _signs(dimensions)
    vectors = dct(dense, type=2, norm="ortho", axis=1, overwrite_x=True)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors, dtype=np.float32)


def _word_grams(texts: Sequence[str], dimensions: int) -> csr_matrix:
    grams = []
    for text in texts:
        words = _WORD.findall(text)
        grams.append([*words, *map(" ".join, pairwise(words))])
    return _hashed(grams, _gram_hasher(dimensions))


def _character_grams(texts: Sequence[str], dimensions: int) -> csr_matrix:
    # Character grams do not cross white space, so those of a text are the sum of those of its words:
    # hashing each distinct word of a batch once is six times as fast as hashing every text.
    return _hashed([text.split() for text in texts], _character_hasher(dimensions))


def _hashed(tokens: Sequence[Sequence[str]], hasher: HashingVectorizer) -> csr_matrix:
    """Sum, for each text, of the hashed rows of its tokens; each distinct token is hashed once."""
    vocabulary: dict[str, int] = {}
    columns = [vocabulary.setdefault(token, len(vocabulary)) for row in tokens for token in row]
    ends = np.cumsum([0, *map(len, tokens)])
    if not vocabulary:
        return csr_matrix((len(tokens), hasher.n_features), dtype=np.float32)
    ones = np.ones(len(columns), dtype=np.float32)
    counts = csr_matrix((ones, columns, ends), shape=(len(tokens), len(vocabulary)))
    return counts @ hasher.transform(vocabulary)


@cache
def _gram_hasher(dimensions: int) -> HashingVectorizer:
    return HashingVectorizer(analyzer=_itself, n_features=dimensions, norm=None, alternate_sign=True, dtype=np.float32)


@cache
def _character_hasher(dimensions: int) -> HashingVectorizer:
    return HashingVectorizer(
        analyzer="char_wb", ngram_range=(3, 5), lowercase=False, n_features=dimensions, norm=None,
        alternate_sign=True, dtype=np.float32,
    )  # fmt: skip


def _itself(token: str) -> tuple[str]:
    return (token,)


def _damped(counts: csr_matrix) -> csr_matrix:
    counts.data = np.copysign(np.log1p(np.abs(counts.data)), counts.data)
    return counts


def _unit_rows(rows: csr_matrix) -> csr_matrix:
    norms = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
    return diags_array(1.0 / np.maximum(norms, 1e-12), dtype=np.float32) @ rows


@cache
def _signs(dimensions: int) -> NDArray[np.float32]:
    flips = np.random.Generator(np.random.PCG64(_SIGN_SEED)).integers(0, 2, dimensions)
    return np.asarray(flips * 2 - 1, dtype=np.float32)
