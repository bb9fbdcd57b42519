"""The assets on a real Dagster instance (dagster-postgres in the embedded server): runs, metadata, checks, faults."""

from __future__ import annotations

import itertools
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import dagster as dg
import psycopg
import pytest

from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.testrail_export import TestRailExport
from qbench_dagster.assets.stage import RUN_TOTALS
from qbench_dagster.dagster_home import prepare_dagster_home
from qbench_dagster.definitions import defs
from qbench_dagster.partitions import register_ranges
from qbench_dagster.settings import load_settings
from qbench_dagster_tests.support import case, execute, insert_cases, rows, write_export

RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"
PARTITIONED = ("sqlite_cases", "normalized_testdocs", "doc_embeddings", "step_embeddings", "pg_tables")
TARGET = 80
SPACE = "space_lexical_64"

PLAUSIBLE = {f"{kind}_embeddings:vectors_are_plausible": True for kind in ("doc", "step")}

ALLOWED = {name: {"config": {"allow_deletes": True}} for name in ("sqlite_cases", "pg_tables")}
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}

_numbers = itertools.count()


@dataclass
class Graph:
    """The project on an instance of its own, over an export of its own."""

    instance: dg.DagsterInstance
    database: Database
    export: Path
    runs: list[dg.ExecuteInProcessResult] = field(default_factory=list)

    def run(
        self,
        job: str,
        partitions: tuple[str, str] | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        only: tuple[str, ...] = (),
    ) -> dg.ExecuteInProcessResult:
        """Execute a job; `partitions` are the first and the last key."""
        tags = {RANGE_START: partitions[0], RANGE_END: partitions[1]} if partitions else {}
        result = defs.resolve_job_def(job).execute_in_process(
            instance=self.instance,
            tags=tags,
            run_config={**QUIET, **({"ops": config} if config else {})},
            raise_on_error=False,
            asset_selection=[dg.AssetKey(name) for name in only] or None,
        )
        self.runs.append(result)
        return result

    def plan(self) -> list[str]:
        """Register the case ranges the export needs, and return all keys."""
        with TestRailExport(self.export) as export:
            register_ranges(self.instance, export, TARGET)
        return self.keys()

    def plan_by_job(self) -> list[str]:
        """The same by the job a person starts in the UI."""
        result = self.run("plan_case_ranges")
        assert result.success, failure(result)
        return self.keys()

    def keys(self) -> list[str]:
        """The registered partitions, ascending."""
        return sorted(self.instance.get_dynamic_partitions("case_ranges"))

    def load(self, **options: Any) -> dg.ExecuteInProcessResult:
        """`load_cases` over every range."""
        keys = self.keys()
        return self.run("load_cases", (keys[0], keys[-1]), **options)

    def stored(self, asset: str) -> list[dg.AssetMaterialization]:
        """Materialisations of an asset as the instance stored them, newest first."""
        records = self.instance.fetch_materializations(dg.AssetKey(asset), limit=1000).records
        return [record.asset_materialization for record in records if record.asset_materialization is not None]

    def published(self) -> list[tuple[Any, ...]]:
        """What the application reads, without the times of publishing."""
        return rows(
            self.database,
            "SELECT test_case_id, title, description, priority, test_type, folder_structure, jira_key, tags,"
            " md5(embedding::text) FROM qbench.test_documents ORDER BY 1",
        )


def metadata(result: dg.ExecuteInProcessResult) -> dict[str, dict[str, Any]]:
    """Values of the run's materialisation events, by asset."""
    return {
        event.materialization.asset_key.to_user_string(): {
            name: value.value for name, value in event.materialization.metadata.items()
        }
        for event in result.get_asset_materialization_events()
    }


