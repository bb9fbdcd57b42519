"""A backup brought back into a database that has none of our schemas, and proven to be what was backed up.

Making one is `backup.py`. The indexes of vectors are not left to pg_restore: the index builder builds them, with the
memory and workers it gives to each.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from qbench_dagster.adapters.backup import DUMP, JOBS, MANIFEST, files_of
from qbench_dagster.adapters.building import Building, build_index
from qbench_dagster.adapters.connecting import connect
from qbench_dagster.adapters.cutover import find_space
from qbench_dagster.adapters.measuring import choice_in
from qbench_dagster.adapters.migrating import check_server, ensure_vector
from qbench_dagster.adapters.pg_tools import BackupError, Tool, connection_of, find_tool, run_tool
from qbench_dagster.adapters.postgres import Connection, Database, DatabaseError, fetch_dicts, fetch_value
from qbench_dagster.adapters.row_hashes import Copying, Progress, rooms, table_states, tables
from qbench_dagster.adapters.sql import sql_folder, statement
from qbench_dagster.adapters.vectors import table_of
from qbench_dagster.core.indexes import IndexSettings
from qbench_dagster.core.manifest import Manifest, ManifestError, differences, parse_manifest, split_rights, wrong_files

OWNER = "qbench_owner"
MIGRATIONS_LOCK = "qbench migrations"
"""As setup.sql names it in `lock_migrations`: migrations and CREATE EXTENSION wait for it."""
FIRST_WITH_TRANSACTION_TIMEOUT = 17


@dataclass(frozen=True, slots=True)
class Restored:
    """What was brought back. `different` is empty where every row is as it was; `notes` is what is left to do."""

    manifest: Manifest
    different: Sequence[str]
    notes: Sequence[str]


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the backup `folder`, whose dump is complete. Raises BackupError where one of them is not."""
    path = folder / MANIFEST
    try:
        manifest = parse_manifest(path.read_text(encoding="utf-8"))
        found = files_of(folder / DUMP)
    except FileNotFoundError as error:
        raise BackupError(f"{folder} is no backup, or not all of one: {error.filename} is missing.") from None
    except OSError as error:
        raise BackupError(f"The backup {folder} cannot be read: {error.strerror} ({error.filename}).") from None
    except (ManifestError, UnicodeDecodeError) as error:
        raise BackupError(f"The manifest {path} cannot be used: {error}.") from None
    if wrong := wrong_files(manifest.files, found):
        raise BackupError(
            f"The dump in {folder / DUMP} is not complete: {'; '.join(wrong[:5])}"
            f"{f'; and {len(wrong) - 5} more' if len(wrong) > 5 else ''}. Copy the backup again."
        )
    known = {entry.name for entry in sql_folder().joinpath("migrations").iterdir()}
    if unknown := sorted(set(manifest.migrations) - known):
        raise BackupError(
            f"The backup {folder} was made by a newer qbench ({manifest.qbench}, it has {', '.join(unknown)}). "
            "Upgrade qbench."
        )
    return manifest


def restore(url: str, folder: Path, indexes: IndexSettings, progress: Progress) -> Restored:
    """Bring the backup `folder` into the database of `url`, and compare each table with what the manifest tells.

    Nothing stays of a restore that failed. Raises BackupError: the backup is not complete or of a newer version, the
    database has a schema of ours, no pg_restore is new enough; DatabaseError: it cannot be used.
    """
    folder = folder.absolute()
    manifest = read_manifest(folder)
    major = int(manifest.tools.split(".")[0])
    tool = find_tool("pg_restore", major, f"a dump made by pg_dump {manifest.tools}")
    with connect(url, autocommit=True) as connection:
        _hold_off_others(connection)
        _prepare(connection, manifest)
        try:
            work = _Restoring(url, folder, tool, connection, manifest, progress)
            notes = work.run()
        except BaseException:
            with suppress(psycopg.Error):  # of a connection that is lost: the next restore says what is there
                for schema in rooms(connection):  # there was none, and nobody else makes one meanwhile
                    connection.execute(statement("backup.sql", "drop_room", schema=schema))
            raise
        with connection.transaction():
            found = table_states(connection, list(rooms(connection)), progress)
        different = differences(manifest.tables, found)
    if different:
        return Restored(manifest, different, notes)
    try:
        with Database(url) as database:
            notes += _build_indexes(database, indexes, progress)
            _vacuum(database, progress)
    except (DatabaseError, psycopg.Error) as error:  # the rows are proven: that is not to be lost
        notes.append(f"an index or statistics are missing, and the next run makes them: {str(error).strip()}")
    return Restored(manifest, different, notes)


