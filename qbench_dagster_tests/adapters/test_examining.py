"""Examining stored vectors: each fault is planted in a real table and seen, and nothing is seen in a clean one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qbench_dagster.adapters import examining
from qbench_dagster.adapters.embedders import AtRisk, EmbeddingError, LexicalEmbedder
from qbench_dagster.adapters.examining import examine
from qbench_dagster.adapters.ledger import Account
from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.space import KINDS, Kind, Space
from qbench_dagster.adapters.vectors import vector_text
from qbench_dagster.core.lexical import embed
from qbench_dagster.core.recall import SAMPLES
from qbench_dagster.core.requests import Answer, Limits
from qbench_dagster.core.texts import doc_text, text_hash
from qbench_dagster.core.verdict import Examined
from qbench_dagster_tests.support import case, execute, rows, run_pipeline, write_export

SPACE = Space("space_lexical_384", LexicalEmbedder.model, 384, "halfvec")
CASES = 700
TABLE = f"{SPACE.name}.doc_embeddings"
LONG = "A long text about the login. " * 12


class Paid(LexicalEmbedder):
    """The lexical embedder as one that costs a token a character; `answers` until it fails."""

    paid = True

    def __init__(self, answers: int = 1000) -> None:
        super().__init__(SPACE.dimensions)
        self.asked: list[str] = []
        self.answers = answers

    def request(self, texts: Sequence[str], at_risk: AtRisk | None = None) -> Answer:
        if not self.answers:
            assert at_risk is not None
            at_risk(4)  # tried twice: what the first may have cost is booked before the second
            raise EmbeddingError("the service is out of order", tokens_at_risk=7)
        self.answers -= 1
        self.asked += texts
        return Answer(self.embed(texts), sum(map(len, texts)))


@pytest.fixture(scope="module")
def loaded(module_database: Database, tmp_path_factory: pytest.TempPathFactory) -> Database:
    """700 cases, two of which differ in case only: they have one lexical vector."""
    cases = [
        case(n, f"Case {n} of the {n % 13}th kind", steps=f"Do the thing {n} with care\nand again {n}")
        for n in range(1, CASES - 2)
    ]
    cases += [case(CASES - 2, "LOG OUT"), case(CASES - 1, "log out"), case(CASES, LONG)]
    run_pipeline(module_database, write_export(tmp_path_factory.mktemp("export") / "export.db", cases), space=SPACE)
    execute(module_database, f"CREATE TABLE {SPACE.name}.saved AS TABLE {TABLE}")
    return module_database


@pytest.fixture
def filled(loaded: Database) -> Iterator[Database]:
    """The loaded database; what a test plants in the vectors of cases is undone after it."""
    yield loaded
    execute(loaded, "DELETE FROM store.embedding_requests")
    execute(loaded, f"TRUNCATE {TABLE}")
    execute(loaded, f"INSERT INTO {TABLE} SELECT * FROM {SPACE.name}.saved")


def look(database: Database, embedder: Any = None, kind: Kind = "doc", sample: int = 0, **named: Any) -> Examined:
    embedder = embedder or LexicalEmbedder(SPACE.dimensions)
    return examine(database, SPACE, kind, embedder, fresh_sample=sample, progress=lambda _: None, **named)


def found_in(examined: Examined) -> dict[str, int]:
    return {**examined.errors, **examined.warnings}


def hash_of(number: int) -> bytes:
    return text_hash(doc_text(f"Case {number} of the {number % 13}th kind", None))


def plant(database: Database, number: int, vector: NDArray[np.float32]) -> str:
    """Give a case's text another vector; returns the text's hash."""
    execute(database, f"UPDATE {TABLE} SET embedding = %s::halfvec WHERE text_hash = %s", vector_text(vector),
            hash_of(number))  # fmt: skip
    return hash_of(number).hex()


def unit(values: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(values / np.linalg.norm(values), dtype=np.float32)


def generator(seed: int = 1) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


REAL = embed([doc_text("Case 9 of the 9th kind", None)], SPACE.dimensions)[0]
FAULTS = {
    # what is planted: (the vector, what a free embedder makes of it, what is seen without embedding anything again)
    "zero": (np.zeros(384, np.float32), "zero", "zero"),
    "thrice as long": (3 * REAL, "wrong_norm", "wrong_norm"),
    "all equal": (unit(np.ones(384)), "disagrees", "constant"),
    "two values": (unit(generator().choice([-1.0, 1.0], 384)), "disagrees", "constant"),
    "normal": (unit(generator().standard_normal(384)), "disagrees", "random"),
    "all positive": (unit(generator().random(384)), "disagrees", "random"),
    "shuffled": (generator().permutation(REAL), "disagrees", "random"),
    "another text's": (embed(["Case 8 of the 8th kind\n"], 384)[0], "disagrees", "duplicate"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_clean_table_gives_none(filled: Database, kind: Kind) -> None:
    read: list[int] = []
    found = examine(filled, SPACE, kind, LexicalEmbedder(384), fresh_sample=0, progress=read.append)
    assert found_in(found) == {}
    assert found.passed
    assert not any(found.suspects.values())
    assert found.rows == sum(read) == {"doc": CASES, "step": CASES - 3}[kind]
    assert found.cannot_tell is None
    assert found.typical is not None
    assert found.chance is not None
    assert found.typical > 2 * found.chance
    assert (found.fresh, found.tokens, found.unconfirmed) == (None, 0, 0)
    assert found.cleared == (2 if kind == "doc" else 0), "LOG OUT and log out have one vector, and rightly"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(filled: Database, fault: str) -> None:
    vector, judged, suspected = FAULTS[fault]
    planted = plant(filled, 7, vector)
    found = look(filled)
    assert found_in(found) == {judged: 1}
    assert not found.passed
    (suspect,) = found.suspects[judged]
    assert (suspect.text_hash, suspect.case_id, suspect.text) == (planted, 7, "Case 7 of the 7th kind")
    assert suspect.provenance == "lexical"
    assert suspect.detail
    paid = Paid()
    found = look(filled, paid)
    # LOG OUT and log out share a vector too: without embedding them again nobody can say whether they may.
    assert found_in(found) == {suspected: 1, "duplicate": 2 if suspected == "duplicate" else 1}
    assert found.passed is (suspected in ("random", "duplicate"))
    assert paid.asked == []
    assert (found.cleared, found.tokens) == (0, 0)


def test_texts_that_share_a_vector_are_both_named(filled: Database) -> None:
    found = look(filled, Paid())
    (suspect,) = found.suspects["duplicate"]
    assert {suspect.case_id, suspect.text} < {CASES - 2, "LOG OUT", CASES - 1, "log out"}
    (other,) = {"LOG OUT", "log out"} - {suspect.text}
    assert repr(other) in suspect.detail
    assert "2 texts" in suspect.detail
    assert found.unconfirmed == 2


def test_a_vector_that_is_not_a_number_is_found(filled: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """pgvector lets none in: only a damaged page holds one."""
    real = examining.scan_vectors

    def damaged(*given: Any) -> Any:
        for hashes, vectors in real(*given):
            vectors[hashes.index(hash_of(7)), 5] = np.nan
            yield hashes, vectors

    monkeypatch.setattr(examining, "scan_vectors", damaged)
    found = look(filled)
    assert found_in(found) == {"not_finite": 1}
    assert found.suspects["not_finite"][0].case_id == 7


def test_ten_are_listed_and_all_are_counted(filled: Database) -> None:
    for number in range(20, 35):
        plant(filled, number, np.zeros(384, np.float32))
    found = look(filled)
    assert found_in(found) == {"zero": 15}
    assert len(found.suspects["zero"]) == SAMPLES


def test_a_vector_whose_text_no_case_has_is_examined_too(filled: Database) -> None:
    gone = hashlib.sha256(b"gone").digest()
    execute(filled, f"INSERT INTO {TABLE} (text_hash, embedding, provenance) VALUES (%s, %s::halfvec, 'qdrant')", gone,
            vector_text(unit(generator().standard_normal(384))))  # fmt: skip
    found = look(filled, sample=1000)
    assert found_in(found) == {"random": 1}
    assert found.unconfirmed == 1
    (suspect,) = found.suspects["random"]
    assert (suspect.text_hash, suspect.text, suspect.case_id) == (gone.hex(), None, None)
    assert suspect.provenance == "qdrant"


# The fresh sample


def test_a_sample_is_drawn_from_texts_that_cases_have(filled: Database) -> None:
    """Texts that changed leave their vectors behind; such a one may even be what another text has now."""
    execute(filled, f"""INSERT INTO {TABLE} (text_hash, embedding, provenance)
                        SELECT sha256(text_hash), embedding, provenance FROM {SPACE.name}.saved""")  # fmt: skip
    found = look(filled, sample=10)
    assert found.fresh is not None
    assert found.fresh.texts == 10
    assert (found.rows, found_in(found), found.cleared, found.unconfirmed) == (2 * CASES, {}, CASES, CASES)


def test_a_sound_looking_vector_of_another_text_is_seen_by_the_fresh_sample(filled: Database) -> None:
    planted = plant(filled, 7, embed(["Case 7,007 of the other kind"], 384)[0])
    assert found_in(look(filled)) == {}
    found = look(filled, sample=1000)
    assert found_in(found) == {"disagrees": 1}
    assert found.suspects["disagrees"][0].text_hash == planted
    assert found.fresh is not None
    assert found.fresh.texts == CASES
    assert (found.fresh.min_cosine or 0) < 0.98
    assert (found.fresh.median_cosine or 0) > 0.999


def test_a_sample_is_the_same_every_time_and_no_larger_than_asked(filled: Database) -> None:
    first, second = Paid(), Paid()
    found = look(filled, first, sample=10, account=Account("test", 1.0))
    look(filled, second, sample=10, account=Account("test", 1.0))
    assert len(first.asked) == 10
    assert first.asked == second.asked
    assert found.fresh is not None
    assert found.fresh.texts == 8, "two went to LOG OUT and log out, which are cleared"
    assert (found.cleared, found_in(found)) == (2, {})
    assert found.tokens == sum(map(len, first.asked))


def test_suspects_take_half_of_a_paid_sample_at_most(filled: Database) -> None:
    for number in range(20, 40):
        plant(filled, number, unit(generator(number).standard_normal(384)))
    paid = Paid()
    found = look(filled, paid, sample=10, account=Account("test"))
    assert len(paid.asked) == 10
    assert found.fresh is not None
    assert found.fresh.texts == 5
    assert found.counts["disagrees"] >= 5
    assert found.counts["disagrees"] + found.counts["random"] == 20
    assert found.unconfirmed <= 17, "a suspect may be drawn for the sample as well"


def test_a_paid_sample_is_entered_into_the_ledger(filled: Database) -> None:
    found = look(filled, Paid(), sample=10, account=Account("run 1", 2.0))
    entered = rows(filled, "SELECT space, kind, model, run_id, state, texts, tokens, usd FROM store.embedding_requests")
    assert entered == [(SPACE.name, "doc", LexicalEmbedder.model, "run 1", "answered", 10, found.tokens,
                        pytest.approx(found.tokens * 2e-6))]  # fmt: skip
    with pytest.raises(ValueError, match="account"):
        look(filled, Paid(), sample=10)


def test_a_budget_ends_the_sample_and_not_the_check(filled: Database) -> None:
    plant(filled, 7, np.zeros(384, np.float32))
    paid = Paid()
    found = look(filled, paid, sample=10, account=Account("test", 2.0, max_usd=1e-6))
    assert "QBENCH_MAX_USD" in (found.fresh_failed or "")
    assert paid.asked == []
    assert found.errors == {"zero": 1}
    assert not found.passed
    found = look(filled, paid, sample=10, account=Account("test", None, max_usd=1.0))
    assert "price" in (found.fresh_failed or "")


def test_a_service_that_fails_is_told_and_entered(filled: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examining, "BATCH", 4)
    found = look(filled, Paid(answers=1), sample=10, account=Account("test", 1e6))
    assert found.fresh_failed == "the service is out of order"
    assert not found.passed
    assert found.cleared == 2, "what was answered before counts"
    states = rows(filled, "SELECT state, usd_at_risk FROM store.embedding_requests ORDER BY id")
    assert states == [("answered", 0.0), ("failed", 7.0)]


def test_long_texts_are_embedded_again_in_pieces_as_they_were_stored(filled: Database) -> None:
    class Short(LexicalEmbedder):
        limits = Limits(inputs=3, tokens_per_input=60, tokens_per_request=150)
        longest = 0

        def request(self, texts: Sequence[str], at_risk: AtRisk | None = None) -> Answer:
            assert len(texts) <= 3
            assert sum(map(len, texts)) <= 150
            self.longest = max(self.longest, *map(len, texts))
            return super().request(texts, at_risk)

    short = Short(384)
    found = look(filled, short, sample=1000)
    assert short.longest <= 60
    assert found.fresh is not None
    assert found.fresh.texts == CASES
    assert (found.fresh.min_cosine or 0) > 0.9, "the mean of the pieces is near what the whole text gives"


# What it holds meanwhile


def test_nobody_is_locked_out_while_it_reads(filled: Database) -> None:
    held: set[str] = set()

    def watch(_: int) -> None:
        query = """SELECT DISTINCT l.mode FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
                   JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND l.pid <> pg_backend_pid()"""
        held.update(mode for (mode,) in rows(filled, query, SPACE.name))
        execute(filled, f"UPDATE {TABLE} SET provenance = 'while it reads' WHERE text_hash = %s", hash_of(7))

    examine(filled, SPACE, "doc", LexicalEmbedder(384), fresh_sample=0, progress=watch)
    assert held <= {"AccessShareLock"}
    assert rows(filled, f"SELECT count(*) FROM {TABLE} WHERE provenance = 'while it reads'") == [(1,)]


def test_an_empty_table_is_no_fault(filled: Database) -> None:
    execute(filled, f"TRUNCATE {TABLE}")
    found = look(filled, sample=10)
    assert (found.rows, found_in(found), found.references) == (0, {}, 0)
    assert "too few" in (found.cannot_tell or "")
    assert found.fresh is not None
    assert (found.fresh.texts, found.fresh.min_cosine, found.chance) == (0, None, None)
