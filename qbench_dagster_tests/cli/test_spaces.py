"""`qbench spaces`, `cutover` and `purge`; and what `run` and `search` do while two spaces stand side by side."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qbench_dagster.adapters.cutover import list_spaces
from qbench_dagster.adapters.embedders import LexicalEmbedder
from qbench_dagster.adapters.postgres import Database, ensure_database
from qbench_dagster.adapters.space import Space, ensure_space
from qbench_dagster.cli import app
from qbench_dagster_tests.support import case, execute, rows, write_export
from qbench_dagster_tests.terminal import Done, Terminal

A, B = "space_lexical_64", "space_lexical_32"
CASES = [
    case(n, f"Log in as user {n}", steps_separated=[{"content": f"Open page {n}"}], preconditions=f"User {n} exists")
    for n in range(1, 31)
]
CHANGED = [*CASES[:-1], {**CASES[-1], "title": "Quite another title"}]
OTHER = {"QBENCH_DIMENSIONS": "32"}


@pytest.fixture(scope="module")
def database(server_url: str) -> Iterator[Database]:
    """One database for the module: its tests are the life of two spaces, in order."""
    with Database(ensure_database(server_url, "spaces_cli")) as opened:
        yield opened


@pytest.fixture(scope="module")
def terminal(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Terminal:
    """A terminal on a database that was filled by one run."""
    home = tmp_path_factory.mktemp("home")
    export = write_export(home / "export.db", CASES)
    settings = {"DATABASE_URL": database.url, "QBENCH_EXPORT": str(export), "QBENCH_DIMENSIONS": "64",
                "QBENCH_INDEX": "exact", "QBENCH_PARITY_QUERIES": "10"}  # fmt: skip
    made = Terminal(home, settings)
    assert "no embedding space yet" in quick(made, "spaces").out
    made("run")
    return made


def quick(terminal: Terminal, *arguments: str, code: int = 0, **settings: str) -> Done:
    """The same in this process, for commands that need no Dagster: a process of its own costs a second."""
    environment = {"QBENCH_HOME": str(terminal.home), **terminal.settings, **settings}
    done = CliRunner().invoke(app, list(arguments), env=environment)
    assert done.exit_code == code, f"{arguments} ended with {done.exit_code}: {done.output} {done.exception!r}"
    return Done(done.exit_code, done.stdout, done.stderr)


def listed(terminal: Terminal, **settings: str) -> dict[str, dict[str, Any]]:
    return {space["name"]: space for space in quick(terminal, "spaces", "--json", **settings).json()["spaces"]}


def test_another_space_is_filled_beside_the_one_that_is_read(terminal: Terminal, database: Database) -> None:
    write_export(Path(terminal.settings["QBENCH_EXPORT"]), CHANGED)
    done = terminal("run", "--json", **OTHER).json()
    assert done["ok"] is True
    assert done["stages"]["pg_tables"]["written"] == 1
    shown = "SELECT title, vector_dims(embedding) FROM qbench.test_documents WHERE id = 30"
    assert rows(database, shown) == [("Quite another title", 64)], "a change reaches what is read"
    found = listed(terminal, **OTHER)
    assert set(found) == {A, B}
    assert (found[A]["active"], found[A]["of_settings"], found[A]["coverage_percent"]) == (True, False, 100)
    assert (found[B]["active"], found[B]["of_settings"], found[B]["coverage_percent"]) == (False, True, 100)
    assert (found[A]["documents"], found[B]["documents"], found[B]["steps"]) == (31, 30, 30)
    told = quick(terminal, "spaces", **OTHER).out
    assert f"{A} (active): lexical-v1, halfvec(64), 31 documents and 30 steps (lexical 61), covers 100.00 %" in told
    assert f"{B} (settings): lexical-v1, halfvec(32)" in told
    assert "$0.0000, 0 tokens" in told
    assert "after" not in told
    try:
        execute(
            database,
            "UPDATE store.spaces SET text_prefix = 'passage: [x]', query_prefix = 'query: ' WHERE name = %s",
            A,
        )
        told = quick(terminal, "spaces", **OTHER).out
        assert "halfvec(64), texts after 'passage: [x]' and queries after 'query: ', 31 documents" in told
    finally:
        execute(database, "UPDATE store.spaces SET text_prefix = '', query_prefix = ''")


def test_a_query_is_embedded_for_the_space_that_is_read(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    done = terminal("search", "Quite another title", "--json", **OTHER)
    assert (done.json()["space"], done.json()["model"]) == (A, "lexical-v1")
    assert done.json()["results"][0]["test_case_id"] == 30
    assert f"answered by {A}" in done.err
    assert f"the settings name {B}" in done.err
    closed = []

    def close(embedder: LexicalEmbedder) -> None:
        closed.append(embedder)

    monkeypatch.setattr(LexicalEmbedder, "close", close)
    assert quick(terminal, "search", "Quite another title", "--json").err == ""
    assert len(closed) == 1


def test_what_cannot_embed_the_query_says_why(terminal: Terminal, database: Database) -> None:
    made_by = "UPDATE store.spaces SET embedder = %s, model = %s WHERE active"
    try:
        execute(database, made_by, "openai", "text-embedding-3-large")
        told = quick(terminal, "search", "log in", code=2).err
        assert "error: OPENAI_API_KEY is not set, and space_lexical_64 is made by text-embedding-3-large" in told
        execute(database, made_by, "local", "no/such-model")
        assert quick(terminal, "search", "log in", code=2, HF_HUB_OFFLINE="1").err.startswith("error: ")
    finally:
        execute(database, made_by, "lexical", "lexical-v1")


def test_a_check_that_fails_keeps_reads_where_they_are(terminal: Terminal, database: Database) -> None:
    low = {"QBENCH_TARGET_RECALL": "1", "QBENCH_INDEX": "binary"}
    execute(database, "UPDATE store.test_steps SET action = 'nothing' WHERE test_case_id = 1")
    done = terminal("cutover", B, "--json", code=1, **low)
    told = done.json()
    assert (told["moved"], told["to_space"]) == (False, B)
    assert {finding["name"] for finding in told["failed"]} == {"no_word_lost", "published_rows_are_what_was_staged"}
    assert Path(told["html"]).is_file()
    assert "Reads stay where they are: 2 of 10 checks of space_lexical_32 do not hold. No word" in done.err
    assert listed(terminal)[A]["active"]
    execute(database, "UPDATE store.test_steps SET action = 'Open page 1' WHERE test_case_id = 1")


def test_reads_move_and_return(terminal: Terminal, database: Database) -> None:
    dims = "SELECT DISTINCT vector_dims(embedding) FROM qbench.test_documents"
    assert "Reads were never moved" in quick(terminal, "cutover", "--back", code=2).err
    done = terminal("cutover", B, "--json").json()
    assert (done["moved"], done["from_space"], done["to_space"]) == (True, A, B)
    assert json.loads(Path(done["html"]).with_suffix(".json").read_text())["passed"] is True
    assert rows(database, dims) == [(32,)]
    found = listed(terminal)
    assert (found[A]["previous"], found[B]["active"]) == (True, True)
    assert found[B]["recall"]["doc"]["stored"] == 1
    assert quick(terminal, "search", "Quite another title", "--json").json()["space"] == B
    again = terminal("cutover", B)
    assert f"reads are on {B} already" in again.out
    told = terminal("cutover", "--back").out
    assert f"reads moved from {B} to {A}; back: qbench cutover --back" in told
    assert rows(database, dims) == [(64,)]
    by = rows(database, "SELECT by, report IS NULL FROM store.cutovers ORDER BY id")
    assert [null for _, null in by] == [False, True]
    assert all("@" in name for name, _ in by)


def test_what_parity_and_the_checks_are_about_is_what_is_read(terminal: Terminal, database: Database) -> None:
    assert terminal("parity", "--json", **OTHER).json()["space"] == A


def test_wrong_words(terminal: Terminal) -> None:
    for arguments in (("cutover",), ("cutover", B, "--back")):
        assert "Name the space to read, or pass --back" in quick(terminal, *arguments, code=2).err
    for told in (
        quick(terminal, "purge", "space_lexical_3072", code=2).err,
        terminal("cutover", "space_lexical_3072", code=2).err,
    ):
        assert f"There is no embedding space space_lexical_3072. There are: {B}, {A} (active)." in " ".join(
            told.split()
        )
    for command in ("spaces", "cutover", "purge"):
        told = quick(terminal, command, "--help").out
        assert "--json" in told
        assert len(told) > 400


def test_purge_asks_and_never_drops_what_is_read(terminal: Terminal, database: Database) -> None:
    assert "is what the application reads. Move reads first" in quick(terminal, "purge", A, "--yes", code=2).err
    asked = " ".join(quick(terminal, "purge", B, code=2).err.split())
    assert f"Drop {B} (60 vectors, " in asked
    assert "`qbench cutover --back` returns to it, and could not any more" in asked
    assert "Nobody is here to ask: pass --yes if so" in asked
    assert "pass --yes" in quick(terminal, "purge", B, "--json", code=2).err
    assert "Nothing was dropped" in at_a_terminal(terminal, "n", "purge", B)
    assert set(listed(terminal)) == {A, B}
    (size,) = [space["bytes"] for space in list_spaces(database) if space["name"] == B]
    assert f"{B} is dropped: " in at_a_terminal(terminal, "y", "purge", B)
    assert set(listed(terminal)) == {A}
    assert "There is no embedding space space_lexical_32" in quick(terminal, "cutover", "--back", code=2).err
    ensure_space(database, Space(B, "lexical-v1", 32, "halfvec"))  # made anew
    done = quick(terminal, "purge", B, "--yes", "--json").json()
    assert done["name"] == B
    assert 0 < done["bytes"] <= size


def at_a_terminal(terminal: Terminal, answer: str, *arguments: str) -> str:
    """What a person sees who answers the question a command asks."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "qbench_dagster.cli", *arguments],
        env={**os.environ, "QBENCH_HOME": str(terminal.home), "COLUMNS": "200", **terminal.settings},
        stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        os.write(ours, f"{answer}\n".encode())
        told, _ = process.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    return str(told)
