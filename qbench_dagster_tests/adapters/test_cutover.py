"""Embedding spaces side by side: reads move whole or not at all, under readers that never see an error, and back."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from qbench_dagster.adapters.comparing import ComparisonSettings
from qbench_dagster.adapters.cutover import (
    ChecksFailedError,
    CutOver,
    cut_back,
    cut_over,
    fill_command,
    find_space,
    indexed_as,
    list_spaces,
    purge,
    read_space,
)
from qbench_dagster.adapters.embedders import LexicalEmbedder
from qbench_dagster.adapters.ledger import Account, reserve, settle
from qbench_dagster.adapters.parity import check_privileges
from qbench_dagster.adapters.postgres import Database, DatabaseError
from qbench_dagster.adapters.publishing import publish_cases, publish_face
from qbench_dagster.adapters.reading import Filters, search
from qbench_dagster.adapters.space import Space, active_space, ensure_space
from qbench_dagster.adapters.vectors import vector_text
from qbench_dagster.core.indexes import IndexSettings
from qbench_dagster.core.lexical import embed
from qbench_dagster.core.ranges import CaseRange
from qbench_dagster.settings import load_settings
from qbench_dagster.wiring import embedding_space
from qbench_dagster_tests.support import EXACT, SPACE, case, execute, fill_space, rows, run_pipeline, write_export

A = SPACE
B = Space("space_other_32", "other-v1", 32, "halfvec")
FLOAT = Space("space_float_64", "lexical-v1", 64, "vector")
TWIN = Space("space_twin_64", "twin-v1", 64, "halfvec")
"""Another model with the same number of dimensions."""
HALFVEC = IndexSettings(strategy="halfvec", m=8, ef_construction=32, ef_search=80)
CASES = [
    case(
        n,
        f"Log in as user {n}",
        steps_separated=[{"content": f"Open page {n}"}, {"content": f"Press button {n}"}],
        preconditions=f"User {n} exists",
    )
    for n in range(1, 41)
]
DIMS = "SELECT DISTINCT vector_dims(embedding) FROM qbench.test_documents"


ONE = f"text_hash = (SELECT text_hash FROM {B.name}.doc_embeddings ORDER BY 1 LIMIT 1)"


def nothing(*_: object) -> None:
    """Progress of no interest."""


def move(database: Database, target: Space, ranges: list[CaseRange], settings: IndexSettings = EXACT) -> CutOver:
    return cut_over(
        database, target, settings, ranges, by="a test", comparison=ComparisonSettings(), details={}, building=nothing,
        comparing=nothing,
    )  # fmt: skip


def back(database: Database) -> CutOver:
    return cut_back(database, EXACT, by="a test", building=nothing)


@pytest.fixture
def ranges(clean_database: Database, tmp_path: Path) -> list[CaseRange]:
    """Forty cases, published from A; B is complete beside it."""
    outcome = run_pipeline(clean_database, write_export(tmp_path / "export.db", CASES), index=EXACT)
    made = list(outcome.ranges.values())
    fill_space(clean_database, B, made)
    return made


def reads_are_on(database: Database, space: Space) -> None:
    """Views, functions and flag agree, whichever way one looks."""
    assert rows(database, DIMS) == [(space.dimensions,)]
    assert rows(database, "SELECT DISTINCT vector_dims(embedding) FROM qbench.test_steps") == [(space.dimensions,)]
    for view, count in (("test_documents", 40), ("test_steps", 80)):
        assert rows(database, f"SELECT count(*) FROM qbench.{view}") == [(count,)]
    told = [(space.name, space.model, space.dimensions, space.vector_type)]
    assert rows(database, "SELECT name, model, dimensions, vector_type FROM qbench.active_space") == told
    active = active_space(database)
    assert active is not None
    assert active.name == space.name
    vector = embed(["Log in as user 7\nUser 7 exists"], space.dimensions)[0]
    assert search(database, vector, 1, Filters(), model=space.model)[0]["test_case_id"] == 7
    assert len(search(database, vector, 5, Filters(), model=space.model, steps=True)) == 5
    assert check_privileges(database).passed
    twice = "SELECT proname FROM pg_proc WHERE pronamespace = 'qbench'::regnamespace GROUP BY 1 HAVING count(*) > 1"
    assert rows(database, twice) == []


# Moving, and back


def test_reads_move_and_return(clean_database: Database, ranges: list[CaseRange]) -> None:
    before = rows(clean_database, "SELECT oid, proacl::text FROM pg_proc WHERE pronamespace = 'qbench'::regnamespace")
    reads_are_on(clean_database, A)
    done = move(clean_database, B, ranges)
    assert (done.from_space, done.to_space, done.moved) == (A.name, B.name, True)
    assert done.report is not None
    assert done.report["passed"] is True
    assert {finding["name"] for finding in done.report["findings"]} >= {"recall_reaches_target", "no_word_lost"}
    reads_are_on(clean_database, B)
    again = move(clean_database, B, ranges)
    assert (again.moved, again.report_id) == (False, None)
    returned = back(clean_database)
    assert (returned.from_space, returned.to_space, returned.moved) == (B.name, A.name, True)
    reads_are_on(clean_database, A)
    assert back(clean_database).to_space == B.name, "the way back from a way back"
    reads_are_on(clean_database, B)
    told = "SELECT from_space, to_space, by, report FROM store.cutovers ORDER BY id"
    assert rows(clean_database, told) == [
        (A.name, B.name, "a test", done.report_id), (B.name, A.name, "a test", None),
        (A.name, B.name, "a test", None),
    ]  # fmt: skip
    reported = "SELECT space, passed FROM store.parity_reports WHERE id = %s"
    assert rows(clean_database, reported, done.report_id) == [(B.name, True)]
    assert rows(
        clean_database, "SELECT oid, proacl::text FROM pg_proc WHERE pronamespace = 'qbench'::regnamespace"
    ) == (before), "replaced in place: whoever found a function may still call it"
    assert publish_face(clean_database, A) is False, "the face of the active space is as it should be"


def test_the_missing_index_is_built_and_measured_first(clean_database: Database, ranges: list[CaseRange]) -> None:
    told: list[str] = []
    done = cut_over(
        clean_database, B, HALFVEC, ranges, by="a test", comparison=ComparisonSettings(target_recall=0.9), details={},
        building=lambda phase, *_: told.append(phase), comparing=nothing,
    )  # fmt: skip
    assert done.moved
    indexes = "SELECT indexname FROM pg_indexes WHERE schemaname = %s AND indexdef LIKE '%%hnsw%%' ORDER BY 1"
    assert rows(clean_database, indexes, B.name) == [("doc_embeddings_halfvec_1",), ("step_embeddings_halfvec_1",)]
    kept = replace(HALFVEC, rerank=40)
    assert indexed_as(clean_database, B, "step", EXACT) == kept, "kept, whatever the settings are by then"
    assert indexed_as(clean_database, TWIN, "doc", EXACT) == EXACT, "the settings', where there is none"
    assert read_space(clean_database, A) == read_space(clean_database, B) == B
    measured = "SELECT count(*) FROM store.index_builds WHERE space = %s AND recall -> 'measured' IS NOT NULL"
    assert rows(clean_database, measured, B.name) == [(2,)]
    # A way back builds what is gone.
    back(clean_database)
    execute(clean_database, f"DROP INDEX {B.name}.doc_embeddings_halfvec_1")
    assert back(clean_database).to_space == B.name
    assert len(rows(clean_database, indexes, B.name)) == 2


def test_a_space_that_lacks_vectors_is_not_read(clean_database: Database, ranges: list[CaseRange]) -> None:
    execute(clean_database, f"DELETE FROM {B.name}.doc_embeddings WHERE text_hash IN "
            f"(SELECT text_hash FROM {B.name}.doc_embeddings LIMIT 3)")  # fmt: skip
    execute(clean_database, f"DELETE FROM {B.name}.step_embeddings WHERE text_hash IN "
            f"(SELECT text_hash FROM {B.name}.step_embeddings LIMIT 1)")  # fmt: skip
    with pytest.raises(DatabaseError, match="lacks the vectors of 3 published documents and 1 steps") as raised:
        move(clean_database, B, ranges)
    assert f"Fill it: {fill_command(B)}, then again." in str(raised.value)
    assert rows(clean_database, "SELECT count(*) FROM store.index_builds WHERE space = %s", B.name) == [(0,)]
    reads_are_on(clean_database, A)
    execute(clean_database, "UPDATE store.spaces SET recipe = 0 WHERE name = %s", B.name)
    with pytest.raises(DatabaseError, match=r"made for texts of recipe 0.*cannot be filled any more"):
        move(clean_database, B, ranges)
    assert rows(clean_database, "SELECT count(*) FROM store.cutovers") == [(0,)]


def test_what_was_published_by_another_version_cannot_be_left(
    clean_database: Database, ranges: list[CaseRange]
) -> None:
    """Vectors are named by their texts: those of another text form have names that no published row has."""
    execute(clean_database, f"DELETE FROM {B.name}.doc_embeddings WHERE {ONE}")
    execute(clean_database, "UPDATE store.spaces SET recipe = 0 WHERE active")
    with pytest.raises(DatabaseError, match=r"texts of recipe 0, this version.*Use the version of qbench that pub"):
        move(clean_database, B, ranges)
    reads_are_on(clean_database, A)


@pytest.mark.parametrize(
    "space",
    [
        Space("space_e5_384_p1", "intfloat/e5-small", 384, "halfvec", "openai", "it's a $passage: ", "query: "),
        Space("space_te3large_3072", "text-embedding-3-large", 3072, "vector", "openai"),
        Space("space_lexical_64", "lexical-v1", 64, "halfvec"),
    ],
)
def test_the_command_that_fills_a_space_names_that_space(space: Space, tmp_path: Path) -> None:
    """Run by a shell that has another prefix set, as it is when one goes back."""
    command = tmp_path / "qbench"
    command.write_text("#!/bin/sh\nenv\nprintf END\n")
    command.chmod(0o755)
    shell = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "QBENCH_TEXT_PREFIX": "other: ", "QBENCH_MODEL": "other"}
    done = subprocess.run(["sh", "-c", fill_command(space)], env=shell, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("END")
    with pytest.MonkeyPatch.context() as patched:
        for line in done.stdout.splitlines():
            if line.startswith("QBENCH_"):
                patched.setenv(*line.split("=", 1))
        named = embedding_space(load_settings())
    assert replace(named, name=space.name) == space
    assert (named.query_prefix or "") == (space.query_prefix or "")


def test_the_command_for_a_folder_says_that_it_is_one() -> None:
    told = fill_command(Space("space_minilm_1a2b3c4d_384", "minilm@1a2b3c4d", 384, "halfvec", "local"))
    assert "QBENCH_MODEL=minilm@1a2b3c4d" in told
    assert told.endswith("qbench run (QBENCH_MODEL is the folder minilm of then)")


def test_the_way_back_needs_the_vectors_of_what_was_published_since(
    clean_database: Database, ranges: list[CaseRange], tmp_path: Path
) -> None:
    move(clean_database, B, ranges)
    changed = [*CASES[:-1], {**CASES[-1], "title": "Quite another title"}]
    run_pipeline(clean_database, write_export(tmp_path / "export.db", changed), space=B, index=EXACT)
    with pytest.raises(DatabaseError, match="space_lexical_64 lacks the vectors of 1 published documents and 0 steps"):
        back(clean_database)
    reads_are_on(clean_database, B)
    fill_space(clean_database, A, ranges)
    assert back(clean_database).to_space == A.name
    assert rows(clean_database, "SELECT title FROM qbench.test_documents WHERE id = 40") == [("Quite another title",)]


def test_vectors_may_go_missing_until_the_last_moment(
    clean_database: Database, ranges: list[CaseRange], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the report and the move a case is published that the target lacks."""
    from qbench_dagster.adapters import cutover  # noqa: PLC0415

    evaluate = cutover.evaluate

    def meanwhile(*arguments: Any, **options: Any) -> Any:
        evaluated = evaluate(*arguments, **options)
        execute(clean_database, f"DELETE FROM {B.name}.doc_embeddings WHERE text_hash IN "
                f"(SELECT text_hash FROM {B.name}.doc_embeddings LIMIT 1)")  # fmt: skip
        return evaluated

    monkeypatch.setattr(cutover, "evaluate", meanwhile)
    with pytest.raises(DatabaseError, match="lacks the vectors of 1 published documents"):
        move(clean_database, B, ranges)
    reads_are_on(clean_database, A)


