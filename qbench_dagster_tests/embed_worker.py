"""Embeds what a space lacks, as a process of its own that a test may kill: python -m … DATABASE_URL BASE_URL KEY."""

from __future__ import annotations

import sys

from qbench_dagster.adapters.embedding import embed_missing
from qbench_dagster.adapters.ledger import Account
from qbench_dagster.adapters.openai_embedder import OpenAIEmbedder
from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.space import KINDS, Space
from qbench_dagster.core.ranges import LARGEST_ID, CaseRange
from qbench_dagster.core.requests import Limits
from qbench_dagster.core.tally import Embedding
from qbench_dagster_tests.openai_server import count_words

SPACE = Space("space_te3large_64", "text-embedding-3-large", 64, "halfvec", "openai")
LIMITS = Limits(inputs=8)
CONCURRENCY = 4
EVERYTHING = CaseRange("all", 1, LARGEST_ID + 1)


def main(database_url: str, base_url: str, key: str) -> None:
    """Embed both tables to the end."""
    embedder = OpenAIEmbedder(
        model=SPACE.model,
        dimensions=SPACE.dimensions,
        api_key=key,
        base_url=base_url,
        limits=LIMITS,
        concurrency=CONCURRENCY,
        timeout_s=20,
        send_dimensions=True,
        count_tokens=lambda texts: [count_words(text) for text in texts],
        paid=True,
    )
    with Database(database_url) as database:
        for kind in KINDS:
            embed_missing(
                database, SPACE, kind, [EVERYTHING], embedder, Account("worker", 0.13), lambda _: None, Embedding()
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
