"""The staging room: a case is normalised again when, and only when, something it is made of changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qbench_dagster.adapters import staging
from qbench_dagster.adapters.landing import land_cases, land_lookups
from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.staging import Staged, load_lookups, stage_cases
from qbench_dagster.adapters.testrail_export import TestRailExport
from qbench_dagster.core.folders import section_paths
from qbench_dagster.core.model import Lookups
from qbench_dagster.core.ranges import ranges_of
from qbench_dagster_tests.support import CASE_COLUMNS, case, rows, write_export

WHOLE = ranges_of(["from_0000000001"])["from_0000000001"]

SECTIONS = [(10, "Accounts", None), (11, "Login", 10), (20, "Files", None)]
PRIORITIES = [(4, "High"), (6, "Medium")]
TYPES = [(4, "Regression"), (9, "Smoke")]
CASES = [
    case(1, "Log in", section_id=11, priority_id=4, type_id=4, steps="1. Open\n2. Log in"),
    case(2, "Log out", section_id=10, priority_id=6, type_id=4),
    case(3, "Upload", section_id=20, priority_id=6, type_id=9, preconditions="A file"),
    case(4, "   ", section_id=20, priority_id=6, type_id=9),
]


class Room:
    """The first three rooms, filled from an export that is written anew each time."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database, self._path = database, folder / "export.db"

    def stage(self, cases: list[dict[str, Any]] = CASES, **tables: Any) -> Staged:
        tables = {"sections": SECTIONS, "priorities": PRIORITIES, "case_types": TYPES, **tables}
        write_export(self._path, cases, **tables)
        with TestRailExport(self._path) as export:
            land_lookups(self.database, export, section_paths)
            land_cases(self.database, export, WHOLE, max_delete_share=1.0)
        return self.again()

    def again(self) -> Staged:
        told: list[int] = []
        staged = stage_cases(self.database, load_lookups(self.database), WHOLE, told.append)
        assert sum(told) == staged.normalized + staged.rejected.total()
        return staged

    def versions(self) -> dict[int, str]:
        """The row version of each case, staged or rejected."""
        query = """SELECT case_id, xmin::text FROM staging.test_documents
                   UNION ALL SELECT case_id, xmin::text FROM staging.rejects"""
        return dict(rows(self.database, query))  # type: ignore[arg-type]

    def column(self, name: str) -> dict[int, Any]:
        return dict(rows(self.database, f"SELECT case_id, {name} FROM staging.test_documents"))  # type: ignore[arg-type]


@pytest.fixture
def room(clean_database: Database, tmp_path: Path) -> Room:
    return Room(clean_database, tmp_path)


def rewritten(before: dict[int, str], after: dict[int, str]) -> set[int]:
    return {case_id for case_id in before.keys() | after.keys() if before.get(case_id) != after.get(case_id)}


def test_what_is_due_is_normalised_once(room: Room) -> None:
    staged = room.stage()
    assert (staged.normalized, dict(staged.rejected), staged.steps) == (3, {"blank_title": 1}, 2)
    assert staged.rows_written == 3 + 1 + 2
    assert staged.reject_samples[0][:2] == (4, "blank_title")
    before = room.versions()
    again = room.again()
    assert (again.normalized, again.rejected.total(), again.rows_written) == (0, 0, 0)
    assert room.versions() == before
    assert room.stage().rows_written == 0, "landing the same export again makes nothing due"


def test_a_changed_case_is_normalised_and_no_other(room: Room) -> None:
    room.stage()
    before, hashes = room.versions(), room.column("doc_hash")
    staged = room.stage([case(1, "Log in", section_id=11, priority_id=4, type_id=4, steps="Open"), *CASES[1:]])
    assert (staged.normalized, staged.steps) == (1, 1)
    assert rewritten(before, room.versions()) == {1}
    assert rows(room.database, "SELECT step_index, action FROM staging.test_steps WHERE case_id = 1") == [(1, "Open")]
    assert {key for key, value in room.column("doc_hash").items() if hashes[key] != value} == {1}


