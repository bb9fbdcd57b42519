"""Connections to the PostgreSQL that is filled: checked, migrated, pooled, named and timed on purpose.

What is asked of the database is in the modules named for the rooms; here is only how to talk to it.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, LiteralString, cast
from urllib.parse import unquote, urlsplit, urlunsplit

import psycopg
from psycopg import pq, sql
from psycopg.adapt import Dumper
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow, dict_row
from psycopg_pool import ConnectionPool, PoolTimeout

from qbench_dagster.adapters.sql import read_file, script, sql_folder, statement

log = logging.getLogger(__name__)

Connection = psycopg.Connection[TupleRow]


class JsonText(str):
    """JSON that is text already: dumped as jsonb without parsing and printing it again."""

    __slots__ = ()


class _JsonTextDumper(Dumper):
    format = pq.Format.BINARY
    oid = psycopg.adapters.types["jsonb"].oid

    def dump(self, obj: str) -> bytes:
        return b"\x01" + obj.encode()  # 1 is the version of jsonb's binary format


psycopg.adapters.register_dumper(JsonText, _JsonTextDumper)

OLDEST_SERVER = 150000
OLDEST_PGVECTOR = (0, 8)
CONNECT_TIMEOUT_S = 15
LOCK_TIMEOUT = {"short": "60s", "long": "600s"}
"""How long to wait for somebody else's lock; a load may wait for another run over the same case range."""
SHOWN_PARAMETERS = {"host", "hostaddr", "port", "dbname", "user", "sslmode"}


class DatabaseError(RuntimeError):
    """The database cannot be used; the text says what was found and what to do. It holds no password."""


def without_password(url: str) -> str:
    """`url` fit to be shown: user, host and database, never the password or query secrets.

    urlsplit would take a part of a password with a bare `/`, `?`, `#` or `@` for the host or the path.
    """
    scheme, _, rest = url.partition("://")
    head, _, query = rest.partition("?")
    credentials, at, where = head.rpartition("@")
    user = re.split("[:/?#@]", credentials or head, maxsplit=1)[0]
    if "@" in query:  # a password with a bare ?, or a parameter with a bare @: nobody can tell
        return f"{scheme}://{user}@…"
    shown = "&".join(part for part in query.split("&") if unquote(part.split("=", 1)[0]) in SHOWN_PARAMETERS)
    return f"{scheme}://{user if at else ''}{at}{where}" + (f"?{shown}" if shown else "")


def _connect(url: str, *, autocommit: bool = False) -> Connection:
    """A first connection. Raises DatabaseError, without the password or a part of it."""
    scheme, _, rest = url.partition("://")
    url = f"{scheme.split('+')[0]}://{rest}"
    head = rest.partition("?")[0]
    try:
        port = str(conninfo_to_dict(url).get("port", ""))
        well_formed = head.count("@") == head.partition("/")[0].count("@") <= 1 and re.fullmatch("[0-9,]*", port)
    except psycopg.ProgrammingError:
        well_formed = None
    if not well_formed:  # what libpq says of it may quote a part of the password
        raise DatabaseError(
            "DATABASE_URL cannot be read as postgresql://user:password@host:port/database. "
            "In the password write @ as %40, : as %3A, / as %2F, ? as %3F, # as %23 and % as %25."
        )
    try:
        return psycopg.connect(
            url, connect_timeout=CONNECT_TIMEOUT_S, application_name="qbench start", autocommit=autocommit
        )
    except psycopg.OperationalError as error:
        raise DatabaseError(
            f"Cannot connect to {without_password(url)}: {str(error).strip()} "
            "Check DATABASE_URL, and that the server runs and lets this host in."
        ) from None


