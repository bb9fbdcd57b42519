"""Kills `qbench run` at random moments and compares what is published with a clean run.

    python -m qbench_dagster_tests.crash --kills 20 --export PATH

Prints a line for each kill; exits with 1 if the published rows differ, or if an incomplete case was ever visible.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import psycopg
from psycopg import sql

from qbench_dagster.adapters.embedded import start_server, stop_server
from qbench_dagster.adapters.postgres import ensure_database
from qbench_dagster_tests.chaos.warm import Run
from qbench_dagster_tests.terminal import starter

DIMENSIONS = 256
SPACE = f"space_lexical_{DIMENSIONS}"
TIMES = ("ingested_at", "updated_at")
VIEWS = ("test_documents", "test_steps", "test_preconditions", "test_related_issues")

# A case is published with all it is to have, or not at all. What it is to have is what staging holds for the
# document it was published from; a case that staging has rewritten since is compared by its own vectors only.
PARTIAL = f"""
SELECT d.test_case_id FROM store.test_documents d
LEFT JOIN staging.test_documents s ON s.case_id = d.test_case_id AND s.doc_hash = d.doc_hash
WHERE NOT EXISTS (SELECT FROM {SPACE}.doc_embeddings e WHERE e.text_hash = d.text_hash)
   OR EXISTS (SELECT FROM store.test_steps t WHERE t.test_case_id = d.test_case_id
              AND NOT EXISTS (SELECT FROM {SPACE}.step_embeddings e WHERE e.text_hash = t.text_hash))
   OR s.case_id IS NOT NULL AND (
      (SELECT count(*) FROM store.test_steps t WHERE t.test_case_id = d.test_case_id)
        <> (SELECT count(*) FROM staging.test_steps t WHERE t.case_id = d.test_case_id)
      OR (SELECT count(*) FROM store.test_preconditions p WHERE p.test_case_id = d.test_case_id)
        <> cardinality(s.preconditions)
      OR (SELECT count(*) FROM store.test_related_issues i WHERE i.test_case_id = d.test_case_id)
        <> cardinality(s.issue_keys))
UNION ALL
SELECT t.test_case_id FROM store.test_steps t
WHERE NOT EXISTS (SELECT FROM store.test_documents d WHERE d.test_case_id = t.test_case_id)
"""


@dataclass
class Home:
    """A QBENCH_HOME with an embedded server of its own."""

    path: Path
    export: Path
    lasted: list[float] = field(default_factory=list)
    cold: bool = False
    """Whether each run begins with a new interpreter, as from a shell, or is forked from one that is warm."""

    def environment(self) -> dict[str, str]:
        """Settings: small vectors, a few partitions."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("QBENCH_", "DAGSTER_"))}
        kept.pop("DATABASE_URL", None)
        return {
            **kept, "QBENCH_HOME": str(self.path), "QBENCH_EXPORT": str(self.export), "QBENCH_PG_MEMORY_MB": "256",
            "QBENCH_DIMENSIONS": str(DIMENSIONS), "QBENCH_PARTITION_CASES": "300", "QBENCH_TARGET_RECALL": "0.8",
        }  # fmt: skip

    def start(self) -> Run:
        """`qbench run` in a process group of its own."""
        return starter().start(self.path / "run", ["run", "--json"], self.environment(), cold=self.cold)

    def run(self) -> None:
        """A run that has to succeed, on a server that is up."""
        start_server(self.path, 256)
        began = time.monotonic()
        run = self.start()
        code = starter().wait(run, 600)
        self.lasted.append(time.monotonic() - began)
        if code:
            raise RuntimeError(f"qbench run ended with {code}\n{run.told[-3000:]}")

    def run_and_kill(self, after: float, victim: str) -> bool:
        """Start a run and SIGKILL `victim` (`qbench` or `postgres`); whether the run was still under way."""
        run = self.start()
        try:
            starter().wait(run, after)
        except TimeoutError:
            if victim == "postgres":
                self.postmaster().kill()  # its children see their parent die, as after the OOM killer
                starter().wait(run, 300)
            else:
                run.kill()
                starter().wait(run, 30)
            return True
        return False

    def postmaster(self) -> psutil.Process:
        """The server's first process."""
        return psutil.Process(int((self.path / "pg" / "postmaster.pid").read_text().splitlines()[0]))

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection]:
        """A connection to what was filled."""
        with psycopg.connect(ensure_database(start_server(self.path, 256), "qbench"), autocommit=True) as connection:
            yield connection

    def partial_cases(self) -> tuple[int, list[int]]:
        """How many cases are published, and those that are not whole."""
        with self.connection() as connection:
            ready = connection.execute(
                "SELECT to_regclass('store.test_documents') IS NOT NULL AND to_regclass(%s) IS NOT NULL",
                [f"{SPACE}.step_embeddings"],
            ).fetchone()
            if not ready or not ready[0]:
                return 0, []
            counted = connection.execute("SELECT count(*) FROM store.test_documents").fetchone()
            partial = [row[0] for row in connection.execute(PARTIAL)]  # type: ignore[arg-type]
        return int(counted[0]) if counted else 0, partial

    def published(self) -> dict[str, tuple[int, str]]:
        """Rows of each view and table of vectors, and a hash over all of them but the times of publishing."""
        found = {}
        with self.connection() as connection:
            for view in VIEWS:
                names = [
                    row[0]
                    for row in connection.execute(
                        "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0"
                        " AND attname <> ALL (%s) ORDER BY attnum",
                        [f"qbench.{view}", list(TIMES)],
                    )
                ]
                columns = sql.SQL(", ").join(map(sql.Identifier, names))
                found[view] = _digest(
                    connection,
                    sql.SQL("SELECT {} FROM {} ORDER BY id").format(columns, sql.Identifier("qbench", view)),
                )
            for table in ("doc_embeddings", "step_embeddings"):
                query = sql.SQL("SELECT text_hash, embedding, provenance FROM {} ORDER BY 1")
                found[table] = _digest(connection, query.format(sql.Identifier(SPACE, table)))
        return found

    def forget(self) -> None:
        """Empty the database, so that the next run has everything to do."""
        with psycopg.connect(start_server(self.path, 256), autocommit=True) as connection:
            connection.execute("DROP DATABASE IF EXISTS qbench WITH (FORCE)")

    def remove(self) -> None:
        """Stop the server and delete the folder."""
        stop_server(self.path)
        shutil.rmtree(self.path, ignore_errors=True)


