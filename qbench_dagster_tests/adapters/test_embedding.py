"""Embedding what a space lacks: each distinct text is paid for once, and no unsound vector gets in."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from qbench_dagster.adapters.embedders import LexicalEmbedder
from qbench_dagster.adapters.embedding import embed_missing
from qbench_dagster.adapters.landing import land_cases, land_lookups
from qbench_dagster.adapters.ledger import Account
from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.space import KINDS, Kind, Space, check_vectors, ensure_space
from qbench_dagster.adapters.staging import load_lookups, stage_cases
from qbench_dagster.adapters.testrail_export import TestRailExport
from qbench_dagster.core import lexical
from qbench_dagster.core.folders import section_paths
from qbench_dagster.core.ranges import CaseRange, plan_bounds, range_key, ranges_of
from qbench_dagster.core.requests import Limits
from qbench_dagster.core.tally import Embedded, Embedding
from qbench_dagster.core.texts import text_hash
from qbench_dagster_tests.support import SPACE, case, execute, rows, write_export

Spoil = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class Teller(LexicalEmbedder):
    """An embedder that remembers what it was paid for; it may fail, dawdle, or return what it should not."""

    provenance = "teller"

    def __init__(
        self,
        dimensions: int = 64,
        *,
        fails_at: int = 0,
        seconds: float = 0,
        spoil: Spoil = lambda vectors: vectors,
        inputs: int = 1024,
        characters: int = 1_000_000,
    ) -> None:
        super().__init__(dimensions)
        self.limits = Limits(inputs, 2**31, characters)
        self.given: list[str] = []
        self.calls = 0
        self._fails_at, self._seconds, self._spoil = fails_at, seconds, spoil
        self._lock = threading.Lock()

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        with self._lock:
            self.calls += 1
            if self.calls == self._fails_at:
                raise ConnectionError("the provider is gone")
            self.given += texts
        time.sleep(self._seconds)
        return self._spoil(lexical.embed(texts, self.dimensions))


def stage(database: Database, folder: Path, titles: Sequence[str], target: int = 10) -> list[CaseRange]:
    """Cases of these titles, staged; "Log in" is the first step of all of them."""
    first = {"content": "Log in", "expected": "ok"}
    cases = [
        case(n, title, steps_separated=[first, {"content": f"Do {n % 7}", "expected": ""}])
        for n, title in enumerate(titles, 1)
    ]
    with TestRailExport(write_export(folder / "export.db", cases)) as export:
        ranges = list(ranges_of(map(range_key, plan_bounds(export.case_ids(), [], target))).values())
        land_lookups(database, export, section_paths)
        for case_range in ranges:
            land_cases(database, export, case_range, max_delete_share=1.0)
    for case_range in ranges:
        stage_cases(database, load_lookups(database), case_range, lambda _: None)
    return ranges


def embed(database: Database, kind: Kind, ranges: Sequence[CaseRange], teller: Teller, space: Space = SPACE) -> int:
    done = Embedding()
    embed_missing(database, space, kind, ranges, teller, Account("test"), lambda _: None, done)
    return done.embedded


def vectors(database: Database, kind: Kind, space: Space = SPACE) -> dict[bytes, NDArray[np.float32]]:
    query = f"SELECT text_hash, embedding::real[] FROM {space.name}.{kind}_embeddings"
    return {bytes(key): np.asarray(vector, np.float32) for key, vector in rows(database, query)}


TITLES = [f"Title {n % 12}" for n in range(40)]


def test_each_distinct_text_is_paid_for_once(clean_database: Database, tmp_path: Path) -> None:
    ranges = stage(clean_database, tmp_path, TITLES)
    assert len(ranges) == 4
    ensure_space(clean_database, SPACE)
    teller = Teller()
    told: list[int] = []
    first = Embedding()
    embed_missing(clean_database, SPACE, "doc", ranges[:1], teller, Account("test"), told.append, first)
    assert first.partitions[ranges[0].key] == Embedded(
        rows=10, texts=10, embedded=10, characters=sum(map(len, teller.given))
    )
    assert sum(told) == 10
    assert embed(clean_database, "doc", ranges[1:], teller) == 2
    assert embed(clean_database, "step", ranges, teller) == 8
    assert set(Counter(teller.given).values()) == {1}
    assert set(teller.given) == {f"Title {n}\n" for n in range(12)} | {"Log in\nok"} | {f"Do {n}\n" for n in range(7)}
    again = Teller()
    for kind in KINDS:
        assert embed(clean_database, kind, ranges, again) == 0
    assert (again.calls, again.given) == (0, [])


def test_only_what_is_new_is_paid_for(clean_database: Database, tmp_path: Path) -> None:
    ensure_space(clean_database, SPACE)
    ranges = stage(clean_database, tmp_path, TITLES)
    embed(clean_database, "doc", ranges, Teller())
    ranges = stage(clean_database, tmp_path, [*TITLES[:-1], "A new title"])
    teller = Teller()
    assert embed(clean_database, "doc", ranges, teller) == 1
    assert teller.given == ["A new title\n"]


def test_stored_vectors_are_those_of_their_texts(clean_database: Database, tmp_path: Path) -> None:
    ranges = stage(clean_database, tmp_path, TITLES)
    ensure_space(clean_database, SPACE)
    teller = Teller()
    for kind in KINDS:
        teller.given.clear()
        embed(clean_database, kind, ranges, teller)
        stored = vectors(clean_database, kind)
        expected = lexical.embed(teller.given, 64).astype(np.float16).astype(np.float32)
        assert stored.keys() == {text_hash(text) for text in teller.given}
        for text, vector in zip(teller.given, expected, strict=True):
            assert stored[text_hash(text)].tobytes() == vector.tobytes()
    found = rows(clean_database, f"SELECT DISTINCT provenance FROM {SPACE.name}.doc_embeddings")
    assert found == [("teller",)]


@pytest.mark.parametrize("kind", KINDS)
def test_two_runs_at_the_same_time_pay_once(clean_database: Database, tmp_path: Path, kind: Kind) -> None:
    ranges = stage(clean_database, tmp_path, TITLES)
    ensure_space(clean_database, SPACE)
    teller = Teller(seconds=0.01, inputs=2)
    with Database(clean_database.url) as other, ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(embed, clean_database, kind, ranges, teller),
            pool.submit(embed, other, kind, list(reversed(ranges)), teller),
        ]
        embedded = [run.result(timeout=60) for run in runs]
    distinct = {"doc": 12, "step": 8}[kind]
    assert sum(embedded) == len(teller.given) == len(set(teller.given)) == distinct
    assert len(vectors(clean_database, kind)) == distinct


def test_without_the_lock_two_runs_would_pay_twice(
    clean_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault the lock is for, planted: the test above would see it."""
    monkeypatch.setattr(Database, "exclusive", lambda self, name: self.connection(name, long=True))
    ranges = stage(clean_database, tmp_path, TITLES, target=100)
    ensure_space(clean_database, SPACE)
    teller, both = Teller(inputs=2), threading.Barrier(2)

    class Meeting(Teller):
        def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
            if self.calls == 0:
                both.wait(30)  # both have asked which texts are missing
            self.calls += 1
            return teller.embed(texts)

    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(embed, clean_database, "doc", ranges, Meeting(inputs=2)) for _ in range(2)]
        errors = [run.exception(timeout=60) for run in runs]
    assert max(Counter(teller.given).values()) == 2
    assert any(errors), "the key of the table refuses the second vector, after it was paid for"


