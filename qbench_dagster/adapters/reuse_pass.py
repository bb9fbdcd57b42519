"""One pass over one old store: which of its vectors are taken into a space, and why the others are not.

A batch is judged, stored and read back at once. What surrounds a pass, locks and records, is `reusing.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qbench_dagster.adapters.postgres import Connection
from qbench_dagster.adapters.space import Kind, Space, store_vectors
from qbench_dagster.adapters.sql import statement
from qbench_dagster.adapters.vector_source import Batch, VectorSource
from qbench_dagster.core.pgcopy import HEADER, read_hashes, read_vectors
from qbench_dagster.core.reuse import (
    SAME_TEXT_COSINE,
    VALUE_TOLERANCE,
    Claim,
    Refusal,
    Wanted,
    errors_and_cosines,
    read_claim,
    refused_by_model,
    refused_by_text,
    refused_by_vector,
    unit,
)

SAMPLES = 10


@dataclass(slots=True)
class Tally:
    """What one pass did with the points of one kind: points = taken + kept + refused.

    `kept` were taken by an earlier pass. `unequal` of both are not, by value, what the store holds; `max_error` is
    the largest length of a difference.
    """

    points: int = 0
    taken: int = 0
    kept: int = 0
    refused: Counter[Refusal] = field(default_factory=Counter)
    unequal: int = 0
    max_error: float = 0.0

    def counts(self) -> dict[str, Any]:
        """The counts a person wants to see, and the plan compares."""
        return {
            "points": self.points,
            "taken": self.taken,
            "kept": self.kept,
            "refused": {reason.value: self.refused[reason] for reason in Refusal if self.refused[reason]},
        }


@dataclass(slots=True)
class Reused:
    """What one pass over one store did. `samples` are up to ten refused points a reason, as (kind, point, case)."""

    provenance: str
    description: str
    kinds: dict[Kind, Tally] = field(default_factory=dict)
    texts: dict[Kind, set[bytes]] = field(default_factory=dict)
    """Hashes of the texts whose vector is this store's, taken or kept: 100 bytes each."""
    samples: dict[Refusal, list[tuple[Kind, str, int | None]]] = field(default_factory=dict)
    unequal_samples: list[tuple[Kind, str, float]] = field(default_factory=list)
    """Up to ten points a kind whose stored vector differs: (kind, point, length of the difference)."""

    def counts(self) -> dict[str, Any]:
        """By kind, what was done."""
        return {kind: tally.counts() for kind, tally in self.kinds.items()}


Record = Callable[[Sequence[tuple[Any, ...]]], None]


