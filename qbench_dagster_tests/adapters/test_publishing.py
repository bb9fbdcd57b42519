"""The store and its public face: complete cases or none, written only where they changed, read by one role."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest

from qbench_dagster.adapters.postgres import Database, DatabaseError
from qbench_dagster.adapters.publishing import (
    column_types,
    incomplete_cases,
    partition_counts,
    publish_cases,
    publish_face,
)
from qbench_dagster.adapters.space import KINDS, Space, ensure_space
from qbench_dagster.core.ranges import ranges_of
from qbench_dagster.core.tally import Embedded, Embedding
from qbench_dagster_tests.support import (
    CASE_COLUMNS,
    EXACT,
    SPACE,
    Outcome,
    case,
    execute,
    fill_space,
    rows,
    run_pipeline,
    write_export,
)

WHOLE = ranges_of(["from_0000000729"])["from_0000000729"]
OTHER = Space("space_other_32", "lexical-v1", 32, "halfvec")
TABLES = ("test_documents", "test_steps", "test_preconditions", "test_related_issues")

CASES = [
    case(729, "Log in", section_id=11, steps_separated=[{"content": "Open", "expected": "Shown"}, {"content": "Type"}],
         preconditions="A user\nA password", refs="PROJ-1, PROJ-2", comment="Short", is_automated=1,
         custom_fields={"custom_tags": "smoke, web", "custom_platform": ["iOS"], "odd": [1, {"a": None}]}),
    case(800, "Log out", steps_separated=[{"content": "Press log out", "expected": "Gone"}], refs="#12"),
    case(900, "Nothing to do"),
    case(901, "   "),
]  # fmt: skip

# Section 3 of seeds/000: the columns the application expects, and those beyond them.
COLUMNS = {
    "test_documents": [
        "id", "test_case_id", "uid", "jira_key", "title", "description", "summary", "embedding", "test_type",
        "priority", "platforms", "tags", "folder_structure", "suite_id", "section_id", "project_id", "source",
        "ingested_at", "updated_at",
        "is_automated", "refs", "custom_fields", "source_created_at", "source_updated_at",
    ],
    "test_steps": ["id", "test_document_id", "test_case_id", "step_index", "action", "expected", "data", "embedding"],
    "test_preconditions": ["id", "test_document_id", "test_case_id", "condition", "order_index"],
    "test_related_issues": ["id", "test_document_id", "test_case_id", "issue_key", "issue_type"],
}  # fmt: skip


def run(database: Database, folder: Path, cases: list[dict[str, Any]] = CASES, **options: Any) -> Outcome:
    return run_pipeline(database, write_export(folder / "export.db", cases, **options), index=EXACT, max_delete_share=1)


def store(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    """All published rows with their versions."""
    return {
        table: rows(
            database, f"SELECT t.test_case_id, xmin::text, to_jsonb(t) FROM store.{table} t ORDER BY 1, 3::text"
        )
        for table in TABLES
    }


def of(stored: dict[str, list[tuple[Any, ...]]], *case_ids: int) -> dict[str, list[tuple[Any, ...]]]:
    return {table: [row for row in found if row[0] in case_ids] for table, found in stored.items()}


# What is published


def test_a_case_is_published_with_all_that_belongs_to_it(clean_database: Database, tmp_path: Path) -> None:
    outcome = run(clean_database, tmp_path)
    done = outcome.published[WHOLE.key]
    assert (done.source_cases, done.published, done.rejected, done.incomplete) == (4, 3, 1, 0)
    assert (done.written, done.steps, done.rows_written) == (3, 3, 3 + 3 + 2 + 3 + 3)
    assert rows(
        clean_database,
        """SELECT id, test_case_id, uid, jira_key, title, description, summary, test_type, priority, platforms, tags,
                  folder_structure, suite_id, section_id, project_id, source, is_automated, refs, custom_fields,
                  vector_dims(embedding), extract(epoch FROM source_created_at)::int
           FROM qbench.test_documents WHERE test_case_id = 729""",
    ) == [(729, 729, "testrail_729", "PROJ-1", "Log in", "A user\nA password", "Short", "Regression", "Medium", ["iOS"],
           ["smoke", "web"], "Accounts/Login", 1, 11, 3, "testrail", True, "PROJ-1, PROJ-2",
           {"custom_tags": "smoke, web", "custom_platform": ["iOS"], "odd": [1, {"a": None}]}, 64,
           1_500_000_000)]  # fmt: skip
    assert rows(
        clean_database,
        """SELECT id, test_document_id, test_case_id, step_index, action, expected, data, vector_dims(embedding)
           FROM qbench.test_steps WHERE test_case_id = 729 ORDER BY step_index""",
    ) == [
        (729 * 65536 + 1, 729, 729, 1, "Open", ["Shown"], None, 64),
        (729 * 65536 + 2, 729, 729, 2, "Type", [], None, 64),
    ]
    assert rows(
        clean_database, "SELECT * FROM qbench.test_preconditions ORDER BY order_index"
    ) == [(729 * 65536, 729, 729, "A user", 0), (729 * 65536 + 1, 729, 729, "A password", 1)]  # fmt: skip
    assert rows(clean_database, "SELECT * FROM qbench.test_related_issues ORDER BY id") == [
        (729 * 65536, 729, 729, "PROJ-1", "jira"), (729 * 65536 + 1, 729, 729, "PROJ-2", "jira"),
        (800 * 65536, 800, 800, "#12", "number"),
    ]  # fmt: skip


def test_ids_are_the_same_in_another_order_and_another_run(clean_database: Database, tmp_path: Path) -> None:
    query = "SELECT id, test_case_id FROM qbench.{} ORDER BY id"
    run(clean_database, tmp_path)
    first = {table: rows(clean_database, query.format(table)) for table in TABLES}
    execute(clean_database, "TRUNCATE store.test_documents CASCADE")
    run(clean_database, tmp_path, list(reversed(CASES)))
    assert {table: rows(clean_database, query.format(table)) for table in TABLES} == first
    assert all(len({row[0] for row in found}) == len(found) > 0 for found in first.values())


@pytest.mark.parametrize("table", TABLES)
def test_the_views_have_the_columns_the_application_expects(
    clean_database: Database, tmp_path: Path, table: str
) -> None:
    run(clean_database, tmp_path)
    columns = dict(column_types(clean_database, "qbench", table))
    assert list(columns) == COLUMNS[table]
    assert columns.get("embedding", "halfvec") == "halfvec"
    expected = {"id": "bigint", "test_case_id": "bigint", "platforms": "text[]", "expected": "text[]",
                "custom_fields": "jsonb", "is_automated": "boolean",
                "source_updated_at": "timestamp with time zone"}  # fmt: skip
    assert {name: kind for name, kind in columns.items() if expected.get(name, kind) != kind} == {}


# Complete or not at all


@pytest.mark.parametrize("kind", KINDS)
def test_a_case_is_published_when_its_last_vector_is_there(clean_database: Database, tmp_path: Path, kind: str) -> None:
    run(clean_database, tmp_path)
    execute(clean_database, "TRUNCATE store.test_documents CASCADE")
    lost = {"doc": "staging.test_documents WHERE case_id = 729",
            "step": "staging.test_steps WHERE case_id = 729 AND step_index = 2"}[kind]  # fmt: skip
    execute(
        clean_database, f"DELETE FROM {SPACE.name}.{kind}_embeddings WHERE text_hash = (SELECT text_hash FROM {lost})"
    )
    done = publish_cases(clean_database, SPACE, WHOLE)
    assert (done.published, done.written, done.incomplete, done.rejected, done.source_cases) == (2, 2, 1, 1, 4)
    assert incomplete_cases(clean_database, WHOLE) == [729]
    held = partition_counts(clean_database, [WHOLE])[WHOLE.key]
    assert not held.balanced
    assert "4 source cases, 2 published, 1 rejected; 1 are not published as they are now" in held.shortfall()
    assert "materialise doc_embeddings and step_embeddings" in held.shortfall()
    for table in TABLES:
        assert rows(clean_database, f"SELECT count(*) FROM store.{table} WHERE test_case_id = 729") == [(0,)]

    fill_space(clean_database, SPACE, [WHOLE])
    done = publish_cases(clean_database, SPACE, WHOLE)
    assert (done.published, done.written, done.incomplete) == (3, 1, 0)
    assert partition_counts(clean_database, [WHOLE])[WHOLE.key].balanced


def test_a_changed_case_stays_as_it_was_until_its_vectors_are_there(clean_database: Database, tmp_path: Path) -> None:
    run(clean_database, tmp_path)
    before = store(clean_database)

    def nothing(*arguments: Any) -> None:
        done: Embedding = arguments[-1]
        done.partitions[WHOLE.key] = Embedded()

    with pytest.MonkeyPatch.context() as patch:  # publishing comes before embedding
        patch.setattr("qbench_dagster_tests.support.embed_missing", nothing)
        done = run(clean_database, tmp_path, [{**CASES[0], "title": "Without a vector"}, *CASES[1:]]).published[
            WHOLE.key
        ]
    assert (done.written, done.incomplete, done.published) == (0, 1, 3)
    assert incomplete_cases(clean_database, WHOLE) == [729]
    assert store(clean_database) == before


# Written only where something changed


def test_unchanged_rows_are_not_touched(clean_database: Database, tmp_path: Path) -> None:
    run(clean_database, tmp_path)
    before = store(clean_database)
    again = run(clean_database, tmp_path).published[WHOLE.key]
    assert (again.written, again.removed, again.rows_written, again.published) == (0, 0, 0, 3)
    assert store(clean_database) == before


def test_a_change_rewrites_the_rows_of_its_case_alone(clean_database: Database, tmp_path: Path) -> None:
    run(clean_database, tmp_path)
    before = store(clean_database)
    ingested = "SELECT test_case_id, ingested_at FROM store.test_documents ORDER BY 1"
    first_seen = rows(clean_database, ingested)
    other = json.dumps([{"content": "Other", "expected": ""}])
    changed = {**CASES[0], "steps_separated": other, "preconditions": None, "refs": "PROJ-3"}
    done = run(clean_database, tmp_path, [changed, *CASES[1:]]).published[WHOLE.key]
    assert (done.written, done.removed, done.rows_written) == (1, 0, 1 + 1 + 0 + 1 + 1)
    after = store(clean_database)
    assert of(after, 800, 900) == of(before, 800, 900)
    assert [row[2]["action"] for row in of(after, 729)["test_steps"]] == ["Other"]
    assert of(after, 729)["test_preconditions"] == []
    assert [row[2]["issue_key"] for row in of(after, 729)["test_related_issues"]] == ["PROJ-3"]
    assert rows(clean_database, ingested) == first_seen, "ingested_at says when a case first came"
    touched = "SELECT test_case_id FROM store.test_documents WHERE updated_at > ingested_at"
    assert rows(clean_database, touched) == [(729,)]


def test_removed_and_newly_rejected_cases_leave_with_all_their_rows(clean_database: Database, tmp_path: Path) -> None:
    run(clean_database, tmp_path)
    before = store(clean_database)
    done = run(clean_database, tmp_path, [{**CASES[0], "title": "\t"}, CASES[2], CASES[3]]).published[WHOLE.key]
    assert (done.removed, done.published, done.rejected, done.source_cases) == (2, 1, 2, 3)
    after = store(clean_database)
    assert of(after, 729, 800) == {table: [] for table in TABLES}
    assert of(after, 900) == of(before, 900)
    assert rows(clean_database, "SELECT test_case_id FROM qbench.test_documents") == [(900,)]
    back = run(clean_database, tmp_path)
    assert (back.published[WHOLE.key].written, back.texts_embedded) == (2, 0), "their vectors were kept"


def test_a_range_publishes_and_removes_its_own_cases_alone(clean_database: Database, tmp_path: Path) -> None:
    run(clean_database, tmp_path)
    before = store(clean_database)
    low, high = ranges_of(["from_0000000729", "from_0000000800"]).values()
    execute(clean_database, "DELETE FROM staging.test_documents")
    assert publish_cases(clean_database, SPACE, high).removed == 2
    assert of(store(clean_database), 729) == of(before, 729)
    assert publish_cases(clean_database, SPACE, low).removed == 1


def test_a_failure_in_the_middle_publishes_nothing(clean_database: Database, tmp_path: Path) -> None:
    run(clean_database, tmp_path)
    before = store(clean_database)
    execute(
        clean_database,
        "ALTER TABLE store.test_related_issues ADD CONSTRAINT planted CHECK (issue_key <> 'PLANTED-1')",
    )
    try:
        with pytest.raises(psycopg.errors.CheckViolation, match="planted"):
            run(clean_database, tmp_path, [{**CASES[0], "title": "New", "refs": "PLANTED-1"}, *CASES[2:]])
    finally:
        execute(clean_database, "ALTER TABLE store.test_related_issues DROP CONSTRAINT planted")
    assert store(clean_database) == before


# The public face


def test_the_face_is_made_once(clean_database: Database, tmp_path: Path) -> None:
    run(clean_database, tmp_path)
    objects = "SELECT oid, xmin::text FROM pg_proc WHERE pronamespace = 'qbench'::regnamespace ORDER BY 1"
    before = rows(clean_database, objects)
    assert len(before) == 5
    assert publish_face(clean_database, SPACE) is False
    assert rows(clean_database, objects) == before
    execute(clean_database, "UPDATE store.spaces SET face_hash = 'of another version'")
    assert publish_face(clean_database, SPACE) is True
    assert publish_face(clean_database, SPACE) is False


def test_publishing_never_moves_reads(clean_database: Database, tmp_path: Path) -> None:
    outcome = run(clean_database, tmp_path)
    fill_space(clean_database, OTHER, outcome.ranges.values())  # complete, and still only a candidate
    execute(clean_database, "UPDATE store.spaces SET face_hash = 'of another version'")
    for renewed in (True, False):
        assert publish_face(clean_database, OTHER) is renewed
        assert rows(clean_database, "SELECT DISTINCT vector_dims(embedding) FROM qbench.test_documents") == [(64,)]
        assert rows(clean_database, "SELECT name FROM store.spaces WHERE active") == [(SPACE.name,)]


def test_the_first_space_is_activated_by_itself(clean_database: Database, tmp_path: Path) -> None:
    ensure_space(clean_database, SPACE)
    ensure_space(clean_database, OTHER)
    assert rows(clean_database, "SELECT name FROM store.spaces WHERE active") == []
    assert publish_face(clean_database, OTHER) is True
    assert rows(clean_database, "SELECT * FROM qbench.active_space") == [(OTHER.name, "lexical-v1", 32, "halfvec", "")]


def test_a_case_is_published_when_the_active_space_has_its_vectors(clean_database: Database, tmp_path: Path) -> None:
    """Whatever space the settings name: else the case would be missing from the views, which join the active one."""
    outcome = run(clean_database, tmp_path)
    shown = "SELECT title FROM qbench.test_documents WHERE test_case_id = 729"
    changed = [{**CASES[0], "title": "Another title"}, *CASES[1:]]
    done = run_pipeline(
        clean_database, write_export(tmp_path / "export.db", changed), space=OTHER, index=EXACT, max_delete_share=1
    ).published[WHOLE.key]
    assert (done.written, done.incomplete, done.published) == (0, 1, 3)
    assert rows(clean_database, shown) == [("Log in",)]
    fill_space(clean_database, SPACE, outcome.ranges.values())
    done = publish_cases(clean_database, OTHER, WHOLE)
    assert (done.written, done.incomplete, done.published) == (1, 0, 3)
    assert rows(clean_database, shown) == [("Another title",)]


def test_what_the_views_show_is_not_kept_from_readers_by_one_who_does_not_let_go(
    clean_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(clean_database, tmp_path)
    monkeypatch.setattr("qbench_dagster.adapters.publishing.PATIENCE_S", 0.3)
    execute(clean_database, "UPDATE store.spaces SET face_hash = 'of another version'")
    counted = "SELECT count(*) FROM qbench.test_documents"
    with psycopg.connect(clean_database.url, application_name="a dashboard") as idle:
        idle.execute(counted)
        with pytest.raises(DatabaseError, match=r"Held by: pid \d+ \(\w+, a dashboard, idle in transaction"):
            publish_face(clean_database, SPACE)
        assert rows(clean_database, "SELECT face_hash FROM store.spaces") == [(b"of another version",)]
        assert rows(clean_database, counted) == [(3,)]
    assert publish_face(clean_database, SPACE) is True


def test_lost_rights_of_the_reader_are_given_back(clean_database: Database, tmp_path: Path) -> None:
    run(clean_database, tmp_path)
    may = "SELECT has_schema_privilege('qbench_reader', 'qbench', 'USAGE')"
    execute(clean_database, "REVOKE USAGE ON SCHEMA qbench FROM qbench_reader")
    assert rows(clean_database, may) == [(False,)]
    assert publish_face(clean_database, SPACE) is True
    assert rows(clean_database, may) == [(True,)]


# The reader


@pytest.fixture
def reader(clean_database: Database, tmp_path: Path) -> Any:
    """A connection that is qbench_reader, in a database where something is published."""
    run(clean_database, tmp_path)
    with psycopg.connect(clean_database.url, autocommit=True) as connection:
        connection.execute("SET ROLE qbench_reader")
        yield connection


def test_the_reader_reads_the_views_and_searches(reader: psycopg.Connection) -> None:
    for view in (*TABLES, "active_space"):
        assert reader.execute(f"SELECT count(*) FROM qbench.{view}").fetchone() != (0,)  # type: ignore[call-overload]
    for function in ("search_documents", "search_steps"):
        query = f"""SELECT r.test_case_id FROM qbench.test_documents d, qbench.{function}(d.embedding) r
                    WHERE d.test_case_id = 800 LIMIT 1"""
        assert reader.execute(query).fetchone() is not None  # type: ignore[call-overload]


OTHER_ROOMS = [
    "landing.cases", "landing.rejected_rows", "landing.sections", "staging.test_documents", "staging.test_steps",
    "staging.rejects", "store.test_documents", "store.test_steps", "store.spaces", "store.parity_reports",
    f"{SPACE.name}.doc_embeddings", f"{SPACE.name}.step_embeddings", f"{SPACE.name}.doc_vectors",
    "store.schema_versions",
]  # fmt: skip


def test_the_reader_sees_no_other_room(reader: psycopg.Connection) -> None:
    for table in OTHER_ROOMS:
        for query in ("SELECT * FROM {}", "SELECT count(*) FROM {}", "DELETE FROM {}", "TRUNCATE {}"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                reader.execute(query.format(table))  # type: ignore[call-overload]


WRITES = [
    *(f"DELETE FROM qbench.{view}" for view in TABLES),
    *(f"UPDATE qbench.{view} SET test_case_id = 1" for view in TABLES),
    "UPDATE qbench.active_space SET model = 'mine'",
    "SELECT * FROM store.cutovers",
    "INSERT INTO qbench.test_preconditions (test_case_id, order_index, condition) VALUES (729, 9, 'x')",
    "CREATE TABLE qbench.mine (id int)",
    "CREATE TABLE public.mine (id int)",
    "CREATE SCHEMA mine",
    "CREATE ROLE mine",
    "DROP VIEW qbench.test_documents",
    "DROP FUNCTION qbench.search_documents",
    "SELECT store.matches(NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL)",
    "COPY qbench.test_documents TO PROGRAM 'true'",
]


def test_the_reader_changes_nothing(reader: psycopg.Connection, clean_database: Database) -> None:
    before = store(clean_database)
    for query in WRITES:
        # Nobody can write to a view that joins two tables; to the other two the role may not.
        with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.ObjectNotInPrerequisiteState)):
            reader.execute(query)  # type: ignore[call-overload]
    assert store(clean_database) == before


def test_a_search_function_of_the_readers_own_is_never_called(reader: psycopg.Connection) -> None:
    """SECURITY DEFINER functions have to name every schema: a temporary table must not take a room's place."""
    reader.execute("CREATE TEMPORARY TABLE test_documents (test_case_id bigint, title text)")
    reader.execute(
        "CREATE TEMPORARY TABLE spaces AS SELECT 'none' AS strategy, 1 AS ef_search, 1 AS dimensions, true AS active"
    )
    found = reader.execute(
        "SELECT r.title FROM qbench.test_documents d, qbench.search_documents(d.embedding) r "
        "WHERE d.test_case_id = 800 LIMIT 1"
    ).fetchone()
    assert found == ("Log out",)


