"""Searches of tables that are empty, tiny, partly stale, being written, being indexed, and of bit-exact vectors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from qbench_dagster.adapters.postgres import Database, DatabaseError
from qbench_dagster.adapters.publishing import publish_cases, publish_face
from qbench_dagster.adapters.reading import Filters, find_by_jira_key, hybrid, search, similar
from qbench_dagster.adapters.space import Space, ensure_space
from qbench_dagster.core.lexical import embed
from qbench_dagster_tests.adapters.search.conftest import SPACE
from qbench_dagster_tests.adapters.search.twin import STRATEGIES, index_as
from qbench_dagster_tests.support import case, execute, rows, run_pipeline, write_export

D = SPACE.dimensions
VECTOR = embed(["Log in with password\n"], D)[0]
ALL = 2000
"""Cases of the table that is written to while it is searched; half of them come and go."""


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_tables_of_no_and_of_one_row(clean_database: Database, tmp_path: Path, strategy: str) -> None:
    database = clean_database
    ensure_space(database, SPACE)
    publish_face(database, SPACE)
    index_as(database, SPACE, strategy)
    for filters in (Filters(), Filters(folder="Accounts")):
        for steps in (False, True):
            assert search(database, VECTOR, 10, filters, steps=steps) == []
        assert hybrid(database, "log in", VECTOR, 10, filters) == hybrid(database, "log in", None, 10, filters) == []
        assert find_by_jira_key(database, "PROJ-1", 10, filters) == []
    with pytest.raises(DatabaseError, match="no published test case 1"):
        similar(database, 1, 10, Filters())
    run_pipeline(database, write_export(tmp_path / "export.db", [case(1, "Log in", steps="Press it", refs="PROJ-1")]),
                 space=SPACE)  # fmt: skip
    index_as(database, SPACE, strategy)
    for filters in (Filters(), Filters(folder="Accounts"), Filters(suite=[1])):
        for found in (
            search(database, VECTOR, 10, filters), search(database, VECTOR, 10, filters, steps=True),
            hybrid(database, "log in", VECTOR, 10, filters), hybrid(database, "log in", None, 10, filters),
            find_by_jira_key(database, "PROJ-1", 10, filters),
        ):  # fmt: skip
            assert [row["test_case_id"] for row in found] == [1]
        assert similar(database, 1, 10, filters) == []
    assert search(database, VECTOR, 10, Filters(suite=[2])) == []


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "exact"])
def test_what_is_stale_neither_comes_back_nor_shortens_results(
    clean_database: Database, tmp_path: Path, strategy: str
) -> None:
    """All neighbours of the query leave. Their vectors stay, for rows of a space are immutable."""
    database = clean_database
    stay = [case(9000 + n, f"A report of quite another kind {n}", steps=f"Print the report {n}") for n in range(30)]
    leave = [case(n, f"Log in with password {n}", steps=f"Press log in {n}") for n in range(1, 601)]
    run_pipeline(database, write_export(tmp_path / "export.db", [*leave, *stay]), space=SPACE)
    index_as(database, SPACE, strategy)
    execute(database, "DELETE FROM store.test_documents WHERE test_case_id < 9000")
    assert rows(database, f"SELECT count(*) FROM {SPACE.name}.doc_embeddings") == [(630,)]
    other = embed(["A report of quite another kind\n"], D)[0]
    for share in (0.4, 0.5, 0.6):  # between the two: some of what is found stays
        assert len(search(database, VECTOR * share + other * (1 - share), 25, Filters())) == 25
    for filters in (Filters(), Filters(priority=["Medium"]), Filters(folder="Accounts")):
        found = [row["test_case_id"] for row in search(database, VECTOR, 25, filters)]
        assert len(found) == len(set(found)) == 25
        assert min(found) >= 9000
        assert len(search(database, VECTOR, 25, filters, steps=True)) == 25
        assert len(hybrid(database, "log in", VECTOR, 25, filters)) == 25
    execute(database, "DELETE FROM store.test_documents WHERE test_case_id >= 9005")
    for steps in (False, True):
        found = [row["test_case_id"] for row in search(database, VECTOR, 25, Filters(), steps=steps)]
        assert sorted(found) == list(range(9000, 9005))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_bit_exact_vectors_are_searched_the_same_way(clean_database: Database, tmp_path: Path, strategy: str) -> None:
    space = Space("space_exact_512", "lexical-v1", 512, "vector")
    cases = [case(n, f"Case of number {n}", steps=f"Do the thing {n}") for n in range(1, 301)]
    run_pipeline(clean_database, write_export(tmp_path / "export.db", cases), space=space)
    index_as(clean_database, space, strategy)
    vector = embed(["Case of number 77\n"], D)[0]
    for found in (
        search(clean_database, vector, 10, Filters(priority=["Medium"])),
        search(clean_database, vector, 10, Filters(priority=["Medium"]), steps=True),
        hybrid(clean_database, "case", vector, 10, Filters()), similar(clean_database, 77, 10, Filters()),
    ):  # fmt: skip
        assert len(found) == 10
    (first,) = search(clean_database, vector, 1, Filters())
    assert (first["test_case_id"], first["similarity"]) == (77, pytest.approx(1, abs=1e-6))
    with pytest.raises(DatabaseError, match="the query vector is zero"):
        search(clean_database, np.zeros(D, np.float32), 10, Filters())


@contextmanager
def in_another_thread(work: Callable[[], object]) -> Iterator[threading.Thread]:
    """Runs `work` meanwhile; what it raises is raised at the end."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield thread
    finally:
        thread.join()
        if failed:
            raise failed[0]


