"""Which stored vectors are unlikely to be what a model made of a text, found in one pass over a table. Pure numpy.

What to make of them, once some texts were embedded again, is `verdict.py`; reading the table is no matter of core.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from qbench_dagster.core.recall import NORM_TOLERANCE

MEASURED = ("zero", "not_finite", "wrong_norm", "constant", "random")
"""What a vector by itself, or beside the others, is seen to be."""

REFERENCES = 4000
"""Stored vectors that every other is compared with, to see whether it is like anything. On 64,505 real lexical
vectors (3,072 dimensions) with references of 1,000 / 2,000 / 4,000, 106 / 38 / 7 true ones looked random."""
FEWEST_REFERENCES = 500
"""With fewer there are too many texts that no other is like."""
FIRST_REFERENCES = 512
"""Compared with first: of real vectors 98 % are like one of these already, and need not meet the others."""
MISSED = 1e-3
"""Share of random vectors that come near a reference by chance, and so go unseen."""
TOO_COARSE = 0.5
"""A chance level of cosines above this (below about 100 dimensions) tells random vectors from true ones no more."""
THIN = 1.5
"""The median vector has to be this much nearer to another than chance would be, for one that is not to stand out."""

FEW_VALUES = 16
"""Distinct coordinates up to which a vector is constant: true ones have hundreds, even in half precision."""
PROBED = 64
"""Coordinates looked at first: sorting 3,072 of every vector would take longer than reading them."""
KEPT = 10_000
"""Suspects of a kind whose hashes are kept (32 bytes each), so that a table of nonsense does not fill the memory."""


def chance_level(references: int, dimensions: int) -> float:
    """The cosine that a random vector has with the nearest of `references`, but for MISSED of them: it has less.

    Cosines of random vectors are normal around 0 with variance 1 / dimensions; a dimension goes for the mean.
    """
    if references < 1 or dimensions < 2:
        return float("inf")
    return float(NormalDist().inv_cdf(1 - MISSED / references) / np.sqrt(dimensions - 1))


@dataclass(slots=True)
class Kept:
    """Vectors of one suspicion: how many there are, and the hashes of the first KEPT, as they came."""

    count: int = 0
    hashes: list[bytes] = field(default_factory=list)
    measures: list[float] = field(default_factory=list)
    """Of each: its length for those of the wrong norm, its cosine with the nearest reference for random ones."""


class Suspects:
    """Examines vectors that arrive in batches. Memory: the references, and 40 bytes a row."""

    def __init__(self, reference_hashes: Sequence[bytes], references: NDArray[np.float32]) -> None:
        """`references` (n, dimensions) are vectors of the table itself, chosen without regard to what they are.

        That some of them are random does no harm: nothing is near those, so they vouch for nobody.
        """
        unusable = unsound(references)
        usable = ~np.logical_or.reduce([*unusable.values(), is_constant(references)])
        self._references = _centred(references[usable])
        kept = [text_hash for text_hash, good in zip(reference_hashes, usable, strict=True) if good]
        self._place = {text_hash: index for index, text_hash in enumerate(kept)}
        self._digests = bytearray()
        self._hashes = bytearray()
        self.rows = 0
        self.by_kind: dict[str, Kept] = {kind: Kept() for kind in MEASURED}
        self.references = len(self._references)
        self.chance = chance_level(self.references, references.shape[1])
        self.typical = self._typical()

    def _typical(self) -> float | None:
        """How near the median reference is to the nearest other one."""
        if self.references < 2:
            return None
        nearest = np.empty(self.references, dtype=np.float32)
        for start in range(0, self.references, 1024):
            block = self._references[start : start + 1024] @ self._references.T
            rows = np.arange(len(block))
            block[rows, start + rows] = -1
            nearest[start : start + len(block)] = block.max(axis=1)
        return float(np.median(nearest))

    @property
    def cannot_tell(self) -> str | None:
        """Why random vectors could not be told from true ones here; None where they can."""
        if self.references < FEWEST_REFERENCES:
            return f"{self.references} usable vectors are too few to tell: {FEWEST_REFERENCES} are needed"
        if self.chance >= TOO_COARSE:
            return f"{self._references.shape[1]} dimensions are too few to tell"
        typical = self.typical or 0.0
        if self.chance < typical < THIN * self.chance:
            return f"the vectors lie too far apart to tell: the median one is at {typical:.3f} to the nearest other"
        return None

    def add(self, hashes: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
        """Take a batch of the table in. `vectors` is (len(hashes), dimensions) as stored."""
        self.rows += len(hashes)
        found = unsound(vectors)
        usable = ~np.logical_or.reduce(list(found.values()))
        found["constant"] = usable & is_constant(vectors)
        usable &= ~found["constant"]
        for kind, bad in found.items():
            rows = np.flatnonzero(bad)
            self._keep(kind, hashes, rows, np.linalg.norm(vectors[rows], axis=1) if kind == "wrong_norm" else None)
        sound = np.flatnonzero(usable)
        for index in sound.tolist():
            self._digests += hashlib.blake2b(vectors[index].tobytes(), digest_size=8).digest()
            self._hashes += hashes[index]
        if self.cannot_tell is None and len(sound):
            nearest = self._nearest([hashes[index] for index in sound.tolist()], vectors[sound])
            far = nearest < self.chance
            self._keep("random", hashes, sound[far], nearest[far])

    def _keep(
        self, kind: str, hashes: Sequence[bytes], rows: NDArray[np.intp], measures: NDArray[np.float32] | None = None
    ) -> None:
        kept = self.by_kind[kind]
        kept.count += len(rows)
        free = KEPT - len(kept.hashes)
        kept.hashes += [bytes(hashes[row]) for row in rows[:free]]
        if measures is not None:
            kept.measures += [round(float(value), 4) for value in measures[:free]]

    def _nearest(self, hashes: Sequence[bytes], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cosine of each with the reference nearest to it, itself left out; with some reference that will do."""
        centred = _centred(vectors)
        places = np.asarray([self._place.get(text_hash, -1) for text_hash in hashes])
        nearest = _best(centred, places, self._references[:FIRST_REFERENCES], 0)
        lonely = np.flatnonzero(nearest < self.chance)
        others = self._references[FIRST_REFERENCES:]
        if len(lonely) and len(others):
            best = _best(centred[lonely], places[lonely], others, FIRST_REFERENCES)
            nearest[lonely] = np.maximum(nearest[lonely], best)
        return nearest

    def duplicates(self) -> list[list[bytes]]:
        """Hashes of texts that share one vector, a list for each such vector, the largest first.

        By an 8-byte digest of the vector: two of a million vectors share one by accident once in 37 million tables.
        """
        digests = np.frombuffer(bytes(self._digests), dtype=np.uint64)
        values, counts = np.unique(digests, return_counts=True)
        groups: dict[int, list[bytes]] = {}
        for row in np.flatnonzero(np.isin(digests, values[counts > 1])):
            groups.setdefault(int(digests[row]), []).append(bytes(self._hashes[32 * row : 32 * row + 32]))
        return sorted(map(sorted, groups.values()), key=lambda group: (-len(group), group[0]))

    def suspected(self) -> list[bytes]:
        """Hashes of what may yet be innocent, each once: constant, random, shared; of each kind the first KEPT."""
        shared = [text_hash for group in self.duplicates() for text_hash in group][:KEPT]
        return list(dict.fromkeys([*self.by_kind["constant"].hashes, *self.by_kind["random"].hashes, *shared]))


