"""Pulls from a real HTTP server: the mirror equals the export, what is asked for, kills, deletions, what is kept."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qbench_dagster.adapters import testrail_api, testrail_mirror
from qbench_dagster.adapters.landing import land_cases, land_lookups
from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.sample_writer import TABLES, write_sample
from qbench_dagster.adapters.staging import load_lookups, stage_cases
from qbench_dagster.adapters.testrail_api import TestRailAPI, TestRailError
from qbench_dagster.adapters.testrail_export import TestRailExport
from qbench_dagster.adapters.testrail_mirror import last_full_pull, opened
from qbench_dagster.adapters.testrail_pull import Pulled, pull
from qbench_dagster.adapters.testrail_work import MirrorError
from qbench_dagster.core.folders import section_paths
from qbench_dagster.core.ranges import plan_bounds, range_key, ranges_of
from qbench_dagster_tests.chaos.exports import DYING_WRITER
from qbench_dagster_tests.support import REAL_EXPORT, rows
from qbench_dagster_tests.testrail_server import KEY, USER, TestRailData, TestRailServer

NOW = int(time.time())
OLD = NOW - 30 * 86_400
LARGE, SMALL = 2, 3
"""Suites: of 600 cases in three pages, and of 10."""


def small(case_id: int, suite_id: int = SMALL, **fields: Any) -> dict[str, Any]:
    """A case as the API gives it, and its project."""
    return {
        "id": case_id, "suite_id": suite_id, "project_id": 1, "section_id": suite_id * 10, "title": f"Case {case_id}",
        "template_id": 1, "type_id": 4, "priority_id": 2, "refs": None, "created_on": OLD, "updated_on": OLD,
        "custom_steps": f"Do {case_id}", "custom_expected": None, **fields,
    }  # fmt: skip


def small_data(large: int = 600) -> TestRailData:
    """Two suites of one project, and one of another."""
    data = TestRailData(
        projects={n: {"id": n, "name": f"Project {n}", "suite_mode": 3, "url": "https://x"} for n in (1, 4)},
        suites={
            **{n: {"id": n, "project_id": 1, "name": f"Suite {n}", "is_master": False} for n in (LARGE, SMALL)},
            5: {"id": 5, "project_id": 4, "name": "Suite 5", "is_master": True},
        },
        sections={
            n * 10: {"id": n * 10, "suite_id": n, "name": f"Part {n}", "parent_id": None, "depth": 0}
            for n in (LARGE, SMALL, 5)
        },
        priorities={2: {"id": 2, "name": "High", "short_name": "H", "is_default": True, "priority": 1}},
        case_types={4: {"id": 4, "name": "Smoke", "is_default": True}},
        templates={1: {"id": 1, "name": "Text", "is_default": True}},
    )
    for case_id in range(1001, 1001 + large):
        data.cases[case_id] = small(case_id, LARGE)
    for case_id in range(1, 11):
        data.cases[case_id] = small(case_id)
    data.cases[50] = small(50, 5, project_id=4)
    return data


@dataclass
class World:
    """A TestRail, and a mirror of it."""

    server: TestRailServer
    path: Path
    api: TestRailAPI
    asked: list[str] = field(default_factory=list)

    @property
    def data(self) -> TestRailData:
        return self.server.data

    def pull(self, **options: Any) -> Pulled:
        """Pull, and note what was asked for."""
        self.server.requests.clear()
        try:
            return pull(self.api, self.path, **options)
        finally:
            self.asked = list(self.server.requests)

    def asked_for(self, method: str) -> list[str]:
        """Addresses of a method the last pull asked for."""
        return [path for path in self.asked if path.startswith(method)]

    def ids(self) -> list[int]:
        """Ids of the mirrored cases."""
        return [case_id for (case_id,) in self.rows("SELECT id FROM cases ORDER BY id")]

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Ask the mirror."""
        with closing(sqlite3.connect(f"{self.path.as_uri()}?mode=ro", uri=True)) as db:
            return db.execute(query).fetchall()


@contextmanager
def world_of(data: TestRailData, folder: Path) -> Iterator[World]:
    """A server of `data`, and a mirror in `folder`."""
    with TestRailServer(data) as server, TestRailAPI(server.url, USER, KEY, sleep=lambda _: None) as api:
        yield World(server, folder / "testrail.db", api)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_of(small_data(), tmp_path) as made:
        yield made