class Pass:
    """One pass over one store. Vectors go to the first of `rooms`; what any of them holds is stored already."""

    def __init__(
        self, connection: Connection, rooms: Sequence[Space], source: VectorSource, wanted: Wanted, record: Record
    ) -> None:
        self._connection = connection
        self._rooms = rooms
        self._source = source
        self._wanted = wanted
        self._record = record
        self._done = Reused(source.provenance, source.describe())
        self._settled: set[bytes] = set()
        self._doubtful: dict[bytes, tuple[str, float]] = {}
        """Texts with a vector from this store that none of its points equals, so far."""

    def run(self, progress: Callable[[int], None]) -> Reused:
        """Read every point of the store; `progress` is told of each batch. Raises SourceError."""
        for kind in self._source.kinds():
            tally = self._done.kinds[kind] = Tally()
            self._settled = self._done.texts[kind] = set()
            self._doubtful = {}
            for batch in self._source.read(kind):
                self._batch(kind, batch, tally)
                progress(len(batch.ids))
            self._forgive_shared()
            tally.unequal = len(self._doubtful)
            tally.max_error = max([tally.max_error, *(error for _, error in self._doubtful.values())])
            self._done.unequal_samples += [(kind, *found) for found in list(self._doubtful.values())[:SAMPLES]]
        return self._done

    def _batch(self, kind: Kind, batch: Batch, tally: Tally) -> None:
        claims = [read_claim(kind, payload) for payload in batch.payloads]
        refusals = self._judged(kind, claims, batch)
        accepted = [index for index, refusal in enumerate(refusals) if refusal is None]
        if accepted:
            vectors = unit(np.stack([vector for index in accepted if (vector := batch.vectors[index]) is not None]))
            hashes = [claim.text_hash for index in accepted if (claim := claims[index]).text_hash is not None]
            self._settle(kind, tally, [batch.ids[index] for index in accepted], accepted, hashes, vectors, refusals)
        tally.points += len(batch.ids)
        refused = []
        for point_id, claim, refusal in zip(batch.ids, claims, refusals, strict=True):
            if refusal is None:
                continue
            shown = point_id.replace("\0", "\\0")
            tally.refused[refusal] += 1
            refused.append((kind, shown, claim.case_id, claim.text_hash, refusal.value))
            samples = self._done.samples.setdefault(refusal, [])
            if len(samples) < SAMPLES:
                samples.append((kind, shown, claim.case_id))
        if refused:
            self._record(refused)

    def _judged(self, kind: Kind, claims: Sequence[Claim], batch: Batch) -> list[Refusal | None]:
        asked = {"case_ids": [claim.case_id for claim in claims], "hashes": [claim.text_hash for claim in claims]}
        answers = self._connection.execute(statement("reuse.sql", f"judge_{kind}s"), asked).fetchall()
        return [
            refused_by_text(claim, case_known=known, has_text=has_text)
            or refused_by_model(claim, self._wanted)
            or refused_by_vector(vector, batch.quantized, self._wanted)
            for claim, vector, (known, has_text) in zip(claims, batch.vectors, answers, strict=True)
        ]

    def _settle(
        self,
        kind: Kind,
        tally: Tally,
        points: Sequence[str],
        places: Sequence[int],
        hashes: Sequence[bytes],
        vectors: NDArray[np.float32],
        refusals: list[Refusal | None],
    ) -> None:
        """Store the vectors of texts that have none, read back what is stored of all, and compare.

        `points`, `hashes` and `vectors`, (n, dimensions) of length 1, are those that may be taken; what is not gets
        its reason in `refusals`, at its one of `places`.
        """
        origins = self._origins(kind, hashes)
        fresh: dict[bytes, int] = {}
        for row, text_hash in enumerate(hashes):
            if text_hash not in origins:
                fresh.setdefault(text_hash, row)
        if fresh:
            with self._connection.transaction():
                store_vectors(
                    self._connection, self._rooms[0], kind, list(fresh), vectors[list(fresh.values())],
                    self._source.provenance,
                )  # fmt: skip
        stored = self._stored(kind, hashes)
        errors, cosines = errors_and_cosines(np.stack([stored[text_hash] for text_hash in hashes]), vectors)
        for row, (point_id, place, text_hash) in enumerate(zip(points, places, hashes, strict=True)):
            error = float(errors[row])
            ours = origins.get(text_hash, self._source.provenance) == self._source.provenance
            unsettled = ours and text_hash not in self._settled
            taken, equal = fresh.get(text_hash) == row, error <= VALUE_TOLERANCE
            if unsettled and not equal:
                self._doubtful.setdefault(text_hash, (point_id, error))
            if taken or (unsettled and equal):
                tally.taken += taken
                tally.kept += not taken
                tally.max_error = max(tally.max_error, error)
                self._settled.add(text_hash)
                if equal:
                    self._doubtful.pop(text_hash, None)
            elif cosines[row] < SAME_TEXT_COSINE:
                refusals[place] = Refusal.CONFLICTING_DUPLICATE
            else:
                refusals[place] = Refusal.DUPLICATE if ours else Refusal.ALREADY_STORED

    def _forgive_shared(self) -> None:
        """A text that is a case's and a step's may have one's vector for both, and the store two of them."""
        if self._doubtful:
            query = statement("reuse.sql", "shared", space=self._rooms[-1].name)
            for (text_hash,) in self._connection.execute(query, {"hashes": list(self._doubtful)}, binary=True):
                del self._doubtful[text_hash]

    def _origins(self, kind: Kind, hashes: Sequence[bytes]) -> dict[bytes, str]:
        """Provenance of those of the texts that have a vector."""
        found: dict[bytes, str] = {}
        for room in self._rooms:
            query = statement("reuse.sql", "origins", space=room.name, table=f"{kind}_embeddings")
            found |= dict(self._connection.execute(query, {"hashes": list(hashes)}, binary=True).fetchall())
        return found

    def _stored(self, kind: Kind, hashes: Sequence[bytes]) -> dict[bytes, NDArray[np.float32]]:
        """The vectors the texts have, as PostgreSQL gives them."""
        found: dict[bytes, NDArray[np.float32]] = {}
        for room in self._rooms:
            query = statement("reuse.sql", "copy_stored", space=room.name, table=f"{kind}_embeddings")
            with self._connection.cursor() as cursor, cursor.copy(query, {"hashes": list(hashes)}) as copy:
                data = b"".join(copy)[len(HEADER) : -2]  # -2: COPY's trailer
            read = (data, room.vector_type, room.dimensions)
            found |= dict(zip(read_hashes(*read), read_vectors(*read), strict=True))
        return found
