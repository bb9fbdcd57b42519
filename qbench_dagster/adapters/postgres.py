"""Connections to the PostgreSQL that is filled: pooled, named, timed and in the right role; and the locks of runs.

What is asked of the database is in the modules named for the rooms; here is only how to talk to it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import LiteralString
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg_pool import ConnectionPool, PoolTimeout

from qbench_dagster.adapters.connecting import (
    CONNECT_TIMEOUT_S,
    Connection,
    DatabaseError,
    JsonText,
    become_owner,
    connect,
    fetch_dicts,
    fetch_value,
    keepalive,
    without_password,
)
from qbench_dagster.adapters.migrating import check_server, ensure_vector, migrate
from qbench_dagster.adapters.sql import statement

__all__ = [
    "Connection",
    "Database",
    "DatabaseError",
    "JsonText",
    "check_reachable",
    "ensure_database",
    "ensure_schema",
    "fetch_dicts",
    "fetch_value",
    "hold_lock",
    "lock_all_ranges",
    "lock_range",
    "without_password",
]

log = logging.getLogger(__name__)

LOCK_TIMEOUT = {"short": "60s", "long": "600s"}
"""How long to wait for somebody else's lock; a load may wait for another run over the same case range."""
ALL_RANGES = "case ranges"
ASK_AGAIN_S = 0.2


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
        with connect(self.url) as connection:
            check_server(connection)
            self.vector_schema = ensure_vector(connection)
            migrate(connection)
        self._pool: ConnectionPool[Connection] = ConnectionPool(
            self.url,
            min_size=1,
            max_size=6,
            timeout=CONNECT_TIMEOUT_S * 2,
            max_idle=60,
            kwargs={"autocommit": True, "connect_timeout": CONNECT_TIMEOUT_S, **keepalive(self.url)},
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
    def connection(self, purpose: str, *, long: bool = False, owner: bool = False) -> Iterator[Connection]:
        """A connection in autocommit mode, named `qbench <purpose>` in pg_stat_activity.

        `long` exempts it from the statement timeout: loads, publishing and index builds. `owner` is for DDL: where
        sql/roles.sql gave the rooms to qbench_owner it acts as that role, elsewhere as the session's user.
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
            if owner:
                become_owner(lent)
            yield lent
            # PostgreSQL tells what a session wrote up to 10 s later; until then a parity report from before the
            # write would pass for one of today (indexing.write_counters).
            lent.execute(statement("setup.sql", "flush_counters"))
        finally:
            if owner:
                _step_down(lent)
            self._pool.putconn(lent)

    @contextmanager
    def exclusive(self, name: str, *, queue: bool = False) -> Iterator[Connection]:
        """Hold the advisory lock `name` for a while; says in the log whom it waits for.

        The lock belongs to the connection that is given. Who writes on that one cannot write without the lock: a
        connection of its own, idle for an hour, may be cut and the lock given away without anybody noticing.
        It is asked for again and again: a statement that waits has a snapshot, and an index build waits for that, so
        two builds of one index would wait for each other. `queue` is for what is shared without a pause, briefly each
        time, and never by who builds an index: there one who asks would never have his turn.
        """
        with self.connection(f"lock {name}", long=True) as connection:
            connection.execute("SET lock_timeout = 0")
            taken = fetch_value(connection, statement("setup.sql", "try_advisory_lock"), name=name)
            if not taken:
                log.warning("waiting for %s, held by %s", name, _holders(connection, name))
            if not taken and queue:
                connection.execute(statement("setup.sql", "advisory_lock"), {"name": name})
                taken = True
            while not taken:
                time.sleep(ASK_AGAIN_S)
                taken = fetch_value(connection, statement("setup.sql", "try_advisory_lock"), name=name)
            try:
                yield connection
            finally:
                if not connection.closed:
                    connection.execute(statement("setup.sql", "advisory_unlock"), {"name": name})


def lock_range(connection: Connection, key: str, *, last: bool = False) -> None:
    """Take the case range `key` until the end of the transaction; as `hold_lock` otherwise.

    Whoever writes cases of a range holds it, in every room: two runs over it take turns, stage by stage. Who needs
    several takes them in ascending order, or two of them could wait for each other. The `last` one is open: a run
    that planned it before it was split would write the cases of its other half too, so it is taken with all others.
    """
    hold_lock(connection, ALL_RANGES, shared=not last)
    hold_lock(connection, f"case range {key}")


def lock_all_ranges(connection: Connection) -> None:
    """Take every case range there is and will be until the end of the transaction; as `hold_lock` otherwise."""
    hold_lock(connection, ALL_RANGES)


def hold_lock(connection: Connection, name: str, *, shared: bool = False) -> None:
    """Take the lock `name` (shared: with others who share it) until the end of the transaction.

    Says in the log whom it waits for. Raises DatabaseError, naming the holder, after the session's lock time-out.
    """
    way = "shared" if shared else "exclusive"
    if fetch_value(connection, statement("setup.sql", f"try_lock_{way}"), name=name):
        return
    holders = _holders(connection, name)
    log.warning("waiting for %s, held by %s", name, holders)
    try:
        connection.execute(statement("setup.sql", f"lock_{way}"), {"name": name})
    except psycopg.errors.LockNotAvailable:
        raise DatabaseError(
            f"Waited too long for {name}, held by {holders}. Let that run end (or SELECT pg_terminate_backend(pid)), "
            "and run this again: what was committed stays."
        ) from None


def _holders(connection: Connection, name: str) -> str:
    """Who holds the advisory lock `name`: pid, application, and since when, where this role may see it."""
    held = fetch_dicts(connection, statement("setup.sql", "advisory_lock_holders"), name=name)
    return "; ".join(
        f"pid {row['pid']} ({row['application_name'] or 'unnamed'}"
        + (f", since {row['since']})" if row["since"] else ")")
        for row in held
    ) or "someone who has let go by now"  # fmt: skip


def _step_down(connection: Connection) -> None:
    """Be the session's user again. A connection that cannot is not used again."""
    try:
        connection.execute(statement("setup.sql", "step_down"))
    except psycopg.Error:
        connection.close()


def check_reachable(url: str) -> None:
    """Raise DatabaseError if nobody answers at `url`."""
    connect(url).close()


def ensure_database(server_url: str, name: str, *, relaxed_commits: bool = False) -> str:
    """Create database `name` on the server if it is missing; return its URL."""
    with connect(server_url, autocommit=True) as connection:
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
    with connect(url, autocommit=True) as connection:
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
