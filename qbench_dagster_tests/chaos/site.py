"""The place syncs happen in: PostgreSQL on a small file system, a proxy before it, an embedding server, an export.

What the place is and how to ask it. What goes wrong in it is in the modules of faults, what is judged in `trial.py`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit

import psutil
import psycopg

from qbench_dagster.adapters.embedded import start_server, stop_server
from qbench_dagster_tests.chaos.exports import place, write_states
from qbench_dagster_tests.chaos.proxy import Proxy
from qbench_dagster_tests.chaos.warm import Run, Starter
from qbench_dagster_tests.openai_server import OpenAIServer

WRITER, READER = "chaos_writer", "chaos_application"
PASSWORD = "planted-in-the-url"
"""The server asks for none: it is there to be looked for in what is told."""
DIMENSIONS = 64
SPACE = f"space_te3large_{DIMENSIONS}"
INPUTS, CONCURRENCY = 16, 2
IN_FLIGHT = INPUTS * (CONCURRENCY + 1)
"""Texts that may be on their way at once: one request more than are worked on is handed out."""
DISK_MB = 768
RUN_S = 300.0
"""Nothing that happens to a run makes it wait for longer."""
HUNG = 124

# Every column of a case the application can read, but the times of publishing.
FINGERPRINTS = """
SELECT d.id, md5(concat_ws(E'\\x1f', (to_jsonb(d) - 'ingested_at' - 'updated_at')::text,
    (SELECT string_agg(s::text, E'\\x1e' ORDER BY s.step_index) FROM qbench.test_steps s WHERE s.test_case_id = d.id),
    (SELECT string_agg(p::text, E'\\x1e' ORDER BY p.order_index)
     FROM qbench.test_preconditions p WHERE p.test_case_id = d.id),
    (SELECT string_agg(i::text, E'\\x1e' ORDER BY i.id)
     FROM qbench.test_related_issues i WHERE i.test_case_id = d.id)))
FROM qbench.test_documents d
"""

# Rows that no view shows: what is published must be there whole, and nothing beside it.
STRAY = f"""
SELECT 'document without vector', test_case_id FROM store.test_documents d
WHERE NOT EXISTS (SELECT FROM {SPACE}.doc_embeddings e WHERE e.text_hash = d.text_hash)
UNION ALL SELECT 'step without vector', test_case_id FROM store.test_steps s
WHERE NOT EXISTS (SELECT FROM {SPACE}.step_embeddings e WHERE e.text_hash = s.text_hash)
UNION ALL SELECT 'rows without document', t.test_case_id FROM (
    SELECT test_case_id FROM store.test_steps UNION SELECT test_case_id FROM store.test_preconditions
    UNION SELECT test_case_id FROM store.test_related_issues) t
