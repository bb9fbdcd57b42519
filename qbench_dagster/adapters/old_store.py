"""Reads an old store beside ours, point by point: what of it is published here, and whether the vectors are the same.

Searching both is `old_search.py`, what a point says of itself `core/reuse.py`. Nothing is taken over here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qbench_dagster.adapters.postgres import Connection, fetch_value
from qbench_dagster.adapters.space import Kind, Space
from qbench_dagster.adapters.sql import statement
from qbench_dagster.adapters.vector_source import Batch, VectorSource
from qbench_dagster.core.parity import MAX_OFFENDERS
from qbench_dagster.core.pgcopy import HEADER, TRAILER, read_hashes, read_vectors
from qbench_dagster.core.queries import Filter
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

MAX_AMONG = 10_000
"""Points a filtered search of the old store is told to choose from: the filter is sent as their ids."""
Key = int | bytes
"""What a result is known by in both stores: a case's id, a step's text hash."""


@dataclass(slots=True)
class OldStore:
    """What one old store holds of one kind, and what of it is here."""

    source: VectorSource
    kind: Kind
    points: int = 0
    matched: int = 0
    """Points whose case is published with the text they have: those both sides can find."""
    reasons: Counter[Refusal] = field(default_factory=Counter)
    """Why the other points are not compared."""
    held: set[Key] = field(default_factory=set)
    """What both sides can find, and the vectors of which are of one model."""
    by_filter: dict[Filter, tuple[list[str], set[Key]]] = field(default_factory=dict)
    """For each filter the points, and what they hold, that both sides can find under it."""
    there: set[Key] = field(default_factory=set)
    """Every case (or step text) the store names."""
    only_there: set[Key] = field(default_factory=set)
    cases: dict[str, set[int]] = field(default_factory=dict)
    """Cases the store names by what became of them: `published`, `rejected`, `not published`, `gone`."""
    only_here: int = 0
    nearest: dict[bytes, tuple[float, float, str, int | None]] = field(default_factory=dict)
    """By text: smallest difference of a point's vector with ours, largest cosine, that point, and its case."""
    taken: set[bytes] = field(default_factory=set)
    """Texts whose vector here is recorded as this store's."""
    wrong: int = 0
    """Texts whose vector here is none of the store's,"""
    named: list[dict[str, Any]] = field(default_factory=list)
    """and the first of them."""

    @property
    def equal(self) -> int:
        """Texts whose vector here is the store's by value."""
        return sum(error <= VALUE_TOLERANCE for error, *_ in self.nearest.values())

    def as_json(self) -> dict[str, Any]:
        """Its line of the report."""
        cosines = [cosine for _, cosine, *_ in self.nearest.values()]
        return {
            "store": self.source.provenance,
            "kind": self.kind,
            "points": self.points,
            "matched": self.matched,
            "only_there": len(self.only_there),
            "only_here": self.only_here,
            "equal": self.equal,
            "different": self.wrong,
            "min_cosine": round(min(cosines), 6) if cosines else None,
            "median_cosine": round(float(np.median(cosines)), 6) if cosines else None,
            "reasons": {reason.value: self.reasons[reason] for reason in Refusal if self.reasons[reason]},
        }


def read_old(
    connection: Connection, space: Space, kind: Kind, source: VectorSource, wanted: Wanted, filters: Sequence[Filter]
) -> OldStore:
    """One pass over the points of one kind. Vectors are let go of batch by batch. Raises SourceError."""
    found = OldStore(source, kind, by_filter={each: ([], set()) for each in filters})
    for batch in source.read(kind):
        _read(connection, space, found, batch, wanted)
    published = fetch_value(connection, statement("compare.sql", f"count_{kind}s"))
    found.only_here = published - len(found.there - found.only_there)
    found.by_filter = {each: kept for each, kept in found.by_filter.items() if 0 < len(kept[0]) <= MAX_AMONG}
    _judge_vectors(connection, space, found)
    return found


def _read(connection: Connection, space: Space, found: OldStore, batch: Batch, wanted: Wanted) -> None:
    kind = found.kind
    claims = [read_claim(kind, payload) for payload in batch.payloads]
    asked = {"kind": kind, "case_ids": [claim.case_id for claim in claims],
             "hashes": [claim.text_hash for claim in claims]}  # fmt: skip
    answers = connection.execute(statement("compare.sql", "judge"), asked).fetchall()
    found.points += len(claims)
    usable: list[int] = []
    for index, (claim, (fate, has_text)) in enumerate(zip(claims, answers, strict=True)):
        key = _key(kind, claim)
        if claim.case_id is not None:
            found.cases.setdefault(fate, set()).add(claim.case_id)
        # A case without a text of its own in the payload is still that case.
        is_same = has_text or (kind == "doc" and claim.text_hash is None and fate == "published")
        if key is not None:
            found.there.add(key)
            if kind == "step":
                (found.only_there.discard if has_text else found.only_there.add)(key)
            elif fate != "published":
                found.only_there.add(key)
        reason = refused_by_text(claim, case_known=fate == "published", has_text=has_text)
        found.matched += is_same
        if is_same:
            reason = refused_by_model(claim, wanted) or refused_by_vector(batch.vectors[index], False, wanted)
        if reason is not None:
            found.reasons[reason] += 1
        elif key is not None:
            found.held.add(key)
            usable.append(index)
    _keep_filtered(connection, found, batch, claims, usable)
    _compare_vectors(connection, space, found, batch, claims, [index for index in usable if claims[index].text_hash])


