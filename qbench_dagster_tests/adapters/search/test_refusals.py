"""What cannot be answered is told in a line; what is odd is answered; nobody sees or does more than they may."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray

from qbench_dagster.adapters.postgres import Database, DatabaseError
from qbench_dagster.adapters.reading import Filters, find_by_jira_key, hybrid, matched_steps, search, similar, status
from qbench_dagster.adapters.space import KINDS
from qbench_dagster.adapters.vectors import vector_text
from qbench_dagster.core.lexical import embed
from qbench_dagster_tests.adapters.search.conftest import IDENTICAL, LOWEST, ODD, SPACE
from qbench_dagster_tests.support import rows

D = SPACE.dimensions
GOOD = embed(["log in with a wrong password"], D)[0]
Ask = Callable[[Database, NDArray[np.float32], int], Any]

BY_VECTOR: dict[str, Ask] = {
    "documents": lambda database, vector, k: search(database, vector, k, Filters()),
    "steps": lambda database, vector, k: search(database, vector, k, Filters(), steps=True),
    "hybrid": lambda database, vector, k: hybrid(database, "log in", vector, k, Filters()),
}
OTHERS: dict[str, Ask] = {
    "similar": lambda database, _, k: similar(database, LOWEST, k, Filters()),
    "jira": lambda database, _, k: find_by_jira_key(database, "PROJ-1", k, Filters()),
    "words": lambda database, _, k: hybrid(database, "log in", None, k, Filters()),
}


@pytest.mark.parametrize("name", BY_VECTOR)
def test_a_vector_that_cannot_be_answered_says_why(unindexed: Database, name: str) -> None:
    for vector, told in (
        (np.zeros(D, np.float32), "the query vector is zero"),
        (np.full(D, 1e-9, np.float32), "the query vector is zero"),
        (GOOD[:-1], "has 511 dimensions, the active space has 512"),
        (embed(["x"], 64)[0], "has 64 dimensions, the active space has 512"),
        (GOOD * np.nan, "NaN"),
        (GOOD * np.inf, "infinite|NaN"),
        (np.full(D, 1e6, np.float32), "out of range for type halfvec"),
    ):
        with pytest.raises(DatabaseError, match=told):
            BY_VECTOR[name](unindexed, vector, 10)


@pytest.mark.parametrize("name", [*BY_VECTOR, *OTHERS])
def test_k_is_from_1_to_1000(unindexed: Database, name: str) -> None:
    ask = {**BY_VECTOR, **OTHERS}[name]
    for k in (0, -1, 1001):
        with pytest.raises(DatabaseError, match=f"k is {k}, it has to be from 1 to 1000"):
            ask(unindexed, GOOD, k)
    assert len(ask(unindexed, GOOD, 1)) <= 1


def test_other_impossible_questions_say_why(unindexed: Database) -> None:
    with pytest.raises(DatabaseError, match="there is no published test case 12"):
        similar(unindexed, 12, 10, Filters())
    for minimum in (1.5, -2.0, float("nan"), float("inf")):
        for ask in (search, lambda d, v, k, f, **kw: hybrid(d, "log in", v, k, f, **kw)):
            with pytest.raises(DatabaseError, match="a cosine is from -1 to 1"):
                ask(unindexed, GOOD, 10, Filters(), min_similarity=minimum)  # type: ignore[operator]
    for weights in ((-1, 1), (1, float("nan")), (0, 0), (float("inf"), 1)):
        with pytest.raises(DatabaseError, match="they have to be 0 or more"):
            hybrid(unindexed, "x", GOOD, 10, Filters(), vector_weight=weights[0], text_weight=weights[1])
    with pytest.raises(DatabaseError, match="they have to be 0 or more"):
        hybrid(unindexed, "x", None, 10, Filters(), text_weight=0)
    with pytest.raises(DatabaseError, match="min_similarity needs a query vector"):
        hybrid(unindexed, "x", None, 10, Filters(), min_similarity=0.5)
    for key in ("", "  ", "-", "🙂" * 3, "PROJ-" + "1" * 300):
        with pytest.raises(DatabaseError, match="this is no Jira key"):
            find_by_jira_key(unindexed, key, 10, Filters())
    with pytest.raises(DatabaseError, match="made by another-model"):
        search(unindexed, GOOD, 10, Filters(), model="another-model")
    for ask_text in (lambda text: hybrid(unindexed, text, None, 10, Filters()),
                     lambda text: find_by_jira_key(unindexed, text, 10, Filters()),
                     lambda text: search(unindexed, GOOD, 10, Filters(folder=text))):  # fmt: skip
        with pytest.raises(DatabaseError, match="NUL"):
            ask_text("a\0b")


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("search_documents(NULL)", "the query vector is null"),
        ("search_steps(NULL)", "the query vector is null"),
        ("search_documents(v, NULL)", "k is null"),
        ("search_steps(v, NULL)", "k is null"),
        ("search_hybrid(NULL, v)", "the query text is null"),
        ("search_hybrid('x', v, NULL)", "k is null"),
        ("search_hybrid('x', v, vector_weight => NULL)", "weights are null"),
        ("similar_documents(NULL)", "no published test case null"),
        ("similar_documents(40000000, NULL)", "k is null"),
        ("find_by_jira_key(NULL)", "no Jira key: null"),
        ("find_by_jira_key('A-1', NULL)", "k is null"),
    ],
)
def test_nulls_are_told(unindexed: Database, call: str, told: str) -> None:
    with pytest.raises(psycopg.DatabaseError, match=told):
        rows(
            unindexed, f"SELECT r.* FROM (SELECT embedding AS v FROM qbench.test_documents LIMIT 1) d, qbench.{call} r"
        )


ATTACKS = [
    "'; DROP TABLE store.test_documents; --", "' OR 1=1 --", "$$; DROP SCHEMA store CASCADE; $$", "%", "_", "\\",
    "%s %(x)s", "{}", "NULL", "'x' & !'y' | 'z':*A", "((((", "!!!", ":*", "<->", '"', '""', '"""', "\n\t", " ", "",
    "🙂", "\u202e", "\ud7ff",
    "a" * 100_000, "word " * 20_000, '"' * 100_001, "(" * 100_000, " ".join(map(str, range(20_000))), "日" * 30_000,
    "x-" * 30_000,
]  # fmt: skip


