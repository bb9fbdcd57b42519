"""What a database must be before it is used: PostgreSQL and pgvector new enough, the migrations applied."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import cast

import psycopg

from qbench_dagster.adapters.connecting import Connection, DatabaseError, become_owner, fetch_dicts, fetch_value
from qbench_dagster.adapters.sql import read_file, script, sql_folder, statement

OLDEST_SERVER = 150000
OLDEST_PGVECTOR = (0, 8)
PATIENCE_S = 60.0
PAUSE_S = 0.5


def check_server(connection: Connection) -> None:
    """Raise DatabaseError if the server is older than PostgreSQL 15."""
    server = fetch_dicts(connection, statement("setup.sql", "server"))[0]
    if server["version_number"] < OLDEST_SERVER:
        raise DatabaseError(
            f"PostgreSQL {server['version']} found; version 15 or newer is needed. Upgrade the server, "
            "or unset DATABASE_URL to use the embedded PostgreSQL 18."
        )


def ensure_vector(connection: Connection) -> str:
    """Create the `vector` extension if need be, and return the schema it lives in.

    Raises DatabaseError if it is not installed on the server, too old, or may not be created.
    """
    installed = fetch_dicts(connection, statement("setup.sql", "vector_installed"))
    if not installed:
        available = fetch_value(connection, statement("setup.sql", "vector_available"))
        if available is None:
            raise DatabaseError(
                "pgvector is not installed on this PostgreSQL server. Install it (Debian: "
                "postgresql-<version>-pgvector; see github.com/pgvector/pgvector), or unset DATABASE_URL."
            )
        try:
            connection.execute(statement("setup.sql", "lock_migrations"))  # IF NOT EXISTS alone is a race
            become_owner(connection, local=True)
            connection.execute(statement("setup.sql", "create_vector"))
        except psycopg.errors.InsufficientPrivilege:
            connection.rollback()
            raise DatabaseError(
                "This role may not create extensions. Ask a superuser to run: CREATE EXTENSION vector;"
            ) from None
        connection.commit()
        installed = fetch_dicts(connection, statement("setup.sql", "vector_installed"))
    version, schema = installed[0]["version"], str(installed[0]["schema"])
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_PGVECTOR:
        raise DatabaseError(
            f"pgvector {version} found; 0.8 or newer is needed (iterative scans). Install it on the server, "
            "then run: ALTER EXTENSION vector UPDATE;"
        )
    if fetch_value(connection, statement("setup.sql", "vector_usable"), schema=schema) is False:
        raise DatabaseError(
            f"pgvector is installed in schema {schema}, which this role may not use. Ask its owner to run: "
            f"GRANT USAGE ON SCHEMA {schema} TO …;"
        )
    return schema


def migrate(connection: Connection) -> list[str]:
    """Apply the files of `sql/migrations` that were not yet, in one transaction; return their names.

    A file that was applied and has changed since is an error: migrations are only ever added. A table that is in use is
    waited for briefly and again, so that nobody queues behind us; DatabaseError after PATIENCE_S, naming who uses it.
    """
    names = sorted(entry.name for entry in sql_folder().joinpath("migrations").iterdir())
    checksums = {name: hashlib.sha256(read_file(f"migrations/{name}").encode()).hexdigest() for name in names}
    ends = time.monotonic() + PATIENCE_S
    while True:
        try:
            if fetch_value(connection, statement("setup.sql", "schema_versions_exist")) and (
                dict(_versions(connection)) == checksums
            ):
                connection.commit()
                return []
            with connection.transaction():
                return _apply(connection, checksums)
        except psycopg.errors.LockNotAvailable:
            if time.monotonic() > ends:
                users = connection.execute(statement("setup.sql", "oldest_transactions")).fetchall()
                told = "; ".join(f"pid {pid} ({role}, {name or 'no name'})" for pid, role, name in users)
                raise DatabaseError(
                    f"A migration needs a table that is in use, for {PATIENCE_S:.0f} s now; nothing was changed. The "
                    f"oldest transactions: {told or 'gone by now'}. Let them end, and run this again."
                ) from None
            time.sleep(PAUSE_S)
        except psycopg.errors.InsufficientPrivilege as error:
            raise DatabaseError(
                f"This role may not create or read the schemas ({str(error).strip()}). Grant it: "
                "GRANT CREATE ON DATABASE … TO …; or, where a DBA ran `qbench roles`: GRANT qbench_writer TO …;"
            ) from None


def _apply(connection: Connection, checksums: Mapping[str, str]) -> list[str]:
    connection.execute(statement("setup.sql", "lock_migrations"))
    become_owner(connection, local=True)
    # Reading pg_namespace shows what others committed while we waited; IF NOT EXISTS asks a stale cache.
    if not fetch_value(connection, statement("setup.sql", "schema_exists"), name="store"):
        connection.execute(statement("setup.sql", "create_schema", name="store"))
    connection.execute(statement("setup.sql", "create_schema_versions"))
    known = dict(_versions(connection))
    if unknown := sorted(set(known) - set(checksums)):
        raise DatabaseError(
            f"This database was set up by a newer version of qbench (it has {', '.join(unknown)}). Upgrade qbench."
        )
    applied = []
    connection.execute(statement("setup.sql", "wait_briefly"))
    for name, checksum in checksums.items():
        if known.get(name, checksum) != checksum:
            raise DatabaseError(
                f"sql/migrations/{name} was changed after it was applied to this database. "
                "Restore it, and put the change into a new migration."
            )
        if name not in known:
            connection.execute(script(f"migrations/{name}"))
            connection.execute(
                statement("setup.sql", "record_schema_version"),
                {"name": name, "checksum": checksum},
            )
            applied.append(name)
    return applied


def _versions(connection: Connection) -> list[tuple[str, str]]:
    return cast(list[tuple[str, str]], connection.execute(statement("setup.sql", "schema_versions")).fetchall())