def test_somebody_else_moved_reads_meanwhile(
    clean_database: Database, ranges: list[CaseRange], monkeypatch: pytest.MonkeyPatch
) -> None:
    from qbench_dagster.adapters import cutover  # noqa: PLC0415

    evaluate = cutover.evaluate
    fill_space(clean_database, TWIN, ranges)

    def meanwhile(*arguments: Any, **options: Any) -> Any:
        evaluated = evaluate(*arguments, **options)
        monkeypatch.setattr(cutover, "evaluate", evaluate)
        move(clean_database, TWIN, ranges)
        return evaluated

    monkeypatch.setattr(cutover, "evaluate", meanwhile)
    with pytest.raises(DatabaseError, match="Somebody moved reads from space_lexical_64 to space_twin_64 meanwhile"):
        move(clean_database, B, ranges)
    reads_are_on(clean_database, TWIN)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (f"UPDATE {B.name}.doc_embeddings SET embedding = array_fill(0, ARRAY[32])::halfvec WHERE {ONE}", "1 unsound"),
        ("UPDATE store.test_steps SET action = 'nothing' WHERE test_case_id = 1 AND step_index = 1", "lost a word"),
        ("REVOKE SELECT ON qbench.active_space FROM qbench_reader", "1 missing"),
    ],
)  # fmt: skip
def test_a_check_that_fails_keeps_reads_where_they_are(
    clean_database: Database, ranges: list[CaseRange], fault: str, told: str
) -> None:
    execute(clean_database, fault)
    with pytest.raises(ChecksFailedError, match=told) as raised:
        move(clean_database, B, ranges)
    assert "of 10 checks of space_other_32 do not hold" in str(raised.value)
    assert raised.value.report["passed"] is False
    assert rows(clean_database, DIMS) == [(64,)]
    assert rows(clean_database, "SELECT count(*) FROM store.cutovers") == [(0,)]
    assert publish_face(clean_database, A) is ("REVOKE" in fault)


