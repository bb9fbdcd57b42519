"""The parity report: a healthy database passes, and each fault planted in one is found, named, and never hidden."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from qbench_dagster.adapters import measuring
from qbench_dagster.adapters.comparing import ComparisonSettings
from qbench_dagster.adapters.embedded import start_server, stop_server
from qbench_dagster.adapters.indexing import ensure_index
from qbench_dagster.adapters.parity import (
    Evaluated,
    check_accounting,
    check_completeness,
    check_privileges,
    evaluate,
)
from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.publishing import column_types, publish_cases, ranges_due
from qbench_dagster.adapters.space import ensure_space
from qbench_dagster.adapters.sql import read_file
from qbench_dagster.core.indexes import IndexSettings
from qbench_dagster.core.ranges import CaseRange, ranges_of
from qbench_dagster_tests.support import SPACE, case, execute, rows, run_pipeline, write_export

HALFVEC = IndexSettings(strategy="halfvec", m=16, ef_construction=64, ef_search=100)
ACCOUNTING, WORDS, VALUES, VECTORS, RECALL, PRIVILEGES = (
    "source_is_published_or_rejected",
    "no_word_lost",
    "published_rows_are_what_was_staged",
    "vectors_complete_and_sound",
    "recall_reaches_target",
    "reader_has_least_privilege",
)
FILTERED = "filtered_search_is_complete"
COMPARED = ("vectors_are_those_of_their_texts", RECALL, FILTERED, "old_store_is_covered", "search_reaches_old_store")
FEW = ComparisonSettings(queries=2, target_recall=0.9)
"""What searches are compared with is tested in test_comparing.py."""  # fmt: skip
RANGES = list(ranges_of(["from_0000000001", "from_0000000050"]).values())
IN_EXPORT = 101
PUBLISHED = (
    "text_hash", "uid", "jira_key", "title", "description", "summary", "test_type", "priority", "platforms", "tags",
    "folder_structure", "suite_id", "section_id", "project_id", "source", "is_automated", "refs", "custom_fields",
    "source_created_at", "source_updated_at",
)  # fmt: skip


@pytest.fixture
def healthy(clean_database: Database, tmp_path: Path) -> Database:
    """100 published cases and a rejected one, in two partitions."""
    cases = [
        case(n, f"Case {n}", steps=f"Open page{n}\nPress button{n}", preconditions=f"User{n}", jiras=f"QA-{n}")
        for n in range(1, 101)
    ]
    path = write_export(tmp_path / "export.db", [*cases, case(101, " ")])
    run_pipeline(clean_database, path, index=HALFVEC, keys=[each.key for each in RANGES])
    return clean_database


def report(database: Database, ranges: list[CaseRange] = RANGES, **options: Any) -> Evaluated:
    target = options.pop("target_recall", FEW.target_recall)
    chosen: dict[str, Any] = {
        "rows_in_export": IN_EXPORT, "details": {}, "comparison": replace(FEW, target_recall=target), **options,
    }  # fmt: skip
    return evaluate(database, SPACE, ranges, progress=lambda _: None, **chosen)


def failed(evaluated: Evaluated) -> list[str]:
    names = [finding["name"] for finding in evaluated.report["findings"] if not finding["passed"]]
    assert evaluated.passed is (not names)
    return names


def offenders(evaluated: Evaluated, name: str) -> list[dict[str, Any]]:
    return next(list(finding["offenders"]) for finding in evaluated.report["findings"] if finding["name"] == name)


def numbers(evaluated: Evaluated, name: str) -> dict[str, Any]:
    return next(dict(finding["numbers"]) for finding in evaluated.report["findings"] if finding["name"] == name)


def test_a_healthy_database_passes(healthy: Database) -> None:
    found = report(healthy, details={"run_id": "r1"})
    assert found.fresh
    assert failed(found) == []
    assert [finding["name"] for finding in found.report["findings"]] == [
        ACCOUNTING,
        WORDS,
        VALUES,
        VECTORS,
        *COMPARED,
        PRIVILEGES,
    ]
    assert numbers(found, ACCOUNTING) == {
        "source_cases": 101, "published": 100, "rejected": 1, "rows_in_export": IN_EXPORT, "held": 0, "brought_back": 0,
    }  # fmt: skip
    assert numbers(found, WORDS) == {"compared": 100, "published": 100, "cases_with_lost_words": 0}
    assert numbers(found, VALUES) == {"compared": 100, "different": 0}
    assert numbers(found, VECTORS)["vectors"] == sum(
        rows(healthy, f"SELECT count(*) FROM {SPACE.name}.{kind}_embeddings")[0][0] for kind in ("doc", "step")
    )
    assert [row["key"] for row in found.report["partitions"]] == [each.key for each in RANGES]
    assert [(row["case_id"], row["reason"]) for row in found.report["rejects"]] == [(101, "blank_title")]
    assert found.report["details"]["run_id"] == "r1"
    assert found.report["details"]["versions"]["postgresql"]
    assert rows(healthy, "SELECT report FROM store.parity_reports") == [(json.loads(json.dumps(found.report)),)]
    assert check_accounting(healthy, RANGES).passed
    assert check_completeness(healthy, SPACE).passed
    assert check_privileges(healthy).passed


# Invariant 1


def test_a_published_case_that_is_lost_is_named(healthy: Database) -> None:
    execute(healthy, "DELETE FROM store.test_documents WHERE test_case_id = 42")
    found = report(healthy)
    assert failed(found) == [ACCOUNTING]
    assert offenders(found, ACCOUNTING)[0]["case_id"] == 42
    assert "not published" in offenders(found, ACCOUNTING)[0]["wrong"]
    assert not check_accounting(healthy, RANGES).passed
    assert [row["published"] for row in found.report["partitions"]] == [48, 51]


def test_a_landed_case_that_was_never_normalised_is_named(healthy: Database) -> None:
    execute(healthy, "DELETE FROM store.test_documents WHERE test_case_id = 42")
    execute(healthy, "DELETE FROM staging.test_documents WHERE case_id = 42")
    wrong = offenders(report(healthy), ACCOUNTING)
    assert [row["case_id"] for row in wrong] == [42]
    assert "not normalised" in wrong[0]["wrong"]


def test_a_published_case_without_a_source_is_named(healthy: Database) -> None:
    execute(healthy, """INSERT INTO store.test_documents SELECT (jsonb_populate_record(d, '{"test_case_id": 7777,
        "uid": "testrail_7777"}')).* FROM store.test_documents d WHERE test_case_id = 42""")  # fmt: skip
    found = report(healthy)
    assert failed(found) == [ACCOUNTING, VECTORS], "nor are there words of it"
    assert offenders(found, ACCOUNTING) == [{"case_id": 7777, "wrong": "published, but not in the source any more"}]


def test_a_case_that_left_the_source_and_is_still_published_is_named(healthy: Database) -> None:
    execute(healthy, "UPDATE landing.cases SET removed_at = now() WHERE id = 42")
    assert [row["case_id"] for row in offenders(report(healthy), ACCOUNTING)] == [42]


def test_two_faults_that_cancel_out_are_both_named(healthy: Database) -> None:
    execute(healthy, "DELETE FROM store.test_steps WHERE test_case_id = 99")
    execute(healthy, "DELETE FROM store.test_preconditions WHERE test_case_id = 99")
    execute(healthy, "DELETE FROM store.test_related_issues WHERE test_case_id = 99")
    execute(healthy, "DELETE FROM store.test_words WHERE test_case_id = 99")
    execute(healthy, "UPDATE store.test_documents SET test_case_id = 7049, uid = 'x' WHERE test_case_id = 99")
    found = report(healthy)
    assert ACCOUNTING in failed(found)
    assert {row["case_id"] for row in offenders(found, ACCOUNTING)} == {99, 7049}


def test_a_case_published_and_rejected_at_once_is_named(healthy: Database) -> None:
    execute(healthy, "INSERT INTO staging.rejects VALUES (42, 'h', 1, 'blank_title', 'planted')")
    assert {"case_id": 42, "wrong": "published and rejected at once"} in offenders(report(healthy), ACCOUNTING)


def test_a_lost_reject_is_named(healthy: Database) -> None:
    execute(healthy, "DELETE FROM staging.rejects")
    assert [row["case_id"] for row in offenders(report(healthy), ACCOUNTING)] == [101]


@pytest.mark.parametrize("in_export", [100, 102, 0])
def test_an_export_of_another_size_is_told(healthy: Database, in_export: int) -> None:
    found = report(healthy, rows_in_export=in_export)
    assert failed(found) == [ACCOUNTING]
    summary = found.report["findings"][0]["summary"]
    assert f"the export itself holds {in_export:,} rows: materialise sqlite_cases" in summary
    assert failed(report(healthy)) == [], "the export's own number again"


def test_a_partition_that_nobody_registered_is_told_by_the_export(healthy: Database) -> None:
    assert ACCOUNTING in failed(report(healthy, RANGES[:1]))
    assert failed(report(healthy, [], rows_in_export=None)) == [ACCOUNTING], "nothing registered, nothing proven"


PENDING = [
    ("UPDATE landing.cases SET content_hash = sha256('new') WHERE id = 42", "normalised as it was before"),
    ("UPDATE landing.cases SET content_hash = sha256('new') WHERE id = 101", "normalised as it was before"),
    ("UPDATE landing.cases SET raw = raw || '{\"section_id\": 11}' WHERE id = 42", "normalised as it was before"),
    ("UPDATE staging.test_documents SET recipe = 0 WHERE case_id = 42", "normalised as it was before"),
    ("UPDATE staging.test_documents SET doc_hash = 'new' WHERE case_id = 42", "published as it was before"),
    ("UPDATE landing.cases SET removed_at = now() WHERE id = 101", "rejected, but not in the source any more"),
]


@pytest.mark.parametrize(("change", "wrong"), PENDING)
def test_a_change_that_has_not_come_through_is_named(healthy: Database, change: str, wrong: str) -> None:
    assert report(healthy).passed
    execute(healthy, change)
    found = report(healthy, rows_in_export=None)
    assert failed(found) == [ACCOUNTING]
    assert [row["case_id"] for row in offenders(found, ACCOUNTING)] == [int(change[-3:].strip(" ="))]
    assert offenders(found, ACCOUNTING)[0]["wrong"].startswith(wrong)
    assert not check_accounting(healthy, RANGES).passed


def test_a_normalised_case_that_left_the_source_unpublished_is_named(healthy: Database) -> None:
    execute(healthy, "DELETE FROM store.test_documents WHERE test_case_id = 42")
    execute(healthy, "UPDATE landing.cases SET removed_at = now() WHERE id = 42")
    (wrong,) = offenders(report(healthy), ACCOUNTING)
    assert wrong["case_id"] == 42
    assert wrong["wrong"].startswith("normalised, but not in the source any more")


def test_other_names_that_cases_refer_to_have_to_come_through(healthy: Database) -> None:
    execute(healthy, "UPDATE landing.priorities SET name = 'Urgent' WHERE key = '6'")
    found = report(healthy)
    assert failed(found) == [ACCOUNTING]
    assert next(f["offender_count"] for f in found.report["findings"] if f["name"] == ACCOUNTING) == 101


def test_an_empty_database_proves_nothing(clean_database: Database) -> None:
    ensure_space(clean_database, SPACE)
    assert not check_accounting(clean_database, []).passed
    assert "nothing was landed yet" in check_accounting(clean_database, RANGES).summary


# Invariant 1, by value

CHANGES = [
    *((f"UPDATE store.test_documents SET {change} WHERE test_case_id = 42", change.split(" ")[0]) for change in (
        "title = 'x'", "description = 'x'", "summary = 'x'", "test_type = 'x'", "priority = NULL", "platforms = '{x}'",
        "tags = '{x}'", "folder_structure = NULL", "suite_id = 7", "section_id = NULL", "project_id = 7", "refs = 'x'",
        "source = 'x'", "is_automated = NOT coalesce(is_automated, false)", "custom_fields = '{\"x\": 1}'",
        "jira_key = 'x'", "uid = 'x'", "source_created_at = now()", "source_updated_at = NULL",
    )),
    ("UPDATE store.test_steps SET expected = '{x}' WHERE test_case_id = 42 AND step_index = 1", "step 1"),
    ("UPDATE store.test_steps SET data = 'x' WHERE test_case_id = 42", "step 1"),
    ("UPDATE store.test_steps SET action = action || ' x' WHERE test_case_id = 42", "step 1"),
    ("UPDATE store.test_steps SET step_index = 2 WHERE test_case_id = 42", "lacks step 1, too many: step 2"),
    ("DELETE FROM store.test_steps WHERE test_case_id = 42", "lacks step 1"),
    ("INSERT INTO store.test_steps SELECT 42, 2, action, expected, data, text_hash FROM store.test_steps LIMIT 1",
     "too many: step 2"),
    ("UPDATE store.test_preconditions SET condition = condition || ' x' WHERE test_case_id = 42", "precondition 0"),
    ("DELETE FROM store.test_preconditions WHERE test_case_id = 42", "lacks precondition 0"),
    ("INSERT INTO store.test_preconditions VALUES (42, 1, 'x')", "too many: precondition 1"),
    ("UPDATE store.test_related_issues SET issue_key = 'x' WHERE test_case_id = 42", "related issue 0"),
    ("DELETE FROM store.test_related_issues WHERE test_case_id = 42", "lacks related issue 0"),
    ("INSERT INTO store.test_related_issues VALUES (42, 1, 'x', 'y')", "too many: related issue 1"),
]  # fmt: skip


def test_a_published_value_changed_by_hand_is_named_and_its_remedy_repairs_it(healthy: Database) -> None:
    assert report(healthy).passed
    published = f"SELECT {', '.join(PUBLISHED)} FROM store.test_documents ORDER BY test_case_id"
    before = rows(healthy, published)
    for change, differs in CHANGES:
        execute(healthy, change)
        found = report(healthy)
        assert found.fresh
        assert VALUES in failed(found), change
        wrong = offenders(found, VALUES)
        assert [(row["case_id"], row["differs"]) for row in wrong] == [(42, differs)], change
        execute(healthy, wrong[0]["remedy"].removesuffix(" then: qbench run"))
        assert ranges_due(healthy, RANGES) == {RANGES[0].key}
        publish_cases(healthy, SPACE, RANGES[0])
        assert failed(report(healthy)) == [], change
    assert rows(healthy, published) == before


def test_every_published_column_is_compared(healthy: Database) -> None:
    columns = {name for name, _ in column_types(healthy, "store", "test_documents")}
    assert set(PUBLISHED) == columns - {"test_case_id", "doc_hash", "ingested_at", "updated_at"}
    body = read_file("parity.sql").split("-- name: changed_since_published")[1].split("-- name:")[0]
    assert set(PUBLISHED) == set(re.findall(r"THEN '(\w+)' END", body))


def test_many_changed_cases_are_counted_though_not_listed(healthy: Database) -> None:
    execute(healthy, "UPDATE store.test_documents SET priority = 'x'")
    found = report(healthy)
    assert failed(found) == [VALUES]
    assert len(offenders(found, VALUES)) == numbers(found, VALUES)["different"] == 100


# Invariant 2


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        ("UPDATE store.test_steps SET action = replace(action, 'button42', '') WHERE test_case_id = 42", ["button42"]),
        ("DELETE FROM store.test_preconditions WHERE test_case_id = 42", ["User42"]),
        ("UPDATE store.test_steps SET action = lower(action) WHERE test_case_id = 42", ["Open", "Press"]),
    ],
)  # fmt: skip
def test_a_lost_word_is_named_with_its_case(healthy: Database, change: str, lost: list[str]) -> None:
    execute(healthy, change)
    found = report(healthy)
    assert failed(found) == [WORDS, VALUES]
    assert offenders(found, WORDS) == [{"case_id": 42, "lost": lost}]