def checks(result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    """Verdict of each check a run evaluated."""
    return {each.asset_check_key.to_user_string(): each.passed for each in result.get_asset_check_evaluations()}


def materialized(result: dg.ExecuteInProcessResult) -> set[str]:
    """Assets whose step ended in this run, whether their checks passed or not."""
    return set(metadata(result))


def failure(result: dg.ExecuteInProcessResult) -> str:
    """What the failed steps of a run said, causes included."""
    told = []
    for event in result.filter_events(lambda event: event.is_step_failure):
        error = event.step_failure_data.error
        while error is not None:
            told.append(error.message)
            error = error.cause
    return "\n".join(told)


def totals(result: dg.ExecuteInProcessResult, name: str) -> dict[str, int]:
    """The count `name` of each partitioned asset's run."""
    return {
        asset: values[RUN_TOTALS].get(name, 0) for asset, values in metadata(result).items() if asset in PARTITIONED
    }


def some_cases(count: int, first: int = 100) -> list[dict[str, Any]]:
    """Cases that share some texts; every hundredth has a blank title and is rejected."""
    return [
        case(
            first + number,
            "  " if number % 100 == 99 else f"Open page {number}",
            preconditions=f"<p>User {number % 7} is logged in</p>",
            steps_separated=[
                {"content": f"Open page {number}", "expected": f"Page {number} is shown"},
                {"content": "Log out", "expected": "The login page is shown"},
            ],
            section_id=11 if number % 2 else 10,
            refs=f"PROJ-{number}",
        )
        for number in range(count)
    ]


@contextmanager
def kept_instance() -> Iterator[dg.DagsterInstance]:
    """Dagster's instance, with connections that are kept: by default each statement makes one, 409 in a load."""
    with dg.DagsterInstance.get() as instance:
        instance.optimize_for_webserver(statement_timeout=60_000, pool_recycle=3600, max_overflow=20)
        yield instance
        for storage in (instance.event_log_storage, instance.run_storage, instance.schedule_storage):
            storage._engine.dispose()  # type: ignore[union-attr]


@contextmanager
def made_of(
    server_url: str, data: str, storage: str, folder: Path, patch: pytest.MonkeyPatch
) -> Iterator[tuple[Graph, tuple[str, str]]]:
    """An instance on copies of two databases, what is filled and Dagster's storage, and the names of the copies."""
    number = next(_numbers)
    names = (f"graph_{os.getpid()}_{number}", f"graph_{os.getpid()}_{number}_dagster")
    urls = [urlunsplit(urlsplit(server_url)._replace(path=f"/{name}")) for name in names]
    with psycopg.connect(server_url, autocommit=True) as connection:
        for name, template in zip(names, (data, storage), strict=True):
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')  # type: ignore[arg-type]
    for variable, value in {
        "DATABASE_URL": urls[0],
        "QBENCH_DAGSTER_DATABASE_URL": urls[1],
        "QBENCH_EXPORT": str(folder / "export.db"),
        "QBENCH_DIMENSIONS": "64",
        "QBENCH_INDEX": "exact", "QBENCH_PARITY_QUERIES": "10",
        "QBENCH_PARTITION_CASES": str(TARGET),
        "QBENCH_HOME": str(folder / "home"),
        # prepare_dagster_home sets these; mentioned here, they are taken back after the test
        "DAGSTER_HOME": "", "QBENCH_DAGSTER_STORAGE": "", "DAGSTER_EVENT_BATCH_SIZE": "200",
    }.items():  # fmt: skip
        patch.setenv(variable, value)
    prepare_dagster_home(load_settings())
    export = write_export(folder / "export.db", some_cases(4 * TARGET))
    with Database(urls[0]) as database, kept_instance() as instance:
        yield Graph(instance, database, export), names


def drop(server_url: str, names: tuple[str, str]) -> None:
    """Drop the databases of a graph."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        for name in names:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')  # type: ignore[arg-type]


@pytest.fixture
def graph(server_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dagster_template: str) -> Iterator[Graph]:
    """An instance on a copy of Dagster's empty storage, beside an empty database to fill."""
    with made_of(server_url, "template1", dagster_template, tmp_path, monkeypatch) as (made, names):
        yield made
    drop(server_url, names)


@pytest.fixture(scope="module")
def loaded_databases(
    server_url: str, dagster_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """The databases of a graph whose ranges are planned and loaded, once for the tests that begin there."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("loaded")
        with made_of(server_url, "template1", dagster_template, folder, patch) as (made, names):
            made.plan()
            loading = made.load()
            assert loading.success, failure(loading)
    yield names
    drop(server_url, names)


@pytest.fixture
def loaded(
    server_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded_databases: tuple[str, str]
) -> Iterator[Graph]:
    """An instance on copies of those."""
    with made_of(server_url, *loaded_databases, tmp_path, monkeypatch) as (made, names):
        yield made
    drop(server_url, names)


def test_ranges_are_planned_by_a_job_and_kept_in_postgres(graph: Graph) -> None:
    assert type(graph.instance.event_log_storage).__module__.startswith("dagster_postgres")
    assert type(graph.instance.run_storage).__module__.startswith("dagster_postgres")
    assert graph.plan_by_job() == ["from_0000000100", "from_0000000180", "from_0000000260", "from_0000000340"]
    assert len(graph.plan_by_job()) == 4  # planned again: nothing is added


def test_one_range_then_three_then_all_then_the_whole(graph: Graph) -> None:
    keys = graph.plan()
    one = graph.run("load_cases", (keys[0], keys[0]))
    assert one.success, failure(one)
    assert materialized(one) == set(PARTITIONED)
    assert checks(one) == dict.fromkeys(
        [
            "sqlite_cases:every_source_row_landed",
            "normalized_testdocs:every_landed_case_is_staged_or_rejected",
            "doc_embeddings:every_text_has_a_vector",
            "step_embeddings:every_text_has_a_vector",
            "pg_tables:source_is_published_or_rejected",
        ],
        True,
    )
    for asset in PARTITIONED:
        assert graph.instance.get_materialized_partitions(dg.AssetKey(asset)) == {keys[0]}, asset
    assert rows(graph.database, "SELECT count(*), min(test_case_id), max(test_case_id) FROM qbench.test_documents") == [
        (80, 100, 179)
    ]

    three = graph.run("load_cases", (keys[1], keys[3]))
    assert three.success, failure(three)
    # the UI takes it for the rows of the whole table, which this run did not see
    assert all("dagster/row_count" not in values for values in metadata(three).values())
    assert totals(three, "source_rows")["sqlite_cases"] == 3 * TARGET
    for asset in PARTITIONED:
        assert graph.instance.get_materialized_partitions(dg.AssetKey(asset)) == set(keys), asset
    assert rows(graph.database, "SELECT count(*) FROM qbench.test_documents") == [(317,)]
    assert rows(graph.database, "SELECT case_id, reason FROM staging.rejects ORDER BY 1") == [
        (199, "blank_title"), (299, "blank_title"), (399, "blank_title")
    ]  # fmt: skip
    whole = graph.run("index_and_report")
    assert whole.success, failure(whole)
    assert materialized(whole) == {"hnsw_index", "parity_report"}
    assert len(checks(whole)) == 13
    assert all(checks(whole).values())

    before = graph.published()
    again = graph.load()
    assert again.success, failure(again)
    assert totals(again, "rows_written") == dict.fromkeys(PARTITIONED, 0)
    assert totals(again, "texts_embedded") == dict.fromkeys(PARTITIONED, 0)
    assert metadata(again)["sqlite_cases"]["lookup_rows_written"] == 0
    assert len(checks(again)) == 5
    assert all(checks(again).values())
    assert graph.published() == before
    assert metadata(graph.run("index_and_report"))["parity_report"]["fresh"] is False


def test_an_edited_case_alone_is_written_again(loaded: Graph) -> None:
    before = loaded.published()
    with sqlite3.connect(loaded.export) as export:
        export.execute("UPDATE cases SET title = 'Open the seventh page' WHERE id = 107")
    export.close()
    again = loaded.load()
    assert again.success, failure(again)
    assert totals(again, "changed")["sqlite_cases"] == 1
    assert totals(again, "texts_embedded") == {**dict.fromkeys(PARTITIONED, 0), "doc_embeddings": 1}
    assert totals(again, "written")["pg_tables"] == 1
    after = loaded.published()
    assert [(old[0], new[1]) for old, new in zip(before, after, strict=True) if old != new] == [
        (107, "Open the seventh page")
    ]


def test_each_asset_tells_what_it_did(graph: Graph, tmp_path: Path) -> None:
    keys = graph.plan()
    loaded, whole = graph.load(), graph.run("index_and_report")
    assert loaded.success, failure(loaded)
    assert whole.success, failure(whole)

    told = metadata(loaded)
    # 320 cases: 3 rejected; one text a document; one step text a document and "Log out", once in each range
    assert told["sqlite_cases"][RUN_TOTALS].items() >= {
        "source_rows": 320, "added": 320, "changed": 0, "unchanged": 0, "removed": 0, "rejected_rows": 0,
        "rows_written": 320, "replacement_characters": 0,
    }.items()  # fmt: skip
    assert told["normalized_testdocs"][RUN_TOTALS].items() >= {
        "normalized": 317, "rejected": 3, "steps": 634, "with_notes": 0, "removed": 0, "rows_written": 317 + 634 + 3,
    }.items()  # fmt: skip
    assert told["doc_embeddings"][RUN_TOTALS]["texts_embedded"] == 317
    assert told["step_embeddings"][RUN_TOTALS]["texts_embedded"] == 318
    assert told["pg_tables"][RUN_TOTALS].items() >= {
        "written": 317, "removed": 0, "source_cases": 320, "published": 317, "rejected": 3, "incomplete": 0,
        "steps": 634, "rows_written": 317 + 634 + 317 + 317 + 317,  # the last are words
    }.items()  # fmt: skip
    for asset, values in told.items():
        assert values["seconds"] >= 0, asset
        assert values["dagster/row_count"] > 0, asset
        assert any(name.endswith("_per_second") for name in values), asset
    assert told["normalized_testdocs"]["rejects_by_reason"] == {"blank_title": 3}
    assert [sample["case_id"] for sample in told["normalized_testdocs"]["reject_samples"]] == [199, 299, 399]
    assert told["doc_embeddings"]["dimensions"] == 64

    # as the instance keeps it: the event of each partition carries that partition's own count
    held = {"sqlite_cases": [80] * 4, "normalized_testdocs": [80, 79, 79, 79], "doc_embeddings": [80, 79, 79, 79],
            "step_embeddings": [81, 80, 80, 80], "pg_tables": [80, 79, 79, 79]}  # fmt: skip
    for asset, counts in held.items():
        by_partition = {event.partition: event.metadata for event in graph.stored(asset)}
        assert [by_partition[key]["dagster/partition_row_count"].value for key in keys] == counts, asset
        assert (
            sum(int(by_partition[key]["rows_written"].value or 0) for key in keys)
            == (told[asset][RUN_TOTALS]["rows_written"])
        ), asset

    schema = told["pg_tables"]["dagster/column_schema"]
    columns = {column.name: column.type for column in schema.columns}
    assert columns["test_case_id"] == "bigint"
    assert columns["embedding"].startswith("halfvec")
    assert columns["tags"] == "text[]"
    assert [column.name for column in schema.columns if not column.description] == []
    lineage = told["pg_tables"]["dagster/column_lineage"].deps_by_column
    assert set(lineage) <= set(columns)
    assert [(dep.asset_key.path[-1], dep.column_name) for dep in lineage["priority"]] == [
        ("normalized_testdocs", "priority")
    ]
    staged = told["normalized_testdocs"]["dagster/column_lineage"].deps_by_column
    assert [(dep.asset_key.path[-1], dep.column_name) for dep in staged["priority"]] == [("sqlite_cases", "raw")]
    for asset in ("sqlite_cases", "normalized_testdocs", "doc_embeddings", "step_embeddings"):
        assert told[asset]["dagster/column_schema"].columns, asset
    assert lineage["embedding"][0].asset_key == dg.AssetKey("doc_embeddings")

    told = metadata(whole)
    assert told["hnsw_index"]["rows"] == 317 + 318
    assert told["hnsw_index"]["strategy"] == "exact"
    page, data = Path(told["parity_report"]["report"]), Path(told["parity_report"]["json"])
    assert page.parent == tmp_path / "home" / "reports"
    assert "<html" in page.read_text(encoding="utf-8").lower()
    assert json.loads(data.read_text(encoding="utf-8"))["passed"] is True
    assert "An application can be switched over" in told["parity_report"]["verdict"]
    assert told["parity_report"]["fresh"] is True


SWALLOW = """
CREATE FUNCTION public.swallow() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN IF {condition} THEN RETURN NULL; END IF; RETURN NEW; END$$;
CREATE TRIGGER swallow BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION public.swallow();
"""
LOST = [  # room, the row it loses, the check that tells, and what it says
    ("landing.cases", "NEW.id = 200", "sqlite_cases:every_source_row_landed", "79 landed"),
    (
        "staging.test_documents",
        "NEW.case_id = 280",
        "normalized_testdocs:every_landed_case_is_staged_or_rejected",
        "78 staged",
    ),
    (
        f"{SPACE}.doc_embeddings",
        "NEW.text_hash = (SELECT text_hash FROM staging.test_documents WHERE case_id = 360)",
        "doc_embeddings:every_text_has_a_vector",
        "1 of",
    ),
    (
        f"{SPACE}.step_embeddings",
        "NEW.text_hash = (SELECT text_hash FROM staging.test_steps WHERE case_id = 440 AND step_index = 1)",
        "step_embeddings:every_text_has_a_vector",
        "1 of",
    ),
]


def test_a_row_lost_on_the_way_fails_its_check_and_stops_the_run(graph: Graph) -> None:
    """A trigger swallows one row of one room: the stage that lost it is red, and nothing is published."""
    write_export(graph.export, some_cases(5 * TARGET))
    keys = graph.plan()
    first = graph.run("load_cases", (keys[0], keys[0]))  # makes the rooms
    assert first.success, failure(first)
    for key, (table, condition, check, told) in zip(keys[1:], LOST, strict=True):
        execute(graph.database, SWALLOW.format(table=table, condition=condition))
        failed = graph.run("load_cases", (key, key))
        execute(graph.database, "DROP FUNCTION public.swallow CASCADE")
        assert not failed.success, check
        assert {name for name, passed in checks(failed).items() if not passed} == {check}
        wrong = next(each for each in failed.get_asset_check_evaluations() if not each.passed).metadata["wrong"].value
        assert list(wrong) == [key]
        assert told in wrong[key]
        downstream = defs.resolve_asset_graph().get(dg.AssetKey(check.split(":")[0])).child_keys
        assert downstream
        assert not {later.to_user_string() for later in downstream} & materialized(failed)
        assert rows(graph.database, "SELECT count(*) FROM qbench.test_documents WHERE test_case_id >= 180") == [(0,)]
    repaired = graph.load()
    assert repaired.success, failure(repaired)
    assert rows(graph.database, "SELECT count(*) FROM qbench.test_documents") == [(5 * TARGET - 4,)]


def test_a_vector_deleted_between_stages_keeps_its_case_out(graph: Graph) -> None:
    keys = graph.plan()
    bounds = (keys[0], keys[0])
    assert graph.run("load_cases", bounds, only=PARTITIONED[:4]).success
    execute(
        graph.database,
        f"DELETE FROM {SPACE}.step_embeddings WHERE text_hash ="
        " (SELECT text_hash FROM staging.test_steps WHERE case_id = 123 AND step_index = 1)",
    )
    failed = graph.run("load_cases", bounds, only=("pg_tables",))
    assert not failed.success
    assert checks(failed) == {"pg_tables:source_is_published_or_rejected": False}
    (evaluation,) = failed.get_asset_check_evaluations()
    assert "123" in evaluation.metadata["wrong"].value[keys[0]]
    assert rows(graph.database, "SELECT count(*) FROM store.test_documents") == [(79,)]
    assert rows(graph.database, "SELECT count(*) FROM store.test_steps WHERE test_case_id = 123") == [(0,)]
    repaired = graph.run("load_cases", bounds)
    assert repaired.success, failure(repaired)
    assert totals(repaired, "texts_embedded")["step_embeddings"] == 1
    assert rows(graph.database, "SELECT count(*) FROM store.test_documents") == [(80,)]


def test_a_published_row_lost_fails_the_accounting_and_is_put_back(loaded: Graph) -> None:
    assert all(checks(loaded.run("check_tables")).values())
    execute(loaded.database, "DELETE FROM store.test_documents WHERE test_case_id = 150")
    seen = loaded.run("check_tables")
    assert checks(seen) == {
        "pg_tables:every_case_is_accounted_for": False,
        "pg_tables:every_row_is_complete": True,
        "pg_tables:reader_has_least_privilege": True,
        "hnsw_index:searches_use_the_index": True,
        **PLAUSIBLE,
    }
    wrong = next(each for each in seen.get_asset_check_evaluations() if not each.passed)
    assert [offender["case_id"] for offender in wrong.metadata["offenders"].value] == [150]
    report = loaded.run("index_and_report")
    assert not report.success
    # the words of a case that is not there are not compared; the accounting tells
    assert {name for name, passed in checks(report).items() if not passed} == {
        "parity_report:source_is_published_or_rejected"
    }
    again = loaded.load()
    assert totals(again, "written")["pg_tables"] == 1
    assert totals(again, "texts_embedded") == dict.fromkeys(PARTITIONED, 0)  # its vectors are still there
    assert all(checks(loaded.run("check_tables")).values())
    assert loaded.run("index_and_report").success


def test_check_tables_sees_and_changes_nothing(loaded: Graph) -> None:
    before = loaded.published()
    for fault, cure, check in (
        ("GRANT USAGE ON SCHEMA store TO qbench_reader", "REVOKE USAGE ON SCHEMA store FROM qbench_reader",
         "pg_tables:reader_has_least_privilege"),
        ("GRANT INSERT ON store.test_steps TO qbench_reader", "REVOKE INSERT ON store.test_steps FROM qbench_reader",
         "pg_tables:reader_has_least_privilege"),
        ("INSERT INTO staging.rejects (case_id, input_hash, recipe, reason, detail) VALUES (150, '', 1, 'planted', '')",
         "DELETE FROM staging.rejects WHERE case_id = 150", "pg_tables:every_case_is_accounted_for"),
        (f"DELETE FROM {SPACE}.doc_embeddings WHERE text_hash IN (SELECT text_hash FROM store.test_documents LIMIT 1)",
         "SELECT 1", "pg_tables:every_row_is_complete"),
    ):  # fmt: skip
        execute(loaded.database, fault)
        seen = loaded.run("check_tables")
        execute(loaded.database, cure)
        assert {name for name, passed in checks(seen).items() if not passed} == {check}, fault
        assert seen.success  # they report; they do not block
    repaired = loaded.load()
    assert totals(repaired, "texts_embedded") == {**dict.fromkeys(PARTITIONED, 0), "doc_embeddings": 1}
    assert all(checks(loaded.run("check_tables")).values())
    assert loaded.published() == before


def test_what_the_whole_assets_guard_stops_them(loaded: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:  # 64 bits cannot tell 317 texts apart
        for name, value in {"QBENCH_INDEX": "binary", "QBENCH_EF_SEARCH": "10", "QBENCH_TARGET_RECALL": "1"}.items():
            patch.setenv(name, value)
        failed = loaded.run("index_and_report")
    assert not failed.success
    assert {name for name, passed in checks(failed).items() if not passed} == {"hnsw_index:recall_reaches_target"}
    assert "parity_report" not in materialized(failed)

    execute(loaded.database, "UPDATE store.test_steps SET expected = '{}' WHERE test_case_id = 111 AND step_index = 1")
    failed = loaded.run("index_and_report")  # exact search again: the recall is 1
    assert not failed.success
    assert {name for name, passed in checks(failed).items() if not passed} == {
        "parity_report:no_word_lost", "parity_report:published_rows_are_what_was_staged",
    }  # fmt: skip
    wrong = next(each for each in failed.get_asset_check_evaluations() if not each.passed)
    assert [offender["case_id"] for offender in wrong.metadata["offenders"].value] == [111]

    execute(
        loaded.database,
        f"UPDATE {SPACE}.doc_embeddings SET embedding = embedding * embedding"
        f" WHERE text_hash = (SELECT min(text_hash) FROM {SPACE}.doc_embeddings)",
    )
    failed = loaded.run("index_and_report")
    assert not failed.success
    assert checks(failed)["hnsw_index:vectors_are_sound"] is False
    assert "parity_report" not in materialized(failed)


def test_a_truncated_export_is_stopped_and_can_be_let_pass(loaded: Graph) -> None:
    keys = loaded.keys()
    before = loaded.published()
    landed = rows(loaded.database, "SELECT id, content_hash, removed_at FROM landing.cases ORDER BY 1")
    with sqlite3.connect(loaded.export) as export:
        export.execute("DELETE FROM cases WHERE id >= 260")  # cut off at half
    export.close()

    stopped = loaded.load()
    assert not stopped.success
    told = failure(stopped)
    assert f"{keys[2]}: 80 of its 80 cases are gone from the export (for instance 260, 261," in told
    assert "Nothing of this partition was changed" in told
    assert "allow_deletes" in told
    assert materialized(stopped) == set()
    assert loaded.published() == before
    assert rows(loaded.database, "SELECT id, content_hash, removed_at FROM landing.cases ORDER BY 1") == landed

    allowed = loaded.load(config=ALLOWED)
    assert allowed.success, failure(allowed)
    assert totals(allowed, "removed")["sqlite_cases"] == 160
    assert [row for row in before if row[0] < 260] == loaded.published()

    before = loaded.published()
    write_export(loaded.export, [])  # nothing at all is refused even so
    stopped = loaded.load(config=ALLOWED)
    assert not stopped.success
    assert "table 'cases' is empty. Nothing was changed" in failure(stopped)
    assert loaded.published() == before


def test_cases_that_are_all_rejected_now_stay_published_until_someone_confirms(graph: Graph) -> None:
    keys = graph.plan()
    graph.load()
    before = graph.published()
    with sqlite3.connect(graph.export) as export:
        export.execute("UPDATE cases SET title = ' ' WHERE id >= 260")
    export.close()
    stopped = graph.load(only=("sqlite_cases", "normalized_testdocs", "pg_tables"))
    assert not stopped.success
    told = failure(stopped)
    gone = len([row for row in before if 260 <= row[0] < int(keys[3].removeprefix("from_"))])
    assert f"{keys[2]}: {gone} of {gone} published cases would be taken away (for instance 26" in told
    assert "allow_deletes: true in the config of pg_tables" in told
    assert "pg_tables" not in materialized(stopped)
    assert graph.published() == before
    assert rows(graph.database, "SELECT count(*) FROM store.sync_runs") == [(1,)]

    allowed = graph.load(only=("pg_tables",), config={"pg_tables": ALLOWED["pg_tables"]})
    assert allowed.success, failure(allowed)
    assert [row for row in before if row[0] < 260] == graph.published()
    entries = rows(
        graph.database, "SELECT run_id, by, added, removed, finished_at IS NULL, partitions FROM store.sync_runs"
    )
    assert entries == [
        (graph.runs[0].run_id, "Dagster UI", len(before), 0, False, keys),
        (allowed.run_id, "Dagster UI", 0, len([row for row in before if row[0] >= 260]), False, keys[2:]),
    ]


def test_an_export_that_lacks_a_few_cases_of_every_small_partition_is_stopped(loaded: Graph) -> None:
    keys = loaded.keys()
    before = rows(loaded.database, "SELECT id, content_hash, removed_at FROM landing.cases ORDER BY 1")
    with sqlite3.connect(loaded.export) as export:
        export.execute("DELETE FROM cases WHERE id % 8 < 3")  # 30 of each 80: fewer than 50 may go of any one
        export.execute("UPDATE sections SET name = 'Changed'")
    export.close()
    stopped = loaded.load()
    assert not stopped.success
    assert f"{len(keys)} partitions from {keys[0]} to {keys[-1]}: 120 of their 320 cases are gone" in failure(stopped)
    assert rows(loaded.database, "SELECT id, content_hash, removed_at FROM landing.cases ORDER BY 1") == before
    assert rows(loaded.database, "SELECT count(*) FROM landing.sections WHERE name = 'Changed'") == [(0,)]
    allowed = loaded.load(config=ALLOWED)
    assert allowed.success, failure(allowed)
    assert totals(allowed, "removed")["sqlite_cases"] == 120


def test_a_range_is_added_when_the_last_one_has_outgrown_its_target(loaded: Graph) -> None:
    keys = loaded.keys()

    def grow(cases: list[dict[str, Any]]) -> None:
        with sqlite3.connect(loaded.export) as export:
            insert_cases(export, cases)
        export.close()

    grow(some_cases(TARGET, first=1000))
    assert loaded.plan_by_job() == keys  # the last range holds twice the target: not more than that
    grow(some_cases(1, first=5000))
    longer = loaded.plan_by_job()
    assert longer[: len(keys)] == keys  # a bound never moves
    assert len(longer) == len(keys) + 1
    again = loaded.load()
    assert again.success, failure(again)
    assert totals(again, "written")["pg_tables"] == TARGET + 1
    assert loaded.run("index_and_report").success
    for asset in PARTITIONED:
        assert loaded.instance.get_materialized_partitions(dg.AssetKey(asset)) == set(longer), asset
    assert loaded.plan() == longer


def test_an_index_a_killed_run_left_behind_is_replaced(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between building an index and putting it to use: the next run must not trip over it."""
    for name, value in {"QBENCH_INDEX": "binary", "QBENCH_TARGET_RECALL": "0.1"}.items():
        monkeypatch.setenv(name, value)
    graph.plan()
    graph.load()
    execute(
        graph.database,
        f"CREATE INDEX doc_embeddings_binary_1 ON {SPACE}.doc_embeddings"
        " USING hnsw ((public.binary_quantize(embedding)::bit(64)) public.bit_hamming_ops)",
    )
    built = graph.run("index_and_report")
    assert built.success, failure(built)
    assert rows(
        graph.database,
        "SELECT indexname FROM pg_indexes WHERE schemaname = %s AND indexdef LIKE '%%hnsw%%' ORDER BY 1",
        SPACE,
    ) == [("doc_embeddings_binary_1",), ("step_embeddings_binary_1",)]


def test_vectors_that_no_text_can_have_are_told(loaded: Graph) -> None:
    write_export(loaded.export, some_cases(40))
    assert loaded.run("check_tables").success
    assert checks(loaded.runs[-1])["step_embeddings:vectors_are_plausible"]
    assert checks(loaded.runs[-1])["doc_embeddings:vectors_are_plausible"]
    ones = "[" + ",".join(["0.125"] * 64) + "]"
    first = f"(SELECT text_hash FROM {SPACE}.step_embeddings ORDER BY 1 LIMIT 1)"
    execute(loaded.database, f"UPDATE {SPACE}.step_embeddings SET embedding = %s WHERE text_hash = {first}", ones)
    loaded.run("check_tables")
    assert not checks(loaded.runs[-1])["step_embeddings:vectors_are_plausible"]
    assert checks(loaded.runs[-1])["doc_embeddings:vectors_are_plausible"]
    (told,) = [each for each in loaded.runs[-1].get_asset_check_evaluations() if not each.passed]
    assert told.severity == dg.AssetCheckSeverity.ERROR
    assert "1 disagrees" in str(told.description), "constant, and embedding the text again tells what it should be"
