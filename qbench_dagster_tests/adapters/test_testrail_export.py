"""Reading exports as they are met: damaged, half written, being written, and never touched by us."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from qbench_dagster.adapters import testrail_export
from qbench_dagster.adapters.export_values import json_text
from qbench_dagster.adapters.testrail_export import ExportError, TestRailExport
from qbench_dagster.core.ranges import LARGEST_ID, CaseRange
from qbench_dagster_tests.support import CASE_COLUMNS, case, write_export

EVERYTHING = CaseRange("from_0000000001", 1, LARGEST_ID + 1)
WITHOUT_KEY = {**CASE_COLUMNS, "id": "", "title": "VARCHAR"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder to put an export into."""
    made = tmp_path / "export 100%? #1"  # characters that mean something in a URI
    made.mkdir()
    return made


def everything(export: TestRailExport) -> dict[int, dict[str, Any]]:
    return {
        row.values[export.columns.index("id")]: export.raw(row) for batch in export.rows(EVERYTHING) for row in batch
    }


def fingerprint(path: Path) -> tuple[bytes, int, list[str]]:
    return path.read_bytes(), path.stat().st_mtime_ns, sorted(each.name for each in path.parent.iterdir())


def opened_and_read(path: Path) -> dict[int, dict[str, Any]]:
    """All rows, having made sure that neither the file nor its folder is any different afterwards."""
    before = fingerprint(path)
    with TestRailExport(path) as export:
        rows = everything(export)
        export.rows_without_id()
        export.lookup("sections")
    assert fingerprint(path) == before
    return rows


def refused(path: Path) -> str:
    before = fingerprint(path) if path.is_file() else None
    with pytest.raises(ExportError) as error:
        TestRailExport(path)
    if before:
        assert fingerprint(path) == before
    assert str(path) in str(error.value)
    return str(error.value)


def python(code: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


# What cannot be used


def test_a_missing_file_is_told(folder: Path) -> None:
    assert "there is no such file" in refused(folder / "no.db")
    assert not (folder / "no.db").exists()


def test_a_folder_is_told(folder: Path) -> None:
    assert "is a folder" in refused(folder)


@pytest.mark.parametrize("content", [b"id,title\n1,Log in\n" * 100, b"\0" * 4096, b"PK\x03\x04" + bytes(2000)])
def test_what_is_not_sqlite_is_told(folder: Path, content: bytes) -> None:
    path = folder / "export.db"
    path.write_bytes(content)
    assert "is not a SQLite database" in refused(path)


def test_an_empty_file_is_told(folder: Path) -> None:
    path = folder / "export.db"
    path.touch()
    assert "has no table 'cases'; it has no table at all" in refused(path)


def test_a_file_cut_off_is_told_at_the_latest_when_it_is_read(folder: Path) -> None:
    whole = write_export(folder / "whole.db", (case(n, steps="word " * 200) for n in range(1, 400))).read_bytes()
    path = folder / "export.db"
    told = 0
    for share in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.9999):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ExportError, match=r"export\.db: (is damaged|is not a SQLite)"):
            opened_and_read(path)
        told += 1
    assert told == 7


@pytest.mark.parametrize("table", ["cases", "sections"])
def test_a_missing_table_is_told_with_those_there_are(folder: Path, table: str) -> None:
    path = write_export(folder / "export.db", [case(1)])
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"ALTER TABLE {table} RENAME TO something_else")
    told = refused(path)
    assert f"has no table '{table}'" in told
    assert "something_else" in told


@pytest.mark.parametrize(
    ("table", "column"), [("cases", "id"), ("cases", "title"), ("sections", "id"), ("sections", "name")]
)
def test_a_missing_column_is_told(folder: Path, table: str, column: str) -> None:
    path = write_export(folder / "export.db", [case(1)])
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"ALTER TABLE {table} RENAME COLUMN {column} TO other")
    assert f"table '{table}' has no column '{column}'" in refused(path)


def test_an_export_without_a_case_is_told(folder: Path) -> None:
    assert "table 'cases' is empty. Nothing was changed" in refused(write_export(folder / "export.db", []))


# What is read


