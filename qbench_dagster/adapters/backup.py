"""A backup: one snapshot of our schemas as a folder of pg_dump, with a manifest that tells every table by its rows.

Bringing one back is `restore.py`, the programs `pg_tools.py`. Dagster's own schema is not in it: its runs belong to the
machine that made them, and the next run plans the case ranges anew.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import importlib.metadata
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg

from qbench_dagster.adapters.pg_tools import BackupError, connection_of, find_tool, run_tool
from qbench_dagster.adapters.postgres import LOCK_TIMEOUT, Connection, Database, fetch_dicts, fetch_value
from qbench_dagster.adapters.row_hashes import Copying, Progress, rooms, table_states
from qbench_dagster.adapters.sql import statement
from qbench_dagster.core.manifest import Manifest

DUMP = "dump"
MANIFEST = "manifest.json"
UNFINISHED = ".unfinished"
JOBS = 4
COMPRESSION = "1"
"""gzip's fastest. Nearly all of a dump is vectors as text, 17 KB each so: 1.09 GB for 39,869 cases."""


def back_up(database: Database, folder: Path, settings: Mapping[str, str], progress: Progress) -> Manifest:
    """Write the backup `folder`, which has to be new or empty; it appears there when it is complete.

    Runs may go on meanwhile: the dump and the hashes are of one moment. `settings` are shown as they are, so they hold
    no secrets. Raises BackupError: the folder is in use, the disk is full, no pg_dump of the server's version.
    """
    folder = folder.absolute()
    _check_free(folder)
    with database.connection("backup", long=True) as connection:
        server = fetch_dicts(connection, statement("setup.sql", "server"))[0]
        tool = find_tool("pg_dump", server["version_number"] // 10000, f"PostgreSQL {server['version']}")
        with _work_folder(folder) as (work, lock), _snapshot(connection) as snapshot:
            owners = rooms(connection)
            tables = table_states(connection, list(owners), progress)
            where, variables = connection_of(database.url)
            name = f"qbench backup {os.getpid()}"
            command: list[str | Path] = [
                tool.path, "--no-password", "-d", where, "--snapshot", snapshot,
                "--lock-wait-timeout", LOCK_TIMEOUT["long"], "-F", "directory", "-f", work / DUMP, "-Z", COMPRESSION,
                "-j", str(min(os.cpu_count() or 1, JOBS)), "-e", "vector",
                *(part for schema in owners for part in ("-n", f'"{schema}"')),
            ]  # fmt: skip
            with database.connection("watch backup") as watched:
                watch = Copying(watched, name, "dumping rows", sum(table.rows for table in tables.values()), progress)
                run_tool(command, variables, name=name, watch=watch, hold=lock)
            vector = fetch_dicts(connection, statement("setup.sql", "vector_installed"))[0]
            manifest = Manifest(
                created_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
                qbench=importlib.metadata.version("qbench_dagster"),
                database=database.shown_url,
                server=server["version"],
                pgvector=vector["version"],
                vector_schema=vector["schema"],
                tools=tool.version,
                migrations=sorted(row[0] for row in connection.execute(statement("setup.sql", "schema_versions"))),
                owners=owners,
                settings=settings,
                tables=tables,
                files=files_of(work / DUMP),
            )
            _finish(work, folder, manifest)
    return manifest


def files_of(dump: Path) -> dict[str, int]:
    """The files of a dump with their bytes."""
    return {entry.name: entry.stat().st_size for entry in sorted(dump.iterdir())}


def _check_free(folder: Path) -> None:
    if folder.is_mount():
        raise BackupError(f"{folder} is a mounted disk; a backup appears by renaming. Name a folder on it.")
    if folder.exists() and not folder.is_dir():
        raise BackupError(f"{folder} is a file. Name a new folder.")
    if folder.is_dir() and (held := sorted(entry.name for entry in folder.iterdir())):
        raise BackupError(f"{folder} holds something already ({', '.join(held[:3])}). Name a new folder.")


@contextmanager
def _work_folder(folder: Path) -> Iterator[tuple[Path, int]]:
    """The folder a backup is made in, beside where it is going to be, and a lock that pg_dump inherits.

    What a killed backup left in it is removed; pg_dump may outlive us, and writes there for as long as it holds the
    lock. Nothing stays of a backup that failed.
    """
    work = folder.with_name(folder.name + UNFINISHED)
    try:
        work.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (work / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BackupError(
                    f"{work} is being written: by another backup, or by the pg_dump of one that was killed. Let it end."
                ) from None
            try:
                shutil.rmtree(work / DUMP, ignore_errors=True)
                yield work, lock.fileno()
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise BackupError(f"The backup {folder} cannot be written: {error.strerror} ({error.filename}).") from error


@contextmanager
def _snapshot(connection: Connection) -> Iterator[str]:
    """A transaction that sees one moment, and the name by which pg_dump sees the same."""
    connection.isolation_level, connection.read_only = psycopg.IsolationLevel.REPEATABLE_READ, True
    try:
        with connection.transaction():
            yield str(fetch_value(connection, statement("backup.sql", "snapshot")))
    finally:
        if not connection.closed:
            connection.isolation_level = connection.read_only = None


def _finish(work: Path, folder: Path, manifest: Manifest) -> None:
    """The manifest into the work folder, and that to its place."""
    with (work / MANIFEST).open("w", encoding="utf-8") as file:
        file.write(manifest.dumps())
        file.flush()
        os.fsync(file.fileno())
    (work / "lock").unlink()
    work.rename(folder)
    for place in (folder, folder.parent):
        handle = os.open(place, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
