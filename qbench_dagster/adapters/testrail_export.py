"""Reads a TestRail SQLite export: read-only, in one consistent view, streaming.

Rows come out as they are; what they mean is `core/normalize.py`.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

from qbench_dagster.core.ranges import LARGEST_ID, CaseRange

LOOKUP_TABLES = ("projects", "suites", "sections", "priorities", "case_types", "templates")
REQUIRED_TABLES = {"cases": ("id", "title"), "sections": ("id", "name")}
BUSY_TIMEOUT_S = 30
BATCH = 1000


class ExportError(RuntimeError):
    """The export cannot be used; the text names the file, what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A row of `cases` as stored. `values` are None, int, float or bytes (TEXT and BLOB alike)."""

    content_hash: bytes
    values: tuple[Any, ...]


class TestRailExport:
    """One open export. All reads of one instance see the same state of the file.

    Raises ExportError on opening: missing, not SQLite, locked, damaged, a required table or column
    missing, no case at all.
    """

    __test__ = False

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            raise ExportError(f"{path}: there is no such file. Set QBENCH_EXPORT, or pass --export.")
        if not path.is_file():
            raise ExportError(f"{path}: is a folder, not a SQLite file.")
        self._had_wal = self._beside("-wal").exists()
        self._connection = self._open()
        try:
            self._check_size()
            self.columns = self._checked_columns()
        except BaseException:
            self.close()
            raise
        self._select = ", ".join(f'"{name}"' for name in (column.replace('"', '""') for column in self.columns))
        self._columns_digest = hashlib.sha256(repr(self.columns).encode())

    def __enter__(self) -> TestRailExport:
        return self

    def __exit__(self, _t: type[BaseException] | None, _e: BaseException | None, _b: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, and take away what SQLite put beside it for us."""
        self._connection.close()
        wal = self._beside("-wal")
        if self._had_wal or not wal.exists() or wal.stat().st_size:
            return
        # Reading a file in WAL mode makes a -wal and a -shm, which a read-only connection leaves behind. One that
        # may write takes them away when it closes, if it is the last and (they are empty) has nothing to write.
        with suppress(sqlite3.Error), closing(sqlite3.connect(self._uri("rw"), uri=True)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def _uri(self, mode: str) -> str:
        return f"file:{quote(str(self.path.absolute()))}?mode={mode}"

    def _open(self) -> sqlite3.Connection:
        """A connection in a read transaction, whose snapshot every later read sees."""
        try:
            try:
                return _snapshot(self._uri("ro"))
            except sqlite3.OperationalError as error:
                # A file in WAL mode needs a -shm file beside it, which a read-only folder refuses. Only where
                # neither a -wal nor a -journal exists is the file alone the whole truth.
                in_use = self._beside("-wal").exists() or self._beside("-journal").exists()
                if in_use or error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                    raise
                return _snapshot(self._uri("ro") + "&immutable=1")
        except sqlite3.OperationalError as error:
            raise ExportError(
                f"{self.path}: cannot be read ({error}). If another program is writing it, wait until it is done; "
                "if one was killed while writing, open the file once with sqlite3 to let it recover."
            ) from None
        except sqlite3.DatabaseError as error:
            raise ExportError(
                f"{self.path}: is not a SQLite database ({error}). Check the path, and that the copy is complete."
            ) from None

    def _check_size(self) -> None:
        """SQLite reads a file that was cut off inside its last page, taking zeros for what is missing."""
        wal = self._beside("-wal")
        size, whole = (
            self.path.stat().st_size,
            self._query("PRAGMA page_count")[0][0] * self._query("PRAGMA page_size")[0][0],
        )
        if size < whole and not (wal.exists() and wal.stat().st_size):
            raise ExportError(
                f"{self.path}: is damaged (cut off: {size:,} of {whole:,} bytes). Copy or export it again."
            )

    def _checked_columns(self) -> tuple[str, ...]:
        columns: dict[str, tuple[str, ...]] = {}
        for table, required in REQUIRED_TABLES.items():
            columns[table] = self._columns_of(table)
            if not columns[table]:
                raise ExportError(
                    f"{self.path}: has no table {table!r}; it has {self._table_names() or 'no table at all'}. "
                    "It is not a TestRail export."
                )
            present = [name.lower() for name in columns[table]]
            if missing := [name for name in required if name not in present]:
                raise ExportError(f"{self.path}: table {table!r} has no column {', '.join(map(repr, missing))}.")
        if not self._query("SELECT EXISTS (SELECT 1 FROM cases)")[0][0]:
            raise ExportError(f"{self.path}: table 'cases' is empty. Nothing was changed. Export it again.")
        return tuple(name.lower() for name in columns["cases"])

    def _table_names(self) -> str:
        names = self._query("SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY name")
        return ", ".join(_text(name) for (name,) in names)

    def _columns_of(self, table: str) -> tuple[str, ...]:
        return tuple(_text(row[1]) for row in self._query(f"PRAGMA table_info({table})"))

    def _query(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return [row for batch in self._batches(sql, values) for row in batch]

    def _batches(self, sql: str, values: Sequence[Any] = ()) -> Iterator[list[tuple[Any, ...]]]:
        try:
            cursor = self._connection.execute(sql, values)
            while batch := cursor.fetchmany(BATCH):
                yield batch
        except sqlite3.DatabaseError as error:
            raise ExportError(
                f"{self.path}: is damaged ({error}). Nothing of this partition was changed. Export it again."
            ) from None

    def count(self) -> int:
        """Rows of `cases`, whatever their ids."""
        return int(self._query("SELECT count(*) FROM cases")[0][0])

    def case_ids(self) -> list[int]:
        """The usable ids, ascending and distinct. 8 bytes a case: 104,121 are under 1 MB."""
        return [
            row[0]
            for row in self._query(
                "SELECT DISTINCT id FROM cases WHERE typeof(id) = 'integer' AND id BETWEEN 1 AND ? ORDER BY id",
                (LARGEST_ID,),
            )
        ]

    def rows(self, case_range: CaseRange) -> Iterator[list[SourceRow]]:
        """Rows of the range in batches, ascending by id; rows that share an id follow one another."""
        sql = f"SELECT {self._select} FROM cases WHERE id >= ? AND id < ? AND typeof(id) = 'integer' ORDER BY id"  # noqa: S608
        for batch in self._batches(sql, (case_range.lower, case_range.upper)):
            yield [SourceRow(self._hash(values), values) for values in batch]

    def rows_without_id(self) -> list[SourceRow]:
        """Rows whose id is not an integer from 1 to 2^47 - 1."""
        sql = f"SELECT {self._select} FROM cases WHERE typeof(id) <> 'integer' OR id NOT BETWEEN 1 AND ?"  # noqa: S608
        return [SourceRow(self._hash(values), values) for values in self._query(sql, (LARGEST_ID,))]

    def lookup(self, table: str) -> list[dict[str, Any]]:
        """Rows of a look-up table as JSON values; none if the export does not have the table."""
        columns = self._columns_of(table)
        if not columns:
            return []
        return [
            {name.lower(): json_value(_id_value(name.lower(), value)) for name, value in zip(columns, row, strict=True)}
            for row in self._query(f"SELECT * FROM {table}")  # noqa: S608 (one of LOOKUP_TABLES)
        ]

    def _hash(self, values: tuple[Any, ...]) -> bytes:
        digest = self._columns_digest.copy()
        digest.update(repr(values).encode())
        return digest.digest()

    def raw(self, row: SourceRow) -> dict[str, Any]:
        """The row as column -> JSON value. NUL and bytes that are not UTF-8 become U+FFFD."""
        return {
            name: json_value(_id_value(name, value) if name != "id" else value)
            for name, value in zip(self.columns, row.values, strict=True)
            if value is not None
        }


def _snapshot(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except BaseException:
        connection.close()
        raise
    connection.text_factory = bytes
    return connection


def _id_value(column: str, value: Any) -> Any:
    """10 for 10.0: pandas stores every integer column that holds a NULL as floats, and "10.0" is no key."""
    is_id = column == "id" or column.endswith("_id")
    return int(value) if is_id and isinstance(value, float) and value.is_integer() else value


def json_value(value: Any) -> Any:
    """A SQLite value as one that PostgreSQL's jsonb can hold."""
    if isinstance(value, bytes):
        return _text(value).replace("\0", "\ufffd")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def json_text(value: Any) -> str:
    """JSON for a jsonb column, not escaped, so that it stays readable and short."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _text(value: bytes) -> str:
    return value.decode("utf-8", errors="replace")
