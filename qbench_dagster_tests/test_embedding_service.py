"""Embedding through a real client and a real HTTP server: nothing is sent twice, nothing is lost by a kill."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from qbench_dagster.adapters.landing import land_cases, land_lookups
from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.space import KINDS, ensure_space
from qbench_dagster.adapters.staging import load_lookups, stage_cases
from qbench_dagster.adapters.testrail_export import TestRailExport
from qbench_dagster.core.folders import section_paths
from qbench_dagster.core.packing import Sized, fewest
from qbench_dagster.core.texts import doc_text, step_text, text_hash
from qbench_dagster_tests.embed_worker import CONCURRENCY, EVERYTHING, LIMITS, SPACE
from qbench_dagster_tests.openai_server import OpenAIServer, count_words, vector_of
from qbench_dagster_tests.support import case, rows, write_export

KILLS = 10
CASES = 400


@pytest.fixture
def staged(database: Database, tmp_path: Path) -> dict[str, set[str]]:
    """Cases with steps, staged, and a space for them; the texts to embed by kind."""
    cases = [
        case(n, f"Title {n}", steps_separated=[{"content": f"Do {n % 150}", "expected": f"See {n % 70}"}])
        for n in range(1, CASES + 1)
    ]
    with TestRailExport(write_export(tmp_path / "export.db", cases)) as export:
        land_lookups(database, export, section_paths)
        land_cases(database, export, EVERYTHING, max_delete_share=1.0)
    stage_cases(database, load_lookups(database), EVERYTHING, lambda _: None)
    ensure_space(database, SPACE)
    return {
        "doc": {doc_text(*row) for row in rows(database, "SELECT title, description FROM staging.test_documents")},
        "step": {step_text(*row) for row in rows(database, "SELECT action, expected FROM staging.test_steps")},
    }


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer(latency_s=0.02, max_inputs=LIMITS.inputs) as running:
        yield running


def start(database: Database, server: OpenAIServer) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "qbench_dagster_tests.embed_worker", database.url, server.base_url, server.key]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def stored(database: Database, kind: str) -> dict[bytes, np.ndarray]:
    found = rows(database, f"SELECT text_hash, embedding::real[] FROM {SPACE.name}.{kind}_embeddings")
    return {bytes(key): np.asarray(vector, np.float32) for key, vector in found}


def assert_complete(database: Database, staged: dict[str, set[str]]) -> None:
    for kind in KINDS:
        vectors = stored(database, kind)
        assert vectors.keys() == {text_hash(text) for text in staged[kind]}
        for text in staged[kind]:
            expected = vector_of(text, SPACE.dimensions, SPACE.model)
            assert np.abs(vectors[text_hash(text)] - expected).max() < 1e-3, text


def test_no_text_is_sent_twice_in_the_fewest_requests(
    database: Database, server: OpenAIServer, staged: dict[str, set[str]]
) -> None:
    worker = start(database, server)
    _, errors = worker.communicate(timeout=120)
    assert worker.returncode == 0, errors
    assert_complete(database, staged)
    assert server.billed == Counter(staged["doc"] | staged["step"])
    least = sum(fewest([Sized(None, count_words(text)) for text in staged[kind]], LIMITS) for kind in KINDS)
    assert len(server.ledger.seen) == least
    assert server.ledger.max_concurrency <= CONCURRENCY
    entries = rows(database, "SELECT state, sum(texts), sum(tokens) FROM store.embedding_requests GROUP BY state")
    assert entries == [("answered", server.billed.total(), server.ledger.tokens)]


def test_killed_at_any_moment_no_more_is_paid_twice_than_was_in_flight(
    database: Database, server: OpenAIServer, staged: dict[str, set[str]]
) -> None:
    chance = random.Random(729)
    for _ in range(KILLS):
        worker, before = start(database, server), len(server.ledger.seen)
        until = time.monotonic() + 60
        while len(server.ledger.seen) < before + 1 + chance.randrange(8) and time.monotonic() < until:
            assert worker.poll() is None, "the worker was done before it was killed: give it more texts"
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.05))
        worker.send_signal(signal.SIGKILL)
        worker.communicate()
        in_flight = rows(database, "SELECT count(*) FROM store.embedding_requests WHERE state = 'in_flight'")[0][0]
        assert in_flight <= CONCURRENCY + 1
    worker = start(database, server)
    _, errors = worker.communicate(timeout=120)
    assert worker.returncode == 0, errors
    assert_complete(database, staged)
    lost = rows(
        database, "SELECT count(*), coalesce(sum(texts), 0), sum(usd_at_risk) > 0 FROM store.embedding_requests "
        "WHERE state = 'lost'"
    )[0]  # fmt: skip
    twice = server.billed.total() - len(server.billed)
    assert twice <= lost[1], "what is paid twice was in flight at a kill, and the ledger says so"
    assert lost[0] > 0
    assert lost[2] is True
    assert set(server.billed) == staged["doc"] | staged["step"]
