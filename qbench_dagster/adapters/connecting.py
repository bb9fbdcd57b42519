"""How PostgreSQL is reached and asked: the first connection, values and rows, and what is said when it fails.

Pools, locks and time-outs are `postgres.py`, which also hands this on: other modules import from there.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

import psycopg
from psycopg import pq, sql
from psycopg.adapt import Dumper
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow, dict_row

from qbench_dagster.adapters.sql import statement

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

CONNECT_TIMEOUT_S = 15
KEEPALIVE = {"keepalives_idle": 60, "keepalives_interval": 15, "keepalives_count": 4}
"""Seconds, and how often: a server that vanished is noticed within two minutes, with the kernel's own only after two
hours; and a firewall that forgets what is idle for some minutes does not forget us."""
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


def keepalive(url: str) -> dict[str, int]:
    """KEEPALIVE, as far as `url` says nothing else."""
    return {name: value for name, value in KEEPALIVE.items() if name not in conninfo_to_dict(url)}


def connect(url: str, *, autocommit: bool = False) -> Connection:
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
            url,
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name="qbench start",
            autocommit=autocommit,
            **keepalive(url),  # type: ignore[arg-type]
        )
    except psycopg.OperationalError as error:
        raise DatabaseError(
            f"Cannot connect to {without_password(url)}: {str(error).strip()} "
            "Check DATABASE_URL, and that the server runs and lets this host in."
        ) from None


def fetch_value(connection: Connection, query: sql.Composed, /, **values: Any) -> Any:
    """First column of the first row, None where there is none."""
    row = connection.execute(query, values or None).fetchone()
    return row[0] if row else None


def fetch_dicts(connection: Connection, query: sql.Composed, /, **values: Any) -> list[dict[str, Any]]:
    """All rows as dictionaries. For small results."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, values or None).fetchall()


def become_owner(connection: Connection, *, local: bool = False) -> None:
    """Act as qbench_owner where it owns the rooms and the session may; `local`: until the transaction ends."""
    connection.execute(statement("setup.sql", "become_owner"), {"local": local})