def _best(
    vectors: NDArray[np.float32], places: NDArray[np.intp], references: NDArray[np.float32], first: int
) -> NDArray[np.float32]:
    """Largest cosine of each vector with `references`, those from place `first` on, itself left out."""
    cosines = vectors @ references.T
    own = np.flatnonzero((places >= first) & (places < first + len(references)))
    cosines[own, places[own] - first] = -1
    return np.asarray(cosines.max(axis=1), dtype=np.float32)


def unsound(vectors: NDArray[np.float32]) -> dict[str, NDArray[np.bool_]]:
    """By kind of fault, whether each vector is zero, not finite, or not of length 1."""
    with np.errstate(invalid="ignore", over="ignore"):
        norms = np.linalg.norm(vectors, axis=1)
    finite = np.isfinite(norms)
    lengths = np.where(finite, norms, 0)
    return {
        "zero": finite & (norms == 0),
        "not_finite": ~finite,
        "wrong_norm": (lengths > 0) & (np.abs(lengths - 1) > NORM_TOLERANCE),
    }


def is_constant(vectors: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether each vector is made of a handful of distinct values, or of one."""
    few = max(1, min(FEW_VALUES, vectors.shape[1] // 4))
    constant = _distinct(vectors[:, :PROBED]) <= few
    rows = np.flatnonzero(constant)
    constant[rows] = _distinct(vectors[rows]) <= few
    return np.asarray(constant, dtype=np.bool_)


def _distinct(vectors: NDArray[np.float32]) -> NDArray[np.intp]:
    ordered = np.sort(vectors, axis=1)
    return np.asarray(1 + (ordered[:, 1:] != ordered[:, :-1]).sum(axis=1), dtype=np.intp)


def _centred(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Unit vectors without the mean of their coordinates: all-positive random ones would be near one another."""
    moved = vectors - vectors.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(moved, axis=1, keepdims=True)
    return np.asarray(moved / np.where(norms > 0, norms, 1), dtype=np.float32)


def cosines(stored: NDArray[np.float32], fresh: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine of each pair of rows; 0 where one is zero or not finite."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        products = (stored.astype(np.float64) * fresh).sum(axis=1)
        found = products / (np.linalg.norm(stored.astype(np.float64), axis=1) * np.linalg.norm(fresh, axis=1))
    return np.asarray(np.nan_to_num(found, nan=0.0, posinf=0.0, neginf=0.0), dtype=np.float32)