def test_lost_steps_are_named(healthy: Database) -> None:
    execute(healthy, "DELETE FROM store.test_steps WHERE test_case_id IN (42, 43)")
    assert [row["case_id"] for row in offenders(report(healthy), WORDS)] == [42, 43]


def test_cases_without_a_word_to_lose_are_not_counted_as_compared(healthy: Database) -> None:
    execute(healthy, "UPDATE landing.cases SET raw = raw - '{steps,preconditions}'::text[] WHERE id <= 30")
    assert numbers(report(healthy), WORDS) == {"compared": 70, "published": 100, "cases_with_lost_words": 0}


# Invariant 4


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [("doc", ["its document has no vector"]), ("step", ["step 1 has no vector", "step 2 has no vector"])],
)  # fmt: skip
def test_a_lost_vector_is_named_with_its_case(healthy: Database, kind: str, wrong: list[str]) -> None:
    table = {"doc": "test_documents", "step": "test_steps"}[kind]
    execute(healthy, f"""DELETE FROM {SPACE.name}.{kind}_embeddings
        WHERE text_hash IN (SELECT text_hash FROM store.{table} WHERE test_case_id = 42)""")  # fmt: skip
    execute(healthy, "INSERT INTO store.test_steps SELECT 42, 2, 'x', '{}', NULL, text_hash FROM store.test_steps "
                     "WHERE test_case_id = 42")  # fmt: skip
    found = report(healthy)
    assert failed(found) == [VALUES, VECTORS]
    assert offenders(found, VECTORS) == [{"case_id": 42, "wrong": each} for each in wrong]
    assert next(f["offender_count"] for f in found.report["findings"] if f["name"] == VECTORS) == len(wrong)
    assert not check_completeness(healthy, SPACE).passed


