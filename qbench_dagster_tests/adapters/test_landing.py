"""The landing room: what differs is written, what is gone is buried, what has no id is kept beside."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qbench_dagster.adapters import testrail_export
from qbench_dagster.adapters.landing import DeleteGuardError, Landed, guard_deletes, land_cases, land_lookups
from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.testrail_export import ExportError, TestRailExport
from qbench_dagster.core.folders import section_paths
from qbench_dagster.core.ranges import CaseRange, ranges_of
from qbench_dagster_tests.support import CASE_COLUMNS, case, execute, rows, write_export

WHOLE = ranges_of(["from_0000000001"])["from_0000000001"]
WITHOUT_KEY = {**CASE_COLUMNS, "id": "", "title": "VARCHAR"}

CELLS = st.one_of(
    st.none(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text(max_size=5), st.binary(max_size=5)
)


def land(
    database: Database, path: Path, case_range: CaseRange = WHOLE, *, max_delete_share: float = 0.2
) -> dict[str, int]:
    """Land a range; the counts that are not 0."""
    with TestRailExport(path) as export:
        landed = land_cases(database, export, case_range, max_delete_share=max_delete_share)
    assert landed.held == landed.source_rows, "accounting: the room holds each row of the source"
    return {name: count for name, count in landed.counts().items() if count and name != "held"}


def room(database: Database) -> list[tuple[Any, ...]]:
    """Everything in the landing room, with the versions of its rows."""
    return rows(database, "SELECT xmin::text, * FROM landing.cases ORDER BY id") + rows(
        database, "SELECT xmin::text, * FROM landing.rejected_rows ORDER BY content_hash, occurrence"
    )


def hashes(cells: list[Any]) -> list[bytes]:
    """Content hashes of rows that differ in one cell."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_export(
            Path(folder) / "x.db",
            ({"id": number, "title": "t", "cell": cell} for number, cell in enumerate(cells, 1)),
            columns={"id": "INTEGER", "title": "TEXT", "cell": ""},
        )
        with closing(sqlite3.connect(path)) as connection:
            with connection:
                connection.execute("UPDATE cases SET id = 1")
            with TestRailExport(path) as export:
                return [row.content_hash for batch in export.rows(WHOLE) for row in batch]


def stored(cell: Any) -> Any:
    """What is told apart: text and blob of the same bytes are not; 0.0 and -0.0, 1 and 1.0 are."""
    return ("bytes", cell.encode() if isinstance(cell, str) else cell) if isinstance(cell, str | bytes) else repr(cell)


@settings(max_examples=60, deadline=None)
@given(st.lists(CELLS, min_size=2, max_size=8))
def test_the_content_hash_changes_if_and_only_if_a_cell_does(cells: list[Any]) -> None:
    # SQLite keeps an integral float in a column without affinity as the float it is.
    found = hashes(cells)
    for one, first in zip(cells, found, strict=True):
        for other, second in zip(cells, found, strict=True):
            assert (first == second) is (stored(one) == stored(other)), (one, other)


def test_a_change_of_any_column_is_noticed(clean_database: Database, tmp_path: Path) -> None:
    # updated_on stays as it is, but for its own turn: the content alone decides.
    changes: dict[str, Any] = {}
    for column in CASE_COLUMNS:
        land(clean_database, write_export(tmp_path / "x.db", [case(1), case(2, **changes)]))
        if column == "id":
            continue
        changes[column] = f"changed {column}"
        after = write_export(tmp_path / "x.db", [case(1), case(2, **changes)])
        assert land(clean_database, after) == {"source_rows": 2, "changed": 1, "unchanged": 1, "rows_written": 1}
        found = rows(clean_database, "SELECT raw ->> %s FROM landing.cases ORDER BY id", column)
        assert found[1] == (f"changed {column}",)


def test_a_second_look_at_the_same_source_writes_nothing(clean_database: Database, tmp_path: Path) -> None:
    path = write_export(tmp_path / "x.db", [case(1), case(1, "again"), case("x"), case(2)], columns=WITHOUT_KEY)
    land(clean_database, path)
    before = room(clean_database)
    assert land(clean_database, path) == {"source_rows": 4, "unchanged": 2, "rejected_rows": 2}
    assert room(clean_database) == before