def test_columns_may_be_missing_or_more(folder: Path) -> None:
    columns = {"ID": "INTEGER", "Title": "TEXT", 'odd "name" é': "TEXT"}
    path = write_export(
        folder / "export.db", [], columns={f'"{k.replace(chr(34), chr(34) * 2)}"': v for k, v in columns.items()}
    )
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO cases VALUES (1, 'Log in', 'kept')")
    assert opened_and_read(path) == {1: {"id": 1, "title": "Log in", 'odd "name" é': "kept"}}


def test_a_name_is_folded_as_sqlite_folds_it(folder: Path) -> None:
    path = write_export(folder / "export.db", [], columns={"Id": "INTEGER", "TITLE": "TEXT", '"Änderung"': "TEXT"})
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("ALTER TABLE sections ADD COLUMN \"Größe Ä\" TEXT DEFAULT 'wide'")
        connection.execute("INSERT INTO cases VALUES (1, 'Log in', 'kept')")
    assert opened_and_read(path) == {1: {"id": 1, "title": "Log in", "Änderung": "kept"}}
    with TestRailExport(path) as export:
        assert export.lookup("sections")[0]["größe Ä"] == "wide"


def test_generated_columns_are_read(folder: Path) -> None:
    generated = "TEXT GENERATED ALWAYS AS (title || '!')"
    columns = {"id": "INTEGER", "title": "TEXT", "loud": f"{generated} STORED", "louder": f"{generated} VIRTUAL"}
    path = write_export(folder / "export.db", [])
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DROP TABLE cases")
        connection.execute(f"CREATE TABLE cases ({', '.join(f'{name} {kind}' for name, kind in columns.items())})")
        connection.execute("INSERT INTO cases VALUES (1, 'Log in')")
        connection.execute("ALTER TABLE sections ADD COLUMN loud TEXT GENERATED ALWAYS AS (name || '!') VIRTUAL")
    assert opened_and_read(path) == {1: {"id": 1, "title": "Log in", "loud": "Log in!", "louder": "Log in!"}}
    with TestRailExport(path) as export:
        assert export.lookup("sections")[0]["loud"] == "Accounts!"


def test_look_up_tables_may_be_missing_but_for_sections(folder: Path) -> None:
    path = write_export(folder / "export.db", [case(1)])
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE priorities")
    with TestRailExport(path) as export:
        assert export.lookup("priorities") == []
        assert export.lookup("sections")[1] == {"id": 11, "suite_id": 1, "name": "Login", "parent_id": 10}


def test_odd_cells_become_values_that_json_can_hold(folder: Path) -> None:
    path = write_export(folder / "export.db", [], columns={"id": "INTEGER", "title": "", "cell": ""})
    cells: list[tuple[Any, Any]] = [
        ("a\0b", "a\ufffdb"), (b"caf\xe9", "caf\ufffd"), (b"plain blob", "plain blob"), (b"", ""),
        (float("inf"), "inf"), (float("-inf"), "-inf"), (1.5, 1.5), (2**63 - 1, 2**63 - 1),
        ("\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"), "😀"), ("'\"%\\", "'\"%\\"),
    ]  # fmt: skip
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executemany(
            "INSERT INTO cases VALUES (?, 't', ?)", [(n, cell) for n, (cell, _) in enumerate(cells, 1)]
        )
        # Bytes that are no UTF-8 in a text cell, a lone surrogate among them.
        connection.execute("INSERT INTO cases VALUES (90, 't', CAST(X'61FF62EDA080' AS TEXT))")
        connection.execute("INSERT INTO cases VALUES (91, 't', 9e999)")
    rows = opened_and_read(path)
    assert [rows[n]["cell"] for n in range(1, len(cells) + 1)] == [expected for _, expected in cells]
    assert rows[90]["cell"] == "a\ufffdb\ufffd\ufffd\ufffd"
    assert rows[91]["cell"] == "inf"
    json_text(list(rows.values())).encode()


def test_ids_of_a_table_without_a_key_are_sorted_out(folder: Path) -> None:
    ids = [5, 3, 3, None, "text", "7", -1, 0, 2.5, 9.0, b"x", LARGEST_ID, LARGEST_ID + 1, 2**63 - 1]
    path = write_export(folder / "export.db", (case(each, str(each)) for each in ids), columns=WITHOUT_KEY)
    with TestRailExport(path) as export:
        title = export.columns.index("title")
        usable = [(row.values[0], row.values[title]) for batch in export.rows(EVERYTHING) for row in batch]
        assert usable == [(3, b"3"), (3, b"3"), (5, b"5"), (LARGEST_ID, b"%d" % LARGEST_ID)]
        assert export.case_ids() == [3, 5, LARGEST_ID]
        assert sorted(row.values[title] for row in export.rows_without_id()) == sorted(
            str(each).encode() for each in (None, "text", "7", -1, 0, 2.5, 9.0, b"x", LARGEST_ID + 1, 2**63 - 1)
        )
        assert export.count() == len(ids)


