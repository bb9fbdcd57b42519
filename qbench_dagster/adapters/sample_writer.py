"""Writes a sample (`core/sample`) into a new SQLite file with the schema of the real export.

How the file is made belongs here, never what is in it. Same (cases, seed): on one machine the bytes are
the same. Another SQLite build puts its own version number into bytes 96-99 of the header and may lay out
pages differently (the change counter, bytes 24-27, and version-valid-for, 92-95, count our one commit
and the schema, so they are the same), but `content_sha256`, over every cell of every row, is the same
everywhere.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from qbench_dagster.core.sample import Cell, Row, case_rows, lookup_rows, planted, validate

Progress: TypeAlias = Callable[[int, int], None]
"""Called with (cases written, cases in all)."""

PROGRESS_EVERY: Final = 1_000

TABLES: Final[Mapping[str, str]] = {
    "projects": """
        id INTEGER NOT NULL PRIMARY KEY, name VARCHAR NOT NULL, announcement TEXT, show_announcement BOOLEAN,
        is_completed BOOLEAN, completed_on INTEGER, suite_mode INTEGER, url VARCHAR""",
    "suites": """
        id INTEGER NOT NULL PRIMARY KEY, project_id INTEGER NOT NULL REFERENCES projects(id),
        name VARCHAR NOT NULL, description TEXT, is_master BOOLEAN, is_baseline BOOLEAN, is_completed BOOLEAN,
        completed_on INTEGER, url VARCHAR""",
    "sections": """
        id INTEGER NOT NULL PRIMARY KEY, suite_id INTEGER NOT NULL REFERENCES suites(id),
        name VARCHAR NOT NULL, description TEXT, parent_id INTEGER REFERENCES sections(id),
        display_order INTEGER, depth INTEGER""",
    "priorities": """
        id INTEGER NOT NULL PRIMARY KEY, name VARCHAR NOT NULL, short_name VARCHAR, is_default BOOLEAN,
        priority INTEGER""",
    "case_types": "id INTEGER NOT NULL PRIMARY KEY, name VARCHAR NOT NULL, is_default BOOLEAN",
    "templates": "id INTEGER NOT NULL PRIMARY KEY, name VARCHAR NOT NULL, is_default BOOLEAN",
    "cases": """
        id INTEGER NOT NULL PRIMARY KEY, suite_id INTEGER NOT NULL REFERENCES suites(id),
        section_id INTEGER NOT NULL REFERENCES sections(id),
        project_id INTEGER NOT NULL REFERENCES projects(id), title VARCHAR NOT NULL,
        template_id INTEGER REFERENCES templates(id), type_id INTEGER REFERENCES case_types(id),
        priority_id INTEGER REFERENCES priorities(id), refs VARCHAR, created_on INTEGER, updated_on INTEGER,
        preconditions TEXT, steps TEXT, steps_separated JSON, steps_combined TEXT, jiras VARCHAR,
        refs_custom VARCHAR, comment TEXT, is_automated BOOLEAN, custom_fields JSON""",
}
INDEXES: Final = tuple(
    f"CREATE INDEX ix_cases_{column} ON cases ({column})" for column in ("suite_id", "section_id", "project_id")
)
# Secure delete zeroes the unused part of every page: no left-over memory gets into the file.
PRAGMAS: Final = (
    "PRAGMA page_size = 4096",
    "PRAGMA encoding = 'UTF-8'",
    "PRAGMA auto_vacuum = NONE",
    "PRAGMA journal_mode = OFF",
    "PRAGMA synchronous = OFF",
    "PRAGMA secure_delete = ON",
    "PRAGMA foreign_keys = OFF",
)


@dataclass(frozen=True, slots=True)
class SampleSummary:
    """What was written. `difficulties` counts the planted cases of each kind."""

    path: Path
    cases: int
    seed: int
    bytes: int
    content_sha256: str
    difficulties: Mapping[str, int]


def write_sample(
    path: Path | str, cases: int, seed: int, progress: Progress | None = None, *, force: bool = False
) -> SampleSummary:
    """Write the sample to `path`: the whole file appears at once, or nothing does.

    Refuses a path that exists unless `force` is set, and a number of cases that cannot be made (ValueError).
    """
    validate(cases)
    target = Path(path)
    _refuse(target, force)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.partial")
    try:
        digest = _write(temporary, cases, seed, progress)
        _move(temporary, target, force)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    return SampleSummary(
        path=target,
        cases=cases,
        seed=seed,
        bytes=target.stat().st_size,
        content_sha256=digest,
        difficulties={name: len(ids) for name, ids in planted(cases, seed).items()},
    )


def content_sha256(path: Path | str) -> str:
    """The digest of an export's rows, independent of how SQLite laid them out; as in the summary."""
    digest = hashlib.sha256()
    uri = f"{Path(path).resolve().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as db:
        db.text_factory = bytes
        for table in TABLES:
            for _ in _digested(digest, table, db.execute(f"SELECT * FROM {table} ORDER BY id")):  # noqa: S608
                pass
    return digest.hexdigest()