def test_added_changed_removed_and_back_again(clean_database: Database, tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    land(clean_database, write_export(path, [case(n) for n in range(1, 7)]))
    found = land(clean_database, write_export(path, [case(1), case(2, "Log out"), case(4), case(5), case(6), case(7)]))
    assert found == {"source_rows": 6, "added": 1, "changed": 1, "unchanged": 4, "removed": 1, "rows_written": 3}
    assert rows(clean_database, "SELECT id, raw ->> 'title' FROM landing.cases WHERE removed_at IS NOT NULL") == [
        (3, "Log in")
    ], "a tombstone keeps the row"
    buried = room(clean_database)
    assert "removed" not in land(clean_database, path)
    assert room(clean_database) == buried, "a tombstone is written once"
    back = land(clean_database, write_export(path, [case(n) for n in range(1, 8)]))
    assert back == {"source_rows": 7, "added": 1, "changed": 1, "unchanged": 5, "rows_written": 2}
    assert rows(clean_database, "SELECT count(*) FROM landing.cases WHERE removed_at IS NULL") == [(7,)]


def test_a_range_touches_no_case_of_another(clean_database: Database, tmp_path: Path) -> None:
    path = write_export(tmp_path / "x.db", [case(n) for n in (5, 10, 15, 20)])
    low, high = ranges_of(["from_0000000005", "from_0000000015"]).values()
    assert land(clean_database, path, low)["added"] == 2
    assert land(clean_database, path, high)["added"] == 2
    path = write_export(path, [case(5), case(20)])
    assert land(clean_database, path, high) == {"source_rows": 1, "unchanged": 1, "removed": 1, "rows_written": 1}
    assert rows(clean_database, "SELECT id FROM landing.cases WHERE removed_at IS NULL ORDER BY id") == [
        (5,),
        (10,),
        (20,),
    ]


def test_more_rows_than_a_batch(clean_database: Database, tmp_path: Path) -> None:
    path = write_export(tmp_path / "x.db", [case(n, steps="a\0b") for n in range(1, 2502)])
    assert land(clean_database, path) == {
        "source_rows": 2501, "added": 2501, "rows_written": 2501, "replacement_characters": 2501,
    }  # fmt: skip


# Rows without an id of their own


def test_rejected_rows_land_stay_and_leave(clean_database: Database, tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    source = [case(1, "first"), case(1, "second"), case(None, "no id"), case(-4, "minus"), case("x", "text"),
              case(None, "no id")]  # fmt: skip
    found = land(clean_database, write_export(path, source, columns=WITHOUT_KEY))
    assert found == {"source_rows": 6, "added": 1, "rejected_rows": 5, "rows_written": 6}
    kept = rows(
        clean_database, "SELECT case_id, reason, occurrence, raw ->> 'title', detail FROM landing.rejected_rows"
    )
    assert sorted(row[:4] for row in kept if row[0]) == [(1, "duplicate_id", 0, "second")]
    assert sorted(row[1:4] for row in kept if not row[0]) == [
        ("invalid_id", 0, "minus"), ("invalid_id", 0, "no id"), ("invalid_id", 0, "text"), ("invalid_id", 1, "no id"),
    ]  # fmt: skip
    assert any("id is -4, not an integer" in row[4] and "minus" in row[4] for row in kept)
    fixed = [case(1, "first"), case(2, "second"), case(3, "no id"), case("x", "text")]
    found = land(clean_database, write_export(path, fixed, columns=WITHOUT_KEY))
    assert found == {"source_rows": 4, "added": 2, "unchanged": 1, "rejected_rows": 1, "rows_written": 6}
    assert rows(clean_database, "SELECT reason, raw ->> 'id' FROM landing.rejected_rows") == [("invalid_id", "x")]


def test_rows_without_an_id_belong_to_the_first_range_alone(clean_database: Database, tmp_path: Path) -> None:
    path = write_export(tmp_path / "x.db", [case(5), case(None), case(50, "one"), case(50, "two")], columns=WITHOUT_KEY)
    low, high = ranges_of(["from_0000000005", "from_0000000050"]).values()
    assert land(clean_database, path, high) == {"source_rows": 2, "added": 1, "rejected_rows": 1, "rows_written": 2}
    assert land(clean_database, path, low) == {"source_rows": 2, "added": 1, "rejected_rows": 1, "rows_written": 2}
    before = room(clean_database)
    assert land(clean_database, path, high)["rejected_rows"] == land(clean_database, path, low)["rejected_rows"] == 1
    assert room(clean_database) == before


def test_a_partition_whose_rows_are_all_rejected_is_accounted_for(clean_database: Database, tmp_path: Path) -> None:
    path = write_export(tmp_path / "x.db", [case(None), case("a"), case(0)], columns=WITHOUT_KEY)
    assert land(clean_database, path) == {"source_rows": 3, "rejected_rows": 3, "rows_written": 3}


def test_a_row_that_is_too_large_is_kept_aside(
    clean_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.db"
    monkeypatch.setattr(testrail_export, "MAX_BYTES", 100_000)
    source = [*(case(n) for n in range(1, 100)), case(100, "Long", steps="x" * 200_000)]
    found = land(clean_database, write_export(path, source))
    assert found == {"source_rows": 100, "added": 99, "rejected_rows": 1, "rows_written": 100}
    kept = rows(
        clean_database,
        "SELECT case_id, reason, detail, raw ->> 'title', length(raw ->> 'steps') FROM landing.rejected_rows",
    )
    assert [(row[0], row[1], row[3]) for row in kept] == [(100, "too_large", "Long")]
    assert "200,004 bytes of text" in kept[0][2]
    assert 2000 < kept[0][4] < 2100
    before = room(clean_database)
    assert land(clean_database, path) == {"source_rows": 100, "unchanged": 99, "rejected_rows": 1}
    assert room(clean_database) == before

    # All of them grow too large: they leave the landing room without being taken for cases that are gone.
    grown = [case(n, steps="y" * 200_000) for n in range(1, 101)]
    found = land(clean_database, write_export(path, grown))
    assert found == {"source_rows": 100, "removed": 99, "rejected_rows": 100, "rows_written": 99 + 100 + 1}
    back = land(clean_database, write_export(path, [case(n) for n in range(1, 101)]))
    assert back == {"source_rows": 100, "added": 100, "rows_written": 100 + 100}


def test_a_field_of_more_than_json_can_hold_fails_nothing(clean_database: Database, tmp_path: Path) -> None:
    path = write_export(tmp_path / "x.db", [case(1), case(3)])
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO cases (id, title, steps) VALUES (2, 'Huge', zeroblob(280000000))")
    assert land(clean_database, path) == {"source_rows": 3, "added": 2, "rejected_rows": 1, "rows_written": 3}


# The delete guard


@pytest.mark.parametrize(
    ("left", "share", "stopped"),
    [(50, 0.2, True), (51, 0.2, False), (0, 0.2, True), (40, 0.6, False), (39, 0.6, True), (0, 1.0, False)],
)
def test_the_guard_stops_a_truncated_export(
    clean_database: Database, tmp_path: Path, left: int, share: float, stopped: bool
) -> None:
    path = tmp_path / "x.db"
    land(clean_database, write_export(path, [case(n) for n in range(1, 101)] + [case(9000)]))
    before = room(clean_database)
    # A change and an addition besides: nothing of the partition is written when the guard stops it.
    write_export(path, [case(n, "changed") for n in range(1, left + 1)] + [case(9000), case(9001)])
    if not stopped:
        assert land(clean_database, path, max_delete_share=share)["removed"] == 100 - left
        return
    with pytest.raises(DeleteGuardError) as error:
        land(clean_database, path, max_delete_share=share)
    told = str(error.value)
    assert f"{100 - left} of its 101 cases are gone" in told
    assert str(left + 1) in told
    assert "Nothing of this partition was changed" in told
    assert "--allow-deletes" in told
    assert room(clean_database) == before
    assert land(clean_database, path, max_delete_share=1.0)["removed"] == 100 - left, "whoever means it can say so"


def test_a_small_partition_may_lose_all_its_cases(clean_database: Database, tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    land(clean_database, write_export(path, [case(n) for n in range(1, 51)] + [case(9000)]))
    high = ranges_of(["from_0000000001", "from_0000009000"])["from_0000009000"]
    assert land(clean_database, write_export(path, [case(1), *(case(n) for n in range(3, 51))]), high)["removed"] == 1
    assert land(clean_database, write_export(path, [case(50)]))["removed"] == 49


@pytest.mark.parametrize(("left", "stopped"), [(1, True), (319, True), (320, False), (400, False)])
def test_small_partitions_are_guarded_together(
    clean_database: Database, tmp_path: Path, left: int, stopped: bool
) -> None:
    path = tmp_path / "x.db"
    ranges = list(ranges_of([f"from_{bound:010d}" for bound in range(1, 400, 40)]).values())
    write_export(path, [case(n) for n in range(1, 401)])
    for case_range in ranges:
        land(clean_database, path, case_range)
    write_export(path, [case(n) for n in range(1, left + 1)])
    with TestRailExport(path) as export:
        if not stopped:
            guard_deletes(clean_database, export, ranges, 0.2)
            return
        with pytest.raises(DeleteGuardError) as error:
            guard_deletes(clean_database, export, ranges, 0.2)
        guard_deletes(clean_database, export, ranges, 1.0)
        guard_deletes(clean_database, export, ranges[:1], 0.2)
        guard_deletes(clean_database, export, [], 0.2)
    told = str(error.value)
    assert "10 partitions from from_0000000001 to from_0000000361: " in told
    assert f"{400 - left} of their 400 cases are gone from the export (for instance {left + 1}, " in told
    assert "more than 20%" in told
    assert "Nothing of them was changed" in told
    assert "--allow-deletes" in told


def test_the_guard_of_a_run_names_the_partition_that_lacks_cases(clean_database: Database, tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    ranges = list(ranges_of(["from_0000000001", "from_0000000301"]).values())
    write_export(path, [case(n) for n in range(1, 401)])
    for case_range in ranges:
        land(clean_database, path, case_range)
    write_export(path, [case(n) for n in range(1, 331)])
    with (
        TestRailExport(path) as export,
        pytest.raises(DeleteGuardError, match=r"^from_0000000301: 70 of its 100 cases .*Nothing of this partition"),
    ):
        guard_deletes(clean_database, export, ranges, 0.2)


# The look-up tables


def look_up(database: Database, path: Path) -> int:
    with TestRailExport(path) as export:
        return land_lookups(database, export, section_paths)


def paths(database: Database) -> dict[str, str]:
    return dict(rows(database, "SELECT key, path FROM landing.sections"))  # type: ignore[arg-type]


def test_look_up_tables_follow_the_source(clean_database: Database, tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    tree = [(10, "Accounts", None), (11, "Login", 10), (12, "SSO", 11), (20, "Files", None)]
    # Four sections, two priorities, two types, and one row each of projects, suites and templates.
    assert look_up(clean_database, write_export(path, [case(1)], sections=tree)) == 11
    assert paths(clean_database) == {
        "10": "Accounts",
        "11": "Accounts/Login",
        "12": "Accounts/Login/SSO",
        "20": "Files",
    }
    versions = "SELECT key, xmin::text FROM landing.sections ORDER BY key"
    before = dict(rows(clean_database, versions))  # type: ignore[arg-type]
    assert look_up(clean_database, path) == 0
    assert dict(rows(clean_database, versions)) == before  # type: ignore[arg-type]

    tree[1] = (11, "Sign in", 10)
    assert look_up(clean_database, write_export(path, [case(1)], sections=tree)) == 2, (
        "its own row, and a path below it"
    )
    assert paths(clean_database) == {
        "10": "Accounts",
        "11": "Accounts/Sign in",
        "12": "Accounts/Sign in/SSO",
        "20": "Files",
    }
    after = dict(rows(clean_database, versions))  # type: ignore[arg-type]
    assert {key for key in before if before[key] != after[key]} == {"11", "12"}

    assert (
        look_up(clean_database, write_export(path, [case(1)], sections=[(10, "Accounts", None), (12, "SSO", 11)])) == 3
    )
    assert paths(clean_database) == {"10": "Accounts", "12": "SSO"}, (
        "an orphan keeps the part of its path that is known"
    )
    assert look_up(clean_database, write_export(path, [case(1)], sections=[(10, "A", 12), (12, "S", 10)])) == 2
    assert paths(clean_database) == {"10": "S/A", "12": "A/S"}, "a circle ends"


def test_look_up_rows_without_an_id_or_twice_do_no_harm(clean_database: Database, tmp_path: Path) -> None:
    path = write_export(tmp_path / "x.db", [case(1)])
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DROP TABLE priorities")
        connection.execute("CREATE TABLE priorities (id, name, extra)")
        connection.executemany(
            "INSERT INTO priorities VALUES (?, ?, ?)",
            [(1, "High", b"\0\xff"), (1, "High", b"\0\xff"), (None, "nobody", 1), ("a", None, float("inf"))],
        )
    look_up(clean_database, path)
    assert rows(clean_database, "SELECT key, name FROM landing.priorities ORDER BY key") == [("1", "High"), ("a", None)]
    assert look_up(clean_database, path) == 0


def test_one_id_in_many_forms_and_a_key_of_any_length(clean_database: Database, tmp_path: Path) -> None:
    path = write_export(tmp_path / "x.db", [case(1)])
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DROP TABLE sections")
        connection.execute("CREATE TABLE sections (id, name, parent_id)")
        connection.executemany(
            "INSERT INTO sections VALUES (?, ?, ?)",
            [
                (" 1", "Root", None),
                (1, "Another", None),
                ("2", "Leaf", 1.0),
                ("".join(map(str, range(3000))), "x", None),
            ],
        )
    look_up(clean_database, path)
    assert paths(clean_database) == {"1": "Root", "2": "Root/Leaf"}
    assert rows(clean_database, "SELECT name FROM landing.sections WHERE key = '1'") == [("Root",)]
    assert look_up(clean_database, path) == 0


def test_a_failure_in_the_middle_leaves_the_room_as_it_was(clean_database: Database, tmp_path: Path) -> None:
    path = write_export(tmp_path / "x.db", [case(n) for n in range(1, 1500)])
    land(clean_database, path)
    before = room(clean_database)
    write_export(path, [case(n, "changed", steps="x" * 500) for n in range(1, 1500)])
    with TestRailExport(path) as export:
        batches = export.rows

        def broken(case_range: CaseRange) -> Any:
            yield next(batches(case_range))
            raise OSError("the disk is gone")

        export.rows = broken  # type: ignore[method-assign]
        with pytest.raises(OSError, match="the disk is gone"):
            land_cases(clean_database, export, WHOLE, max_delete_share=1.0)
    assert room(clean_database) == before


def test_nothing_of_a_file_that_is_written_over_meanwhile_is_landed(clean_database: Database, tmp_path: Path) -> None:
    path, mixed = tmp_path / "export.db", "was written over while it was read"
    land(clean_database, write_export(path, [case(n) for n in range(1, 101)]))
    with TestRailExport(path) as export:
        land_lookups(clean_database, export, section_paths)
    before = (
        room(clean_database),
        rows(clean_database, "SELECT name, content_hash FROM landing.lookup_tables ORDER BY name"),
    )
    other = write_export(tmp_path / "other.db", [case(n, title="Other") for n in range(1, 11)])
    with closing(sqlite3.connect(other)) as connection, connection:
        connection.execute("UPDATE sections SET name = 'Other'")
    os.utime(path, (0, 0))
    with TestRailExport(path) as export:
        path.write_bytes(other.read_bytes())
        export._connection.execute("ROLLBACK")  # so that none of the pages read before are kept
        with pytest.raises(ExportError, match=mixed):
            guard_deletes(clean_database, export, [WHOLE], 0.2)
        with pytest.raises(ExportError, match=mixed):
            land_lookups(clean_database, export, section_paths)
        with pytest.raises(ExportError, match=mixed):
            land_cases(clean_database, export, WHOLE, max_delete_share=0.2)
        with pytest.raises(ExportError, match=mixed):
            land_cases(clean_database, export, WHOLE, max_delete_share=1.0)
    now = (
        room(clean_database),
        rows(clean_database, "SELECT name, content_hash FROM landing.lookup_tables ORDER BY name"),
    )
    assert now == before


def test_accounting_notices_a_row_that_the_room_lost(clean_database: Database, tmp_path: Path) -> None:
    path = write_export(tmp_path / "x.db", [case(n) for n in range(1, 10)])
    land(clean_database, path)
    # A rule that swallows rows silently, as a broken trigger would.
    execute(clean_database, "CREATE RULE swallow AS ON INSERT TO landing.cases WHERE new.id = 10 DO INSTEAD NOTHING")
    write_export(path, [case(n) for n in range(1, 11)])
    with TestRailExport(path) as export:
        landed: Landed = land_cases(clean_database, export, WHOLE, max_delete_share=1.0)
    assert (landed.source_rows, landed.held) == (10, 9)
    execute(clean_database, "DROP RULE swallow ON landing.cases")