WHERE NOT EXISTS (SELECT FROM store.test_documents d WHERE d.test_case_id = t.test_case_id)
"""

# So that the next sync has vectors to pay for, however often the walk has passed there.
PRUNE = tuple(
    f"DELETE FROM {SPACE}.{kind}_embeddings e WHERE NOT EXISTS (SELECT FROM store.{table} t "
    "WHERE t.text_hash = e.text_hash)"
    for kind, table in (("doc", "test_documents"), ("step", "test_steps"))
)

Vectors = dict[tuple[str, bytes], str]
"""MD5 of a stored vector, by table and text hash."""


@dataclass
class Site:
    """Use `new_site`. `state` is the number of the state that is published."""

    path: Path
    said: Path
    """What each run printed, by its number: on another disk, which is not full when `path`'s is."""
    partition_cases: int
    states: list[Path]
    proxy: Proxy
    service: OpenAIServer
    starter: Starter
    small_disk: bool
    state: int = 0
    runs: int = 0
    expected: list[dict[int, str]] = field(default_factory=list)
    """Of each state, the fingerprint of every case a clean load publishes."""
    messages: Counter[str] = field(default_factory=Counter)
    """Messages of a sync that nobody disturbed, by purpose of the connection."""

    @property
    def export(self) -> Path:
        """Where runs look for the export."""
        return self.path / "export.db"

    def environment(self, database: str = "qbench") -> dict[str, str]:
        """Settings of a run: small vectors, several partitions, a service that is paid."""
        kept = {
            name: value for name, value in os.environ.items()
            if not name.startswith(("QBENCH_", "DAGSTER_", "OPENAI_", "DATABASE_URL"))
        }  # fmt: skip
        where = f"postgresql://{WRITER}:{PASSWORD}@127.0.0.1:{self.proxy.port}/%s?sslmode=disable&gssencmode=disable"
        return {
            **kept, "DATABASE_URL": where % database, "QBENCH_DAGSTER_DATABASE_URL": where % "dagster",
            "QBENCH_HOME": str(self.path / "home"), "QBENCH_EXPORT": str(self.export), "QBENCH_EMBEDDER": "openai",
            "OPENAI_API_KEY": self.service.key, "OPENAI_BASE_URL": self.service.base_url,
            "QBENCH_DIMENSIONS": str(DIMENSIONS), "QBENCH_MAX_INPUTS": str(INPUTS),
            "QBENCH_CONCURRENCY": str(CONCURRENCY), "QBENCH_REQUEST_TIMEOUT_S": "5", "QBENCH_INDEX": "exact",
            "QBENCH_TARGET_RECALL": "0.1", "QBENCH_PARITY_QUERIES": "10",
            "QBENCH_PARTITION_CASES": str(self.partition_cases),
        }  # fmt: skip

    def start(
        self, *arguments: str, database: str = "qbench", cold: bool = False, extra: dict[str, str] | None = None
    ) -> Run:
        """`qbench` with these arguments (`run` without any)."""
        self.runs += 1
        folder = self.said / str(self.runs)
        asked = arguments or ("run", "--json")
        return self.starter.start(folder, asked, {**self.environment(database), **(extra or {})}, cold=cold)

    def wait(self, run: Run) -> int:
        """Exit code of a run when it has ended; HUNG of one that does not, and is killed."""
        try:
            return self.starter.wait(run, RUN_S)
        except TimeoutError:
            run.kill()
            self.starter.wait(run, RUN_S)
            return HUNG

    def url(self, database: str = "qbench", user: str = "postgres") -> str:
        """Of a database, past the proxy."""
        parts = urlsplit(start_server(self.path, 256))
        return urlunsplit(parts._replace(netloc=f"{user}@", path=f"/{database}"))

    @contextmanager
    def admin(self, database: str = "qbench") -> Iterator[psycopg.Connection]:
        """A superuser's connection past the proxy; the server is started if it is down."""
        with psycopg.connect(self.url(database), autocommit=True, application_name="chaos") as connection:
            yield connection

    def ask(self, query: str, *values: Any, database: str = "qbench") -> list[tuple[Any, ...]]:
        """Rows of a superuser's query."""
        with self.admin(database) as connection:
            cursor = connection.execute(query, values or None)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def postmaster(self) -> psutil.Process:
        """PostgreSQL's first process."""
        return psutil.Process(int((self.path / "pg" / "postmaster.pid").read_text().splitlines()[0]))

    def settle(self) -> None:
        """Wait until the server answers and nothing of an earlier run is under way, there or at the service."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                left = self.ask("SELECT count(*) FROM pg_stat_activity WHERE usename = %s", WRITER, database="postgres")
                if not left[0][0] and not self.service.ledger.in_flight:
                    return
            except psycopg.OperationalError:
                pass  # it recovers
            time.sleep(0.02)
        raise TimeoutError("60 s after a run ended, its connections or requests are still there")

    def vectors(self) -> Vectors:
        """Every vector that is stored."""
        return {
            (kind, bytes(text_hash)): digest
            for kind in ("doc", "step")
            for text_hash, digest in self.ask(f"SELECT text_hash, md5(embedding::text) FROM {SPACE}.{kind}_embeddings")
        }

    def prune(self) -> None:
        """Forget the vectors of texts that are not published."""
        for query in PRUNE:
            self.ask(query)

    def published(self) -> dict[int, str]:
        """Fingerprint of every published case."""
        return dict(self.ask(FINGERPRINTS))

    def differences(self, state: int) -> list[str]:
        """What is not as a clean load of `state` leaves it."""
        found, expected = self.published(), self.expected[state]
        told = [
            f"case {case_id}: {_how(case_id, found, expected)}"
            for case_id in sorted(found.keys() | expected.keys())
            if found.get(case_id) != expected.get(case_id)
        ]
        return told + [f"{what}: {case_id}" for what, case_id in self.ask(STRAY)]

    def new_database(self, name: str) -> None:
        """An empty database for the pipeline, which is no superuser."""
        self.ask(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)", database="postgres")
        self.ask(f"CREATE DATABASE {name} OWNER {WRITER}", database="postgres")
        self.ask("CREATE EXTENSION IF NOT EXISTS vector", database=name)

    def load_clean(self, state: int) -> None:
        """Load a state into an empty database `clean`, and remember what it publishes."""
        self.new_database("clean")
        place(self.states[state], self.export)
        self.succeed(self.start(database="clean"), "a clean load")
        self.expected.append(dict(self.ask(FINGERPRINTS, database="clean")))

    def succeed(self, run: Run, what: str) -> None:
        """Wait for a run that nothing disturbs. Raises RuntimeError if it fails all the same."""
        if code := self.wait(run):
            raise RuntimeError(f"{what} ended with {code}:\n{run.told[-3000:]}\n{run.printed[-1000:]}")


def _how(case_id: int, found: dict[int, str], expected: dict[int, str]) -> str:
    if case_id not in expected:
        return "published, and should not be"
    return "not as it should be" if case_id in found else "missing"


@contextmanager
def new_site(cases: int, states: int, seed: int, export: Path | None = None, *, partitions: int = 6) -> Iterator[Site]:
    """A site with state 0 loaded, and every state known from a clean load of it. All of it is removed at the end."""
    with ExitStack() as stack:
        path = Path(tempfile.mkdtemp(prefix="qbc"))  # short, for the limit of socket paths
        stack.callback(shutil.rmtree, path, ignore_errors=True)
        said = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qbc")))
        small = _mount(path)
        if small:
            stack.callback(subprocess.run, ["umount", "-l", str(path)], check=False)
        path.chmod(0o755)
        server = start_server(path, 256)
        stack.callback(stop_server, path)
        where = parse_qs(urlsplit(server).query)
        proxy = stack.enter_context(Proxy(Path(where["host"][0]) / f".s.PGSQL.{where['port'][0]}"))
        site = Site(
            path, said, max(1, cases // partitions), write_states(path, states, cases, seed, export), proxy,
            stack.enter_context(OpenAIServer(latency_s=0.01)), stack.enter_context(Starter()), small,
        )  # fmt: skip
        _prepare(site)
        yield site


def _mount(path: Path) -> bool:
    """A file system in memory of its own, where this user may mount one: so that it can be full."""
    options = ["-o", f"size={DISK_MB}m", "tmpfs", str(path)]
    try:
        return subprocess.run(["mount", "-t", "tmpfs", *options], check=False, capture_output=True).returncode == 0
    except OSError:
        return False


def _prepare(site: Site) -> None:
    for query in (
        "ALTER SYSTEM SET max_wal_size = '96MB'",  # or the log alone would fill the small disk
        "SELECT pg_reload_conf()",
        f"CREATE ROLE {WRITER} LOGIN",
        "CREATE ROLE qbench_reader NOLOGIN",
        f"CREATE ROLE {READER} LOGIN IN ROLE qbench_reader",
    ):
        site.ask(query, database="postgres")
    site.new_database("dagster")
    for state in range(len(site.states)):
        site.load_clean(state)
        if state == 0:
            site.ask("ALTER DATABASE clean RENAME TO qbench", database="postgres")
    site.ask("DROP DATABASE IF EXISTS clean WITH (FORCE)", database="postgres")


def free_of_secrets(site: Site, texts: Sequence[str]) -> bool:
    """Whether none of the texts holds a password or key of the site."""
    return not any(secret in text for secret in (PASSWORD, site.service.key) for text in texts)