def test_what_there_is_to_say_before_anything_can_move(database: Database, tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match=r"There is no embedding space nonsense. There are: none yet"):
        find_space(database, "nonsense")
    assert list_spaces(database) == []
    ensure_space(database, B)
    for moving in (lambda: move(database, B, []), lambda: back(database)):
        with pytest.raises(DatabaseError, match="Nothing is published yet: run `qbench run"):
            moving()
    run_pipeline(database, write_export(tmp_path / "export.db", CASES), index=EXACT)
    with pytest.raises(DatabaseError, match="Reads were never moved"):
        back(database)
    with pytest.raises(DatabaseError, match=r"There are: space_lexical_64 \(active\), space_other_32\."):
        find_space(database, "nonsense")
    assert find_space(database, B.name) == B


def test_two_types_of_vectors(clean_database: Database, ranges: list[CaseRange]) -> None:
    fill_space(clean_database, FLOAT, ranges)
    for target in (FLOAT, B, FLOAT, A):
        move(clean_database, target, ranges)
        reads_are_on(clean_database, target)
        found = rows(clean_database, "SELECT DISTINCT pg_typeof(embedding)::text FROM qbench.test_steps")
        assert found == [(target.vector_type,)]
    # A view of the application's own hangs on ours: neither dropped under it, nor left on the old space in silence.
    for name, body in (
        ("mine", "SELECT test_case_id, embedding FROM qbench.test_documents"),
        ("mine", f"SELECT * FROM qbench.search_documents('{vector_text(np.ones(64, np.float32))}'::halfvec, 3)"),
    ):
        execute(clean_database, f"CREATE VIEW public.{name} AS {body}")
        with pytest.raises(DatabaseError, match=r"other objects depend on.*Drop what depends on them"):
            move(clean_database, FLOAT, ranges)
        reads_are_on(clean_database, A)
        execute(clean_database, f"DROP VIEW public.{name}")
    # With the same type it follows.
    execute(
        clean_database, "CREATE VIEW public.mine AS SELECT vector_dims(embedding) FROM qbench.test_documents LIMIT 1"
    )
    move(clean_database, B, ranges)
    assert rows(clean_database, "SELECT * FROM public.mine") == [(32,)]
    execute(clean_database, "DROP VIEW public.mine")