def _refuse(target: Path, force: bool) -> None:
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {target.parent}: create it first")
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder: give the name of a file")
    if target.exists() and not force:
        raise FileExistsError(f"{target} exists already: choose another name, or overwrite it with force")
    for suffix in ("-journal", "-wal"):
        beside = target.with_name(target.name + suffix)
        if beside.exists():
            # SQLite would play the old file's journal into the new file.
            raise FileExistsError(f"{beside} exists: close the program that has {target.name} open, or remove it")


def _write(temporary: Path, cases: int, seed: int, progress: Progress | None) -> str:
    digest = hashlib.sha256()
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    with closing(sqlite3.connect(temporary, isolation_level=None)) as db:
        for pragma in PRAGMAS:
            db.execute(pragma)
        db.execute("BEGIN")
        for table, columns in TABLES.items():
            db.execute(f"CREATE TABLE {table} ({columns.strip()})")
        for table, rows in lookup_rows(cases, seed):
            _insert(db, table, _digested(digest, table, rows))
        _insert(db, "cases", _digested(digest, "cases", _reported(case_rows(cases, seed), cases, progress)))
        for index in INDEXES:
            db.execute(index)
        db.execute("COMMIT")
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    return digest.hexdigest()


def _insert(db: sqlite3.Connection, table: str, rows: Iterable[Row]) -> None:
    """Insert the rows; the cast turns bytes, which are not valid UTF-8, into a text cell as they are."""
    columns = db.execute(f"PRAGMA table_info({table})").fetchall()
    marks = ", ".join("?" if kind in ("INTEGER", "BOOLEAN") else "CAST(? AS TEXT)" for _, _, kind, _, _, _ in columns)
    db.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)  # noqa: S608


def _reported(rows: Iterator[Row], cases: int, progress: Progress | None) -> Iterator[Row]:
    for done, row in enumerate(rows, 1):
        yield row
        if progress is not None and (done % PROGRESS_EVERY == 0 or done == cases):
            progress(done, cases)


def _digested(digest: hashlib._Hash, table: str, rows: Iterable[Row]) -> Iterator[Row]:
    """The rows, each taken into the digest on its way: every cell with its kind and its length."""
    digest.update(f"\n{table}\n".encode())
    for row in rows:
        digest.update(b"".join([_canonical(cell) for cell in row]) + b"\n")
        yield row


def _canonical(cell: Cell) -> bytes:
    if cell is None:
        return b"-"
    if isinstance(cell, int):
        return b"i%d;" % cell
    data = cell.encode() if isinstance(cell, str) else cell
    return b"t%d:%b" % (len(data), data)


def _move(temporary: Path, target: Path, force: bool) -> None:
    if force:
        temporary.replace(target)
        return
    try:
        os.link(temporary, target)  # fails, rather than overwrites, if somebody made the file meanwhile
    except FileExistsError:
        raise FileExistsError(f"{target} was created by another program meanwhile: nothing was written") from None
    except OSError:  # a file system without hard links
        _refuse(target, force)
        temporary.replace(target)
