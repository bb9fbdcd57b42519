"""Reads a TestRail SQLite export: in one consistent view, streaming, without changing a byte of the file.

Rows come out as they are; what they mean is `core/normalize.py`. Everything is read through a read-only
connection. Only `close` opens another one, with mode=rw, to take away what SQLite put beside a file in WAL mode.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

from qbench_dagster.adapters.export_values import id_value, json_value, text_of
from qbench_dagster.core.normalize import MAX_BYTES
from qbench_dagster.core.ranges import LARGEST_ID, CaseRange

LOOKUP_TABLES = ("projects", "suites", "sections", "priorities", "case_types", "templates")
REQUIRED_TABLES = {"cases": ("id", "title"), "sections": ("id", "name")}
BUSY_TIMEOUT_S = 30
BATCH = 1000
BATCH_BYTES = 8 * 2**20
"""A batch is closed by whichever comes first, so that long rows do not raise the memory it takes."""
UNDATED = "typeof(cases.updated_on) NOT IN ('integer', 'real')"
SHOWN_BYTES = 2000  # of each text of a row that has more than MAX_BYTES of them

_ASCII_LOWER = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}


class ExportError(RuntimeError):
    """The export cannot be used; the text names the file, what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A row of `cases` as stored. `values` are None, int, float or bytes (TEXT and BLOB alike)."""

    content_hash: bytes
    values: tuple[Any, ...]
    size: int  # bytes of its texts

    @property
    def is_too_large(self) -> bool:
        """Whether it has more text than a case may have; the texts of `values` are then cut."""
        return self.size > MAX_BYTES


class TestRailExport:
    """One open export. All reads of one instance see the same state of the file.

    Raises ExportError on opening: missing, not SQLite, locked, damaged, a required table or column
    missing, no case at all.
    """

    __test__ = False

    def __init__(self, path: Path, *, busy_timeout_s: float | None = None) -> None:
        self.path = path
        self._busy_timeout_s = BUSY_TIMEOUT_S if busy_timeout_s is None else busy_timeout_s
        try:
            if not path.exists():
                raise ExportError(f"{path}: there is no such file. Set QBENCH_EXPORT, or pass --export.")
            if not path.is_file():
                raise ExportError(f"{path}: is a folder, not a SQLite file.")
            self._had_wal, found = self._beside("-wal").exists(), path.stat()
        except OSError as error:
            raise ExportError(
                f"{path}: cannot be reached ({error.strerror}). Check the path and the rights of its folders."
            ) from None
        self._connection = self._open()
        try:
            self._stat = path.stat()  # nobody writes by SQLite's rules from here on, as we hold its shared lock
            self._is_wal = self._query("PRAGMA journal_mode") == [(b"wal",)]
            if self._stat.st_ino == found.st_ino:  # else another was put in its place: which one is open nobody knows
                self._check_size(self._stat.st_size)
            names = self._checked_columns()
        except BaseException:
            self.close()
            raise
        self.columns = tuple(map(_key, names))
        # With the table's name before it, a name that SQLite does not know is an error, not a string.
        self._select = ", ".join(f'cases."{name}"' for name in (column.replace('"', '""') for column in names))
        self._columns_digest = hashlib.sha256(repr(self.columns).encode())

    def __enter__(self) -> TestRailExport:
        return self

    def __exit__(self, _t: type[BaseException] | None, _e: BaseException | None, _b: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, and take away what SQLite put beside it for us."""
        self._connection.close()
        if self._had_wal or self._size_of_wal() != 0:
            return
        # Reading a file in WAL mode makes a -wal and a -shm, which a read-only connection leaves behind. One that
        # may write takes them away when it closes, if it is the last and (they are empty) has nothing to write.
        with suppress(sqlite3.Error), closing(sqlite3.connect(self._uri("rw"), uri=True)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()

    def check_unchanged(self) -> None:
        """Raise ExportError if the file was written over since it was opened: what was read may be of both contents.

        A file that was renamed to this path does no harm, as ours stays whole; nor does a writer in WAL mode.
        """
        try:
            was, now = self._stat, self.path.stat()
        except OSError:
            return
        if self._is_wal or now.st_ino != was.st_ino or (now.st_size, now.st_mtime_ns) == (was.st_size, was.st_mtime_ns):
            return
        raise ExportError(
            f"{self.path}: was written over while it was read. Nothing of what was being read was stored. Run again; "
            "write the next one under another name in that folder and rename it (cp new.db x && mv x export.db)."
        )

    def _size_of_wal(self) -> int | None:
        try:
            return self._beside("-wal").stat().st_size
        except OSError:  # it goes when the last who has the file open closes it
            return None

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def _uri(self, mode: str) -> str:
        return f"file:{quote(str(self.path.absolute()))}?mode={mode}"

    def _open(self) -> sqlite3.Connection:
        """A connection in a read transaction, whose snapshot every later read sees."""
        try:
            try:
                return _snapshot(self._uri("ro"), self._busy_timeout_s)
            except sqlite3.OperationalError as error:
                # A file in WAL mode needs a -shm file beside it, which a read-only folder refuses. Only where
                # neither a -wal nor a -journal exists is the file alone the whole truth.
                in_use = self._beside("-wal").exists() or self._beside("-journal").exists()
                if in_use or error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                    raise
                return _snapshot(self._uri("ro") + "&immutable=1", self._busy_timeout_s)
        except sqlite3.OperationalError as error:
            raise ExportError(
                f"{self.path}: cannot be read ({error}). If another program is writing it, wait until it is done; "
                "if one was killed while writing, open the file once with sqlite3 to let it recover."
            ) from None
        except sqlite3.DatabaseError as error:
            raise ExportError(
                f"{self.path}: is not a SQLite database ({error}). Check the path, and that the copy is complete."
            ) from None

    def _check_size(self, size: int) -> None:
        """SQLite reads a file that was cut off inside its last page, taking zeros for what is missing."""
        whole = self._query("PRAGMA page_count")[0][0] * self._query("PRAGMA page_size")[0][0]
        if size < whole and not self._size_of_wal():
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
            present = set(map(_key, columns[table]))
            if missing := [name for name in required if name not in present]:
                raise ExportError(f"{self.path}: table {table!r} has no column {', '.join(map(repr, missing))}.")
        if not self._query("SELECT EXISTS (SELECT 1 FROM cases)")[0][0]:
            raise ExportError(f"{self.path}: table 'cases' is empty. Nothing was changed. Export it again.")
        return columns["cases"]

    def _table_names(self) -> str:
        names = self._query("SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY name")
        return ", ".join(text_of(name) for (name,) in names)

    def _columns_of(self, table: str) -> tuple[str, ...]:
        """The names that SELECT * gives: also of generated columns, but of no hidden one (1) of a virtual table."""
        return tuple(text_of(row[1]) for row in self._query(f"PRAGMA table_xinfo({table})") if row[6] != 1)

    def _query(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return list(self._each(sql, values))

    def _each(self, sql: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        try:
            yield from self._connection.execute(sql, values)
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

    def newest_update(self) -> float | None:
        """The largest `updated_on`; None where no row has a number there."""
        if "updated_on" not in self.columns:
            return None
        [(newest,)] = self._query(f"SELECT max(cases.updated_on) FROM cases WHERE NOT {UNDATED}")  # noqa: S608
        return None if newest is None else float(newest)

    def rows(self, case_range: CaseRange, since: float | None = None) -> Iterator[list[SourceRow]]:
        """Rows of the range in batches, ascending by id; rows that share an id follow one another.

        With `since` only those whose `updated_on` is at least that, or is no number.
        """
        sql = f"SELECT {self._select} FROM cases WHERE id >= ? AND id < ? AND typeof(id) = 'integer'"  # noqa: S608
        values_of: tuple[float, ...] = (case_range.lower, case_range.upper)
        if since is not None and "updated_on" in self.columns:
            sql, values_of = f"{sql} AND (cases.updated_on >= ? OR {UNDATED})", (*values_of, since)
        batch: list[SourceRow] = []
        size = 0
        for values in self._each(f"{sql} ORDER BY id", values_of):
            row = self._row(values)
            batch.append(row)
            size += row.size
            if len(batch) >= BATCH or size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def rows_without_id(self) -> list[SourceRow]:
        """Rows whose id is not an integer from 1 to 2^47 - 1."""
        sql = f"SELECT {self._select} FROM cases WHERE typeof(id) <> 'integer' OR id NOT BETWEEN 1 AND ?"  # noqa: S608
        return [self._row(values) for values in self._each(sql, (LARGEST_ID,))]

    def lookup(self, table: str) -> list[dict[str, Any]]:
        """Rows of a look-up table as JSON values; none if the export does not have the table."""
        columns = tuple(map(_key, self._columns_of(table)))
        if not columns:
            return []
        return [
            {name: json_value(id_value(name, value)) for name, value in zip(columns, row, strict=True)}
            for row in self._each(f"SELECT * FROM {table}")  # noqa: S608 (one of LOOKUP_TABLES)
        ]

    def _row(self, values: tuple[Any, ...]) -> SourceRow:
        size = sum([len(value) for value in values if type(value) is bytes])
        digest = self._columns_digest.copy()
        # repr of long bytes takes up to five times their memory.
        hashed = values if size <= BATCH_BYTES else [_digest(value) for value in values]
        digest.update(repr(hashed).encode())
        if size > MAX_BYTES:
            values = tuple(_cut(value) for value in values)
        return SourceRow(digest.digest(), values, size)

    def raw(self, row: SourceRow) -> dict[str, Any]:
        """The row as column -> JSON value. NUL and bytes that are not UTF-8 become U+FFFD."""
        return {
            name: json_value(id_value(name, value) if name != "id" else value)
            for name, value in zip(self.columns, row.values, strict=True)
            if value is not None
        }


def _snapshot(uri: str, timeout_s: float) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, timeout=timeout_s, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except BaseException:
        connection.close()
        raise
    connection.text_factory = bytes
    return connection


def _key(column: str) -> str:
    """The name in lower case as SQLite folds it: A to Z and nothing else."""
    return column.translate(_ASCII_LOWER)


def _digest(value: Any) -> Any:
    return ("sha256", hashlib.sha256(value).digest()) if isinstance(value, bytes) else value


def _cut(value: Any) -> Any:
    if not isinstance(value, bytes) or len(value) <= SHOWN_BYTES:
        return value
    return value[:SHOWN_BYTES].decode(errors="ignore").encode() + f"… ({len(value):,} bytes)".encode()