@pytest.mark.parametrize(("factor", "wrong"), [(0, "zero"), (2, "wrong_norm")])
@pytest.mark.parametrize("kind", ["doc", "step"])
def test_an_unsound_vector_is_named(healthy: Database, kind: str, factor: int, wrong: str) -> None:
    execute(healthy, f"""INSERT INTO {SPACE.name}.{kind}_embeddings
        SELECT sha256('planted'), embedding * array_fill({factor}, ARRAY[64])::halfvec, 'planted', now()
        FROM {SPACE.name}.{kind}_embeddings LIMIT 1""")  # fmt: skip
    planted = rows(healthy, "SELECT encode(sha256('planted'), 'hex')")[0][0]
    found = report(healthy)
    assert VECTORS in failed(found)
    assert offenders(found, VECTORS) == [{"kind": kind, "text_hash": planted, "wrong": wrong}]


def test_a_vector_that_became_zero_in_its_place_is_named(healthy: Database) -> None:
    execute(healthy, f"""UPDATE {SPACE.name}.doc_embeddings SET embedding = array_fill(0, ARRAY[64])::halfvec
        WHERE text_hash = (SELECT text_hash FROM store.test_documents WHERE test_case_id = 42)""")  # fmt: skip
    found = report(healthy)
    named = rows(healthy, "SELECT encode(text_hash, 'hex') FROM store.test_documents WHERE test_case_id = 42")[0][0]
    assert {"kind": "doc", "text_hash": named, "wrong": "zero"} in offenders(found, VECTORS)