@pytest.mark.parametrize(
    ("table", "values", "due", "column", "expected"),
    [
        ("sections", [(10, "Users", None), *SECTIONS[1:]], {1, 2}, "folder_structure", {1: "Users/Login", 2: "Users"}),
        ("sections", [*SECTIONS[:2], (20, "Docs", None)], {3, 4}, "folder_structure", {3: "Docs"}),
        ("sections", [*SECTIONS[:1], (11, "Login", None), SECTIONS[2]], {1}, "folder_structure", {1: "Login"}),
        ("sections", SECTIONS[1:], {1, 2}, "folder_structure", {1: "Login", 2: None}),
        ("sections", [*SECTIONS, (30, "New", None)], set(), "folder_structure", {}),
        ("priorities", [(4, "Critical"), PRIORITIES[1]], {1}, "priority", {1: "Critical"}),
        ("priorities", PRIORITIES[1:], {1}, "priority", {1: "4"}),
        ("case_types", [TYPES[0], (9, "Sanity")], {3, 4}, "test_type", {3: "Sanity"}),
    ],
)
def test_a_name_a_case_refers_to_makes_that_case_due_and_no_other(
    room: Room, table: str, values: list[Any], due: set[int], column: str, expected: dict[int, Any]
) -> None:
    room.stage()
    before, was = room.versions(), room.column(column)
    staged = room.stage(**{table: values})
    assert rewritten(before, room.versions()) == due
    assert staged.normalized + staged.rejected.total() == len(due)
    assert room.column(column) == {**was, **expected}
    assert room.again().rows_written == 0


def test_ids_that_the_export_holds_as_floats_find_their_names(room: Room) -> None:
    columns = {**CASE_COLUMNS, "section_id": "REAL", "priority_id": "REAL"}
    room.stage(columns=columns)
    assert room.column("folder_structure") == {1: "Accounts/Login", 2: "Accounts", 3: "Files"}
    before = room.versions()
    room.stage(columns=columns, sections=[(10, "Users", None), *SECTIONS[1:]])
    assert rewritten(before, room.versions()) == {1, 2}


def test_ids_that_the_export_holds_as_text_find_their_names(room: Room) -> None:
    columns = {**CASE_COLUMNS, "section_id": "", "priority_id": "", "type_id": ""}
    cases = [case(1, section_id=" 11", priority_id="4 ", type_id="04"), case(2, section_id="0")]
    room.stage(cases, columns=columns, sections=[*SECTIONS, (0, "Zero", None)])
    assert room.column("folder_structure") == {1: "Accounts/Login", 2: "Zero"}
    assert (room.column("priority")[1], room.column("test_type")[1]) == ("High", "Regression")
    assert room.column("notes") == {1: [], 2: []}
    before = room.versions()
    room.stage(cases, columns=columns, sections=[*SECTIONS, (0, "None", None)], priorities=[(4, "Low"), (6, "Medium")])
    assert rewritten(before, room.versions()) == {1, 2}
    assert room.column("folder_structure")[2] == "None"


def test_names_are_of_the_moment_of_the_hash_they_are_stored_under(room: Room) -> None:
    room.stage()
    old = load_lookups(room.database)
    # Another run lands new names after this one has loaded its look-ups.
    write_export(room._path, CASES, sections=[(10, "Users", None), *SECTIONS[1:]], priorities=[(4, "Low"), (6, "Low")],
                 case_types=TYPES)  # fmt: skip
    with TestRailExport(room._path) as export:
        land_lookups(room.database, export, section_paths)
    stage_cases(room.database, old, WHOLE, lambda _: None)
    assert room.column("folder_structure") == {1: "Users/Login", 2: "Users", 3: "Files"}
    assert set(room.column("priority").values()) == {"Low"}
    assert room.again().rows_written == 0


