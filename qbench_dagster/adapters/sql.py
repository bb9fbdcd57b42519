"""Loads the SQL in `sql/`: whole files, or the named statements of a file.

The files are psql's: `:"space"` is an identifier, `:'lower'` a bound value, `:dimensions` an integer
written in place (PostgreSQL takes no parameter inside `halfvec(3072)`). So `psql -v space=… -f` runs
them too. No SQL is written in Python.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from psycopg import sql

_NAME = re.compile(r"^-- name: (\w+)[^\n]*\n", re.MULTILINE)
_VARIABLE = re.compile(r""":"(\w+)"|:'(\w+)'|(?<![:\w]):([a-z_]\w*)""")


class SqlError(LookupError):
    """A statement or a variable that the SQL files do not have."""


def sql_folder() -> Traversable:
    """The `sql` folder: inside the package in a wheel, at the top of the repository otherwise."""
    inside = files("qbench_dagster").joinpath("sql")
    return inside if inside.is_dir() else Path(__file__).parents[2] / "sql"


@cache
def read_file(name: str) -> str:
    """Text of `sql/<name>`."""
    path = sql_folder()
    for part in name.split("/"):
        path = path.joinpath(part)
    return path.read_text(encoding="utf-8")


@cache
def _statements(file: str) -> Mapping[str, str]:
    parts = _NAME.split(read_file(file))
    return dict(zip(parts[1::2], (body.strip() for body in parts[2::2]), strict=True))


def statement(file: str, name: str, /, **variables: str | int) -> sql.Composed:
    """Statement `name` of `sql/<file>`, with its identifiers and integers filled in.

    `:'value'` variables become `%(value)s`: they are bound when the statement is executed.
    Raises SqlError for an unknown statement or a variable that is missing.
    """
    try:
        body = _statements(file)[name]
    except KeyError:
        raise SqlError(f"sql/{file} has no statement named {name!r}") from None
    return fill(body, f"{file}: {name}", variables)


def script(file: str, /, **variables: str | int) -> sql.Composed:
    """The whole of `sql/<file>`, with identifiers and integers filled in; it takes no bound values."""
    return fill(read_file(file), file, variables)


def fill(body: str, origin: str, variables: Mapping[str, str | int]) -> sql.Composed:
    """Replace psql variables in `body`; `origin` names it in errors."""
    pieces: list[sql.Composable] = []
    end = 0
    code = re.sub(r"--[^\n]*", lambda comment: " " * len(comment[0]), body)
    # psycopg reads % as the start of a placeholder, but only in a statement that is given values.
    percent = "%%" if ":'" in code else "%"
    for match in _VARIABLE.finditer(code):
        pieces.append(sql.SQL(code[end : match.start()].replace("%", percent)))
        identifier, value, number = match.groups()
        end = match.end()
        if value is not None:
            pieces.append(sql.Placeholder(value))
            continue
        name = identifier or number
        if name not in variables:
            raise SqlError(f"sql/{origin} needs the variable {name!r}")
        given = variables[name]
        if identifier:
            pieces.append(sql.Identifier(str(given).replace("%", percent)))
        else:
            pieces.append(sql.SQL(str(int(given))))
    pieces.append(sql.SQL(code[end:].replace("%", percent)))
    return sql.Composed(pieces)