# Invariant 7


def test_a_target_beyond_reach_fails(healthy: Database) -> None:
    found = report(healthy, target_recall=1.01)
    assert failed(found) == [RECALL]
    assert {row["comparison"] for row in offenders(found, RECALL)} == {
        f"{kind}_recall_10_{queries}" for kind in ("doc", "step") for queries in ("stored", "perturbed", "crossed")
    } | {"doc_search", "step_search"}


def test_a_wrecked_index_fails(healthy: Database) -> None:
    """The index is given the keys of other rows: what its scan leads to are not the neighbours."""
    table = f"{SPACE.name}.doc_embeddings"
    ((index,),) = rows(healthy, "SELECT index_name FROM store.index_builds WHERE kind = 'doc'")
    execute(healthy, f"DROP INDEX {SPACE.name}.{index}")
    # An index over a part of the rows only, which the planner is made to believe is whole.
    execute(healthy, f"""CREATE INDEX {index} ON {table} USING hnsw (embedding halfvec_cosine_ops)
        WHERE get_byte(text_hash, 0) < 64""")  # fmt: skip
    execute(healthy, "UPDATE pg_index SET indpred = NULL WHERE indexrelid = %s::regclass", f"{SPACE.name}.{index}")
    execute(healthy, f"ALTER DATABASE {rows(healthy, 'SELECT current_database()')[0][0]} SET enable_seqscan = off")
    try:
        with Database(healthy.url) as opened:
            found = report(opened)
    finally:
        execute(healthy, f"ALTER DATABASE {rows(healthy, 'SELECT current_database()')[0][0]} RESET ALL")
    assert failed(found) == [RECALL]
    low = {row["comparison"]: row["mean"] for row in offenders(found, RECALL) if "mean" in row}
    assert {"doc_recall_10_stored", "doc_recall_10_perturbed"} <= set(low)
    assert max(low.values()) < 0.6
    execute(healthy, f"REINDEX INDEX {SPACE.name}.{index}")
    execute(healthy, f"DROP INDEX {SPACE.name}.{index}")
    ensure_index(healthy, SPACE, "doc", HALFVEC, lambda *_: None)
    assert failed(report(healthy)) == []