# Queries by the wrong model


def test_a_query_by_another_model_is_refused(clean_database: Database, ranges: list[CaseRange]) -> None:
    fill_space(clean_database, TWIN, ranges)
    vector = embed(["Log in as user 7"], 64)[0]
    for steps in (False, True):
        for moved, wrong in ((None, TWIN), (TWIN, A)):
            if moved is not None:
                move(clean_database, moved, ranges)
            right = moved or A
            assert search(clean_database, vector, 3, Filters(), steps=steps, model=right.model)
            assert search(clean_database, vector, 3, Filters(), steps=steps), "nobody said which model: unknown"
            with pytest.raises(DatabaseError) as raised:
                search(clean_database, vector, 3, Filters(), steps=steps, model=wrong.model)
            told = str(raised.value)
            assert f"was made by {wrong.model}, the active space {right.name} by {right.model}" in told
            assert f"Embed the query with {right.model} in 64 dimensions" in told
            with pytest.raises(DatabaseError, match=f"32 dimensions.*has 64.*Embed the query with {right.model}"):
                search(clean_database, vector[:32], 3, Filters(), steps=steps)
        move(clean_database, A, ranges)
    described = (
        "SELECT obj_description(oid) FROM pg_proc "
        "WHERE pronamespace = 'qbench'::regnamespace AND 'query_model' = ANY (proargnames)"
    )
    assert all("cannot be told from a right one" in text for (text,) in rows(clean_database, described))