def table_rows(path: Path, table: str, most: int = -1) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
        db.text_factory = bytes
        return db.execute(f"SELECT * FROM {table} ORDER BY id LIMIT {most}").fetchall()


def staged(database: Database, path: Path) -> dict[int, bytes]:
    """What landing and staging make of a file: the hash of each document."""
    with TestRailExport(path) as export:
        ranges = ranges_of(map(range_key, plan_bounds(export.case_ids(), [], 5000)))
        land_lookups(database, export, section_paths)
        for case_range in ranges.values():
            land_cases(database, export, case_range, max_delete_share=1.0)
    lookups = load_lookups(database)
    for case_range in ranges.values():
        stage_cases(database, lookups, case_range, lambda _: None)
    return dict(rows(database, "SELECT case_id, doc_hash FROM staging.test_documents"))


def test_both_sources_give_the_same_documents(tmp_path: Path, clean_database: Database) -> None:
    """2,000 cases with every difficulty; but for what no API can answer: bytes that are no text, JSON that is none."""
    export = tmp_path / "export.db"
    write_sample(export, 2000, 729)
    data = TestRailData.of_export(export)
    assert len(data.broken) == 1
    with world_of(data, tmp_path) as world:
        world.pull()
    for table in TABLES:
        by_export, by_api = table_rows(export, table), table_rows(tmp_path / "testrail.db", table)
        different = {mine[0] for mine, theirs in zip(by_export, by_api, strict=True) if mine != theirs}
        undecodable = {
            row[0] for row in by_export if any(b"caf\xe9" in cell for cell in row if isinstance(cell, bytes))
        }
        assert different == (data.broken | undecodable if table == "cases" else set()), table
    documents = staged(clean_database, export)
    assert len(documents) > 1990
    again = staged(clean_database, tmp_path / "testrail.db")
    assert {case_id for case_id in documents if documents[case_id] != again.get(case_id)} <= data.broken
    assert documents.keys() == again.keys()


@pytest.mark.skipif(not REAL_EXPORT.exists(), reason="the shared real export is not here")
def test_both_sources_are_the_same_file_on_real_cases(tmp_path: Path) -> None:
    data = TestRailData.of_export(REAL_EXPORT, most=3000)
    in_use = {case["suite_id"] for case in data.cases.values()}
    data.suites = {number: suite for number, suite in data.suites.items() if number in in_use}
    data.projects = {n: p for n, p in data.projects.items() if any(s["project_id"] == n for s in data.suites.values())}
    with world_of(data, tmp_path) as world:
        world.pull()
    assert table_rows(tmp_path / "testrail.db", "cases") == table_rows(REAL_EXPORT, "cases", 3000)
    sections = [row for row in table_rows(REAL_EXPORT, "sections") if row[1] in in_use]
    assert table_rows(tmp_path / "testrail.db", "sections") == sections


def test_the_first_pull_is_full_and_pages_by_250(world: World) -> None:
    done = world.pull()
    assert (done.cases, done.added, done.changed, done.removed) == (611, 611, 0, 0)
    assert done.full
    assert done.published
    assert world.asked_for(f"get_cases/1&suite_id={LARGE}") == [
        f"get_cases/1&suite_id={LARGE}&limit=250&offset={offset}" for offset in (0, 250, 500)
    ]
    assert len(set(world.asked)) == len(world.asked) == done.requests
    assert world.ids() == sorted(world.data.cases)