@pytest.mark.parametrize("fails_at", [1, 3])
def test_what_was_paid_for_before_a_failure_is_kept(clean_database: Database, tmp_path: Path, fails_at: int) -> None:
    ranges = stage(clean_database, tmp_path, TITLES, target=100)
    ensure_space(clean_database, SPACE)
    first = Teller(fails_at=fails_at, inputs=3)
    with pytest.raises(ConnectionError, match="the provider is gone"):
        embed(clean_database, "doc", ranges, first)
    assert len(vectors(clean_database, "doc")) == len(first.given) == 3 * (fails_at - 1)
    second = Teller()
    assert embed(clean_database, "doc", ranges, second) == 12 - len(first.given)
    assert set(first.given).isdisjoint(second.given), "nothing is paid for again"
    assert len(vectors(clean_database, "doc")) == 12


def one(vectors: NDArray[np.float32], value: float, column: slice | int = slice(None)) -> NDArray[np.float32]:
    vectors[-1, column] = value
    return vectors


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda v: v[:-1], r"returned \(11, 64\) for 12 texts of 64 dimensions"),
        (lambda v: v[:, :-1], r"returned \(12, 63\) for 12 texts of 64 dimensions"),
        (lambda v: v.T, r"returned \(64, 12\)"),
        (lambda v: one(v, 0.0), "zero or not finite"),
        (lambda v: one(v, np.nan, 5), "zero or not finite"),
        (lambda v: one(v, np.inf, 5), "zero or not finite"),
        (lambda v: v * np.float32(3), "not of length 1"),
        (lambda v: one(v, 1e-6), "not of length 1"),
    ],
)
def test_an_unsound_vector_is_never_stored(clean_database: Database, tmp_path: Path, spoil: Spoil, told: str) -> None:
    ranges = stage(clean_database, tmp_path, TITLES, target=100)
    ensure_space(clean_database, SPACE)
    with pytest.raises(ValueError, match=told):
        embed(clean_database, "doc", ranges, Teller(spoil=spoil))
    assert vectors(clean_database, "doc") == {}
    assert embed(clean_database, "doc", ranges, Teller()) == 12