def test_a_range_holds_its_own_ids_in_order(folder: Path) -> None:
    path = write_export(folder / "export.db", (case(n) for n in range(3000, 0, -1)))
    with TestRailExport(path) as export:
        batches = list(export.rows(CaseRange("k", 100, 2900)))
        ids = [row.values[0] for batch in batches for row in batch]
    assert ids == list(range(100, 2900))
    assert len(batches) > 1


@pytest.mark.parametrize("column", ["section_id", "parent_id"])
def test_ids_that_were_written_as_floats_are_still_ids(folder: Path, column: str) -> None:
    """pandas makes every integer column with a NULL in it one of floats: 10 becomes 10.0, and no key any more."""
    path = write_export(folder / "export.db", [case(1)], columns={**CASE_COLUMNS, "section_id": "REAL"})
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("ALTER TABLE sections RENAME TO old")
        connection.execute("CREATE TABLE sections (id INTEGER, suite_id INTEGER, name TEXT, parent_id REAL)")
        connection.execute("INSERT INTO sections SELECT * FROM old")
    with TestRailExport(path) as export:
        value = everything(export)[1][column] if column == "section_id" else export.lookup("sections")[1][column]
    assert json_text(value) == "10"


@pytest.mark.parametrize("written", [" 1", "1", "1\n", 1, 1.0, "01"])
def test_one_id_has_one_form(folder: Path, written: Any) -> None:
    columns = {**CASE_COLUMNS, "section_id": "", "other_id": ""}
    path = write_export(folder / "export.db", [], columns=columns)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO cases (id, title, section_id, other_id) VALUES (1, 't', ?, ' 01')", [written])
        connection.execute("DROP TABLE priorities")
        connection.execute("CREATE TABLE priorities (id, name)")
        connection.execute("INSERT INTO priorities VALUES (?, '1')", [written])
    with TestRailExport(path) as export:
        row = everything(export)[1]
        assert json_text([row["section_id"], row["other_id"]]) == '[1," 01"]', "a column nobody knows stays"
        assert json_text(export.lookup("priorities")) == '[{"id":1,"name":"1"}]'


def test_long_rows_make_small_batches(folder: Path) -> None:
    path = write_export(folder / "export.db", (case(n, steps="x" * 3_000_000) for n in range(1, 8)))
    with TestRailExport(path) as export:
        assert [len(batch) for batch in export.rows(EVERYTHING)] == [3, 3, 1]


def test_a_row_that_is_too_large_is_cut_and_told_apart(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testrail_export, "MAX_BYTES", 20_000_000)
    monkeypatch.setattr(testrail_export, "SHOWN_BYTES", 10)
    cells = ["ä" * 12_000_000 + "a", "ä" * 12_000_000 + "b", "ä" * 9_000_000 + "a", "ä" * 9_000_000 + "b"]
    path = write_export(folder / "export.db", (case(n, preconditions=cell) for n, cell in enumerate(cells, 1)))
    with TestRailExport(path) as export:
        found = [row for batch in export.rows(EVERYTHING) for row in batch]
        assert [row.is_too_large for row in found] == [True, True, False, False]
        assert export.raw(found[0])["preconditions"] == "äääää… (24,000,001 bytes)"
        assert export.raw(found[3])["preconditions"] == cells[3]
        write_export(path, [case(1, preconditions=cells[1])])
    with TestRailExport(path) as export:
        (again,) = (row for batch in export.rows(EVERYTHING) for row in batch)
    assert len({row.content_hash for row in (*found, again)}) == 5, "what was cut off counts"


# What others do to the file meanwhile

WRITER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
connection.execute("PRAGMA wal_autocheckpoint = 3")
print("open", flush=True)
for line in sys.stdin:
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE cases SET created_on = created_on + 1, steps = steps || ' more'")
    connection.execute("DELETE FROM cases WHERE id = (SELECT max(id) FROM cases)")
    connection.execute("COMMIT")
    print("written", flush=True)