def test_one_odd_row_stops_nobody(clean_database: Database, tmp_path: Path) -> None:
    def long(length: int) -> str:  # neither compressible nor split into labels
        return (
            "".join(chr(33 + n * n * 7919 % 83) for n in range(2 * length)).replace(",", "").replace(";", "")[:length]
        )

    odd = case(800, priority_id=long(6000), type_id=long(6000), section_id=11,
               preconditions="\n".join(f"Row {n}." for n in range(1, 70_001)),
               refs=", ".join(f"KEY-{n}" for n in range(1, 70_001)),
               custom_fields={"jira_key": long(6000), "custom_tags": [long(12_000), "smoke"],
                              "custom_platform": [long(12_000)]})  # fmt: skip
    cases = [case(729), odd, {**odd, "id": 801}, *(case(n) for n in range(900, 910))]
    sections = [(10, long(9000), None), (11, long(3000), 10)]
    outcome = run(
        clean_database, tmp_path, cases, sections=sections, columns={**CASE_COLUMNS, "priority_id": "", "type_id": ""}
    )
    done = outcome.published[WHOLE.key]
    assert (done.source_cases, done.published, done.rejected, done.incomplete) == (13, 13, 0, 0)
    folder = rows(clean_database, "SELECT DISTINCT folder_structure FROM store.test_documents WHERE test_case_id = 800")
    found = rows(
        clean_database,
        """SELECT test_case_id, length(priority), length(jira_key), tags, platforms,
                  length(custom_fields -> 'custom_tags' ->> 0),
                  (SELECT count(*) FROM store.test_preconditions p WHERE p.test_case_id = d.test_case_id),
                  (SELECT string_agg(condition, ' ' ORDER BY order_index) LIKE E'Row 1. %%Row 65536.\\n%%Row 70000.'
                   FROM store.test_preconditions p WHERE p.test_case_id = d.test_case_id),
                  (SELECT count(*) FROM store.test_related_issues p WHERE p.test_case_id = d.test_case_id),
                  (SELECT count(*) FROM store.test_related_issues p
                   WHERE p.test_case_id = d.test_case_id AND issue_key LIKE 'KEY-%%, KEY-70000')
           FROM store.test_documents d
           WHERE priority = ANY (ARRAY[%s]) AND test_type = %s AND starts_with(folder_structure, %s)
             AND tags && ARRAY['smoke']
           ORDER BY 1""",
        long(6000), long(6000), folder[0][0],
    )  # fmt: skip
    assert found == [
        (case_id, 6000, 6000, ["smoke"], [], 12_000, 65_535, True, 65_535, 1) for case_id in (800, 801)
    ]  # fmt: skip
    (notes,) = rows(
        clean_database, "SELECT array_to_string(notes, ' | ') FROM staging.test_documents WHERE case_id = 800"
    )
    for part in ("12,000 characters are no label", "70,000 conditions", "references, those after 65,535"):
        assert part in notes[0]