def test_vectors_are_checked_in_memory_already() -> None:
    check_vectors(lexical.embed(["a", "b"], 64), 2, 64)
    with pytest.raises(ValueError, match="for 3 texts"):
        check_vectors(lexical.embed(["a", "b"], 64), 3, 64)


def test_a_text_that_is_not_the_one_of_its_hash_stops_the_run(clean_database: Database, tmp_path: Path) -> None:
    ranges = stage(clean_database, tmp_path, TITLES)
    ensure_space(clean_database, SPACE)
    execute(clean_database, "UPDATE staging.test_documents SET title = 'tampered' WHERE case_id = 5")
    teller = Teller()
    with pytest.raises(ValueError, match="hash of another text than 'tampered"):
        embed(clean_database, "doc", ranges, teller)
    assert vectors(clean_database, "doc") == {}


def test_long_texts_close_a_batch_early(clean_database: Database, tmp_path: Path) -> None:
    ranges = stage(clean_database, tmp_path, [f"{n} " + "x" * 1500 for n in range(6)])
    ensure_space(clean_database, SPACE)
    teller = Teller(characters=3100)
    assert embed(clean_database, "doc", ranges, teller) == 6
    assert teller.calls == 3


def test_vectors_may_be_kept_bit_exact(clean_database: Database, tmp_path: Path) -> None:
    exact = Space("space_exact_64", "lexical-v1", 64, "vector")
    ranges = stage(clean_database, tmp_path, TITLES)
    ensure_space(clean_database, exact)
    teller = Teller()
    assert embed(clean_database, "doc", ranges, teller, exact) == 12
    stored = vectors(clean_database, "doc", exact)
    # A batch's neighbours move the last bit of a vector, so the same batches are embedded again.
    for text in teller.given:
        assert np.abs(stored[text_hash(text)] - lexical.embed([text], 64)[0]).max() < 1e-6
    differ = [np.any(vector != vector.astype(np.float16)) for vector in stored.values()]
    assert all(differ), "float32, not half precision"


def test_spaces_lie_beside_one_another(clean_database: Database, tmp_path: Path) -> None:
    other = Space("space_lexical_32", "lexical-v1", 32, "halfvec")
    ranges = stage(clean_database, tmp_path, TITLES)
    for each in (SPACE, other):
        ensure_space(clean_database, each)
        assert embed(clean_database, "doc", ranges, Teller(each.dimensions), each) == 12
    assert {len(vector) for vector in vectors(clean_database, "doc", other).values()} == {32}
    assert {len(vector) for vector in vectors(clean_database, "doc").values()} == {64}