@pytest.mark.parametrize("text", ATTACKS, ids=lambda text: ascii(text[:12]))
def test_a_text_is_a_value_whatever_is_in_it(unindexed: Database, text: str) -> None:
    published = "SELECT count(*) FROM qbench.test_documents"
    before = rows(unindexed, published)
    everything = Filters([text], [text], [text], [text], text, [1], [2])
    for ask in (*BY_VECTOR.values(),):
        assert len(ask(unindexed, GOOD, 3)) == 3
    assert search(unindexed, GOOD, 3, everything) == search(unindexed, GOOD, 3, everything, steps=True) == []
    for filters in (Filters(tags=[text]), Filters(folder=text)):
        for steps in (False, True):
            search(unindexed, GOOD, 3, filters, steps=steps)
        similar(unindexed, LOWEST, 3, filters)
    hybrid(unindexed, text, None, 3, Filters())
    phrases = [part for part in text.split('"')[1:-1:2] if any(char.isalnum() for char in part)]
    assert len(hybrid(unindexed, text, GOOD, 3, Filters())) == 3 or phrases
    matched_steps(unindexed, [LOWEST], text, GOOD)
    if text != "NULL":
        with pytest.raises(DatabaseError):
            search(unindexed, GOOD, 3, Filters(), model=text)
    with (
        nullcontext()
        if any(map(str.isalnum, text)) and len(text) < 200
        else pytest.raises(DatabaseError, match=r"this is no Jira key: [^$]{0,200}$")
    ):
        find_by_jira_key(unindexed, text, 3, Filters())
    assert rows(unindexed, published) == before