@pytest.mark.parametrize(
    "predicate",
    ["priority = ANY (ARRAY['rare'])", "test_type = 'rare'", "jira_key = 'rare'",
     "starts_with(folder_structure, 'rare')", "tags && ARRAY['rare']", "suite_id = ANY (ARRAY[7])",
     "source_updated_at >= '2026-01-01'"],
)  # fmt: skip
def test_each_filter_has_its_index(clean_database: Database, predicate: str) -> None:
    with clean_database.connection("test") as connection, connection.transaction():
        connection.execute("SET LOCAL enable_seqscan = off")
        plan = connection.execute(f"EXPLAIN SELECT FROM store.test_documents WHERE {predicate}").fetchall()  # type: ignore[arg-type]
    assert "Index Cond" in str(plan)


@pytest.mark.parametrize(
    ("field", "value"),
    [("priority", "'{rare}'"), ("tags", "'{rare}'"), ("platforms", "'{rare}'"), ("test_type", "'{rare}'"),
     ("folder", "'rare'"), ("project", "'{7}'"), ("suite", "'{7}'"), ("updated_since", "'2026-01-01'")],
)  # fmt: skip
def test_the_filter_of_the_searches_is_the_plain_condition(clean_database: Database, field: str, value: str) -> None:
    """Inlined, with the filters that are not given gone: the planner sees the column, and so its index."""
    fields = ("priority", "tags", "platforms", "test_type", "folder", "project", "suite", "updated_since", "phrases")
    row = ", ".join(value if name == field else "NULL" for name in fields)
    with clean_database.connection("test") as connection, connection.transaction():
        connection.execute("SET LOCAL enable_seqscan = off")
        query = f"EXPLAIN SELECT FROM store.test_documents d WHERE store.matches(d, ROW({row})::store.filter)"
        plan = str(connection.execute(query).fetchall())  # type: ignore[call-overload]
    assert "Index Cond" in plan
    assert "matches" not in plan
    assert " OR " not in plan
