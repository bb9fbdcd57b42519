"""What differs between an export and what was landed of it: seen without landing it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qbench_dagster.adapters.landing import land_cases
from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.space import ensure_space
from qbench_dagster.adapters.testrail_export import TestRailExport
from qbench_dagster.adapters.watching import WITHOUT_ID, Difference, difference, identify, is_published, unfilled
from qbench_dagster.core.normalize import MAX_BYTES
from qbench_dagster.core.ranges import range_key, ranges_of
from qbench_dagster_tests.support import CASE_COLUMNS, SPACE, case, execute, insert_cases, run_pipeline, write_export

LOOSE = {**CASE_COLUMNS, "id": "INTEGER", "updated_on": "BLOB"}
"""No key and no affinity: rows may share an id, have none, and hold anything for a time."""
T0 = 1_700_000_000
CASES = [case(n, f"Title {n}", updated_on=T0 + n) for n in range(1, 21)]


@pytest.fixture
def export(tmp_path: Path) -> Path:
    return write_export(tmp_path / "export.db", CASES, columns=LOOSE)


@pytest.fixture
def look(export: Path, clean_database: Database) -> Callable[..., Difference]:
    """Land the export, and say later what differs from that."""

    def see(since: float | None = None) -> Difference:
        with TestRailExport(export) as source:
            return difference(clean_database, source, since)

    land(export, clean_database)
    return see


def land(export: Path, database: Database) -> None:
    with TestRailExport(export) as source:
        for case_range in ranges_of([range_key(1), range_key(11)]).values():
            land_cases(database, source, case_range, max_delete_share=1.0)


def edit(export: Path, statement: str, *values: Any) -> None:
    with closing(sqlite3.connect(export)) as connection, connection:
        connection.execute(statement, values)


@pytest.mark.parametrize("since", [None, T0, T0 + 20, T0 + 100])
def test_nothing_differs_from_what_was_landed(look: Callable[..., Difference], since: float | None) -> None:
    found = look(since)
    assert (found.ids, found.added, found.changed, found.removed) == ([], 0, 0, 0)
    assert found.compared == {None: 20, T0: 20, T0 + 20: 1, T0 + 100: 0}[since]


@pytest.mark.parametrize("since", [None, T0 + 18])
def test_what_was_edited_added_and_removed_is_found(
    export: Path, look: Callable[..., Difference], since: float | None
) -> None:
    edit(export, "UPDATE cases SET title = 'Edited', updated_on = ? WHERE id IN (3, 15)", T0 + 99)
    edit(export, "UPDATE cases SET updated_on = ? WHERE id = 4", T0 + 18)
    edit(export, "DELETE FROM cases WHERE id IN (7, 8)")
    with closing(sqlite3.connect(export)) as connection, connection:
        insert_cases(connection, [case(40, updated_on=1)], LOOSE)
    found = look(since)
    assert found.ids == [3, 4, 7, 8, 15, 40]
    assert (found.added, found.changed, found.removed) == (1, 3, 2)
    assert found.compared == (19 if since is None else 6)


def test_an_edit_that_did_not_move_its_time_is_found_by_comparing_all(
    export: Path, look: Callable[..., Difference]
) -> None:
    edit(export, "UPDATE cases SET title = 'Silent' WHERE id = 3")
    assert look(T0 + 4).ids == []
    assert look(T0 + 3).ids == look(None).ids == [3]


@pytest.mark.parametrize("time", [None, "2024-05-01", "1700000000", b"\x00"])
def test_rows_without_a_time_are_compared_each_time(
    export: Path, look: Callable[..., Difference], clean_database: Database, time: Any
) -> None:
    edit(export, "UPDATE cases SET updated_on = ? WHERE id = 5", time)
    assert look(T0 + 100).ids == [5]
    land(export, clean_database)
    found = look(T0 + 100)
    assert (found.ids, found.compared) == ([], 1)
    edit(export, "UPDATE cases SET title = 'Edited' WHERE id = 5")
    assert look(T0 + 100).ids == [5]


def test_an_export_without_times_is_compared_whole(tmp_path: Path, clean_database: Database) -> None:
    columns = {name: kind for name, kind in CASE_COLUMNS.items() if name != "updated_on"}
    path = write_export(tmp_path / "timeless.db", CASES, columns=columns)
    land(path, clean_database)
    edit(path, "UPDATE cases SET title = 'Edited' WHERE id = 5")
    with TestRailExport(path) as source:
        assert source.newest_update() is None
        found = difference(clean_database, source, T0)
    assert (found.ids, found.compared) == ([5], 20)


def test_rows_kept_aside_are_no_news_until_they_change(
    export: Path, look: Callable[..., Difference], clean_database: Database
) -> None:
    strange = [
        case(3, "The second of its id", updated_on=T0 + 99),
        case(30, "x" * (MAX_BYTES + 1), updated_on=T0 + 99),
        case("none", "Without id", updated_on=T0 + 99),
    ]
    with closing(sqlite3.connect(export)) as connection, connection:
        insert_cases(connection, strange, LOOSE)
    assert look(None).ids == [WITHOUT_ID, 3, 30]
    assert look(T0 + 50).ids == [3, 30], "rows without id are looked at when all are compared"
    land(export, clean_database)
    assert look(None).ids == look(T0 + 50).ids == []
    edit(export, "UPDATE cases SET title = title || '!' WHERE updated_on = ?", T0 + 99)
    assert look(None).ids == [WITHOUT_ID, 3, 30]
    assert look(T0 + 50).ids == [3, 30]
    edit(export, "DELETE FROM cases WHERE updated_on = ?", T0 + 99)
    assert look(None).ids == [WITHOUT_ID, 3, 30]
    assert look(T0 + 50).ids == [30], "that 3 has one row less is found when all are compared"


def test_a_case_that_was_removed_and_comes_back_is_new(
    export: Path, look: Callable[..., Difference], clean_database: Database
) -> None:
    edit(export, "DELETE FROM cases WHERE id = 9")
    land(export, clean_database)
    with closing(sqlite3.connect(export)) as connection, connection:
        insert_cases(connection, [CASES[8]], LOOSE)
    assert look(T0 + 100).ids == look(None).ids == [9]


def test_the_newest_time_is_of_numbers_only(export: Path) -> None:
    edit(export, "UPDATE cases SET updated_on = '9999-01-01' WHERE id = 1")
    edit(export, "UPDATE cases SET updated_on = ? WHERE id = 2", T0 + 50.5)
    with TestRailExport(export) as source:
        assert source.newest_update() == T0 + 50.5
    edit(export, "UPDATE cases SET updated_on = NULL")
    with TestRailExport(export) as source:
        assert source.newest_update() is None


def test_a_file_is_told_by_what_is_beside_it_too(export: Path) -> None:
    before = identify(export)
    assert before == identify(export)
    assert identify(export.with_name("missing.db")) is None
    assert identify(export / "below.db") is None
    with closing(sqlite3.connect(export)) as connection:
        connection.execute("PRAGMA journal_mode = wal")
        connection.commit()
        made_wal = identify(export)
        assert made_wal is not None
        assert made_wal != before
        with TestRailExport(export):
            assert identify(export) == made_wal, "reading changes nothing"
        connection.execute("UPDATE cases SET title = 'x' WHERE id = 1")
        connection.commit()
        in_log = identify(export)
        assert in_log is not None
        assert in_log.wal_size > 0
        assert (in_log.inode, in_log.size, in_log.modified_ns) == (made_wal.inode, made_wal.size, made_wal.modified_ns)


def test_a_space_is_a_persons_to_fill_first(export: Path, clean_database: Database) -> None:
    other = replace(SPACE, name="space_lexical_32", dimensions=32)
    assert unfilled(clean_database, other) is None, "nothing is read yet: who loads is asked elsewhere"
    run_pipeline(clean_database, export)
    assert unfilled(clean_database, SPACE) is None
    assert "the settings name space_lexical_32" in str(unfilled(clean_database, other))
    ensure_space(clean_database, other)
    assert "the settings name space_lexical_32" in str(unfilled(clean_database, other))
    execute(clean_database, "INSERT INTO space_lexical_32.doc_embeddings (text_hash, embedding, provenance, pieces) "
            "VALUES (sha256('a'), array_fill(1, ARRAY[32])::public.halfvec, 'lexical', 1)")  # fmt: skip
    assert unfilled(clean_database, other) is None


def test_whether_anything_is_published(export: Path, clean_database: Database) -> None:
    assert not is_published(clean_database)
    run_pipeline(clean_database, export)
    assert is_published(clean_database)
    execute(clean_database, "DELETE FROM store.test_documents")
    assert not is_published(clean_database)
