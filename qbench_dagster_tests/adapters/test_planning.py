"""The plan counts what then happens: each text once, by whoever has its vector."""

from __future__ import annotations

from pathlib import Path

import pytest

from qbench_dagster.adapters.planning import Reusable, Tokens, plan
from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.space import ensure_space
from qbench_dagster.core.plan import Plan
from qbench_dagster.core.prices import Price
from qbench_dagster.core.requests import Limits
from qbench_dagster.core.texts import text_hash
from qbench_dagster_tests.adapters.test_embedding import Teller, embed, stage
from qbench_dagster_tests.embed_worker import EVERYTHING
from qbench_dagster_tests.support import BINARY, SPACE

CHARACTERS = Tokens(lambda texts: [len(text) for text in texts], "characters", exact=True)


@pytest.fixture
def staged(clean_database: Database, tmp_path: Path) -> Database:
    """Three cases: "Do 1" and "Do 2" are a title and a step, the steps say "Log in" and "Do 1" to "Do 3"."""
    ensure_space(clean_database, SPACE)
    stage(clean_database, tmp_path, ["Do 1", "Do 2", "Else"])
    return clean_database


def planned(database: Database, reusable: Reusable | None = None, limits: Limits | None = None) -> Plan:
    return plan(
        database, SPACE, BINARY, tokens=CHARACTERS, limits=limits or Limits(), price=Price(2.0, 1.0), max_usd=None,
        reusable=reusable or Reusable(), free_embedder=None, way="request",
    )  # fmt: skip


def numbers(found: Plan, name: str) -> tuple[int, int]:
    return getattr(found.kinds["doc"], name), getattr(found.kinds["step"], name)


def test_a_text_of_both_tables_is_counted_once(staged: Database) -> None:
    found = planned(staged)
    assert numbers(found, "texts") == (3, 4)
    assert numbers(found, "shared") == (0, 2)
    assert numbers(found, "to_embed") == (3, 2)
    assert found.tokens == sum(map(len, ("Do 1\n", "Do 2\n", "Else\n", "Log in\nok", "Do 3\n")))
    assert found.usd == pytest.approx(2 * found.tokens / 1e6)
    assert found.usd_by_batch == pytest.approx(found.tokens / 1e6)


def test_what_an_old_store_gives_one_table_the_other_has_too(staged: Database) -> None:
    found = planned(staged, Reusable({"step": {"faiss": {text_hash("Do 1\n"), text_hash("Do 3\n")}}}))
    assert numbers(found, "reusable") == ({}, {"faiss": 2})
    assert numbers(found, "shared") == (1, 1)
    assert numbers(found, "to_embed") == (2, 1)


def test_what_is_stored_is_not_planned(staged: Database) -> None:

    before = planned(staged)
    assert embed(staged, "doc", [EVERYTHING], Teller()) == before.kinds["doc"].to_embed
    found = planned(staged)
    assert numbers(found, "stored") == (3, 0)
    assert numbers(found, "to_embed") == (0, 2)
    assert embed(staged, "step", [EVERYTHING], Teller()) == 2
    assert planned(staged).to_embed == 0
    assert planned(staged).table_bytes == 0


def test_a_long_text_is_counted_in_pieces(staged: Database) -> None:
    found = planned(staged, limits=Limits(inputs=2, tokens_per_input=5, tokens_per_request=100))
    assert numbers(found, "in_pieces") == (0, 1)
    assert numbers(found, "requests") == (2, 2)