# Invariant 9

EXCESS = [
    ("GRANT USAGE ON SCHEMA store TO qbench_reader", "store", "USAGE"),
    ("GRANT SELECT ON landing.cases TO qbench_reader", "landing.cases", "SELECT"),
    (f"GRANT SELECT ON {SPACE.name}.doc_embeddings TO PUBLIC", f"{SPACE.name}.doc_embeddings", "SELECT"),
    ("GRANT DELETE ON qbench.test_preconditions TO qbench_reader", "qbench.test_preconditions", "DELETE"),
    ("GRANT CREATE ON SCHEMA qbench TO qbench_reader", "qbench", "CREATE"),
    ("GRANT SELECT (title) ON store.test_documents TO qbench_reader", "store.test_documents", "SELECT"),
    ("GRANT UPDATE (condition) ON qbench.test_preconditions TO qbench_reader", "qbench.test_preconditions", "UPDATE"),
    ("GRANT SELECT ON store.schema_versions TO qbench_reader", "store.schema_versions", "SELECT"),
]


@pytest.mark.parametrize(("grant", "thing", "privilege"), EXCESS)
def test_a_right_too_many_is_named(healthy: Database, grant: str, thing: str, privilege: str) -> None:
    execute(healthy, grant)
    try:
        found = report(healthy)
        assert failed(found) == [PRIVILEGES]
        wrong = offenders(found, PRIVILEGES)
        assert [(row["object"], row["privilege"]) for row in wrong] == [(thing, privilege)]
        assert not check_privileges(healthy).passed
        assert "1 right too many" in check_privileges(healthy).summary
        execute(healthy, wrong[0]["remedy"])
        assert check_privileges(healthy).passed
    finally:
        execute(healthy, grant.replace("GRANT", "REVOKE", 1).replace(" TO ", " FROM "))
    assert failed(report(healthy)) == []