def _hold_off_others(connection: Connection) -> None:
    """Until this connection ends nobody else restores or migrates here: what fails may drop the schemas there are."""
    if not fetch_value(connection, statement("setup.sql", "try_advisory_lock"), name=MIGRATIONS_LOCK):
        raise BackupError("Another restore, or a run that sets up the database, is under way here. Let it end.")


def _prepare(connection: Connection, manifest: Manifest) -> None:
    """See that the database can take it, before anything is written. Raises BackupError or DatabaseError."""
    check_server(connection)
    if held := rooms(connection):
        # The script of `qbench roles` makes the schemas empty.
        loaded = fetch_value(connection, statement("backup.sql", "has_documents"))
        cases = fetch_value(connection, statement("backup.sql", "published")) if loaded else 0
        dropped = ", ".join(f'"{schema}"' for schema in held)
        raise BackupError(
            f"The database holds {', '.join(held)} already ({cases:,} published cases), and a backup is never restored "
            "over something. Name another database (DATABASE_URL) or another QBENCH_HOME. If what is there is not "
            f"needed, with psql: DROP SCHEMA {dropped} CASCADE;"
        )
    if not fetch_value(connection, statement("backup.sql", "may_create")):
        raise BackupError(
            "This role may not create schemas here. Grant it: GRANT CREATE ON DATABASE … TO …; or restore as the "
            "database's owner."
        )
    if not fetch_value(connection, statement("backup.sql", "reader_exists")):
        try:
            connection.execute(statement("backup.sql", "create_reader"))
        except psycopg.errors.InsufficientPrivilege:
            raise BackupError(
                "The role qbench_reader is missing here. Ask a DBA to run: CREATE ROLE qbench_reader NOLOGIN;"
            ) from None
    if not fetch_dicts(connection, statement("setup.sql", "vector_installed")):  # or it would go to `public`
        connection.execute(statement("setup.sql", "create_schema", name=manifest.vector_schema))
        connection.execute(statement("backup.sql", "create_in"), {"schema": manifest.vector_schema})
    installed = ensure_vector(connection)
    if installed != manifest.vector_schema:
        raise BackupError(
            f"pgvector is in the schema {installed} here and was in {manifest.vector_schema}, which the dump names. "
            f"Move it: ALTER EXTENSION vector SET SCHEMA {manifest.vector_schema};"
        )
    connection.execute(statement("backup.sql", "create_in"), {"schema": installed})  # the hashes call its functions