def _digest(connection: psycopg.Connection, query: sql.Composed) -> tuple[int, str]:
    digest, rows = hashlib.sha256(), 0
    with connection.cursor() as cursor:
        for row in cursor.execute(query):
            digest.update(repr(row).encode("utf-8", "surrogatepass"))
            rows += 1
    return rows, digest.hexdigest()


@contextmanager
def new_home(export: Path, *, cold: bool = False) -> Iterator[Home]:
    """A home that is removed afterwards; its path is short, for the limit of socket paths."""
    path = Path(tempfile.mkdtemp(prefix="qbk"))
    path.chmod(0o755)
    home = Home(path, export, cold=cold)
    try:
        yield home
    finally:
        home.remove()


@dataclass(frozen=True)
class Kill:
    """One kill and what stood afterwards."""

    victim: str
    after: float
    published: int
    partial: list[int]


def kill_once(home: Home, victim: str, after: float) -> Kill:
    """Run, kill `victim` so many seconds after the start, and look at what is published.

    A run that ended first was not killed: it is done again from the beginning, and killed earlier.
    """
    start_server(home.path, 256)
    while not home.run_and_kill(after, victim):
        home.forget()
        after *= 0.8
    return Kill(victim, after, *home.partial_cases())


def draw_moments(kills: int, lasted: float, seed: int) -> list[float]:
    """Seeded moments spread over a clean run: one in each of `kills` equal slices, ascending."""
    draw = random.Random(seed)
    return [lasted * (slot + draw.random()) / kills for slot in range(kills)]


def different(found: dict[str, tuple[int, str]], expected: dict[str, tuple[int, str]]) -> list[str]:
    """The views and tables that are not the same."""
    return [name for name in expected if found[name] != expected[name]]


def main() -> int:
    """The command: each kill hits a run that has everything to do, and a run after it has to make it whole."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--export", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=729)
    options = parser.parse_args()
    export, bad = options.export.absolute(), 0
    with new_home(export, cold=True) as clean, new_home(export, cold=True) as killed:
        clean.run()
        expected, lasted = clean.published(), clean.lasted[0]
        print(f"clean run: {lasted:.1f} s; {', '.join(f'{n} {rows}' for n, (rows, _) in expected.items())}")  # noqa: T201
        print("kill  victim    after s  published  partial  after another run")  # noqa: T201
        moments = [("qbench", after) for after in draw_moments(options.kills, lasted, options.seed)]
        for number, (victim, after) in enumerate([*moments, ("postgres", lasted * 0.5)], 1):
            killed.forget()
            kill = kill_once(killed, victim, after)
            try:
                killed.run()
                wrong = different(killed.published(), expected)
            except RuntimeError as error:
                wrong = [str(error).strip().splitlines()[-1]]
            bad += bool(kill.partial or wrong)
            told = f"{number:4}  {victim:8}  {kill.after:7.2f}  {kill.published:9}"
            print(f"{told}  {len(kill.partial):7}  {wrong or 'the same'}", flush=True)  # noqa: T201
    print("a difference was found" if bad else "every kill was survived")  # noqa: T201
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