def test_a_right_to_create_schemas_is_named(healthy: Database) -> None:
    name = rows(healthy, "SELECT current_database()")[0][0]
    execute(healthy, f"GRANT CREATE ON DATABASE {name} TO qbench_reader")
    try:
        assert offenders(report(healthy), PRIVILEGES) == [
            {"object": f"database {name}", "privilege": "CREATE",
             "remedy": f"REVOKE CREATE ON DATABASE {name} FROM qbench_reader;"}
        ]  # fmt: skip
    finally:
        execute(healthy, f"REVOKE CREATE ON DATABASE {name} FROM qbench_reader")


def test_a_role_that_became_too_mighty_is_named(healthy: Database) -> None:
    execute(healthy, "ALTER ROLE qbench_reader CREATEROLE")
    try:
        assert offenders(report(healthy), PRIVILEGES) == [
            {"object": "role qbench_reader", "privilege": "CREATEROLE",
             "remedy": "ALTER ROLE qbench_reader NOCREATEROLE;"}
        ]  # fmt: skip
    finally:
        execute(healthy, "ALTER ROLE qbench_reader NOCREATEROLE")


def test_rights_by_membership_are_named(healthy: Database) -> None:
    execute(healthy, "GRANT pg_read_all_data TO qbench_reader")
    try:
        named = {(row["object"], row["privilege"]) for row in offenders(report(healthy), PRIVILEGES)}
        assert {("landing.cases", "SELECT"), ("store", "USAGE")} <= named
        assert {row["remedy"] for row in offenders(report(healthy), PRIVILEGES)} == {
            "REVOKE pg_read_all_data FROM qbench_reader;"
        }
    finally:
        execute(healthy, "REVOKE pg_read_all_data FROM qbench_reader")


