"""Examines the stored vectors of a space: the table is read once, then suspects are embedded again where that is free.

Which vectors are suspicious is `core/suspicion.py`, what that means `core/verdict.py`; repairing them is not done here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np

from qbench_dagster.adapters.asking import Asking
from qbench_dagster.adapters.embedders import Embedder, EmbeddingError
from qbench_dagster.adapters.ledger import Account, check_account
from qbench_dagster.adapters.postgres import Connection, Database
from qbench_dagster.adapters.space import Kind, Space, writing
from qbench_dagster.adapters.sql import statement
from qbench_dagster.adapters.vectors import scan_vectors, table_of
from qbench_dagster.core.pgcopy import HEADER, TRAILER, read_hashes, read_vectors
from qbench_dagster.core.suspicion import REFERENCES, Suspects, cosines
from qbench_dagster.core.texts import text_hash, text_of
from qbench_dagster.core.verdict import Evidence, Examined, Fresh, Suspect, judge

CONFIRMED = 5000
"""Suspects embedded again where that is free: a minute of a local model, two seconds of the lexical one."""
BATCH = 256
"""Texts embedded, and stored vectors fetched, at once."""
EXCERPT = 80


def examine(
    database: Database,
    space: Space,
    kind: Kind,
    embedder: Embedder | None,
    *,
    fresh_sample: int,
    progress: Callable[[int], None],
    account: Account | None = None,
) -> Examined:
    """Examine every vector of one table; `progress` is told how many rows were read.

    Without an `embedder` nothing is embedded. A free one embeds suspects again and so clears or convicts them; a
    paid one only does within a `fresh_sample`, half of which they may take. The rest of the sample is drawn from
    all stored texts that a case has, the same ones for the same rows. A paid embedder's requests are entered for
    `account` and keep its budget; ValueError without one. Where the service fails, `fresh_failed` tells why: what
    was found stands.
    """
    if embedder is not None and embedder.paid and fresh_sample and account is None:
        raise ValueError("a paid sample needs the account it is entered for")
    with database.connection(f"examine {kind}s", long=True) as connection:
        found = _scan(connection, space, kind, progress)
        suspected = found.suspected()
        paid = embedder is None or embedder.paid
        fresh_sample = 0 if embedder is None else fresh_sample
        again = suspected[: fresh_sample // 2 if paid else CONFIRMED]
        limit = fresh_sample - len(again) if paid else fresh_sample
        query = statement("examine.sql", f"fresh_{kind}s", space=space.name)
        drawn = [bytes(row[0]) for row in connection.execute(query, {"limit": limit}, binary=True)] if limit else []
        told = _Told()
        if embedder is not None and (wanted := list(dict.fromkeys([*again, *drawn]))):
            asking = Asking(connection, space, kind, embedder, account)
            # Whoever enters requests into the ledger holds the space's lock, or another takes them for a dead run's.
            with writing(database, space) if asking.entered else nullcontext():
                _embed_again(asking, kind, wanted, told)
        return _examined(connection, space, kind, found, told, drawn if fresh_sample else None)


@dataclass(slots=True)
class _Told:
    """What embedding again told: cosines of stored vectors with fresh ones, and what the cases say."""

    cosines: dict[bytes, float] = field(default_factory=dict)
    texts: dict[bytes, tuple[int, str]] = field(default_factory=dict)
    tokens: int = 0
    failed: str | None = None


def _scan(connection: Connection, space: Space, kind: Kind, progress: Callable[[int], None]) -> Suspects:
    query = statement("examine.sql", "copy_references", space=space.name, table=table_of(kind), limit=REFERENCES)
    with connection.cursor() as cursor, cursor.copy(query) as copy:
        data = b"".join(bytes(chunk) for chunk in copy)[len(HEADER) : -len(TRAILER)]
    shape = (space.vector_type, space.dimensions)
    found = Suspects(read_hashes(data, *shape), read_vectors(data, *shape))
    for hashes, vectors in scan_vectors(connection, space, table_of(kind)):
        found.add(hashes, vectors)
        progress(len(hashes))
    return found


def _embed_again(asking: Asking, kind: Kind, hashes: Sequence[bytes], told: _Told) -> None:
    """Embed the texts of `hashes`, those that a case has, and compare. What was compared before a failure counts."""
    query = statement("index.sql", "sample_vectors", space=asking.space.name, table=table_of(kind))
    try:
        if asking.entered is not None:
            check_account(asking.entered, asking.space.model)
        for start in range(0, len(hashes), BATCH):
            batch = hashes[start : start + BATCH]
            _read_texts(asking.connection, kind, batch, told.texts)
            values = {"hashes": [key for key in batch if key in told.texts]}
            stored = {bytes(key): vector for key, vector in asking.connection.execute(query, values, binary=True)}
            if stored:
                fresh = asking.vectors([told.texts[key][1] for key in stored])
                found = cosines(np.asarray(list(stored.values()), dtype=np.float32), fresh)
                told.cosines.update(zip(stored, found.tolist(), strict=True))
    except EmbeddingError as error:
        told.failed = str(error)
    finally:
        told.tokens = asking.tokens


def _read_texts(
    connection: Connection, kind: Kind, hashes: Sequence[bytes], texts: dict[bytes, tuple[int, str]]
) -> None:
    """Add case id and text of those of `hashes` that a case has now."""
    if missing := [key for key in hashes if key not in texts]:
        query = statement("examine.sql", f"texts_{kind}s")
        for key, case_id, first, second in connection.execute(query, {"hashes": missing}, binary=True):
            text = text_of(kind, first, second)
            if text_hash(text) == bytes(key):  # another one was staged by a version with another text form
                texts[bytes(key)] = (case_id, text)


def _examined(
    connection: Connection, space: Space, kind: Kind, found: Suspects, told: _Told, drawn: Sequence[bytes] | None
) -> Examined:
    verdict = judge(found, told.cosines, told.texts)
    shown = [key for evidence in verdict.listed.values() for one in evidence for key in one.hashes]
    _read_texts(connection, kind, shown, told.texts)
    query = statement("examine.sql", "provenances", space=space.name, table=table_of(kind))
    values = {"hashes": [one.hashes[0] for evidence in verdict.listed.values() for one in evidence]}
    origins = {bytes(key): origin for key, origin in connection.execute(query, values, binary=True)}
    return Examined(
        kind=kind,
        rows=found.rows,
        counts=verdict.counts,
        suspects={
            name: [_suspect(one, origins.get(one.hashes[0]), told) for one in evidence]
            for name, evidence in verdict.listed.items()
        },
        cannot_tell=found.cannot_tell,
        references=found.references,
        typical=found.typical,
        chance=found.chance if found.references else None,
        cleared=verdict.cleared,
        unconfirmed=verdict.unconfirmed,
        tokens=told.tokens,
        fresh=None if drawn is None else _fresh([told.cosines[key] for key in drawn if key in told.cosines]),
        fresh_failed=told.failed,
    )


def _suspect(evidence: Evidence, provenance: str | None, told: _Told) -> Suspect:
    first, *others = evidence.hashes
    case_id, text = told.texts.get(first, (None, None))
    detail = evidence.detail
    for other in others:
        other_id, other_text = told.texts.get(other, (None, None))
        detail += f"; {other.hex()[:12]} {_excerpt(other_text)!r} (case {other_id})" if other_text is not None else ""
    return Suspect(first.hex(), detail, provenance, None if text is None else _excerpt(text), case_id)


def _excerpt(text: str | None) -> str:
    return " ".join((text or "").split())[:EXCERPT]


def _fresh(found: Sequence[float]) -> Fresh:
    if not found:
        return Fresh(0, None, None)
    return Fresh(len(found), round(min(found), 4), round(float(np.median(found)), 4))