def test_answers_are_right_while_rows_are_written_and_indexes_swapped(clean_database: Database, tmp_path: Path) -> None:
    """Half the cases come and go at once each time: an answer is of one moment or the other, and never short."""
    database = clean_database
    cases = [case(n, f"Log in with password {n % 500}", steps=f"Press log in {n}", refs=f"PROJ-{n % 7}")
             for n in range(1, ALL + 1)]  # fmt: skip
    outcome = run_pipeline(database, write_export(tmp_path / "export.db", cases), space=SPACE)
    (whole,) = outcome.ranges.values()
    index_as(database, SPACE, "halfvec")
    stop = threading.Event()
    answered = 0

    def write() -> None:
        while not stop.is_set():
            execute(database, "DELETE FROM store.test_documents WHERE test_case_id > %s", ALL // 2)
            publish_cases(database, SPACE, whole)

    def swap() -> None:
        for strategy in [*STRATEGIES[1:], "exact"]:
            index_as(database, SPACE, strategy)
        stop.set()

    def of_one_moment(found: list[dict[str, Any]], k: int) -> None:
        ids = [row["test_case_id"] for row in found]
        assert len(ids) == len(set(ids)) == k
        similarities = [row["similarity"] for row in found]
        assert similarities == sorted(similarities, reverse=True)

    with in_another_thread(write), in_another_thread(swap):
        while not stop.is_set():
            for filters in (Filters(), Filters(priority=["Medium"]), Filters(folder="Accounts", project=[3])):
                of_one_moment(search(database, VECTOR, 30, filters), 30)
                of_one_moment(similar(database, 1, 30, filters), 30)
                assert len(hybrid(database, "log in PROJ-3", VECTOR, 30, filters)) == 30
                assert len(search(database, VECTOR, 30, filters, steps=True)) == 30
                count = len(search(database, VECTOR, 1000, filters))
                assert count == 1000
                answered += 1
            # All of the second half is there, or nothing of it.
            later = rows(
                database,
                "SELECT count(*) FROM qbench.find_by_jira_key('PROJ-3', 1000) WHERE test_case_id > %s",
                ALL // 2,
            )
            assert later in ([(0,)], [(143,)]), later
    assert answered > 5


def test_a_moved_face_leaves_nothing_behind(clean_database: Database, tmp_path: Path) -> None:
    """Functions of another version step aside for who has found them, and are gone the time after."""
    database = clean_database
    run_pipeline(database, write_export(tmp_path / "export.db", [case(1, "Log in")]), space=SPACE)
    known = "SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = '%s'::regnamespace ORDER BY 1"
    before = rows(database, known % "qbench"), rows(database, known % "store")
    execute(
        database,
        "CREATE FUNCTION qbench.search_documents(integer) RETURNS integer LANGUAGE sql AS 'SELECT $1'",
    )
    for left in ([("store.retired_search_documents(integer)",)], []):
        execute(database, "UPDATE store.spaces SET face_hash = 'older'")
        assert publish_face(database, SPACE)
        assert rows(database, known % "qbench") == before[0]
        assert [row for row in rows(database, known % "store") if row not in before[1]] == left


def test_statements_prepared_before_a_renewal_go_on(clean_database: Database, tmp_path: Path) -> None:
    database = clean_database
    run_pipeline(database, write_export(tmp_path / "export.db", [case(1, "Log in")]), space=SPACE)
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute("PREPARE ask AS SELECT test_case_id FROM qbench.search_hybrid('log in')")
        assert connection.execute("EXECUTE ask").fetchall() == [(1,)]
        execute(database, "UPDATE store.spaces SET face_hash = 'older'")
        assert publish_face(database, SPACE)
        assert connection.execute("EXECUTE ask").fetchall() == [(1,)]
