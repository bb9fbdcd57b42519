"""TLS: what DATABASE_URL says of it reaches libpq for the data, for Dagster's storage and for PostgreSQL's programs."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import psycopg2  # type: ignore[import-untyped]
import pytest
from sqlalchemy import create_engine, text

from qbench_dagster.adapters.pg_tools import connection_of, run_tool
from qbench_dagster.adapters.postgres import Database, DatabaseError, check_reachable, ensure_schema
from qbench_dagster.settings import dagster_storage_url

STRICT = ("sslmode", "sslrootcert", "sslcert", "sslkey", "channel_binding")


@dataclass(frozen=True)
class Server:
    """A PostgreSQL that lets nobody in without TLS, a client certificate and a password."""

    port: int
    folder: Path
    binaries: Path

    def parameters(self, **changed: str | None) -> dict[str, str]:
        """All that DATABASE_URL has to say; None leaves one out."""
        files = {name: str(self.folder / file) for name, file in
                 (("sslrootcert", "ca.crt"), ("sslcert", "client.crt"), ("sslkey", "client.key"))}  # fmt: skip
        given = {"sslmode": "verify-full", "channel_binding": "require", **files, **changed}
        return {name: value for name, value in given.items() if value is not None}

    def url(self, **changed: str | None) -> str:
        """DATABASE_URL."""
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in self.parameters(**changed).items())
        return f"postgresql://pipeline:pa%40ss@localhost:{self.port}/postgres?{query}"


def run(*command: object, **options: Any) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr


def certificates(folder: Path) -> None:
    """A certificate authority, and what it signed for the server and for the role `pipeline`."""
    new = ("openssl", "req", "-new", "-newkey", "rsa:2048", "-nodes", "-sha256")
    run(*new, "-x509", "-days", "2", "-subj", "/CN=a test CA", "-keyout", folder / "ca.key", "-out", folder / "ca.crt")
    (folder / "names").write_text("subjectAltName=DNS:localhost\n")
    for name, subject in (("server", "localhost"), ("client", "pipeline")):
        run(*new, "-subj", f"/CN={subject}", "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.csr")
        run("openssl", "x509", "-req", "-sha256", "-days", "2", "-in", folder / f"{name}.csr", "-CA", folder / "ca.crt",
            "-CAkey", folder / "ca.key", "-CAcreateserial", "-extfile", folder / "names",
            "-out", folder / f"{name}.crt")  # fmt: skip
        (folder / f"{name}.key").chmod(0o600)


def with_tls() -> Path | None:
    """Folder of the programs of a PostgreSQL that was built with TLS; the embedded one was not."""
    there = [Path(found).resolve().parent for found in (shutil.which("postgres"),) if found]
    for binaries in [*there, *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]:
        if (binaries / "pg_config").exists() and (binaries / "initdb").exists():
            built = subprocess.run([binaries / "pg_config", "--configure"], capture_output=True, text=True, check=False)
            if "openssl" in built.stdout:
                return binaries
    return None


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """The server, on a port of its own."""
    binaries = with_tls()
    if binaries is None or shutil.which("openssl") is None:
        pytest.skip("no PostgreSQL built with TLS, or no openssl, on this machine (the embedded one has none)")
    user = "postgres" if os.getuid() == 0 else None
    if user is not None and user not in {entry.pw_name for entry in pwd.getpwall()}:
        user = "nobody"
    folder = Path(tempfile.mkdtemp(prefix="qbtls"))
    certificates(folder)
    data = folder / "data"
    data.mkdir(mode=0o700)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.chmod(0o755)
    for name in ("server.key", "server.crt", "ca.crt"):
        shutil.copy(folder / name, data.with_name(f"its.{name}"))
        data.with_name(f"its.{name}").chmod(0o600)
        if user:
            shutil.chown(data.with_name(f"its.{name}"), user)
    if user:
        shutil.chown(data, user)
    options: dict[str, Any] = {"user": user, "cwd": "/"}
    run(binaries / "initdb", "-D", data, "-A", "trust", "-U", "postgres", "--no-sync", **options)
    settings = {"ssl": "on", "listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": data,
                "ssl_ca_file": folder / "its.ca.crt", "ssl_cert_file": folder / "its.server.crt",
                "ssl_key_file": folder / "its.server.key"}  # fmt: skip
    lines = "".join(f"{name} = '{value}'\n" for name, value in settings.items())
    rights = "local all postgres trust\nhostssl all all all scram-sha-256 clientcert=verify-full\n"
    process = None
    try:
        for name, content, mode in (("postgresql.conf", lines, "a"), ("pg_hba.conf", rights, "w")):
            with (data / name).open(mode) as file:
                file.write(content)
        with (folder / "log").open("w") as said:
            process = subprocess.Popen([binaries / "postgres", "-D", data], stdout=said, stderr=said, **options)
        deadline = time.monotonic() + 60
        while True:
            try:
                with psycopg.connect(f"host={data} port={port} user=postgres", autocommit=True) as connection:
                    connection.execute("CREATE ROLE pipeline LOGIN SUPERUSER PASSWORD 'pa@ss'")
                break
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.1)
        yield Server(port, folder, binaries)
    finally:
        if process is not None:
            process.terminate()
            process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


ENCRYPTED = "SELECT ssl, client_dn FROM pg_stat_ssl WHERE pid = pg_backend_pid()"


def test_the_data_goes_by_tls(server: Server) -> None:
    check_reachable(server.url())
    ensure_schema(server.url(), "dagster")
    with pytest.raises(DatabaseError, match="pgvector is not installed"):  # as far as this server goes
        Database(server.url())


def test_dagster_goes_by_tls(server: Server) -> None:
    url = dagster_storage_url(server.url(), schema="dagster")
    engine = create_engine(url)
    with engine.connect() as connection:
        assert connection.execute(text(ENCRYPTED)).fetchone() == (True, "/CN=pipeline")
        assert connection.execute(text("SHOW search_path")).scalar() == "dagster"
        given = connection.connection.dbapi_connection.info.dsn_parameters  # type: ignore[union-attr]
    engine.dispose()
    assert {name: given[name] for name in STRICT} == server.parameters()
    assert psycopg2.__libpq_version__ >= 130000, "older ones know no channel_binding"


def test_the_programs_go_by_tls(server: Server) -> None:
    connection, variables = connection_of(server.url())
    assert "pa@ss" not in connection
    asked = [server.binaries / "psql", "-XAtc", ENCRYPTED, connection]
    assert run_tool(asked, variables, name="qbench test").strip() == "t|/CN=pipeline"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sslmode": "disable", "channel_binding": None}, "no encryption"),
        ({"sslrootcert": "/nowhere/ca.crt"}, "does not exist"),
        ({"sslcert": None, "sslkey": None}, "certificate"),
        ({"sslkey": "/nowhere/client.key"}, "private key file"),
        ({"host": "127.0.0.1"}, "does not match host name"),
    ],
)
def test_what_is_wrong_with_it_is_said_without_the_password(
    server: Server, changed: dict[str, str | None], said: str
) -> None:
    with pytest.raises(DatabaseError, match=said) as raised:
        check_reachable(server.url(**changed))
    assert "pa@ss" not in str(raised.value)
    assert "pa%40ss" not in str(raised.value)