def test_the_reader_finds_what_we_find_and_nothing_else(indexed: tuple[Database, str]) -> None:
    database, _ = indexed
    only = Filters(priority=["High"])
    calls = {
        "search_documents(%(v)s::halfvec, 10, with_priority => ARRAY['High'])": search(database, GOOD, 10, only),
        "search_steps(%(v)s::halfvec, 10, with_priority => ARRAY['High'])": search(
            database, GOOD, 10, only, steps=True
        ),
        "similar_documents(40000000)": similar(database, LOWEST, 10, Filters()),
        "search_hybrid('log in', %(v)s::halfvec)": hybrid(database, "log in", GOOD, 10, Filters()),
        "search_hybrid('log in')": hybrid(database, "log in", None, 10, Filters()),
    }
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute("SET ROLE qbench_reader")
        for call, ours in calls.items():
            query = f"SELECT test_case_id FROM qbench.{call}"
            found = connection.execute(query, {"v": vector_text(GOOD)}).fetchall()  # type: ignore[call-overload]
            assert [case_id for (case_id,) in found] == [row["test_case_id"] for row in ours]
            assert found
        connection.execute("SELECT * FROM qbench.find_by_jira_key('PROJ-1')")
        for forbidden in (
            "SELECT * FROM store.test_words", "SELECT * FROM store.test_documents", "SELECT store.plain_text('x')",
            "SELECT * FROM store.nearest_texts('space_lexical_512', 'doc', '[1]', 1, NULL)",
            "SELECT * FROM store.query_words('x')", f"SELECT * FROM {SPACE.name}.doc_embeddings",
            "SELECT store.expected_rows('SELECT FROM store.test_documents', NULL)",
            "CREATE FUNCTION qbench.f() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
            "DELETE FROM qbench.test_preconditions",
        ):  # fmt: skip
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(forbidden)  # type: ignore[call-overload]


def test_a_readers_own_objects_do_not_get_in_between(unindexed: Database) -> None:
    """The functions run with the owner's rights: a table or function of the reader's must not stand in for ours."""
    with psycopg.connect(unindexed.url, autocommit=True) as connection:
        connection.execute("SET ROLE qbench_reader")
        connection.execute("CREATE TEMPORARY TABLE test_documents (test_case_id bigint, text_hash bytea)")
        connection.execute("CREATE TEMPORARY TABLE test_words (test_case_id bigint, words tsvector)")
        connection.execute(
            "CREATE FUNCTION pg_temp.starts_with(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT 1/0 > 0'"
        )
        connection.execute("SET search_path = pg_temp, public")
        for call in ("search_documents(%s::halfvec, in_folder => '')", "search_hybrid('log in', %s::halfvec)"):
            found = connection.execute(f"SELECT * FROM qbench.{call}", [vector_text(GOOD)]).fetchall()  # type: ignore[call-overload]
            assert len(found) == 10


def test_before_anything_is_published_the_reader_is_told_what_to_do(database: Database) -> None:
    for ask in ({**BY_VECTOR, **OTHERS}).values():
        with pytest.raises(DatabaseError, match="Nothing is published yet: run `qbench run --export PATH` first"):
            ask(database, GOOD, 10)


def test_status_tells_how_the_database_stands(unindexed: Database) -> None:
    found = status(unindexed)
    assert found["source_cases"] == found["published"] + found["rejected"] == 2_500 + IDENTICAL + len(ODD)
    assert sum(row["cases"] for row in found["rejects"]) == found["rejected"]
    assert [(space["name"], space["active"]) for space in found["spaces"]] == [(SPACE.name, True)]
    assert found["spaces"][0]["indexes"].keys() == set(KINDS)
    assert found["steps"] == rows(unindexed, "SELECT count(*) FROM qbench.test_steps")[0][0]
    assert found["database_bytes"] > 0