def test_names_that_land_while_a_range_is_read_are_for_the_next_run(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = staging._lookups

    def overtaken(connection: Any, version: bytes) -> Lookups:
        with TestRailExport(room._path) as export:
            land_lookups(room.database, export, section_paths)
        return real(connection, version)

    room.stage()
    tables = {"sections": [(10, "Users", None), *SECTIONS[1:]], "priorities": PRIORITIES, "case_types": TYPES}
    changed = [{**row, "comment": "changed"} for row in CASES]
    write_export(room._path, changed, **tables)
    with TestRailExport(room._path) as export:
        land_cases(room.database, export, WHOLE, max_delete_share=1.0)
    monkeypatch.setattr(staging, "_lookups", overtaken)
    stage_cases(room.database, Lookups({}, {}, {}), WHOLE, lambda _: None)
    monkeypatch.setattr(staging, "_lookups", real)
    assert room.column("folder_structure") == {1: "Accounts/Login", 2: "Accounts", 3: "Files"}
    assert room.again().normalized == 2
    assert room.column("folder_structure") == {1: "Users/Login", 2: "Users", 3: "Files"}
    assert room.again().rows_written == 0


def test_look_ups_that_did_not_change_are_not_read_again(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    room.stage()
    lookups = load_lookups(room.database)
    monkeypatch.setattr(staging, "NORMALIZER_VERSION", staging.NORMALIZER_VERSION + 1)
    monkeypatch.delattr(staging, "_lookups")
    assert stage_cases(room.database, lookups, WHOLE, lambda _: None).normalized == 3


def test_long_rows_make_small_batches(room: Room) -> None:
    told: list[int] = []
    room.stage([case(n, comment="x" * 3_000_000) for n in range(1, 8)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staging, "NORMALIZER_VERSION", staging.NORMALIZER_VERSION + 1)
        stage_cases(room.database, load_lookups(room.database), WHOLE, told.append)
    assert told == [3, 3, 1]


def test_a_newer_normaliser_makes_every_case_due(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    room.stage()
    hashes = room.column("doc_hash")
    monkeypatch.setattr(staging, "NORMALIZER_VERSION", staging.NORMALIZER_VERSION + 1)
    staged = room.again()
    assert (staged.normalized, staged.rejected.total()) == (3, 1)
    assert room.column("doc_hash") == hashes, "equal results have equal hashes, so that nothing is published again"
    assert set(room.column("recipe").values()) == {staging.NORMALIZER_VERSION}
    assert room.again().rows_written == 0


def test_a_reject_is_replayed_when_it_is_fixed_and_back(room: Room) -> None:
    room.stage()
    staged = room.stage([*CASES[:3], case(4, "Download", section_id=20, steps="1. a\n2. b")])
    assert (staged.normalized, staged.rejected.total()) == (1, 0)
    assert rows(room.database, "SELECT count(*) FROM staging.rejects") == [(0,)]
    assert room.column("title")[4] == "Download"
    staged = room.stage([*CASES[:3], case(4, "\u200b", section_id=20)])
    assert dict(staged.rejected) == {"blank_title": 1}
    assert set(room.column("title")) == {1, 2, 3}
    assert rows(room.database, "SELECT count(*) FROM staging.test_steps WHERE case_id = 4") == [(0,)]


def test_removed_cases_leave_with_their_steps_and_rejects(room: Room) -> None:
    room.stage()
    staged = room.stage(CASES[1:3])
    assert (staged.removed, staged.rows_written, staged.normalized) == (1 + 2 + 1, 4, 0)
    assert set(room.versions()) == {2, 3}
    assert rows(room.database, "SELECT count(*) FROM staging.test_steps") == [(0,)]
    staged = room.stage()
    assert (staged.normalized, staged.rejected.total()) == (1, 1), "a case that comes back is staged again"


def test_a_range_leaves_the_cases_of_another_alone(room: Room) -> None:
    room.stage()
    before = room.versions()
    room.stage([case(1, "a"), case(2, "b"), case(3, "c")])
    after = room.versions()
    assert rewritten(before, after) == {1, 2, 3, 4}
    write_export(room._path, [case(1, "x"), case(3, "y")], sections=SECTIONS)
    low = ranges_of(["from_0000000001", "from_0000000003"])["from_0000000001"]
    with TestRailExport(room._path) as export:
        land_cases(room.database, export, WHOLE, max_delete_share=1.0)
    stage_cases(room.database, load_lookups(room.database), low, lambda _: None)
    assert rewritten(after, room.versions()) == {1, 2}


def test_hashes_are_the_same_in_another_database(room: Room) -> None:
    # Written down once: another value publishes every row again, so it has to be a decision.
    room.stage()
    first = room.column("doc_hash"), room.column("text_hash"), room.column("input_hash")
    room.stage([case(99)])
    room.stage()
    assert (room.column("doc_hash"), room.column("text_hash"), room.column("input_hash")) == first
    assert len(set(first[0].values())) == 3


def test_a_failure_in_the_middle_leaves_staging_as_it_was(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    room.stage()
    before = room.versions()
    monkeypatch.setattr(staging, "BATCH", 1)
    real = staging.normalize

    def broken(raw: Any, lookups: Any) -> Any:
        if raw["id"] == 3:
            raise RuntimeError("planted")
        return real(raw, lookups)

    monkeypatch.setattr(staging, "normalize", broken)
    changed = [{**row, "comment": "changed"} for row in CASES]
    with pytest.raises(RuntimeError, match="planted"):
        room.stage(changed)
    assert room.versions() == before
    monkeypatch.setattr(staging, "normalize", real)
    assert room.again().normalized == 3