def _key(kind: Kind, claim: Claim) -> Key | None:
    return claim.case_id if kind == "doc" else claim.text_hash


def _keep_filtered(
    connection: Connection, found: OldStore, batch: Batch, claims: Sequence[Claim], usable: Sequence[int]
) -> None:
    """Which of the points are of cases that match each filter, as the cases are here."""
    if not usable:
        return
    ids = [claims[index].case_id for index in usable]
    for each, (points, keys) in found.by_filter.items():
        if len(points) > MAX_AMONG:
            continue
        query = statement("compare.sql", "matching_cases")
        matching = {case for (case,) in connection.execute(query, {"case_ids": ids, **each.parameters()})}
        for index in usable:
            if claims[index].case_id in matching and (key := _key(found.kind, claims[index])) is not None:
                points.append(batch.ids[index])
                keys.add(key)


def _compare_vectors(
    connection: Connection, space: Space, found: OldStore, batch: Batch, claims: Sequence[Claim], places: Sequence[int]
) -> None:
    """Note of each text how near a vector of the store comes to ours."""
    hashes = [claim_hash for index in places if (claim_hash := claims[index].text_hash) is not None]
    ours, origins = _stored(connection, space, found.kind, hashes)
    found.taken |= {key for key, origin in origins.items() if origin == found.source.provenance}
    rows = [(index, key) for index, key in zip(places, hashes, strict=True) if key in ours]
    if not rows:
        return
    theirs = unit(np.stack([vector for index, _ in rows if (vector := batch.vectors[index]) is not None]))
    errors, cosines = errors_and_cosines(np.stack([ours[key] for _, key in rows]), theirs)
    for (index, key), error, cosine in zip(rows, errors.tolist(), cosines.tolist(), strict=True):
        if batch.quantized and key not in found.taken:
            continue  # a lossy copy says little of a vector that is not one
        known = found.nearest.get(key)
        if known is None or error < known[0]:
            found.nearest[key] = (error, cosine, batch.ids[index], claims[index].case_id)


def _stored(
    connection: Connection, space: Space, kind: Kind, hashes: Sequence[bytes]
) -> tuple[dict[bytes, Any], dict[bytes, str]]:
    """Our vectors of some texts, and where each came from."""
    if not hashes:
        return {}, {}
    table, values = f"{kind}_embeddings", {"hashes": list(hashes)}
    query = statement("reuse.sql", "copy_stored", space=space.name, table=table)
    with connection.cursor() as cursor, cursor.copy(query, values) as copy:
        data = b"".join(bytes(chunk) for chunk in copy)[len(HEADER) : -len(TRAILER)]
    shape = (space.vector_type, space.dimensions)
    vectors = dict(zip(read_hashes(data, *shape), read_vectors(data, *shape), strict=True))
    origins = connection.execute(statement("reuse.sql", "origins", space=space.name, table=table), values, binary=True)
    return vectors, {bytes(key): origin for key, origin in origins}


def _judge_vectors(connection: Connection, space: Space, found: OldStore) -> None:
    """List the texts whose vector here is none of the store's: taken from it and not equal, or of another text."""
    wrong = {
        key: (error, cosine, point, case)
        for key, (error, cosine, point, case) in found.nearest.items()
        if (error > VALUE_TOLERANCE if key in found.taken else cosine < SAME_TEXT_COSINE)
    }
    if wrong:
        # A text that is a case's and a step's has one vector here, and may have two there.
        shared = connection.execute(
            statement("reuse.sql", "shared", space=space.name), {"hashes": list(wrong)}, binary=True
        )
        for (key,) in shared:
            if wrong[bytes(key)][1] >= SAME_TEXT_COSINE:
                del wrong[bytes(key)]
    found.wrong = len(wrong)
    found.named = [
        {
            "kind": found.kind,
            "case_id": case,
            "text_hash": key.hex(),
            "wrong": f"not the vector of point {point} of {found.source.provenance}: cosine {cosine:.4f}, "
            + (f"difference {error:.2g} where {VALUE_TOLERANCE:g} is rounding" if key in found.taken else
               f"below {SAME_TEXT_COSINE:g}"),
        }
        for key, (error, cosine, point, case) in sorted(wrong.items(), key=lambda item: item[1][1])[:MAX_OFFENDERS]
    ]  # fmt: skip
