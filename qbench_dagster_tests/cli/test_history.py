"""`qbench history`, `diff` and `rollback`: what a person at a terminal reads and does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qbench_dagster.adapters.history import PublishingRun, finish_run
from qbench_dagster.adapters.postgres import Database, ensure_database
from qbench_dagster.cli import app
from qbench_dagster_tests.adapters.syncs import Source
from qbench_dagster_tests.support import case, execute, rows
from qbench_dagster_tests.terminal import Done

HOSTILE = "\x9b31m[bold]&lt;b&gt;Log\u202e in"
"""As TestRail has it: an escape sequence of one character, Rich's markup, HTML, and a turn of the writing direction."""
NEUTRAL = "\ufffd31m[bold]<b>Log\ufffd in"
CASES = [case(n, f"Log in {n}", steps_separated=[{"content": f"Open {n}", "expected": "Shown"}]) for n in range(1, 31)]


@pytest.fixture(scope="module")
def database(server_url: str) -> Iterator[Database]:
    """One database for the module: its tests are the life of one sync, in order."""
    with Database(ensure_database(server_url, "history_cli")) as opened:
        yield opened


@pytest.fixture(scope="module")
def source(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """30 cases, loaded, and one sync after that."""
    found = Source(database, tmp_path_factory.mktemp("history"), CASES)
    found.sync()
    found.edit(1, title=HOSTILE, steps_separated=[{"content": "Open 1", "expected": "Seen"}, {"content": "x" * 1000}])
    found.edit(2, preconditions="\n".join(f"Row {n}" for n in range(30)))
    found.cases[31] = case(31, "New")
    del found.cases[3]
    found.sync(finish=False)
    return found


@pytest.fixture
def qbench(source: Source, tmp_path: Path) -> Iterator[object]:
    def run(*arguments: str, code: int = 0) -> Done:
        environment = {"QBENCH_HOME": str(tmp_path), "DATABASE_URL": source.database.url}
        done = CliRunner().invoke(app, list(arguments), env=environment)
        assert done.exit_code == code, f"{arguments} ended with {done.exit_code}: {done.output} {done.exception!r}"
        return Done(done.exit_code, done.stdout, done.stderr)

    return run  # type: ignore[return-value]


def test_history_lists_the_syncs_newest_first(source: Source, qbench) -> None:  # type: ignore[no-untyped-def]
    newest, first = qbench("history").out.splitlines()
    assert newest.split() == [str(source.newest), *newest.split()[1:]]
    assert "sync, run run-2, by tester: 1 added, 2 changed, 1 removed in from_0000000001" in newest
    assert "not finished: under way, failed or killed" in newest
    assert "30 added, 0 changed, 0 removed" in first
    assert len(qbench("history", "--limit", "1").out.splitlines()) == 1
    assert "removed the case" in qbench("history", "--case", "3").out.splitlines()[0]
    assert "no sync changed that case" in qbench("history", "--case", "99").out
    found = qbench("history", "--json", "--case", "3").json()
    assert [each["did"] for each in found["syncs"]] == ["removed", "added"]
    assert found["holds"] == []


def test_diff_shows_what_changed_field_by_field(source: Source, qbench) -> None:  # type: ignore[no-untyped-def]
    told = qbench("diff", str(source.newest)).out
    lines = told.splitlines()
    assert lines[1].startswith("C1 changed  ")
    assert "    title" in lines
    assert "      - Log in 1" in lines
    assert lines.index("    step 1") < lines.index("      - expected: Shown") < lines.index("      + expected: Seen")
    assert "    step 2" in lines
    assert f"      + {'x' * 300}… (1,000 characters)" in lines
    assert "      … and 10 more lines" in lines
    assert "C3 removed  Log in 3" in lines
    assert "C31 added  New" in lines
    assert "and 28 cases more: --limit, or --case ID" in qbench("diff", str(source.newest - 1), "--limit", "2").out
    one = qbench("diff", str(source.newest), "--case", "31").out
    assert "      + New" not in told, "of what came or went the title"
    assert "C31 added  New" in one
    assert "      + New" in one, "but where it is asked for"
    assert "C1 " not in one
    assert "case 5 is not among them" in qbench("diff", str(source.newest), "--case", "5").out
    assert "There is no sync 999999" in qbench("diff", "999999", code=2).err
    found = qbench("diff", str(source.newest), "--case", "1", "--json").json()
    assert found["sync"]["changed"] == 2
    assert found["cases"][0]["differences"][0] == {
        "what": "title", "before": "Log in 1", "after": "\x9b31m[bold]<b>Log\u202e in"
    }  # fmt: skip


def test_what_a_case_says_is_only_text(source: Source, qbench) -> None:  # type: ignore[no-untyped-def]
    told = qbench("diff", str(source.newest)).out
    assert f"C1 changed  {NEUTRAL}" in told
    assert f"      + {NEUTRAL}" in told
    assert not {"\x9b", "\x1b", "\u202e"} & set(told)


def test_rollback_shows_what_it_would_do_and_does_it_with_yes(source: Source, qbench) -> None:  # type: ignore[no-untyped-def]
    sync_id = source.newest
    assert "is not finished: its run goes on" in qbench("rollback", str(sync_id), code=1).err
    finish_run(source.database, PublishingRun("run-2", "tester"), 90)
    told = qbench("rollback", str(sync_id)).out
    assert "undoing it: 1 case leave, 2 change back, 1 come back" in told
    assert "C31 leaves  New" in told
    assert "C3 comes back  Log in 3" in told
    assert f"To do it: qbench rollback {sync_id} --yes" in told
    assert rows(source.database, "SELECT count(*) FROM store.sync_runs") == [(2,)]

    done = qbench("rollback", str(sync_id), "--yes", "--json").json()
    assert done["made"] == sync_id + 1
    assert done["objections"] == []
    listed = qbench("history").out
    assert f"undoes sync {sync_id}, by " in listed
    assert f"undone by sync {sync_id + 1}" in listed
    held = "holds 4 cases as it put them back, 1 of them not published and 1 beside what the source has"
    assert f"sync {sync_id + 1} {held}" in listed
    told = " ".join(qbench("status").out.split())
    assert "30 source cases + 1 that a rollback brought back = 30 published + 1 rejected" in told
    assert "4 cases are held by a rollback" in told

    refused = qbench("rollback", str(sync_id), "--yes", "--json", code=1)
    assert f"sync {sync_id + 1} undid it" in refused.json()["objections"][0]
    assert "nothing to undo" in qbench("rollback", str(sync_id), code=1).err
    told = qbench("rollback", str(sync_id + 1)).out
    assert f"C1 changes back  {NEUTRAL}" in told
    assert not {"\x9b", "\x1b", "\u202e"} & set(told)


def test_force_gives_up_what_changed_since(source: Source, qbench) -> None:  # type: ignore[no-untyped-def]
    sync_id = source.newest - 1
    qbench("rollback", str(source.newest), "--yes")
    source.edit(1, title="Later")
    source.sync()
    for arguments in ((), ("--yes",)):
        assert (
            "1 of its cases changed again since (1 by sync" in qbench("rollback", str(sync_id), *arguments, code=1).err
        )
    assert f"rollback {sync_id} --yes --force" in qbench("rollback", str(sync_id), "--force").out
    told = qbench("rollback", str(sync_id), "--yes", "--force").out
    assert f"sync {source.newest} undid it" in told
    assert rows(source.database, "SELECT title FROM store.test_documents WHERE test_case_id = 1") == [("Log in 1",)]


def test_holds_are_let_go_with_release(source: Source, qbench) -> None:  # type: ignore[no-untyped-def]
    made = source.newest
    assert f"or: qbench rollback {made} --release)" in qbench("history").out
    told = qbench("rollback", str(made), "--release").out
    assert f"sync {made} holds 4 cases; " in told
    assert f"To do it: qbench rollback {made} --release --yes" in told
    assert len(qbench("history", "--json").json()["holds"]) == 1
    done = qbench("rollback", str(made), "--release", "--yes", "--json").json()
    assert done == {"sync": made, "cases": 4, "released": True}
    assert qbench("history", "--json").json()["holds"] == []
    assert source.newest == made
    assert "There is no sync 999999" in qbench("rollback", "999999", "--release", code=2).err


def test_purge_says_what_it_deleted(source: Source, qbench) -> None:  # type: ignore[no-untyped-def]
    assert "purged: 0 syncs with 0 changes, 0 versions; older than 90 days" in qbench("history", "--purge").out
    execute(
        source.database,
        "UPDATE store.sync_runs SET started_at = started_at - interval '91 days', "
        "finished_at = finished_at - interval '91 days' WHERE id < %s",
        source.newest,
    )
    purged = qbench("history", "--purge", "--json").json()
    assert purged["purged"]["syncs"] == len(purged["syncs"]) - 1
    assert "; purged 20" in qbench("history").out
    assert "was purged on" in qbench("diff", str(source.newest - 1), code=2).err