def test_what_belongs_to_an_extension_is_left_to_it(healthy: Database) -> None:
    """As PostGIS does: a table and a schema of its own, which everybody may read."""
    execute(healthy, "CREATE TABLE public.of_an_extension (a int)")
    execute(healthy, "CREATE SCHEMA of_an_extension")
    try:
        execute(healthy, "GRANT SELECT ON public.of_an_extension TO PUBLIC")
        execute(healthy, "GRANT USAGE ON SCHEMA of_an_extension TO PUBLIC")
        assert {row["object"] for row in check_privileges(healthy).offenders} == {
            "public.of_an_extension", "of_an_extension",
        }  # fmt: skip
        for thing in ("TABLE public.of_an_extension", "SCHEMA of_an_extension"):
            execute(healthy, f"ALTER EXTENSION vector ADD {thing}")
        assert check_privileges(healthy).passed
    finally:
        for thing in ("TABLE public.of_an_extension", "SCHEMA of_an_extension"):
            execute(healthy, f"ALTER EXTENSION vector DROP {thing}")
            execute(healthy, f"DROP {thing}")


@pytest.mark.parametrize(
    ("change", "thing"),
    [
        ("REVOKE SELECT ON qbench.test_steps FROM qbench_reader", "qbench.test_steps"),
        ("REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA qbench FROM qbench_reader", "qbench.search_steps"),
        ("REVOKE USAGE ON SCHEMA qbench FROM qbench_reader", "qbench.test_documents"),
        ("DROP VIEW qbench.test_related_issues", "qbench.test_related_issues"),
    ],
)
def test_a_right_that_is_missing_is_named(healthy: Database, change: str, thing: str) -> None:
    execute(healthy, change)
    found = report(healthy)
    assert failed(found) == [PRIVILEGES]
    assert thing in {row["object"] for row in offenders(found, PRIVILEGES)}


# A report stands while nothing was written


def test_a_report_is_reused_while_nothing_was_written(healthy: Database) -> None:
    first = report(healthy)
    again = report(healthy)
    assert (first.fresh, again.fresh) == (True, False)
    assert again.report == json.loads(json.dumps(first.report))
    assert rows(healthy, "SELECT count(*) FROM store.parity_reports") == [(1,)]
    assert report(healthy, force=True).fresh
    assert not report(healthy).fresh


@pytest.mark.parametrize(
    ("tamper", "finding"),
    [
        ("DELETE FROM store.test_documents WHERE test_case_id = 42", ACCOUNTING),
        ("UPDATE store.test_steps SET action = 'x' WHERE test_case_id = 42", WORDS),
        (f"DELETE FROM {SPACE.name}.step_embeddings", VECTORS),
        ("TRUNCATE store.test_documents CASCADE", ACCOUNTING),
        ("TRUNCATE store.test_preconditions", WORDS),
        ("DELETE FROM store.test_words WHERE test_case_id = 42", VECTORS),
        ("UPDATE store.test_words SET recipe = 0 WHERE test_case_id = 42", VECTORS),
        (f"TRUNCATE {SPACE.name}.doc_embeddings", VECTORS),
        ("GRANT SELECT ON store.spaces TO qbench_reader", PRIVILEGES),
    ],
)
def test_tampering_after_a_report_is_seen(healthy: Database, tamper: str, finding: str) -> None:
    assert report(healthy).passed
    assert not report(healthy).fresh
    with psycopg.connect(healthy.url) as connection:  # by hand: not through our own connections
        connection.execute(tamper)  # type: ignore[call-overload]
    try:
        found = report(healthy)
        assert found.fresh
        assert finding in failed(found)
    finally:
        execute(healthy, "REVOKE SELECT ON store.spaces FROM qbench_reader")