def test_functions_of_an_older_version_are_renewed(clean_database: Database, ranges: list[CaseRange]) -> None:
    execute(clean_database, "DROP FUNCTION qbench.search_documents, qbench.search_steps")
    for name in ("search_documents", "search_steps"):  # as they were before query_model
        execute(
            clean_database,
            f"CREATE FUNCTION qbench.{name}(query_vector halfvec, k integer DEFAULT 10, a text[] DEFAULT NULL, "
            "b text[] DEFAULT NULL, c text[] DEFAULT NULL, d text[] DEFAULT NULL, e text DEFAULT NULL, "
            "f bigint[] DEFAULT NULL) RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        )
    execute(clean_database, "UPDATE store.spaces SET face_hash = 'of another version'")
    with pytest.raises(DatabaseError, match="those of another version of qbench: `qbench run` renews them"):
        search(clean_database, embed(["x"], 64)[0], 1, Filters())
    assert publish_face(clean_database, A) is True
    reads_are_on(clean_database, A)
    move(clean_database, B, ranges)
    leftover = "SELECT count(*) FROM pg_proc WHERE pronamespace = 'store'::regnamespace AND proname LIKE 'retired%'"
    assert rows(clean_database, leftover) == [(0,)]


# Readers while reads move


class Reader(threading.Thread):
    """Asks one question again and again, as the application would: prepared, on a connection of its own."""

    def __init__(
        self, url: str, question: str, values: dict[str, Any], right: set[Any], allowed: tuple[str, ...]
    ) -> None:
        super().__init__(daemon=True)
        self.url, self.question, self.values, self.right, self.allowed = url, question, values, right, allowed
        self.answers: dict[Any, int] = {}
        self.errors: list[str] = []
        self.ended = threading.Event()

    def run(self) -> None:
        with psycopg.connect(self.url, autocommit=True, application_name="hammer") as connection:
            connection.execute("SET ROLE qbench_reader")
            while not self.ended.is_set():
                try:
                    answer: Any = connection.execute(self.question, self.values).fetchall()[0]  # type: ignore[call-overload]
                except psycopg.Error as error:
                    answer = next((text for text in self.allowed if text in str(error)), None)
                    if answer is None:
                        self.errors.append(f"{self.question}: {error.sqlstate} {error}")
                        return
                self.answers[answer] = self.answers.get(answer, 0) + 1


def answered_since(hammers: list[Reader]) -> None:
    """Wait until each has asked and been answered: two answers, for the first may have been asked before."""
    before = {hammer: sum(hammer.answers.values()) for hammer in hammers}
    deadline = time.monotonic() + 30
    while any(hammer.is_alive() and sum(list(hammer.answers.values())) < before[hammer] + 2 for hammer in hammers):
        assert time.monotonic() < deadline, "a reader is stuck"
        time.sleep(0.005)


def readers(url: str, *spaces: Space) -> Iterator[Reader]:
    """Of the views and functions, each with what it may see: either space, whole."""
    for view, count in (("test_documents", 40), ("test_steps", 80)):
        yield Reader(
            url, f"SELECT count(*), min(vector_dims(embedding)), max(vector_dims(embedding)) FROM qbench.{view}", {},
            {(count, space.dimensions, space.dimensions) for space in spaces}, (),
        )  # fmt: skip
    for space in spaces:
        vector = vector_text(LexicalEmbedder(space.dimensions).embed(["Log in as user 7\nUser 7 exists"])[0])
        # To the one that is not active it is a query by the wrong model, and that is all it may be told.
        refused = tuple(
            f"the active space {other.name} by {other.model}" for other in spaces if other.model != space.model
        )
        for first, then, asked, right in (
            ("search_steps", "search_documents", "min(r.test_case_id) FILTER (WHERE r.similarity > 0.99)", (40, 7)),
            ("search_documents", "search_steps", "max(r.cases)", (40, 1)),
        ):
            # Both functions are found when the query begins. The second is called after a nap, and after the first has
            # made the session take note of what changed meanwhile: whatever goes wrong there would else be seen once in
            # a thousand moves. `vector` is cast to halfvec where need be.
            question = f"""
                SELECT count(*), {asked}
                FROM (SELECT length(pg_sleep(0.02)::text) AS zero OFFSET 0) nap,
                     LATERAL (SELECT count(*) AS one FROM qbench.{first}(%(vector)s::vector, 1 + nap.zero,
                                                                    query_model => %(model)s)) f,
                     LATERAL qbench.{then}(%(vector)s::vector, (39 + f.one)::integer, query_model => %(model)s) r"""
            yield Reader(url, question, {"vector": vector, "model": space.model}, {right, *refused}, refused)


@pytest.mark.parametrize("spaces", [(A, B), (A, TWIN), (A, FLOAT)], ids=["dimensions", "models", "types"])
def test_readers_see_either_space_and_never_an_error(
    clean_database: Database, ranges: list[CaseRange], spaces: tuple[Space, Space]
) -> None:
    first, second = spaces
    fill_space(clean_database, second, ranges)
    hammers = list(readers(clean_database.url, *spaces))
    for hammer in hammers:
        hammer.start()
    try:
        move(clean_database, second, ranges)
        for _ in range(19):
            answered_since(hammers)
            back(clean_database)
        answered_since(hammers)
    finally:
        for hammer in hammers:
            hammer.ended.set()
    for hammer in hammers:
        hammer.join(30)
        assert hammer.errors == []
        assert set(hammer.answers) == hammer.right, hammer.question
    reads_are_on(clean_database, first)
    assert rows(clean_database, "SELECT count(*) FROM store.cutovers") == [(20,)]


def test_a_reader_that_does_not_let_go_holds_up_nobody_else(
    clean_database: Database, ranges: list[CaseRange], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for a lock makes all later readers queue behind it: so it waits 0.2 s, and again."""
    monkeypatch.setattr("qbench_dagster.adapters.publishing.PATIENCE_S", 1.5)
    with psycopg.connect(clean_database.url) as slow, psycopg.connect(clean_database.url, autocommit=True) as quick:
        quick.execute("SET statement_timeout = '5s'")  # a reader that had to wait for the slow one would end here
        slow.execute("SELECT count(*) FROM qbench.test_steps")
        failed: list[DatabaseError] = []

        def moving() -> None:
            try:
                move(clean_database, B, ranges)
            except DatabaseError as error:
                failed.append(error)

        mover = threading.Thread(target=moving)
        mover.start()
        answered = 0
        while mover.is_alive():
            for view in ("test_documents", "test_steps"):
                quick.execute(f"SELECT count(*) FROM qbench.{view}")  # type: ignore[call-overload]
                answered += 1
        mover.join()
        assert answered > 10
        assert "are being read without a pause" in str(failed[0])
        reads_are_on(clean_database, A)
    assert move(clean_database, B, ranges).moved


def test_publishing_waits_for_a_cut_over_and_follows_it(clean_database: Database, ranges: list[CaseRange]) -> None:
    """A case whose vectors are in B alone is not published while A is read, and is once B is."""
    execute(clean_database, "UPDATE staging.test_documents SET doc_hash = 'changed' WHERE case_id = 1")
    execute(clean_database, f"DELETE FROM {A.name}.doc_embeddings WHERE text_hash = "
            "(SELECT text_hash FROM staging.test_documents WHERE case_id = 1)")  # fmt: skip
    assert publish_cases(clean_database, A, ranges[0]).written == 0
    done: list[int] = []
    publishing = threading.Thread(target=lambda: done.append(publish_cases(clean_database, A, ranges[0]).written))
    with clean_database.exclusive("public face"):  # as the cut-over holds it
        publishing.start()
        deadline = time.monotonic() + 20
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory' AND datname = current_database()"
        while rows(clean_database, waits) == [(0,)]:
            assert time.monotonic() < deadline, "it did not wait"
        execute(clean_database, "UPDATE store.spaces SET active = false")
        execute(clean_database, "UPDATE store.spaces SET active = true WHERE name = %s", B.name)
    publishing.join(20)
    assert done == [1]


KILLED = """
import sys
from qbench_dagster.adapters.cutover import cut_back
from qbench_dagster.adapters.postgres import Database
from qbench_dagster.core.indexes import IndexSettings
settings = IndexSettings("exact", 16, 64, 100)
with Database(sys.argv[1]) as database:
    while True:
        cut_back(database, settings, by="killed", building=lambda *_: None)
        print("moved", flush=True)
"""


def test_killed_anywhere_it_is_before_or_after(clean_database: Database, ranges: list[CaseRange]) -> None:
    move(clean_database, B, ranges)
    random = np.random.default_rng(729)
    seen = set()
    for _ in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, clean_database.url], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "moved\n"
            time.sleep(random.uniform(0, 0.15))
            process.kill()
        gone = (
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'qbench %%' AND state = 'active' "
            "AND datname = current_database() AND application_name <> 'qbench test'"
        )
        deadline = time.monotonic() + 20
        while rows(clean_database, gone) != [(0,)]:
            assert time.monotonic() < deadline
        ((to_space,),) = rows(clean_database, "SELECT to_space FROM store.cutovers ORDER BY id DESC LIMIT 1")
        seen.add(to_space)
        reads_are_on(clean_database, {A.name: A, B.name: B}[to_space])
    assert back(clean_database).moved, "no lock was left"
    assert seen <= {A.name, B.name}


def test_killed_in_the_middle_it_is_as_before(clean_database: Database, ranges: list[CaseRange]) -> None:
    """Some views are replaced already, one is being read: there it waits, and is killed."""
    move(clean_database, B, ranges)
    with psycopg.connect(clean_database.url) as slow:
        slow.execute("SELECT count(*) FROM qbench.test_related_issues")
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, clean_database.url], stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            assert "are being read; trying again" in process.stderr.readline()
            process.kill()
        slow.rollback()
    reads_are_on(clean_database, B)
    assert back(clean_database).moved
    reads_are_on(clean_database, A)


# The list, and dropping


def test_the_list_tells_what_each_space_holds_and_cost(clean_database: Database, ranges: list[CaseRange]) -> None:
    with clean_database.connection("test") as connection:
        account = Account("run 1", usd_per_million=0.13)
        entry = reserve(connection, B.name, "doc", "other-v1", account, texts=40, tokens=1000)
        settle(connection, entry, account, state="answered", tokens=2_000_000)
    execute(
        clean_database,
        "INSERT INTO store.batches (id, space, kind, model, state, request_id, texts, lines, tokens) SELECT "
        "gen_random_uuid(), %s, 'doc', 'other-v1', unnest(ARRAY['submitted', 'taken_in']), %s, 1, 1, 1",
        B.name, entry,
    )  # fmt: skip
    execute(clean_database, f"DELETE FROM {B.name}.step_embeddings WHERE text_hash IN "
            f"(SELECT text_hash FROM {B.name}.step_embeddings LIMIT 1)")  # fmt: skip
    old = replace(TWIN, name="space_twin_64_r0")
    ensure_space(clean_database, old)
    execute(clean_database, "UPDATE store.spaces SET recipe = 0, text_prefix = 'passage: ' WHERE name = %s", old.name)
    a, b, c = list_spaces(clean_database)
    assert [(space["text_prefix"], space["query_prefix"]) for space in (b, c)] == [("", ""), ("passage: ", "")]
    assert [space["name"] for space in (a, b, c)] == [A.name, B.name, old.name]
    assert (a["active"], a["documents"], a["steps"], a["coverage_percent"]) == (True, 40, 80, 100)
    assert (a["provenance"], a["usd"], a["tokens"]) == ({"lexical": 120}, 0, 0)
    assert (b["active"], b["documents"], b["steps"], b["coverage_percent"]) == (False, 40, 79, 99.16)
    assert (b["model"], b["dimensions"], b["vector_type"]) == ("other-v1", 32, "halfvec")
    assert (round(b["usd"], 6), b["tokens"], b["requests"]) == (0.26, 2_000_000, 1)
    assert (a["open_batches"], b["open_batches"]) == (0, 1)
    assert (c["documents"], c["coverage_percent"], c["provenance"], c["recipe"]) == (0, 0, {}, 0)
    assert a["bytes"] > a["index_bytes"] > 0
    assert a["recall"] == b["recall"] == {}
    fill_space(clean_database, B, ranges)
    move(clean_database, B, ranges)
    a, b, c = list_spaces(clean_database)
    assert (a["active"], a["previous"], b["active"], b["previous"], c["previous"]) == (False, True, True, False, False)
    assert b["recall"]["doc"]["stored"] == b["recall"]["step"]["perturbed"] == b["recall"]["doc"]["crossed"] == 1
    execute(clean_database, "TRUNCATE store.test_documents CASCADE")
    assert [space["coverage_percent"] for space in list_spaces(clean_database)] == [None, None, None]


def test_what_is_not_read_can_be_dropped(clean_database: Database, ranges: list[CaseRange]) -> None:
    with pytest.raises(DatabaseError, match=r"There is no embedding space nonsense. There are: space_lexical_64"):
        purge(clean_database, "nonsense")
    with pytest.raises(DatabaseError, match=r"is what the application reads. Move reads first: qbench cutover"):
        purge(clean_database, A.name)
    execute(clean_database, f"CREATE VIEW public.mine AS SELECT text_hash FROM {B.name}.doc_vectors")
    with pytest.raises(DatabaseError, match=r"space_other_32 is read by .*mine. Drop them first"):
        purge(clean_database, B.name)
    execute(clean_database, "DROP VIEW public.mine")
    with clean_database.connection("test") as connection:
        reserve(connection, A.name, "doc", A.model, Account("run 1", 0.13), texts=1, tokens=10)
    move(clean_database, B, ranges)
    (before,) = [space for space in list_spaces(clean_database) if space["name"] == A.name]
    assert purge(clean_database, A.name) == {"name": A.name, "bytes": before["bytes"]}
    assert before["bytes"] > 40 * 64 * 2
    assert rows(clean_database, "SELECT to_regnamespace(%s)", A.name) == [(None,)]
    assert [space["name"] for space in list_spaces(clean_database)] == [B.name]
    assert rows(clean_database, "SELECT DISTINCT space FROM store.index_builds") == [(B.name,)]
    assert rows(clean_database, "SELECT space FROM store.embedding_requests") == [(A.name,)]
    reads_are_on(clean_database, B)
    with pytest.raises(DatabaseError, match=r"There is no embedding space space_lexical_64. There are: space_other_32"):
        back(clean_database)
    fill_space(clean_database, A, ranges)  # made anew, it is like any other
    assert back(clean_database).to_space == A.name
    reads_are_on(clean_database, A)
