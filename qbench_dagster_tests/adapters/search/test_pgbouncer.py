"""Search through a PgBouncer that pools transactions: each call may meet another session, and leaves nothing in it."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.vectors import vector_text
from qbench_dagster.core.lexical import embed
from qbench_dagster_tests.adapters.search.conftest import LOWEST, SPACE
from qbench_dagster_tests.adapters.search.twin import index_as

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
TOLD = subprocess.run([PGBOUNCER, "--version"], capture_output=True, text=True, check=True).stdout if PGBOUNCER else ""
VERSION = tuple(map(int, re.findall(r"\d+", TOLD)[:2]))
CALLS = [
    "search_documents(%(v)s::halfvec, %(k)s)", "search_steps(%(v)s::halfvec, %(k)s)",
    "search_documents(%(v)s::halfvec, %(k)s, with_priority => ARRAY['Medium'])",
    f"similar_documents({LOWEST}, %(k)s)", "search_hybrid('log in', %(v)s::halfvec, %(k)s)",
    "search_hybrid('log in', NULL, %(k)s)", "find_by_jira_key('PROJ-1', %(k)s)",
]  # fmt: skip
SETTINGS = ("hnsw.ef_search", "hnsw.iterative_scan", "hnsw.max_scan_tuples", "ivfflat.probes", "ivfflat.max_probes",
            "ivfflat.iterative_scan", "search_path", "plan_cache_mode", "client_min_messages")  # fmt: skip


@pytest.fixture(scope="module")
def pooled(published: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of the published database through PgBouncer, two server sessions for everybody."""
    if PGBOUNCER is None:
        pytest.skip("pgbouncer is not installed")
    index_as(published, SPACE, "binary")
    server = urlsplit(published.url)
    options = parse_qs(server.query)
    host, server_port = options.get("host", [server.hostname])[0], options.get("port", [server.port or 5432])[0]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("pgbouncer")
    user = server.username or "postgres"
    (folder / "users").write_text(f'"{user}" ""\n')
    (folder / "ini").write_text(
        f"[databases]\nsearched = host={host} port={server_port} dbname={server.path.strip('/')} user={user}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\npool_mode = transaction\n"
        f"default_pool_size = 2\nmax_client_conn = 50\nauth_type = any\nauth_file = {folder / 'users'}\n"
        f"logfile = {folder / 'log'}\n{'max_prepared_statements = 100' if VERSION >= (1, 21) else ''}\n"
    )
    process = subprocess.Popen(
        [PGBOUNCER, "-q", str(folder / "ini")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **_as_other(folder),
    )
    try:
        yield _answering(f"postgresql://{user}@127.0.0.1:{port}/searched", process, folder)
    finally:
        process.terminate()
        process.wait(10)


def _as_other(folder: Path) -> dict[str, Any]:
    """PgBouncer refuses to run as root, and the server's socket is its user's alone: it runs as that user."""
    if os.geteuid() != 0:
        return {}
    for path in (folder, *folder.iterdir()):
        shutil.chown(path, "pgserver")
    for parent in folder.parents[:-1]:
        if not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    return {"user": "pgserver"}


def _answering(url: str, process: subprocess.Popen[bytes], folder: Path) -> str:
    for _ in range(100):
        try:
            psycopg.connect(url, autocommit=True).close()
        except psycopg.OperationalError as error:
            if process.poll() is not None:
                pytest.fail(f"pgbouncer ended: {(folder / 'log').read_text()[-1000:]} {error}")
            time.sleep(0.1)
        else:
            return url
    pytest.fail("pgbouncer does not answer")


@pytest.mark.parametrize("prepared", [True, False], ids=["prepared", "not prepared"])
def test_every_search_answers_through_a_pool_and_leaves_no_setting_behind(
    pooled: str, published: Database, prepared: bool
) -> None:
    if prepared and VERSION < (1, 21):
        pytest.skip("pgbouncer before 1.21 keeps no prepared statements across transactions")
    vectors = embed(["log in with a wrong password", "video does not play"], SPACE.dimensions)
    with psycopg.connect(published.url, autocommit=True) as direct:
        expected = {(call, k, n): _answer(direct, call, k, vector, prepared=False)
                    for call in CALLS for k in (1, 300) for n, vector in enumerate(vectors)}  # fmt: skip
    assert all(expected[call, 300, 0] for call in CALLS[:-1])

    def many(number: int) -> None:
        with psycopg.connect(pooled, autocommit=True) as connection:
            if not prepared:
                connection.prepare_threshold = None
            before = _settings(connection)
            for turn in range(3):
                for (call, k, n), wanted in expected.items():
                    if (turn + number) % 2 or k == 1:
                        found = _answer(connection, call, k, vectors[n], prepared=prepared)
                        assert found == wanted, call
                        assert _settings(connection) == before

    with ThreadPoolExecutor(4) as clients:
        list(clients.map(many, range(4)))
    with psycopg.connect(pooled, autocommit=True) as connection:
        before = _settings(connection)
        for _ in range(4):  # both sessions, as likely as not
            with pytest.raises(psycopg.DataError):
                _answer(connection, CALLS[0], 0, vectors[0], prepared=False)
            assert _settings(connection) == before


def _answer(connection: psycopg.Connection[Any], call: str, k: int, vector: Any, *, prepared: bool) -> list[Any]:
    query = f"SELECT test_case_id FROM qbench.{call}"
    return connection.execute(query, {"v": vector_text(vector), "k": k}, prepare=prepared or None).fetchall()  # type: ignore[call-overload,no-any-return]


def _settings(connection: psycopg.Connection[Any]) -> list[Any]:
    columns = ", ".join(f"current_setting('{name}', true)" for name in SETTINGS)
    return connection.execute(f"SELECT '[1]'::vector, {columns}").fetchall()  # type: ignore[call-overload,no-any-return]
