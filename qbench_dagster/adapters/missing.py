"""The texts that a space lacks, as they are sent: read in the order of cases, in parts where one is too long.

How they are sent is `embedding.py` (requests) and `batching.py` (batches).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from qbench_dagster.adapters.postgres import Connection
from qbench_dagster.adapters.space import Kind, Space
from qbench_dagster.adapters.sql import statement
from qbench_dagster.core.packing import in_parts
from qbench_dagster.core.ranges import CaseRange, columns_of
from qbench_dagster.core.requests import Limits
from qbench_dagster.core.texts import text_hash, text_of

READ_TEXTS = 512


class Counter(Protocol):
    """Who knows how long a text may be, and how long it is: an embedder."""

    limits: Limits

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class MissingText:
    """A text of `partition`, in as few parts as the model's token limit allows, with the tokens of each."""

    partition: str
    text_hash: bytes
    characters: int
    parts: Sequence[str]
    sizes: Sequence[int]


def missing_texts(
    connection: Connection, space: Space, kind: Kind, ranges: Sequence[CaseRange], counter: Counter
) -> Generator[MissingText, None, None]:
    """Each distinct text of `ranges` once that has no vector and waits in no batch, streamed.

    The connection is in a transaction until the generator is closed: what is stored or sent by then is not noticed.
    """
    limit = counter.limits.tokens_per_input
    with connection.transaction(), connection.cursor(name="missing", binary=True) as cursor:
        cursor.execute(
            statement("embed.sql", f"missing_{kind}s", space=space.name), {"space": space.name, **columns_of(ranges)}
        )
        rows: Iterator[Any] = iter(cursor)
        while read := list(islice(rows, READ_TEXTS)):
            texts = [_text_of(kind, stored_hash, first, second) for _, stored_hash, first, second in read]
            divided = in_parts(texts, space.text_prefix, limit, counter.count_tokens)
            for (partition, stored_hash, *_), text, (parts, sizes) in zip(read, texts, divided, strict=True):
                yield MissingText(partition, stored_hash, len(text), parts, sizes)


def _text_of(kind: Kind, stored_hash: bytes, first: str, second: Any) -> str:
    text = text_of(kind, first, second)
    if text_hash(text) != stored_hash:
        raise ValueError(f"staging holds the hash of another text than {text[:60]!r}: materialise normalized_testdocs")
    return text