class Database:
    """One PostgreSQL with pgvector, schema up to date. Use as a context manager, or `close` it."""

    def __init__(self, url: str, *, statement_timeout_s: int = 60) -> None:
        """Connect, check the versions and apply what is missing of `sql/migrations`.

        Raises DatabaseError: unreachable, PostgreSQL < 15, pgvector missing or < 0.8, no right to create.
        """
        scheme, rest = url.split("://", 1)
        self.url = f"{scheme.split('+')[0]}://{rest}"
        self.shown_url = without_password(self.url)
        self._statement_timeout = f"{statement_timeout_s}s"
        with _connect(self.url) as connection:
            check_server(connection)
            self.vector_schema = ensure_vector(connection)
            migrate(connection)
        self._pool: ConnectionPool[Connection] = ConnectionPool(
            self.url,
            min_size=1,
            max_size=6,
            timeout=CONNECT_TIMEOUT_S * 2,
            max_idle=60,
            kwargs={"autocommit": True, "connect_timeout": CONNECT_TIMEOUT_S},
            check=ConnectionPool.check_connection,
            name="qbench",
            open=True,
        )

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back to the server."""
        self._pool.close()

    @contextmanager
    def connection(self, purpose: str, *, long: bool = False) -> Iterator[Connection]:
        """A connection in autocommit mode, named `qbench <purpose>` in pg_stat_activity.

        `long` exempts it from the statement timeout: loads, publishing and index builds.
        """
        try:
            lent = self._pool.getconn()
        except PoolTimeout:
            raise DatabaseError(f"{self.shown_url} gave no connection within {CONNECT_TIMEOUT_S * 2} s.") from None
        try:
            lent.execute(
                statement("setup.sql", "configure_session"),
                {
                    "application_name": f"qbench {purpose}"[:63],
                    "statement_timeout": "0" if long else self._statement_timeout,
                    "lock_timeout": LOCK_TIMEOUT["long" if long else "short"],
                    "search_path": f'pg_catalog, "{self.vector_schema}"',
                },
            )
            yield lent
            # PostgreSQL tells what a session wrote up to 10 s later; until then a parity report from before the
            # write would pass for one of today (indexing.write_counters).
            lent.execute(statement("setup.sql", "flush_counters"))
        finally:
            self._pool.putconn(lent)

    @contextmanager
    def exclusive(self, name: str) -> Iterator[Connection]:
        """Hold the advisory lock `name` for a while; says in the log whom it waits for.

        The lock belongs to the connection that is given. Who writes on that one cannot write without the lock: a
        connection of its own, idle for an hour, may be cut and the lock given away without anybody noticing.
        """
        with self.connection(f"lock {name}", long=True) as connection:
            connection.execute("SET lock_timeout = 0")
            if not fetch_value(connection, statement("setup.sql", "try_advisory_lock"), name=name):
                holder = connection.execute(statement("setup.sql", "advisory_lock_holder"), {"name": name}).fetchone()
                log.warning("waiting for %s, held by %s", name, holder or "another run")
                connection.execute(statement("setup.sql", "advisory_lock"), {"name": name})
            try:
                yield connection
            finally:
                if not connection.closed:
                    connection.execute(statement("setup.sql", "advisory_unlock"), {"name": name})


def fetch_value(connection: Connection, query: sql.Composed, /, **values: Any) -> Any:
    """First column of the first row, None where there is none."""
    row = connection.execute(query, values or None).fetchone()
    return row[0] if row else None


def fetch_dicts(connection: Connection, query: sql.Composed, /, **values: Any) -> list[dict[str, Any]]:
    """All rows as dictionaries. For small results."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, values or None).fetchall()


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

    A file that was applied and has changed since is an error: migrations are only ever added.
    """
    names = sorted(entry.name for entry in sql_folder().joinpath("migrations").iterdir())
    checksums = {name: hashlib.sha256(read_file(f"migrations/{name}").encode()).hexdigest() for name in names}
    applied = []
    try:
        if fetch_value(connection, statement("setup.sql", "schema_versions_exist")) and (
            dict(_versions(connection)) == checksums
        ):
            connection.commit()
            return []
        with connection.transaction():
            connection.execute(statement("setup.sql", "lock_migrations"))
            # Reading pg_namespace shows what others committed while we waited; IF NOT EXISTS asks a stale cache.
            if not fetch_value(connection, statement("setup.sql", "schema_exists"), name="store"):
                connection.execute(statement("setup.sql", "create_schema", name="store"))
            connection.execute(statement("setup.sql", "create_schema_versions"))
            known = dict(_versions(connection))
            if unknown := sorted(set(known) - set(names)):
                raise DatabaseError(
                    f"This database was set up by a newer version of qbench (it has {', '.join(unknown)}). "
                    "Upgrade qbench."
                )
            for name in names:
                if known.get(name, checksums[name]) != checksums[name]:
                    raise DatabaseError(
                        f"sql/migrations/{name} was changed after it was applied to this database. "
                        "Restore it, and put the change into a new migration."
                    )
                if name not in known:
                    connection.execute(script(f"migrations/{name}"))
                    connection.execute(
                        statement("setup.sql", "record_schema_version"),
                        {"name": name, "checksum": checksums[name]},
                    )
                    applied.append(name)
    except psycopg.errors.InsufficientPrivilege as error:
        raise DatabaseError(
            f"This role may not create or read the schemas ({str(error).strip()}). Grant it: "
            "GRANT CREATE ON DATABASE … TO …;"
        ) from None
    return applied


def _versions(connection: Connection) -> list[tuple[str, str]]:
    return cast(list[tuple[str, str]], connection.execute(statement("setup.sql", "schema_versions")).fetchall())


def check_reachable(url: str) -> None:
    """Raise DatabaseError if nobody answers at `url`."""
    _connect(url).close()


def ensure_database(server_url: str, name: str, *, relaxed_commits: bool = False) -> str:
    """Create database `name` on the server if it is missing; return its URL."""
    with _connect(server_url, autocommit=True) as connection:
        if not fetch_value(connection, statement("setup.sql", "database_exists"), name=name):
            try:
                connection.execute(statement("setup.sql", "create_database", name=name))
                if relaxed_commits:
                    connection.execute(statement("setup.sql", "relax_commits", name=name))
            except (psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
                log.debug("another process created database %s first", name)
    parts = urlsplit(server_url)
    return urlunsplit(parts._replace(path=f"/{name}"))


def ensure_schema(url: str, name: LiteralString) -> None:
    """Create schema `name` if it is missing."""
    with _connect(url, autocommit=True) as connection:
        if fetch_value(connection, statement("setup.sql", "schema_exists"), name=name):
            if not fetch_value(connection, statement("setup.sql", "schema_usable"), name=name):
                raise DatabaseError(
                    f"Schema {name} is there, and this role may not create tables in it. Grant it: "
                    f"GRANT USAGE, CREATE ON SCHEMA {name} TO …; or set QBENCH_DAGSTER_DATABASE_URL."
                )
        else:
            try:
                connection.execute(statement("setup.sql", "create_schema", name=name))
            except psycopg.errors.UniqueViolation:
                log.debug("another process created schema %s first", name)
            except psycopg.errors.InsufficientPrivilege:
                raise DatabaseError(
                    f"This role may not create schema {name}. Grant it: GRANT CREATE ON DATABASE … TO …;"
                ) from None