def test_a_report_says_nothing_of_other_search_functions(healthy: Database) -> None:
    assert report(healthy).passed
    ((made,),) = rows(healthy, "SELECT pg_get_functiondef('store.nearest_texts'::regproc)")
    execute(healthy, made.replace("1.1 * depth", "1.2 * depth"))
    try:
        assert report(healthy).fresh
    finally:
        execute(healthy, made)


def test_a_report_does_not_outlive_a_crash(tmp_path: Path) -> None:
    """A crash zeroes the counters: those after the second look like those after the first."""
    home = Path(tempfile.mkdtemp(prefix="qbe"))
    home.chmod(0o755)

    def killed() -> None:
        os.kill(int((home / "pg" / "postmaster.pid").read_text().splitlines()[0]), signal.SIGKILL)

    def counted(database: Database) -> set[tuple[Any, ...]]:
        return {tuple(row[name] for name in ("table", "inserted", "updated", "deleted", "file"))
                for row in measuring.write_counters(database, SPACE)}  # fmt: skip

    try:
        url = start_server(home, 256)
        path = write_export(tmp_path / "export.db", [case(n, steps=f"Open page{n}") for n in range(1, 21)])
        with Database(url) as database:
            run_pipeline(database, path, index=HALFVEC, keys=[RANGES[0].key])
        killed()
        with Database(start_server(home, 256)) as database:
            assert report(database, RANGES[:1], rows_in_export=20).passed
            assert not report(database, RANGES[:1], rows_in_export=20).fresh, "it stands until the next crash"
            before = counted(database)
            execute(database, "DELETE FROM store.test_documents WHERE test_case_id = 7")
        killed()
        with Database(start_server(home, 256)) as database:
            assert counted(database) == before, "nothing seems to have been written"
            found = report(database, RANGES[:1], rows_in_export=20)
            assert found.fresh
            assert failed(found) == [ACCOUNTING]
    finally:
        stop_server(home)
        shutil.rmtree(home, ignore_errors=True)


@pytest.mark.parametrize(
    "what", ["pg_stat_reset()", "pg_stat_reset_single_table_counters('store.test_steps'::regclass)"]
)
def test_a_report_does_not_outlive_a_reset_of_the_counters(healthy: Database, what: str) -> None:
    execute(healthy, f"SELECT {what}")
    assert report(healthy).fresh
    assert not report(healthy).fresh
    execute(healthy, f"SELECT {what}")
    assert report(healthy).fresh


def test_a_report_about_something_else_is_not_reused(healthy: Database) -> None:
    report(healthy)
    for other in (
        {"target_recall": 0.8},
        {"rows_in_export": 7},
        {"ranges": RANGES[:1]},
    ):
        assert report(healthy, **other).fresh, other
    execute(healthy, "UPDATE store.index_builds SET ef_search = ef_search + 1 WHERE kind = 'step'")
    assert report(healthy).fresh


def test_an_export_that_is_not_at_hand_leaves_the_report_standing(healthy: Database) -> None:
    report(healthy, rows_in_export=7)
    kept = report(healthy, rows_in_export=None)
    assert not kept.fresh
    assert failed(kept) == [ACCOUNTING], "what it said of the export stands as well"


def test_without_write_counters_every_report_is_fresh(healthy: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    report(healthy)
    for module in ("parity", "measuring"):
        monkeypatch.setattr(f"qbench_dagster.adapters.{module}.write_counters", lambda *_: [])
    assert report(healthy).fresh
    assert report(healthy).fresh


def test_progress_is_told_of_every_case(healthy: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qbench_dagster.adapters.parity.BATCH", 7)
    told: list[int] = []
    evaluate(healthy, SPACE, RANGES, rows_in_export=None, details={}, progress=told.append,
             comparison=FEW)  # fmt: skip
    assert sum(told) == 100
    assert max(told) == 7
