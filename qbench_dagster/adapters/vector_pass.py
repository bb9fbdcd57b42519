"""One pass over the stored vectors of a table, for whoever compares them: exact search, and fresh vectors of the texts.

Recall of the index itself is measured where it is built. Each taker is told of every batch of published texts.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qbench_dagster.adapters.asking import Asking
from qbench_dagster.adapters.embedders import EmbeddingError
from qbench_dagster.adapters.ledger import check_account
from qbench_dagster.adapters.postgres import Connection, Database
from qbench_dagster.adapters.queries import Question
from qbench_dagster.adapters.space import Kind, Space
from qbench_dagster.adapters.sql import statement
from qbench_dagster.adapters.vectors import scan_vectors, table_of
from qbench_dagster.core.nearest import Nearest
from qbench_dagster.core.parity import MAX_OFFENDERS
from qbench_dagster.core.queries import Filter
from qbench_dagster.core.suspicion import cosines
from qbench_dagster.core.texts import text_hash, text_of

K = 10
"""What searches are held against: as many of each answer are compared, or fewer where fewer are asked for."""
TEXTS = 512
"""Texts embedded at once: 6 MB of vectors at 3,072 dimensions."""
EXCERPT = 80


class Taker(Protocol):
    """Takes batches of stored vectors in."""

    def add(self, hashes: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
        """A batch: text hashes, and as many vectors."""


def pass_over(database: Database, space: Space, kind: Kind, takers: Sequence[Taker]) -> None:
    """Read every stored vector of `kind` once. Memory: one batch."""
    with database.connection(f"compare {kind}s", long=True) as connection:
        for hashes, vectors in scan_vectors(connection, space, table_of(kind)):
            for taker in takers:
                taker.add(hashes, vectors)


class ExactAnswers:
    """The exact answers to questions, by what each may find: a filter, or what an old store holds too."""

    def __init__(self, connection: Connection, kind: Kind) -> None:
        self._connection = connection
        self._kind = kind
        self._groups: list[tuple[Filter | None, set[Any] | None, Nearest]] = []

    def ask(self, questions: Sequence[Question], only: Filter | None, held: set[Any] | None = None) -> Nearest:
        """Have some questions answered over what `only` lets through, or over `held`; the answer fills in the pass."""
        vectors = np.stack([question.vector for question in questions])
        nearest = Nearest(vectors, max(K, *(question.k for question in questions)))
        self._groups.append((only, held, nearest))
        return nearest

    def add(self, hashes: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
        """Take a batch in: of its texts those that are published."""
        if not self._groups:
            return
        place = {key: index for index, key in enumerate(hashes)}
        values = {"hashes": list(hashes)}
        query = statement("compare.sql", f"holders_{self._kind}s")
        holders = [(bytes(key), case) for key, case in self._connection.execute(query, values, binary=True)]
        matching: dict[Filter, set[int]] = {}
        for only, held, nearest in self._groups:
            rows = holders
            if only is not None:
                if only not in matching:
                    matching[only] = self._matching(only, [case for _, case in holders])
                rows = [(key, case) for key, case in holders if case in matching[only]]
            # A case is found once, and so is a step's text, however many cases hold it.
            found: dict[Hashable, int] = {case if self._kind == "doc" else key: place[key] for key, case in rows}
            if held is not None:
                found = {key: index for key, index in found.items() if key in held}
            nearest.add(list(found), vectors, list(found.values()))

    def _matching(self, only: Filter, cases: Sequence[int]) -> set[int]:
        values = {"case_ids": list(set(cases)), **only.parameters()}
        return {case for (case,) in self._connection.execute(statement("compare.sql", "matching_cases"), values)}


@dataclass(slots=True)
class FreshVectors:
    """Embeds published texts again, all or a sample, and compares with what is stored."""

    asking: Asking
    kind: Kind
    sample: set[bytes] | None
    """None: every text."""
    tolerated: float
    """The smallest cosine of two vectors of one text."""
    compared: int = 0
    smallest: float = 1.0
    wrong: int = 0
    """Texts whose stored vector is another's, or older,"""
    named: list[dict[str, Any]] = field(default_factory=list)
    """and the first of them."""
    failed: str | None = None
    """Why not all was embedded."""

    def add(self, hashes: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
        """Compare a batch. Where the embedder fails, `failed` tells why: what was compared before stands."""
        place = {key: index for index, key in enumerate(hashes) if self.sample is None or key in self.sample}
        if not place or self.failed is not None:
            return
        try:
            if self.asking.entered is not None:
                check_account(self.asking.entered, self.asking.space.model)
            self._add(place, vectors)
        except EmbeddingError as error:
            self.failed = str(error)

    def _add(self, place: Mapping[bytes, int], vectors: NDArray[np.float32]) -> None:
        query = statement("compare.sql", f"texts_{self.kind}s")
        texts = []
        for key, case_id, first, second in self.asking.connection.execute(query, {"hashes": list(place)}, binary=True):
            text = text_of(self.kind, first, second)
            if text_hash(text) == bytes(key):  # a published row changed by hand is another finding's
                texts.append((bytes(key), case_id, text))
        for start in range(0, len(texts), TEXTS):
            part = texts[start : start + TEXTS]
            stored = vectors[[place[key] for key, _, _ in part]]
            self._compare(part, cosines(stored, self.asking.vectors([text for _, _, text in part])).tolist())

    def _compare(self, texts: Sequence[tuple[bytes, int, str]], found: Sequence[float]) -> None:
        for (key, case_id, text), cosine in zip(texts, found, strict=True):
            self.compared += 1
            self.smallest = min(self.smallest, cosine)
            if not cosine >= self.tolerated:  # a NaN is wrong too
                self.wrong += 1
                if self.wrong <= MAX_OFFENDERS:
                    told = f"cosine {cosine:.4f} with a fresh vector of {' '.join(text.split())[:EXCERPT]!r}"
                    offender = {"kind": self.kind, "case_id": case_id, "text_hash": key.hex(), "wrong": told}
                    self.named.append(offender)
