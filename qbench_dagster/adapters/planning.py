"""Counts what embedding is going to take, from what is staged and what the space has. Nothing is sent or written."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from qbench_dagster.adapters.embedders import Embedder
from qbench_dagster.adapters.ledger import spent
from qbench_dagster.adapters.postgres import Connection, Database, fetch_dicts
from qbench_dagster.adapters.space import KINDS, Kind, Space, ensure_space
from qbench_dagster.adapters.sql import statement
from qbench_dagster.core.indexes import IndexSettings
from qbench_dagster.core.packing import Sized, fewest, in_parts
from qbench_dagster.core.plan import (
    ASSUMED_TOKENS_PER_MINUTE,
    KindPlan,
    Plan,
    Way,
    dollars,
    index_bytes,
    table_bytes,
)
from qbench_dagster.core.prices import Price
from qbench_dagster.core.requests import Limits
from qbench_dagster.core.texts import text_of

READ_TEXTS = 512
TIMED_TEXTS = 256
"""Texts a free embedder is timed on: 40 ms for the lexical one."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """How tokens are counted: the function, what to call it, and whether it counts as the service does."""

    count: Callable[[Sequence[str]], list[int]]
    described: str
    exact: bool


@dataclass(frozen=True, slots=True)
class Reusable:
    """What old stores would give, as hashes of texts by kind and store; what they cannot, by store and reason."""

    hashes: Mapping[Kind, Mapping[str, set[bytes]]] = field(default_factory=dict)
    refused: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(slots=True)
class _Counted:
    """What one table needs, as it is being counted."""

    stored: int = 0
    shared: int = 0
    in_batches: int = 0
    in_pieces: int = 0
    to_embed: int = 0
    reusable: Counter[str] = field(default_factory=Counter)
    sizes: list[Sized[None]] = field(default_factory=list)


def plan(
    database: Database,
    space: Space,
    index: IndexSettings,
    *,
    tokens: Tokens,
    limits: Limits,
    price: Price | None,
    way: Way,
    max_usd: float | None,
    reusable: Reusable,
    free_embedder: Embedder | None,
) -> Plan:
    """What is staged, what the space and old stores have of it, and what the rest takes.

    `free_embedder` is timed on a few of the texts; None: a service, whose rate its headers will tell.
    """
    ensure_space(database, space)
    kinds: dict[str, KindPlan] = {}
    sample: list[str] = []
    with database.connection("plan embeddings", long=True) as connection:
        cases = fetch_dicts(connection, statement("plan.sql", "cases"))[0]
        for kind in KINDS:
            counted = _count(connection, space, kind, tokens, limits, reusable, sample)
            staged = fetch_dicts(connection, statement("plan.sql", f"staged_{kind}s"))[0]
            kinds[kind] = KindPlan(
                **staged,
                stored=counted.stored,
                shared=counted.shared,
                reusable=dict(counted.reusable),
                in_batches=counted.in_batches,
                to_embed=counted.to_embed,
                tokens=sum(size.tokens for size in counted.sizes) if free_embedder is None else 0,
                requests=fewest(counted.sizes, limits),
                in_pieces=counted.in_pieces,
            )
        so_far = spent(connection, space.name)
    total = sum(kind.tokens for kind in kinds.values())
    seconds, by = _seconds(sum(kind.to_embed for kind in kinds.values()), total, free_embedder, sample)
    usd, usd_by_batch = dollars(total, price) if free_embedder is None else (0.0, 0.0)
    new = sum(kind.texts - kind.stored for kind in kinds.values())
    return Plan(
        space=space.name,
        model=space.model,
        dimensions=space.dimensions,
        cases=cases["cases"],
        rejected=cases["rejected"],
        kinds=kinds,
        tokens_by=tokens.described,
        exact_tokens=tokens.exact,
        usd=usd,
        usd_by_batch=usd_by_batch,
        way=way,
        spent_usd=so_far["usd"] + so_far["usd_at_risk"],
        max_usd=max_usd,
        table_bytes=table_bytes(new, space.dimensions, space.vector_type),
        index_bytes=index_bytes(new, space.dimensions, index.strategy, index.m),
        seconds=seconds,
        seconds_by=by,
        refused=reusable.refused,
    )


def _count(
    connection: Connection,
    space: Space,
    kind: Kind,
    tokens: Tokens,
    limits: Limits,
    reusable: Reusable,
    sample: list[str],
) -> _Counted:
    counted = _Counted()
    with connection.transaction(), connection.cursor(name="texts", binary=True) as cursor:
        cursor.execute(statement("plan.sql", f"texts_{kind}s", space=space.name), {"space": space.name})
        for texts in _batches(_to_embed(kind, cursor, reusable, counted)):
            sample += texts[: TIMED_TEXTS - len(sample)]
            counted.to_embed += len(texts)
            for parts, sizes in in_parts(texts, space.text_prefix, limits.tokens_per_input, tokens.count):
                counted.in_pieces += len(parts) > 1
                counted.sizes.append(Sized(None, sum(sizes), len(parts)))
    return counted


def _to_embed(kind: Kind, rows: Iterator[Any], reusable: Reusable, counted: _Counted) -> Iterator[str]:
    """The texts nobody has a vector of; the others are counted by who has it, in the order they are asked."""
    own = reusable.hashes.get(kind, {})
    others = [hashes for other in KINDS if other != kind for hashes in reusable.hashes.get(other, {}).values()]
    for text_hash, first, second, stored, shares, in_batch in rows:
        source = next((name for name, hashes in own.items() if text_hash in hashes), None)
        shared = shares or any(text_hash in hashes for hashes in others)
        if stored:
            counted.stored += 1
        elif source is not None:
            counted.reusable[source] += 1
        elif shared:
            counted.shared += 1
        elif in_batch:
            counted.in_batches += 1
        else:
            yield text_of(kind, first, second)


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(islice(texts, READ_TEXTS)):
        yield batch


def _seconds(texts: int, tokens: int, free: Embedder | None, sample: list[str]) -> tuple[float, str]:
    """(seconds, what they are made from)."""
    if free is None:
        assumed = ASSUMED_TOKENS_PER_MINUTE
        by = f"at {assumed:,} tokens a minute; your account's own limit is told by its first answer"
        return 60 * tokens / assumed, by
    if not sample:
        return 0.0, "nothing to embed"
    free.embed(sample[:1])  # what loading a model takes is no rate
    started = time.perf_counter()
    free.embed(sample)
    rate = len(sample) / max(time.perf_counter() - started, 1e-6)
    return texts / rate, f"at {rate:,.0f} texts a second, timed on {len(sample)} of them"
