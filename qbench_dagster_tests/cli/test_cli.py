"""`qbench` as a person or a script runs it: in processes of its own, by exit codes, stdout and stderr."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from jsonschema import Draft202012Validator

from qbench_dagster.adapters.embedded import stop_server
from qbench_dagster.adapters.report import schema
from qbench_dagster_tests.support import case, write_export
from qbench_dagster_tests.terminal import Terminal

COMMANDS = (
    "run", "plan", "status", "search", "parity", "sample", "ui", "url", "stop", "spaces", "cutover", "purge", "batches",
    "backup", "restore", "roles", "history", "diff", "rollback", "pull",
)  # fmt: skip
STAGES = [
    "sqlite_cases", "normalized_testdocs", "reused_vectors", "doc_embeddings", "step_embeddings", "pg_tables",
    "hnsw_index", "parity_report",
]  # fmt: skip
UNREACHABLE = "postgresql://bob:hunter2-planted@127.0.0.1:1/nowhere"
PASSWORD = "hunter2-planted"


SMALL = {
    "QBENCH_DIMENSIONS": "64",
    "QBENCH_INDEX": "exact",
    "QBENCH_PARITY_QUERIES": "10",
    "QBENCH_PARTITION_CASES": "200",
    "QBENCH_PG_MEMORY_MB": "256",
}


@pytest.fixture(scope="module")
def terminal() -> Iterator[Terminal]:
    """A terminal whose home keeps one embedded server for the module."""
    home = Path(tempfile.mkdtemp(prefix="qbc"))
    home.chmod(0o755)
    yield Terminal(home, SMALL)
    stop_server(home)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def export(terminal: Terminal) -> Path:
    """A made-up export of 600 cases."""
    path = terminal.home / "demo.db"
    told = terminal("sample", str(path), "--cases", "600", "--json").json()
    assert told["cases"] == 600
    return path


@pytest.fixture(scope="module")
def loaded(terminal: Terminal, export: Path) -> dict[str, Any]:
    """The summary of the first run, by a new interpreter; most others are forked from one that is warm."""
    return terminal("run", "--export", str(export), "--json", cold=True).json()


@pytest.fixture
def bare(tmp_path: Path) -> Terminal:
    """A terminal in which nothing was ever started."""
    return Terminal(tmp_path / "home", SMALL)


def test_every_command_has_help(bare: Terminal) -> None:
    listed = bare("--help", cold=True).out
    for command in COMMANDS:
        assert command in listed
        told = bare(command, "--help").out
        assert f"qbench {command}" in told.replace("python -m qbench_dagster.cli", "qbench")
        assert len(told) > 200
    found = set(re.findall(r"^│ (\w+) ", listed, re.MULTILINE))
    assert found == set(COMMANDS)  # a new command needs a line here
    assert not bare.home.exists()


def test_no_arguments_and_unknown_ones(bare: Terminal) -> None:
    assert "Usage" in bare(code=2).out
    assert "No such command" in bare("frobnicate", code=2).err
    assert "No such option" in bare("run", "--frobnicate", code=2).err


def test_run_tells_what_it_did(loaded: dict[str, Any], terminal: Terminal) -> None:
    assert loaded["ok"] is True
    assert loaded["source_cases"] == 600 == loaded["published"] + loaded["rejected"]
    assert loaded["published"] == terminal.sql("SELECT count(*) FROM qbench.test_documents")[0][0]
    assert loaded["steps"] == terminal.sql("SELECT count(*) FROM qbench.test_steps")[0][0]
    ((vectors,),) = terminal.sql(
        "SELECT (SELECT count(*) FROM space_lexical_64.doc_embeddings)"
        " + (SELECT count(*) FROM space_lexical_64.step_embeddings)"
    )
    assert loaded["texts_embedded"] == vectors
    assert loaded["rows_written"] > loaded["published"] + loaded["steps"] + vectors
    assert list(loaded["seconds"]) == STAGES
    assert loaded["partitions"] == loaded["new_partitions"] == 3
    assert loaded["failures"] == []
    assert Path(loaded["report"]).is_file()


def test_run_again_writes_nothing(loaded: dict[str, Any], terminal: Terminal, export: Path) -> None:
    again = terminal("run", "--json", QBENCH_EXPORT=str(export)).json()
    assert (again["rows_written"], again["texts_embedded"], again["new_partitions"]) == (0, 0, 0)
    for name in ("source_cases", "published", "rejected", "steps"):
        assert again[name] == loaded[name]
    told = terminal("run", "--export", str(export)).out
    assert "0 texts embedded; 0 rows written" in told
    assert "every check passed" in told


def test_status(loaded: dict[str, Any], terminal: Terminal) -> None:
    found = terminal("status", "--json").json()
    assert {name: found[name] for name in ("source_cases", "published", "rejected", "steps")} == {
        name: loaded[name] for name in ("source_cases", "published", "rejected", "steps")
    }
    assert [space["name"] for space in found["spaces"]] == ["space_lexical_64"]
    assert found["spaces"][0]["active"] is True
    assert sum(row["cases"] for row in found["rejects"]) == loaded["rejected"]
    assert f"{loaded['published']:,} published" in terminal("status").out


@pytest.mark.usefixtures("loaded")
class TestSearch:
    """Searching, on the sample."""

    def results(self, terminal: Terminal, *arguments: str) -> list[dict[str, Any]]:
        """Rows of a search that has to answer."""
        return list(terminal("search", *arguments, "--json").json()["results"])

    def test_a_title_finds_its_case(self, terminal: Terminal) -> None:
        ((case_id, title, description),) = terminal.sql(
            "SELECT test_case_id, title, description FROM qbench.test_documents d"
            " WHERE length(title) BETWEEN 25 AND 80 AND description IS NOT NULL"
            " AND 1 = (SELECT count(*) FROM qbench.test_documents o WHERE o.embedding = d.embedding) ORDER BY 1 LIMIT 1"
        )
        best = self.results(terminal, f"{title}\n{description}")[0]
        assert best["test_case_id"] == case_id
        assert best["similarity"] > 0.99
        told = terminal("search", f"{title}\n{description}").out
        assert f"C{case_id}" in told
        assert "  1. 1.000" in told

    def test_k_and_order(self, terminal: Terminal) -> None:
        for option, by in (("--hybrid", "score"), ("--vector", "similarity")):
            found = self.results(terminal, "user cannot log in", "-k", "7", option)
            assert len(found) == 7
            assert [row[by] for row in found] == sorted((row[by] for row in found), reverse=True)
            assert len({row["test_case_id"] for row in found}) == 7
        for wrong in ("0", "1001", "many"):
            assert "-k" in terminal("search", "x", "-k", wrong, code=2).err

    def test_steps(self, terminal: Terminal) -> None:
        found = self.results(terminal, "open the page", "--steps", "-k", "5")
        assert len(found) == 5
        assert len({(row["action"], str(row["expected"])) for row in found}) == 5
        assert "step" in terminal("search", "open the page", "--steps").out

    def test_filters_hold_and_find_what_there_is(self, terminal: Terminal) -> None:
        for option, column, condition in (
            ("--priority", "priority", "priority = %s"),
            ("--test-type", "test_type", "test_type = %s"),
            ("--tag", "unnest(tags)", "%s = ANY (tags)"),
            ("--platform", "unnest(platforms)", "%s = ANY (platforms)"),
        ):
            values = terminal.sql(f"SELECT {column} AS v, count(*) FROM qbench.test_documents GROUP BY 1 ORDER BY 2, 1")
            value, _ = next((value, count) for value, count in values if value)
            with psycopg.connect(terminal.url) as connection:
                matching = {
                    row[0]
                    for row in connection.execute(
                        f"SELECT test_case_id FROM qbench.test_documents WHERE {condition}",  # type: ignore[arg-type]
                        [value],
                    )
                }
            found = self.results(terminal, "log in", option, value, "-k", "20")
            assert {row["test_case_id"] for row in found} <= matching, option
            assert len(found) == min(20, len(matching)), option

    def test_a_date_and_a_suite(self, terminal: Terminal) -> None:
        query = "SELECT {} FROM qbench.test_documents GROUP BY 1 ORDER BY count(*), 1 LIMIT 1"
        ((suite,),) = terminal.sql(query.format("suite_id"))
        ((newest,),) = terminal.sql("SELECT max(source_updated_at) FROM qbench.test_documents")
        found = self.results(terminal, "log in", "--suite", str(suite), "-k", "1000")
        ((count,),) = terminal.sql(f"SELECT count(*) FROM qbench.test_documents WHERE suite_id = {suite}")
        assert len(found) == count
        found = self.results(terminal, "log in", "--updated-since", newest.isoformat(), "-k", "1000")
        ((count,),) = terminal.sql(f"SELECT count(*) FROM qbench.test_documents WHERE source_updated_at = '{newest}'")
        assert len(found) == count
        assert "has to be a date" in terminal("search", "x", "--updated-since", "yesterday", code=2).err

    def test_an_identifier_in_a_sentence(self, terminal: Terminal) -> None:
        ((case_id,),) = terminal.sql("SELECT test_case_id FROM qbench.test_documents ORDER BY 1 OFFSET 40 LIMIT 1")
        found = self.results(terminal, f"user cannot log in C{case_id}", "-k", "5")
        assert case_id in {row["test_case_id"] for row in found}
        assert found[0]["matched_steps"] == [] or {"step_index", "action"} <= set(found[0]["matched_steps"][0])

    def test_cases_like_one(self, terminal: Terminal) -> None:
        ((case_id,),) = terminal.sql("SELECT test_case_id FROM qbench.test_documents ORDER BY 1 LIMIT 1")
        found = self.results(terminal, "--like", str(case_id), "-k", "5")
        assert len(found) == 5
        assert case_id not in {row["test_case_id"] for row in found}
        assert len(self.results(terminal, "--like", str(case_id), "--min-similarity", "0.999999")) < 5
        assert f"C{found[0]['test_case_id']}" in terminal("search", "--like", str(case_id)).out
        assert "there is no published test case 7" in terminal("search", "--like", "7", code=2).err

    def test_cases_of_a_key(self, terminal: Terminal) -> None:
        ((key, count),) = terminal.sql(
            "SELECT jira_key, count(*) FROM qbench.test_documents WHERE jira_key ~ '^[A-Z]+-[0-9]+$'"
            " GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 1"
        )
        found = self.results(terminal, "--jira", key.lower(), "-k", "1000")
        assert sum(row["matched"] == "jira_key" for row in found) == count
        assert f"{key} is its key" in terminal("search", "--jira", key).out

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [((), "in one way"), (("x", "--jira", "A-1"), "in one way"), (("--like", "1", "--jira", "A-1"), "in one way"),
         (("--like", "729", "--steps"), "ways to search for a query"), (("--jira", "A-1", "--vector"), "ways to"),
         (("--jira", "A-1", "--min-similarity", "0.5"), "no similarity"), (("--jira", " "), "no Jira key"),
         (("x", "--min-similarity", "nan"), "a cosine is from -1 to 1"), (("x", "--text-weight", "-1"), "0 or more"),
         (("x", "--text-weight", "0", "--vector-weight", "0"), "0 or more")],
    )  # fmt: skip
    def test_what_cannot_be_meant_is_told_in_a_line(
        self, terminal: Terminal, arguments: tuple[str, ...], told: str
    ) -> None:
        done = terminal("search", *arguments, code=2)
        assert told in done.err
        assert done.err.count("\n") == 1
        assert done.out == ""

    def test_no_match(self, terminal: Terminal) -> None:
        assert self.results(terminal, "log in", "--tag", "no such tag") == []
        assert "nothing matches" in terminal("search", "log in", "--tag", "no such tag").out

    @pytest.mark.parametrize("query", ["", " \n\t"])
    def test_an_empty_query_is_refused(self, terminal: Terminal, query: str) -> None:
        done = terminal("search", query, "--json", code=2)
        assert "The query is empty" in done.err
        assert done.out == ""

    @pytest.mark.parametrize(
        "query",
        ["'; DROP TABLE store.test_documents; -- %s %(x)s {} \\", "[bold]x[/nothing] 🙂 ログイン", "!!!", "a" * 20_000,
         os.fsdecode(b"not UTF-8 \xff")],
    )  # fmt: skip
    def test_a_weird_query_is_only_a_query(self, terminal: Terminal, query: str) -> None:
        assert len(self.results(terminal, query, "-k", "3")) == 3
        terminal("search", query, "--folder", "%_'", "--priority", "';--")

    def test_a_number_too_large_is_told(self, terminal: Terminal) -> None:
        done = terminal("search", "log in", "--project", "9" * 30, code=2)
        assert "error" in done.err.lower()


def test_parity_passes_finds_a_planted_fault_and_run_repairs_it(
    loaded: dict[str, Any], terminal: Terminal, export: Path
) -> None:
    passed = terminal("parity", "--json").json()
    assert passed["passed"] is True
    Draft202012Validator(schema()).validate(passed)
    assert Path(passed["html"]).is_file()
    ((case_id,),) = terminal.sql("SELECT test_case_id FROM store.test_documents ORDER BY 1 OFFSET 33 LIMIT 1")
    terminal.sql(f"DELETE FROM store.test_documents WHERE test_case_id = {case_id}")
    failed = terminal("parity", "--json", code=1).json()
    assert failed["passed"] is False
    (finding,) = [finding for finding in failed["findings"] if not finding["passed"]]
    assert finding["name"] == "source_is_published_or_rejected"
    assert [offender["case_id"] for offender in finding["offenders"]] == [case_id]
    told = terminal("parity", code=1).out
    assert "FAILED" in told
    assert str(case_id) in told
    Draft202012Validator(schema()).validate(failed)
    newest, before, *_ = terminal("parity", "--history", "--json").json()["history"]
    assert (newest["passed"], newest["failed"], before["passed"]) == (False, ["source_is_published_or_rejected"], True)
    assert "cases are missing or out of date" in terminal("parity", "--history").out
    # what is missing is published again, from what staging and the space hold
    repaired = terminal("run", "--export", str(export), "--json").json()
    assert repaired["published"] == loaded["published"]
    assert repaired["texts_embedded"] == 0
    assert repaired["stages"]["pg_tables"]["written"] == 1
    assert terminal("parity", "--json").json()["passed"] is True


def test_a_failing_run_ends_with_1_and_says_why(terminal: Terminal, loaded: dict[str, Any], export: Path) -> None:
    cut = terminal.home / "cut.db"
    shutil.copy(export, cut)
    with sqlite3.connect(cut) as connection:
        connection.execute("DELETE FROM cases WHERE id > (SELECT id FROM cases ORDER BY id LIMIT 1 OFFSET 300)")
    connection.close()
    before = terminal.sql("SELECT count(*), md5(string_agg(title, '' ORDER BY id)) FROM qbench.test_documents")
    done = terminal("run", "--export", str(cut), "--json", code=1)
    told = done.json()
    assert told["ok"] is False
    assert any("cases are gone from the export" in failure for failure in told["failures"])
    assert "--allow-deletes" in done.err
    assert terminal.sql("SELECT count(*), md5(string_agg(title, '' ORDER BY id)) FROM qbench.test_documents") == before
    allowed = terminal("run", "--export", str(cut), "--allow-deletes", "--json").json()
    assert allowed["removed"] == 600 - 301
    back = terminal("run", "--export", str(export), "--json").json()
    assert (back["published"], back["texts_embedded"]) == (loaded["published"], 0)  # the vectors had stayed


class TestErrors:
    """What is wrong outside ends with 2 and one message, and starts nothing."""

    def message(self, bare: Terminal, *arguments: str, **settings: str) -> str:
        """stderr of a command that could not start."""
        done = bare(*arguments, code=2, **settings)
        assert done.out == ""
        assert done.err.count("error:") == 1
        assert PASSWORD not in done.err
        assert not (bare.home / "pg").exists()
        return done.err

    def test_no_export(self, bare: Terminal) -> None:
        assert "QBENCH_EXPORT" in self.message(bare, "run")
        assert "QBENCH_EXPORT" in self.message(bare, "run", "--json")

    def test_missing_file(self, bare: Terminal) -> None:
        assert "/no/such.db: there is no such file" in self.message(bare, "run", "--export", "/no/such.db")
        assert "there is no such file" in self.message(bare, "run", QBENCH_EXPORT="/no/such.db")

    def test_a_folder(self, bare: Terminal, tmp_path: Path) -> None:
        assert "is a folder" in self.message(bare, "run", "--export", str(tmp_path))

    def test_not_sqlite(self, bare: Terminal, tmp_path: Path) -> None:
        path = tmp_path / "notes.db"
        path.write_text("these are notes, and longer than the header of a database would be " * 20)
        assert "is not a SQLite database" in self.message(bare, "run", "--export", str(path))

    def test_no_case_in_it(self, bare: Terminal, tmp_path: Path) -> None:
        path = write_export(tmp_path / "empty.db", [])
        assert "table 'cases' is empty" in self.message(bare, "run", "--export", str(path))
        (tmp_path / "zero.db").touch()
        assert "has no table 'cases'" in self.message(bare, "run", "--export", str(tmp_path / "zero.db"))

    def test_a_wrong_setting(self, bare: Terminal) -> None:
        told = self.message(bare, "status", QBENCH_DIMENSIONS="7000", QBENCH_INDEX="flat", QBENCH_EF_SEARCH="lots")
        for name in ("QBENCH_DIMENSIONS", "QBENCH_INDEX", "QBENCH_EF_SEARCH"):
            assert name in told

    @pytest.mark.parametrize("command", [["status"], ["search", "x"], ["parity"], ["run"], ["ui", "--port", "1"]])
    def test_an_unreachable_database(self, bare: Terminal, tmp_path: Path, command: list[str]) -> None:
        export = write_export(tmp_path / "export.db", [case(1)])
        told = self.message(bare, *command, DATABASE_URL=UNREACHABLE, QBENCH_EXPORT=str(export))
        assert "Cannot connect to postgresql://bob@127.0.0.1:1/nowhere" in told

    def test_an_unreachable_storage_of_dagster(self, bare: Terminal, server_url: str, tmp_path: Path) -> None:
        export = write_export(tmp_path / "export.db", [case(1)])
        settings = {"DATABASE_URL": server_url, "QBENCH_DAGSTER_DATABASE_URL": UNREACHABLE}
        assert "Cannot connect to" in self.message(bare, "run", QBENCH_EXPORT=str(export), **settings)

    @pytest.mark.parametrize(
        "url",
        [f"mysql://bob:{PASSWORD}@localhost/db", f"host=localhost password={PASSWORD}", f"bob:{PASSWORD}@localhost",
         f"postgresql://bob:{PASSWORD}@localhost:port/db", f"postgresql://bob:{PASSWORD}%zz@127.0.0.1:1/db",
         f"postgresql://127.0.0.1:1/db?user=bob&password={PASSWORD}"],
    )  # fmt: skip
    def test_a_wrong_url_is_not_repeated(self, bare: Terminal, url: str) -> None:
        assert "DATABASE_URL" in self.message(bare, "status", DATABASE_URL=url)

    def test_sample_over_a_file(self, bare: Terminal, tmp_path: Path) -> None:
        path = tmp_path / "mine.db"
        path.write_text("mine")
        self.message(bare, "sample", str(path), "--cases", "10")
        assert path.read_text() == "mine"
        self.message(bare, "sample", str(tmp_path / "x.db"), "--cases", "0")
        self.message(bare, "sample", str(tmp_path / "no" / "folder" / "x.db"), "--cases", "10")

    def test_search_before_anything_is_published(self, bare: Terminal, fresh_url: str) -> None:
        done = bare("search", "log in", code=2, DATABASE_URL=fresh_url)
        assert "Nothing is published yet: run `qbench run --export PATH` first." in done.err


def test_a_password_is_nowhere(fresh_url: str, bare: Terminal, tmp_path: Path) -> None:
    """A real run against DATABASE_URL (the server trusts any password): no output, file or event repeats it."""
    parts = urlsplit(fresh_url)
    url = urlunsplit(parts._replace(netloc=f"postgres:{PASSWORD}@"))
    export = write_export(tmp_path / "export.db", [case(number, f"Log in as {number}") for number in range(1, 40)])
    settings = {"DATABASE_URL": url, "QBENCH_EXPORT": str(export)}
    said = [bare("run", "--json", **settings), bare("status", **settings)]
    said += [bare("parity", "--json", **settings), bare("search", "log in", **settings)]
    with psycopg.connect(fresh_url, autocommit=True) as connection:
        connection.execute("DROP TABLE store.test_related_issues CASCADE")
    with sqlite3.connect(export) as changed:
        changed.execute("UPDATE cases SET title = title || '!'")
    changed.close()
    said.append(bare("run", code=1, **settings))  # an error, with all Dagster records of one
    for done in said:
        assert PASSWORD not in done.out + done.err
    files = [path for path in bare.home.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if PASSWORD.encode() in path.read_bytes()]
    with psycopg.connect(fresh_url) as connection:
        tables = connection.execute(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables"
            " WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        ).fetchall()
        assert ("dagster.event_logs",) in tables
        assert ("store.parity_reports",) in tables
        asked = {
            table: connection.execute(
                f"SELECT count(*) FILTER (WHERE t::text LIKE %s), count(*) FROM {table} t",  # type: ignore[arg-type]
                [f"%{PASSWORD}%"],
            ).fetchone()
            for (table,) in tables
        }
    assert {table: counts for table, counts in asked.items() if counts[0]} == {}  # type: ignore[index]
    assert asked["dagster.event_logs"][1] > 50  # type: ignore[index]


def test_stop_and_start_again(terminal: Terminal, loaded: dict[str, Any]) -> None:
    """Last in the module: the next command starts the server again."""
    assert terminal("stop", "--json").json() == {"stopped": True}
    assert terminal("stop", "--json").json() == {"stopped": False}
    assert "no embedded PostgreSQL is running" in terminal("stop").out
    assert terminal("status", "--json").json()["published"] == loaded["published"]
    assert terminal("url", "--json").json()["url"].startswith("postgresql://")
    assert terminal("url", "--dagster").out.startswith("postgresql+psycopg2://")