@dataclass(frozen=True, slots=True)
class _Restoring:
    """The calls of pg_restore for one backup."""

    url: str
    folder: Path
    tool: Tool
    connection: Connection
    manifest: Manifest
    progress: Progress

    def run(self) -> list[str]:
        """Schemas and rows, then keys and indexes but those of vectors, then rights. Returns what is left to do."""
        contents = self._call("-l").splitlines()
        # The extension is there: pg_restore would go on to comment on it, which takes its owner.
        wanted = [line for line in contents if not re.search(r" (EXTENSION|COMMENT) - (EXTENSION )?vector", line)]
        self._restore("restoring rows", wanted, "--section=pre-data", "--section=data")
        built = [f" INDEX {row['space']} {row['index_name']} " for row in _builds(self.connection)]
        wanted = [line for line in wanted if not any(index in line for index in built)]
        self._restore("keys and indexes", wanted, "--section=post-data")
        return self._rights([line for line in contents if re.search(r"^\d+; \d+ \d+ (DEFAULT )?ACL ", line)])

    def _restore(self, phase: str, wanted: Sequence[str], *sections: str) -> None:
        where, variables = connection_of(self.url)
        jobs = str(min(os.cpu_count() or 1, JOBS))
        name = f"qbench restore {os.getpid()}"
        watch = Copying(self.connection, name, phase, self.manifest.rows if "row" in phase else 0, self.progress)
        watch()
        forgive = self._unknown_setting()
        self._call(
            "-d", where, "-j", jobs, "--no-password", *([] if forgive else ["--exit-on-error"]), "--no-owner",
            "--no-privileges", *sections,
            wanted=wanted, variables=variables, name=name, watch=watch, forgive=forgive,
        )  # fmt: skip

    def _unknown_setting(self) -> str | None:
        """What a newer pg_restore sets on connecting and an older server does not know: that alone is no failure."""
        server = fetch_dicts(self.connection, statement("setup.sql", "server"))[0]["version_number"] // 10000
        known = server >= FIRST_WITH_TRANSACTION_TIMEOUT or self.tool.major < FIRST_WITH_TRANSACTION_TIMEOUT
        return None if known else "transaction_timeout"

    def _rights(self, wanted: Sequence[str]) -> list[str]:
        """Give the rights of the dump to the roles there are; say which are missing."""
        script = self._call("-f", "-", "--no-owner", wanted=wanted)
        roles = {str(row[0]) for row in self.connection.execute(statement("backup.sql", "roles"))}
        statements, missing = split_rights(script, roles)
        with self.connection.transaction():
            for line in statements:
                self.connection.execute(line.encode())
        notes = []
        if missing:
            notes.append(f"rights of roles that are missing here were left out: {', '.join(missing)}")
        if OWNER in self.manifest.owners.values() or any(role.startswith("qbench_") for role in missing):
            notes.append(f"the rooms belong to who restored them. For {OWNER} and qbench_writer: qbench roles | psql …")
        return notes

    def _call(
        self,
        *arguments: str,
        wanted: Sequence[str] | None = None,
        variables: Mapping[str, str] | None = None,
        name: str = "qbench restore",
        watch: Callable[[], None] = lambda: None,
        forgive: str | None = None,
    ) -> str:
        """pg_restore over the dump, or over the `wanted` lines of its contents."""
        with tempfile.NamedTemporaryFile("w", suffix=".list", encoding="utf-8") as chosen:
            if wanted is not None:
                chosen.write("".join(f"{line}\n" for line in wanted))
                chosen.flush()
                arguments = (*arguments, "-L", chosen.name)
            command: list[str | Path] = [self.tool.path, *arguments, self.folder / DUMP]
            return run_tool(command, variables or {}, name=name, watch=watch, forgive=forgive)


def _builds(connection: Connection) -> list[dict[str, Any]]:
    """The vector indexes that were in use, as store.index_builds tells them."""
    return fetch_dicts(connection, statement("backup.sql", "builds"))


def _build_indexes(database: Database, settings: IndexSettings, progress: Progress) -> list[str]:
    """Build each vector index there was, as it was; returns what there was to say about it."""
    notes: list[str] = []
    with database.connection("index restored", long=True, owner=True) as connection:
        for row in _builds(connection):
            table = table_of(row["kind"])
            work = Building(database, connection, find_space(database, row["space"]), table, settings, progress)
            build_index(work, row["index_name"], choice_in(row), row["rows"])
            notes += [f"{row['space']}.{table}: {note}" for note in work.notes]
    return notes


def _vacuum(database: Database, progress: Progress) -> None:
    with database.connection("vacuum restored", long=True, owner=True) as connection:
        found = tables(connection, list(rooms(connection)))
        for number, table in enumerate(found):
            progress("statistics", number, len(found))
            names = {"schema": table["schema"], "table": table["table"]}
            connection.execute(statement("backup.sql", "vacuum", **names))