"""


class Writer:
    """Another process that changes every row of an export when it is told to."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._line() == "open"

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def write(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        assert self._line() == "written"

    def stop(self) -> None:
        self._process.communicate()


def make_wal(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",)


def test_one_view_of_a_file_in_wal_mode_that_is_being_written(folder: Path) -> None:
    path = write_export(folder / "export.db", (case(n, steps="step " * 100, created_on=1000) for n in range(1, 3001)))
    make_wal(path)
    writer = Writer(path)
    writer.write()  # so that the truth is spread over the file and its -wal
    try:
        with TestRailExport(path) as export:
            expected = (export.count(), {1001})
            seen: list[int] = []
            times = set()
            for batch in export.rows(EVERYTHING):
                seen += [row.values[0] for row in batch]
                times |= {export.raw(row)["created_on"] for row in batch}
                writer.write()
            assert (len(seen), times) == expected == (2999, {1001})
            assert export.count() == 2999
            assert len(export.case_ids()) == 2999
        with TestRailExport(path) as later:
            assert later.count() == 2999 - 3
    finally:
        writer.stop()


def test_reading_a_file_in_wal_mode_leaves_nothing_beside_it(folder: Path) -> None:
    path = write_export(folder / "export.db", [case(1)])
    make_wal(path)
    assert [each.name for each in folder.iterdir()] == ["export.db"]
    assert opened_and_read(path).keys() == {1}
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM cases")
        connection.commit()
    assert "is empty" in refused(path), "refusing a file leaves nothing behind either"


def test_a_wal_that_was_there_stays_with_what_is_in_it(folder: Path) -> None:
    source = write_export(folder / "source.db", [case(1)])
    make_wal(source)
    path = folder / "export.db"
    with closing(sqlite3.connect(source)) as connection, connection:
        connection.execute("UPDATE cases SET title = 'only in the wal'")
        connection.commit()
        shutil.copy(source, path)
        shutil.copy(folder / "source.db-wal", folder / "export.db-wal")
    for _ in range(2):
        file, wal = path.read_bytes(), (folder / "export.db-wal").read_bytes()
        with TestRailExport(path) as export:
            assert everything(export)[1]["title"] == "only in the wal"
        assert (path.read_bytes(), (folder / "export.db-wal").read_bytes()) == (file, wal)


def test_a_writer_with_a_rollback_journal_waits_for_us(folder: Path) -> None:
    path = write_export(folder / "export.db", (case(n) for n in range(1, 3001)))
    with TestRailExport(path) as export, closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as writer:
        batches = export.rows(EVERYTHING)
        seen = len(next(batches))
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("DELETE FROM cases")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            writer.execute("COMMIT")
        assert seen + sum(map(len, batches)) == 3000


def test_an_export_that_another_program_is_writing_is_told_and_never_read_torn(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(testrail_export, "BUSY_TIMEOUT_S", 0.1)
    path = write_export(folder / "export.db", [case(n, steps="x" * 3000) for n in range(1, 400)])
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("PRAGMA cache_size = 5")  # pages of the open transaction spill into the file
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE cases SET title = 'torn'")
        with pytest.raises(ExportError, match=r"cannot be read \(database is locked\).*wait until it is done"):
            TestRailExport(path)
        writer.execute("ROLLBACK")
    assert {row["title"] for row in opened_and_read(path).values()} == {"Log in"}


KILLED = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 5")
connection.execute("BEGIN")
connection.execute("UPDATE cases SET title = 'torn'")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_export_whose_writer_was_killed_is_told_and_never_read_torn(folder: Path) -> None:
    path = write_export(folder / "export.db", [case(n, steps="x" * 3000) for n in range(1, 400)])
    assert python(KILLED, path).returncode == -signal.SIGKILL
    assert (folder / "export.db-journal").exists()
    assert "open the file once with sqlite3 to let it recover" in refused(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("SELECT count(*) FROM cases").fetchone()
    assert {row["title"] for row in opened_and_read(path).values()} == {"Log in"}


READER = """
import os, sys
from pathlib import Path
if os.geteuid() == 0:
    os.setgid(65534), os.setuid(65534)  # root may write anywhere
from qbench_dagster.adapters.testrail_export import ExportError, TestRailExport
try:
    with TestRailExport(Path(sys.argv[1])) as export:
        print(export.count(), len(export.case_ids()))
except ExportError as error:
    print(error)
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike pytest's own."""
    made = Path(tempfile.mkdtemp(prefix="qbx"))
    made.chmod(0o755)
    yield made
    made.chmod(0o755)
    shutil.rmtree(made)


@pytest.mark.parametrize("wal", [False, True])
def test_a_folder_that_may_not_be_written_can_be_read(open_folder: Path, wal: bool) -> None:
    path = write_export(open_folder / "export.db", [case(1), case(2)])
    if wal:
        make_wal(path)
    path.chmod(0o444)
    open_folder.chmod(0o555)
    before = fingerprint(path)
    found = python(READER, path)
    assert (found.stdout, found.stderr) == ("2 2\n", "")
    assert fingerprint(path) == before


def test_a_file_that_may_not_be_read_is_told(open_folder: Path) -> None:
    path = write_export(open_folder / "export.db", [case(1)])
    path.chmod(0o000)
    found = python(READER, path)
    assert f"{path}: cannot be read (unable to open database file)" in found.stdout, found.stderr


def test_a_folder_that_may_not_be_entered_is_told(open_folder: Path) -> None:
    path = write_export(open_folder / "export.db", [case(1)])
    open_folder.chmod(0o000)
    found = python(READER, path)
    assert f"{path}: cannot be reached (Permission denied)" in found.stdout, found.stderr


def test_the_hash_depends_on_the_columns_too(folder: Path) -> None:
    hashes = []
    for columns in ({"id": "INTEGER", "title": "TEXT"}, {"title": "INTEGER", "id": "INTEGER"}):
        path = write_export(folder / "export.db", [{"id": 1, "title": 1}], columns={**columns, "x": ""})
        with TestRailExport(path) as export:
            hashes += [row.content_hash for batch in export.rows(EVERYTHING) for row in batch]
    assert len(set(hashes)) == 2


# What changes while it is open


def overwrite(path: Path, other: Path) -> None:
    """As `cp` does: into the same file."""
    os.utime(path, (0, 0))
    with TestRailExport(path) as export:
        next(export.rows(EVERYTHING))
        path.write_bytes(other.read_bytes())
        with pytest.raises(ExportError, match=r"export\.db: was written over while it was read\. .*rename it"):
            export.check_unchanged()


@pytest.mark.parametrize("cases", [3, 900])
def test_a_file_that_is_written_over_while_it_is_read_is_told(folder: Path, cases: int) -> None:
    path = write_export(folder / "export.db", [case(n) for n in range(1, 4)])
    overwrite(path, write_export(folder / "other.db", [case(n, title="Other") for n in range(1, cases + 1)]))


def test_a_file_that_is_replaced_or_taken_away_stays_whole_for_its_reader(folder: Path) -> None:
    path = write_export(folder / "export.db", [case(n) for n in range(1, 4)])
    with TestRailExport(path) as export:
        write_export(folder / "other.db", [case(1, title="Other")]).replace(path)
        assert len(everything(export)) == 3
        export.check_unchanged()
        path.unlink()
        export.check_unchanged()


def test_a_writer_in_wal_mode_may_write_meanwhile(folder: Path) -> None:
    path = write_export(folder / "export.db", [case(n) for n in range(1, 4)])
    with closing(sqlite3.connect(path)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        with TestRailExport(path) as export:
            with writer:
                writer.execute("UPDATE cases SET title = 'Written meanwhile'")
            writer.execute("PRAGMA wal_checkpoint")
            os.utime(path)
            export.check_unchanged()
            assert "Written meanwhile" not in str(everything(export))


def test_a_smaller_file_that_takes_the_place_of_one_being_opened_is_not_cut_off(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_export(folder / "export.db", [case(n, steps="word " * 200) for n in range(1, 100)])
    smaller = write_export(folder / "smaller.db", [case(1)])
    really = TestRailExport._open

    def open_then_replace(export: TestRailExport) -> sqlite3.Connection:
        connection = really(export)
        smaller.replace(path)
        return connection

    monkeypatch.setattr(TestRailExport, "_open", open_then_replace)
    with TestRailExport(path) as export:
        assert export.count() == 99


def test_a_wal_that_goes_while_the_file_is_closed_is_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export = TestRailExport(write_export(folder / "export.db", [case(1)]))
    monkeypatch.setattr(Path, "exists", lambda _: True)  # as of the moment before it goes
    export.close()