def test_then_only_what_is_new_is_asked_for(world: World) -> None:
    first = world.pull()
    world.data.cases[1005] |= {"title": "Renamed", "updated_on": NOW}
    world.data.cases[2000] = small(2000, LARGE, updated_on=NOW, section_id=99)
    world.data.sections[99] = {"id": 99, "suite_id": LARGE, "name": "New", "parent_id": LARGE * 10}
    done = world.pull(overlap_s=7200)
    assert (done.added, done.changed, done.removed, done.full) == (1, 1, 0, False)
    since = first.version - 7200
    assert [path for path in world.asked_for("get_cases") if "limit=250" in path] == [
        f"get_cases/{project}&suite_id={suite}&updated_after={since}&limit=250&offset=0"
        for project, suite in ((1, LARGE), (1, SMALL), (4, 5))
    ]
    assert world.asked_for("get_sections") == [f"get_sections/1&suite_id={LARGE}"]
    assert world.rows("SELECT title, section_id FROM cases WHERE id IN (1005, 2000) ORDER BY id") == [
        ("Renamed", LARGE * 10), ("Case 2000", 99),
    ]  # fmt: skip
    assert world.rows("SELECT name FROM sections WHERE id = 99") == [("New",)]


def test_a_pull_that_brings_nothing_leaves_the_file_alone(world: World) -> None:
    first = world.pull()
    before = world.path.stat()
    for full in (False, True):
        done = world.pull(full=full)
        assert (done.added, done.changed, done.removed, done.published) == (0, 0, 0, False)
        assert done.version == first.version
    assert (world.path.stat().st_ino, world.path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_full_pull_finds_what_did_not_move_updated_on(world: World) -> None:
    world.pull()
    world.data.cases[7]["title"] = "Edited in silence"
    world.data.sections[SMALL * 10]["name"] = "Renamed"
    world.data.priorities[2]["name"] = "Highest"
    world.pull()
    assert world.rows("SELECT title FROM cases WHERE id = 7") == [("Case 7",)]
    assert world.rows("SELECT name FROM priorities") == [("Highest",)]
    done = world.pull(full=True)
    assert (done.changed, done.full) == (1, True)
    assert world.rows("SELECT title FROM cases WHERE id = 7") == [("Edited in silence",)]
    assert world.rows(f"SELECT name FROM sections WHERE id = {SMALL * 10}") == [("Renamed",)]


def test_a_case_that_is_gone_is_missed_and_its_suite_alone_is_listed(world: World) -> None:
    world.pull()
    del world.data.cases[1300]
    done = world.pull()
    assert (done.added, done.changed, done.removed) == (0, 0, 1)
    assert 1300 not in world.ids()
    listed = [path for path in world.asked_for("get_cases") if "updated_after" not in path and "limit=250" in path]
    # twice: of three pages one might have slipped through
    assert listed == [f"get_cases/1&suite_id={LARGE}&limit=250&offset={offset}" for offset in (0, 250, 500)] * 2


def test_one_gone_and_one_new_that_does_not_say_so_come_with_a_full_pull(world: World) -> None:
    world.pull()
    del world.data.cases[3]
    world.data.cases[12] = small(12)  # copied with its times
    world.pull()
    assert 3 in world.ids()
    done = world.pull(full=True)
    assert (done.added, done.removed) == (1, 1)
    assert world.ids() == sorted(world.data.cases)


def test_an_archived_case_is_gone(world: World) -> None:
    world.pull()
    world.data.cases[4]["is_deleted"] = 1
    assert world.pull(full=True).removed == 1
    assert 4 not in world.ids()


def test_a_case_in_another_suite_is_neither_lost_nor_doubled(world: World) -> None:
    world.pull()
    for case_id, suite in ((5, LARGE), (1200, SMALL)):
        world.data.cases[case_id] |= {"suite_id": suite, "section_id": suite * 10}
    del world.data.cases[6]  # else both suites have as many as before
    world.pull()
    assert world.ids() == sorted(world.data.cases)
    world.pull(full=True)
    assert world.rows("SELECT id, suite_id FROM cases WHERE id IN (5, 1200) ORDER BY id") == [(5, LARGE), (1200, SMALL)]


def test_a_suite_that_is_gone_takes_its_cases_and_sections_along(world: World) -> None:
    world.pull()
    del world.data.suites[SMALL]
    done = world.pull()
    assert done.removed == 10
    assert world.rows(f"SELECT count(*) FROM sections WHERE suite_id = {SMALL}") == [(0,)]
    assert world.rows("SELECT id FROM suites ORDER BY id") == [(LARGE,), (5,)]


def test_a_suite_that_goes_meanwhile_is_gone(world: World) -> None:
    world.pull()
    world.server.asked = lambda path: world.data.suites.pop(5, None) if path.startswith("get_cases") else None
    assert world.pull(full=True).removed == 1
    assert 50 not in world.ids()


@pytest.mark.parametrize("method", ["get_cases", "get_sections"])
def test_a_suite_that_is_refused_but_listed_keeps_its_cases(world: World, method: str) -> None:
    world.pull()
    kept = world.ids()
    world.server.fail(method, "400", skip=1)
    with pytest.raises(TestRailError, match=r"answered 400 to .* it lists the suite: nothing of it was removed"):
        world.pull(full=True)
    assert world.ids() == kept
    done = world.pull(full=True)
    assert (done.resumed, done.removed, world.ids()) == (True, 0, kept)


def test_a_project_that_goes_meanwhile_is_gone(world: World) -> None:
    world.pull()
    world.server.asked = lambda path: world.data.projects.pop(4, None) if path.startswith("get_cases") else None
    assert world.pull(full=True).removed == 1
    assert 50 not in world.ids()


def test_a_case_deleted_while_pages_are_asked_for_costs_no_other_case(world: World) -> None:
    """Those after it move up: 1251 is on the first page once that was read."""
    world.pull()

    def delete(path: str) -> None:
        if path.endswith(f"suite_id={LARGE}&limit=250&offset=250"):
            world.data.cases.pop(1001, None)

    world.server.asked = delete
    world.pull(full=True)
    assert world.ids() == sorted({*world.data.cases, 1001})  # 1001 was shown, and is missed by the next pull
    assert world.pull().removed == 1
    assert world.ids() == sorted(world.data.cases)


@pytest.mark.parametrize("full", [True, False])
def test_a_project_that_cannot_be_read_keeps_what_it_had(world: World, full: bool) -> None:
    world.pull()
    world.server.no_access = {4}
    world.data.cases[1]["updated_on"] = NOW
    done = world.pull(full=full)
    assert done.no_access == [4]
    assert (done.removed, done.changed) == (0, 1)
    assert world.rows("SELECT id FROM suites ORDER BY id") == [(LARGE,), (SMALL,), (5,)]
    assert 50 in world.ids()


def test_a_project_that_is_closed_meanwhile_keeps_what_it_had(world: World) -> None:
    world.pull()
    world.server.asked = lambda path: world.server.no_access.add(4) if path.startswith("get_cases") else None
    done = world.pull(full=True)
    assert (done.no_access, done.removed) == ([4], 0)
    assert 50 in world.ids()


def test_a_user_who_may_read_nothing_is_told(world: World) -> None:
    world.server.no_access = {1, 4}
    with pytest.raises(TestRailError, match="lets the user read none of 2 projects"):
        world.pull()
    assert not world.path.exists()


def test_only_the_chosen_projects_are_mirrored(world: World) -> None:
    world.pull(projects=(4,))
    assert world.ids() == [50]
    assert not world.asked_for("get_suites/1")
    with pytest.raises(TestRailError, match=r"shows no project 7, 9\. Check QBENCH_TESTRAIL_PROJECTS"):
        world.pull(projects=(4, 7, 9))
    assert world.ids() == [50]
    done = world.pull()  # another choice is another source: nothing of the old one is believed
    assert (done.full, done.cases) == (True, 611)


def test_a_project_without_suites_is_asked_for_as_a_whole(world: World) -> None:
    world.data.projects[4]["suite_mode"] = 1
    world.data.suites.pop(5)
    world.pull()
    assert world.asked_for("get_cases/4") == ["get_cases/4&limit=250&offset=0"]
    assert world.rows("SELECT suite_id, project_id FROM cases WHERE id = 50") == [(5, 4)]
    world.data.cases[51] = small(51, 5, project_id=4, updated_on=NOW)
    del world.data.cases[50]
    done = world.pull()  # has as many as before, but for the new one, so the other is missed
    assert (done.added, done.removed) == (1, 1)


def test_a_server_that_does_not_page(world: World) -> None:
    world.server.paged = False
    assert world.pull().added == 611
    assert world.pull().changed == 0
    assert not [path for path in world.asked_for("get_cases") if "updated_after" not in path and "limit=250" in path]
    del world.data.cases[2]
    assert world.pull().removed == 1


def test_an_empty_testrail_does_not_empty_the_mirror(world: World) -> None:
    world.pull()
    world.data.cases.clear()
    with pytest.raises(MirrorError, match="shows no case at all: the mirror stays as it is"):
        world.pull(full=True)
    assert len(world.ids()) == 611


class Killed(BaseException):
    """The end of the process, as far as the code can tell."""


def kill_after(pages: int) -> Callable[[int], None]:
    """A progress function that ends the process after so many pages."""
    left = [pages]

    def progress(_: int) -> None:
        left[0] -= 1
        if not left[0]:
            raise Killed

    return progress


@pytest.mark.parametrize("pages", [1, 2, 3, 4, 5])
def test_goes_on_where_it_was_and_asks_for_no_page_twice(world: World, pages: int) -> None:
    with pytest.raises(Killed):
        world.pull(progress=kill_after(pages))
    assert not world.path.exists()
    before = world.asked
    done = world.pull()
    assert done.resumed
    assert (done.cases, done.added, done.full) == (611, 611, True)
    assert not set(before) & set(world.asked)
    assert world.ids() == sorted(world.data.cases)


def test_goes_on_after_an_incremental_one_was_killed(world: World) -> None:
    world.pull()
    for case_id in (1001, 1, 50):
        world.data.cases[case_id] |= {"title": "Edited", "updated_on": NOW}
    with pytest.raises(Killed):
        world.pull(progress=kill_after(2))
    assert world.rows("SELECT count(*) FROM cases WHERE title = 'Edited'") == [(0,)]
    done = world.pull()
    assert (done.resumed, done.full, done.changed) == (True, False, 3)
    assert not world.asked_for("get_projects")


def test_a_full_pull_does_not_go_on_with_an_incremental_one(world: World) -> None:
    world.pull()
    with pytest.raises(Killed):
        world.pull(progress=kill_after(1))
    done = world.pull(full=True)
    assert (done.resumed, done.full) == (False, True)


def test_readers_never_see_half_a_pull(world: World) -> None:
    world.pull()
    for case in world.data.cases.values():
        case |= {"title": "Edited", "updated_on": NOW}
    seen = set()

    def look(_: int) -> None:
        seen.add(world.rows("SELECT count(*) FROM cases WHERE title = 'Edited'")[0][0])

    with TestRailExport(world.path) as export:
        world.pull(progress=look)
        assert seen == {0}
        title = export.columns.index("title")
        kept = [row.values[title] for row in export.rows_without_id()] or [
            row.values[title]
            for batch in export.rows(ranges_of(["from_0000000001"])["from_0000000001"])
            for row in batch
        ]
        assert b"Edited" not in kept
    assert world.rows("SELECT count(*) FROM cases WHERE title = 'Edited'") == [(611,)]
    assert sorted(path.name for path in world.path.parent.iterdir()) == ["testrail.db", "testrail.pull.db"]


CHILD = """
import sys
from pathlib import Path
from qbench_dagster.adapters.testrail_api import TestRailAPI
from qbench_dagster.adapters.testrail_pull import pull
url, user, key, path = sys.argv[1:]
with TestRailAPI(url, user, key) as api:
    pull(api, Path(path))
"""


def test_a_process_that_is_killed_leaves_what_the_next_goes_on_with(world: World) -> None:
    children: list[subprocess.Popen[bytes]] = []
    world.server.asked = lambda path: os.kill(children[0].pid, signal.SIGKILL) if path.endswith("=500") else None
    with subprocess.Popen([sys.executable, "-c", CHILD, world.server.url, USER, KEY, str(world.path)]) as child:
        children.append(child)
        assert child.wait() == -signal.SIGKILL
    world.server.asked = lambda _: None
    (world.path.parent / ".testrail.db.0123456789ab.partial").write_text("of one that was killed while publishing")
    done = world.pull()
    assert (done.resumed, done.added) == (True, 611)
    assert world.asked_for(f"get_cases/1&suite_id={LARGE}") == [f"get_cases/1&suite_id={LARGE}&limit=250&offset=500"]
    assert sorted(path.name for path in world.path.parent.iterdir()) == ["testrail.db", "testrail.pull.db"]


def test_what_was_pulled_is_published_though_it_was_killed_in_between(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> bool:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("qbench_dagster.adapters.testrail_pull.publish", killed)
        with pytest.raises(Killed):
            world.pull()
    assert not world.path.exists()
    assert world.pull().published
    assert len(world.ids()) == 611
    world.path.unlink()
    assert world.pull().published


def test_one_pull_at_a_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testrail_mirror, "BUSY_TIMEOUT_S", 0)
    with (
        opened(world.path, "https://elsewhere"),
        pytest.raises(MirrorError, match=r"testrail\.pull\.db: another pull is at work"),
    ):
        world.pull()


def test_a_damaged_working_file_is_named(world: World) -> None:
    world.path.with_name("testrail.pull.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(MirrorError, match=r"testrail\.pull\.db: is damaged .*Delete it"):
        world.pull()


def test_a_folder_that_cannot_be_made_is_named(world: World) -> None:
    (world.path.parent / "file").write_text("")
    world.path = world.path.parent / "file" / "testrail.db"
    with pytest.raises(MirrorError, match=r"file/testrail\.db: cannot be written"):
        world.pull()


def test_when_the_last_full_pull_was_is_remembered(world: World) -> None:
    assert last_full_pull(world.path, world.server.url) is None
    world.pull()
    full = last_full_pull(world.path, world.server.url)
    assert full is not None
    assert abs(full - time.time()) < 60
    world.pull()
    assert last_full_pull(world.path, world.server.url) == full
    assert last_full_pull(world.path, "https://elsewhere") is None


def test_one_killed_in_the_middle_of_a_commit_is_got_over(world: World) -> None:
    world.pull()
    full = last_full_pull(world.path, world.server.url)
    working = world.path.with_name("testrail.pull.db")
    subprocess.run([sys.executable, "-c", DYING_WRITER, str(working)], check=False)
    assert working.with_name("testrail.pull.db-journal").stat().st_size, "it left what SQLite has to roll back"
    assert last_full_pull(world.path, world.server.url) == full
    world.pull()
    assert "half of an export" not in str(world.rows("SELECT title FROM cases"))


def test_a_server_whose_clock_is_wrong_does_not_date_the_full_pull(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(testrail_api, "_timestamp", lambda _: NOW + 86_400)
    assert world.pull().version == NOW + 86_400
    assert abs((last_full_pull(world.path, world.server.url) or 0) - time.time()) < 60


EDITS = st.lists(
    st.tuples(
        st.sampled_from(["edit", "silent", "add", "delete", "move", "section", "pull", "full", "kill"]),
        st.integers(0, 99),
    ),
    max_size=8,
)


@settings(max_examples=12)
@given(EDITS)
def test_whatever_happens_a_full_pull_ends_with_what_testrail_has(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    with world_of(small_data(large=6), tmp_path_factory.mktemp("mirror")) as world:
        for step, number in steps:
            _happen(world, step, number)
        while world.pull(full=True).resumed:  # what was asked for before it was killed may have changed since
            pass
        assert world.rows("SELECT id, title, suite_id FROM cases ORDER BY id") == [
            (case["id"], case["title"], case["suite_id"]) for _, case in sorted(world.data.cases.items())
        ]
        assert dict(world.rows("SELECT id, name FROM sections")) == {
            number: section["name"] for number, section in world.data.sections.items()
        }
        assert world.pull().published is False


def _happen(world: World, step: str, number: int) -> None:
    cases = world.data.cases
    case = cases[sorted(cases)[number % len(cases)]]
    match step:
        case "edit":
            case |= {"title": f"Edit {number}", "updated_on": int(time.time())}
        case "silent":
            case["title"] = f"Silent {number}"
        case "add":
            cases[3000 + number] = small(3000 + number, updated_on=int(time.time()))
        case "delete" if len(cases) > 1:
            del cases[case["id"]]
        case "move" if case["project_id"] == 1:
            case["suite_id"] = SMALL if case["suite_id"] == LARGE else LARGE
        case "section":
            world.data.sections[LARGE * 10]["name"] = f"Part {number}"
        case "pull" | "full":
            world.pull(full=step == "full")
        case "kill":
            with suppress(Killed):
                world.pull(full=number % 2 == 0, progress=kill_after(1 + number % 3))
