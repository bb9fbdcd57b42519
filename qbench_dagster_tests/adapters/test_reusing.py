"""Vectors of old stores: each is taken or refused for the right reason, equals its source, and the plan is kept."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from psycopg.types.json import Jsonb

from qbench_dagster.adapters.faiss_source import FaissSource
from qbench_dagster.adapters.landing import land_cases, land_lookups
from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.qdrant_source import QdrantSource
from qbench_dagster.adapters.reuse_pass import Reused
from qbench_dagster.adapters.reusing import check_read, list_refused, reusable_vectors, reuse_vectors
from qbench_dagster.adapters.sample_writer import write_sample
from qbench_dagster.adapters.space import KINDS, Kind, Space, ensure_space, store_vectors
from qbench_dagster.adapters.staging import load_lookups, stage_cases
from qbench_dagster.adapters.testrail_export import TestRailExport
from qbench_dagster.adapters.vector_source import Batch, SourceError, VectorSource
from qbench_dagster.core import lexical
from qbench_dagster.core.folders import section_paths
from qbench_dagster.core.ranges import plan_bounds, range_key, ranges_of
from qbench_dagster.core.reuse import VALUE_TOLERANCE, Refusal
from qbench_dagster.core.texts import doc_text, step_text, text_hash
from qbench_dagster_tests.support import REAL_EXPORT, SPACE, case, execute, rows, write_export

faiss = pytest.importorskip("faiss", reason="faiss-cpu is not installed (pip install -e '.[faiss]')")
qdrant_client = pytest.importorskip("qdrant_client", reason="qdrant-client is not installed (pip install '.[qdrant]')")
from qdrant_client import QdrantClient, models  # noqa: E402

Payload = dict[str, Any]
Vector = NDArray[np.float32]


@dataclass
class Point:
    """A point of an old store, and what should become of it: None means it is taken."""

    payload: Payload
    vector: Vector
    fate: Refusal | None = None


def stage(database: Database, path: Path, cases: int = 5000) -> None:
    """Land and stage the first `cases` of an export."""
    with TestRailExport(path) as export:
        keys = map(range_key, plan_bounds(export.case_ids(), [], cases))
        first = next(iter(ranges_of(list(keys)).values()))
        land_lookups(database, export, section_paths)
        land_cases(database, export, first, max_delete_share=1.0)
    stage_cases(database, load_lookups(database), first, lambda _: None)


def staged(database: Database) -> dict[Kind, list[tuple[Payload, str]]]:
    """The predecessor's payload of every staged case and step, steps counted from 0, and the text of each."""
    docs = rows(database, "SELECT case_id, uid, title, description FROM staging.test_documents ORDER BY case_id")
    steps = rows(
        database, "SELECT case_id, step_index, action, expected FROM staging.test_steps ORDER BY case_id, step_index"
    )
    return {
        "doc": [
            (
                {"uid": uid, "testCaseId": number, "title": title, "description": description, "priority": "High"},
                doc_text(title, description),
            )
            for number, uid, title, description in docs
        ],
        "step": [
            (
                {
                    "parent_uid": f"testrail_{number}",
                    "parent_testCaseId": number,
                    "step_index": index - 1,
                    "action": action,
                    "expected": expected,
                },
                step_text(action, expected),
            )
            for number, index, action, expected in steps
        ],
    }


def old_vectors(texts: Sequence[str], seed: int = 1, dimensions: int = SPACE.dimensions) -> Vector:
    """Of each text a vector of no particular length, the same for the same text."""
    distinct = {text: n for n, text in enumerate(dict.fromkeys(texts))}
    made = np.random.Generator(np.random.PCG64(seed)).standard_normal((len(distinct), dimensions))
    return np.asarray(made * 3, np.float32)[[distinct[text] for text in texts]]


def faiss_store(folder: Path, points: Mapping[Kind, Sequence[Point]], factory: str = "Flat") -> FaissSource:
    """An index of each kind, its rows beside it; with sparse ids where the index takes such."""
    sparse = factory.startswith(("IDMap", "IVF"))
    folder.mkdir(exist_ok=True)
    files: dict[Kind, tuple[Path, Path | None]] = {}
    for kind, held in points.items():
        path = folder / f"{kind}.faiss"
        vectors = np.stack([point.vector for point in held])
        index = faiss.index_factory(vectors.shape[1], factory)
        index.train(vectors)
        if sparse:
            index.add_with_ids(vectors, np.arange(len(held), dtype=np.int64) * 49_711 + 729)
        else:
            index.add(vectors)
        faiss.write_index(index, str(path))
        said = [{"faiss_id": n * 49_711 + 729 if sparse else n, **point.payload} for n, point in enumerate(held)]
        path.with_suffix(".json").write_text(json.dumps(said))
        files[kind] = (path, None)
    return FaissSource(files)


def reuse(
    database: Database,
    *sources: VectorSource,
    space: Space = SPACE,
    model: str | None = SPACE.model,
    quantized: bool = False,
    dry_run: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Reused]:
    return reuse_vectors(
        database, space, sources, declared_model=model, allow_quantized=quantized, dry_run=dry_run, progress=progress
    )


def stored(database: Database, kind: Kind, space: Space = SPACE) -> dict[bytes, tuple[Vector, str]]:
    query = f"SELECT text_hash, embedding::real[], provenance FROM {space.name}.{kind}_embeddings"
    return {bytes(key): (np.asarray(v, np.float32), by) for key, v, by in rows(database, query)}


def written(database: Database) -> list[tuple[Any, ...]]:
    """Everything a pass writes."""
    spaces = rows(database, "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'space%%'")
    return [
        *rows(database, "SELECT count(*) FROM store.source_points"),
        *rows(database, "SELECT count(*) FROM store.reuse_passes"),
        *(
            count
            for (name,) in sorted(spaces)
            for kind in KINDS
            for count in rows(database, f"SELECT count(*) FROM {name}.{kind}_embeddings")
        ),
    ]


def assert_accounted(passes: Sequence[Reused]) -> None:
    for done in passes:
        for tally in done.kinds.values():
            assert tally.points == tally.taken + tally.kept + tally.refused.total()
            assert tally.unequal == 0
            assert tally.max_error <= VALUE_TOLERANCE


def fates(points: Sequence[Point]) -> dict[str, int]:
    return dict(Counter(point.fate.value for point in points if point.fate is not None))


# The whole of it, on thousands of cases


def plant(held: list[tuple[Payload, str]], kind: Kind) -> list[Point]:
    """Points of all rows with faults among them, in the order they are read: of a text's copies the first is taken."""
    vectors = old_vectors([text for _, text in held])
    random = np.random.Generator(np.random.PCG64(8))
    points: list[Point] = []
    seen: set[str] = set()

    def add(n: int, fate: Refusal | None, vector: Vector | None = None, **changes: Any) -> None:
        points.append(Point({**held[n][0], **changes}, vectors[n] if vector is None else vector, fate))

    part = "title" if kind == "doc" else "action"
    for n, (payload, text) in enumerate(held):
        first = text not in seen
        if n % 97 == 0:
            add(n, Refusal.STALE_TEXT, **{part: payload[part] + " as it was"})
        if n % 101 == 0:
            add(n, Refusal.ZERO, np.zeros_like(vectors[n]))
        if n % 103 == 0:
            add(n, Refusal.OTHER_MODEL, embedding_model="text-embedding-ada-002")
        if n % 107 == 0:
            other = {"testCaseId": 2**40 + n, "parent_testCaseId": None, "uid": None, "parent_uid": None}
            add(n, Refusal.UNKNOWN_CASE, **other)
        if n % 109 == 0:
            add(n, Refusal.UNMATCHED_PAYLOAD, testCaseId=None, parent_testCaseId=None, uid=None, parent_uid=None)
        if n % 113 == 0:
            add(n, Refusal.NO_TEXT, **{part: None if kind == "doc" else 7, "title": 7})
        if n % 11 == 0:
            continue  # the old store has not all of them
        add(n, None if first else Refusal.DUPLICATE)
        seen.add(text)
        if n % 127 == 0:
            add(n, Refusal.DUPLICATE, vectors[n] * 0.5)
        if n % 131 == 0:
            add(n, Refusal.CONFLICTING_DUPLICATE, random.standard_normal(len(vectors[n])).astype(np.float32))
    return points


def write_qdrant(path: Path, points: Mapping[Kind, Sequence[Point]]) -> None:
    """A folder of Qdrant: UUIDs, in the order of the points."""
    client = QdrantClient(path=str(path))
    for kind, held in points.items():
        name = f"test_{kind}s"
        client.create_collection(
            name, vectors_config=models.VectorParams(size=SPACE.dimensions, distance=models.Distance.DOT)
        )
        storage = client._client.collections[name].storage  # type: ignore[attr-defined]
        storage.storage.execute("PRAGMA synchronous = OFF")
        storage.storage.execute("PRAGMA journal_mode = MEMORY")
        client.upsert(
            name,
            [
                models.PointStruct(
                    id=str(uuid.UUID(int=n * 2**90, version=4)), vector=p.vector.tolist(), payload=p.payload
                )
                for n, p in enumerate(held)
            ],
        )
    client.close()


@pytest.fixture(params=[("sample", "IDMap,HNSW8"), ("real", "IVF16,Flat")], ids=["sample", "real"])
def thousands(
    request: pytest.FixtureRequest, clean_database: Database, tmp_path: Path
) -> tuple[dict[Kind, list[tuple[Payload, str]]], str]:
    """Some 5,000 cases and their steps, staged; and the type of FAISS index they are to lie in."""
    name, factory = request.param
    path = tmp_path / "sample.db"
    if name == "sample":
        write_sample(path, 4500, seed=11)
    elif REAL_EXPORT.exists():
        path = REAL_EXPORT
    else:
        pytest.skip("the shared export of real cases is not here")
    stage(clean_database, path, 4500)
    return staged(clean_database), factory


def test_every_point_is_taken_or_refused_for_the_right_reason(
    clean_database: Database, thousands: tuple[dict[Kind, list[tuple[Payload, str]]], str], tmp_path: Path
) -> None:
    everything, factory = thousands
    points = {kind: plant(everything[kind], kind) for kind in KINDS}
    assert sum(map(len, points.values())) > 10_000
    write_qdrant(tmp_path / "q", points)
    # FAISS holds all: what Qdrant gave is stored by then, the rest is new.
    vectors = {kind: old_vectors([text for _, text in held]) for kind, held in everything.items()}
    in_qdrant = {
        kind: {text for (_, text), n in zip(held, range(len(held)), strict=True) if n % 11}
        for kind, held in everything.items()
    }
    of_faiss: dict[Kind, list[Point]] = {kind: [] for kind in KINDS}
    for kind, held in everything.items():
        new: set[str] = set()
        for n, (payload, text) in enumerate(held):
            fate = Refusal.ALREADY_STORED if text in in_qdrant[kind] else Refusal.DUPLICATE if text in new else None
            new.add(text)
            of_faiss[kind].append(Point(payload, vectors[kind][n], fate))
    from_faiss = faiss_store(tmp_path / "f", of_faiss, factory)
    with QdrantSource(
        {"doc": "test_docs", "step": "test_steps"}, dimensions=SPACE.dimensions, path=tmp_path / "q"
    ) as from_qdrant:
        planned = reuse(clean_database, from_qdrant, from_faiss, dry_run=True)
        assert set(written(clean_database)) == {(0,)}
        told: list[int] = []
        done = reuse(clean_database, from_qdrant, from_faiss, progress=told.append)
        assert sum(told) == sum(map(len, [*points.values(), *of_faiss.values()]))
        assert_accounted(done)
        assert [each.counts() for each in planned] == [each.counts() for each in done], "the plan is what happens"
        for each, held_points in zip(done, (points, of_faiss), strict=True):
            for kind in KINDS:
                taken = sum(point.fate is None for point in held_points[kind])
                assert taken > 200
                assert each.kinds[kind].taken == taken
                assert each.counts()[kind]["refused"] == fates(held_points[kind])
        listed = {
            (entry["source"], entry["kind"], entry["point_id"]): entry["reason"]
            for entry in list_refused(clean_database, SPACE, limit=100_000)
        }
        planted = {
            ("qdrant", kind, str(uuid.UUID(int=n * 2**90, version=4))): point.fate
            for kind in KINDS
            for n, point in enumerate(points[kind])
        } | {
            ("faiss", kind, str(n * 49_711 + 729)): point.fate
            for kind in KINDS
            for n, point in enumerate(of_faiss[kind])
        }
        assert listed == {name: fate.value for name, fate in planted.items() if fate is not None}
        for kind in KINDS:
            truth = {
                text_hash(text): vector / np.linalg.norm(vector)
                for (_, text), vector in zip(everything[kind], vectors[kind], strict=True)
            }
            found = stored(clean_database, kind)
            assert set(found) == set(truth)
            for key, (vector, by) in found.items():
                assert np.linalg.norm(vector - truth[key]) <= VALUE_TOLERANCE
                assert np.abs(vector - truth[key]).max() <= VALUE_TOLERANCE
                assert by in ("qdrant", "faiss")
            assert {text for text in in_qdrant[kind] if found[text_hash(text)][1] != "qdrant"} == set()


# One thing at a time


@pytest.fixture
def few(clean_database: Database, tmp_path: Path) -> dict[Kind, list[tuple[Payload, str]]]:
    """Six cases of two steps: the first step is the same for all, and case 6 says what case 5 says."""
    steps = [[{"content": "Log in", "expected": "ok"}, {"content": f"Do {n}", "expected": ""}] for n in range(1, 7)]
    cases = [case(n, f"Title {min(n, 5)}", steps_separated=steps[n - 1]) for n in range(1, 7)]
    stage(clean_database, write_export(tmp_path / "few.db", cases))
    held = staged(clean_database)
    assert [len(held[kind]) for kind in KINDS] == [6, 12]
    return held


def points_of(held: Sequence[tuple[Payload, str]], seed: int = 1) -> list[Point]:
    return [
        Point(payload, vector)
        for (payload, _), vector in zip(held, old_vectors([text for _, text in held], seed), strict=True)
    ]


def refused(done: Reused, kind: Kind = "doc") -> dict[str, int]:
    return dict(done.counts()[kind]["refused"])


def test_nothing_is_assumed_of_the_model(clean_database: Database, few: Any, tmp_path: Path) -> None:
    source = faiss_store(tmp_path / "f", {"doc": points_of(few["doc"])})
    assert refused(reuse(clean_database, source, model=None)[0]) == {"unknown_model": 6}
    assert refused(reuse(clean_database, source, model="text-embedding-3-large")[0]) == {"other_model": 6}
    assert stored(clean_database, "doc") == {}
    assert reuse(clean_database, source)[0].kinds["doc"].taken == 5


def test_vectors_of_other_dimensions_are_refused(clean_database: Database, few: Any, tmp_path: Path) -> None:
    texts = [text for _, text in few["doc"]]
    points = [Point(p, v) for (p, _), v in zip(few["doc"], old_vectors(texts, dimensions=32), strict=True)]
    assert refused(reuse(clean_database, faiss_store(tmp_path / "f", {"doc": points}))[0]) == {"wrong_dimension": 6}


def test_lossy_vectors_are_taken_only_where_that_is_wanted(clean_database: Database, few: Any, tmp_path: Path) -> None:
    source = faiss_store(tmp_path / "f", {"doc": points_of(few["doc"])}, "SQ8")
    assert refused(reuse(clean_database, source)[0]) == {"quantized": 6}
    done = reuse(clean_database, source, quantized=True)
    assert_accounted(done)
    assert done[0].kinds["doc"].taken == 5


def test_a_step_is_matched_by_its_words_within_its_case(clean_database: Database, few: Any, tmp_path: Path) -> None:
    """Not by its index, of which nobody knows where it begins; and not with a case that has it not."""
    points = points_of(few["step"])
    for point in points:
        point.payload |= {"step_index": 99}
    points[1].payload |= {"parent_testCaseId": 2, "parent_uid": "testrail_2"}
    done = reuse(clean_database, faiss_store(tmp_path / "f", {"step": points}))
    assert done[0].kinds["step"].taken == 6
    assert refused(done[0], "step") == {"stale_text": 1, "duplicate": 5}


def test_a_case_that_changed_or_went_is_not_taken(clean_database: Database, few: Any, tmp_path: Path) -> None:
    source = faiss_store(tmp_path / "f", {kind: points_of(few[kind]) for kind in KINDS})
    steps = [{"content": "Log in", "expected": "ok"}, {"content": "Do something else", "expected": ""}]
    cases = [case(n, f"Title {n}{'!' * (n == 1)}", steps_separated=steps) for n in range(1, 5)]
    stage(clean_database, write_export(tmp_path / "few.db", cases))
    done = reuse(clean_database, source)[0]
    assert done.counts() == {
        "doc": {"points": 6, "taken": 3, "kept": 0, "refused": {"unknown_case": 2, "stale_text": 1}},
        "step": {"points": 12, "taken": 1, "kept": 0, "refused": {"unknown_case": 4, "stale_text": 4, "duplicate": 3}},
    }
    assert done.samples[Refusal.UNKNOWN_CASE] == [
        ("doc", "4", 5), ("doc", "5", 6), *(("step", str(n), 5 + (n > 9)) for n in (8, 9, 10, 11)),
    ]  # fmt: skip


def test_what_the_space_has_from_elsewhere_stays(clean_database: Database, few: Any, tmp_path: Path) -> None:
    ensure_space(clean_database, SPACE)
    points = points_of(few["doc"])[:3]
    here = lexical.embed([text for _, text in few["doc"]][:2], SPACE.dimensions)
    points[0].vector = here[0] * 2
    with clean_database.connection("test") as connection:
        hashes = [text_hash(text) for _, text in few["doc"]][:2]
        store_vectors(connection, SPACE, "doc", hashes, here, "openai")
    done = reuse(clean_database, faiss_store(tmp_path / "f", {"doc": points}))
    assert refused(done[0]) == {"already_stored": 1, "conflicting_duplicate": 1}
    assert_accounted(done)
    assert sorted(by for _, by in stored(clean_database, "doc").values()) == ["faiss", "openai", "openai"]


def test_a_dry_run_needs_no_space_and_makes_none(clean_database: Database, few: Any, tmp_path: Path) -> None:
    points = {kind: points_of(few[kind]) for kind in KINDS}
    source = faiss_store(tmp_path / "f", points)
    planned = reuse(clean_database, source, dry_run=True)
    assert rows(clean_database, "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'space%%'") == []
    assert rows(clean_database, "SELECT count(*) FROM store.spaces") == [(0,)]
    assert reuse(clean_database, source, dry_run=True)[0].counts() == planned[0].counts(), "it leaves nothing behind"
    assert reuse(clean_database, source)[0].counts() == planned[0].counts()
    assert reuse(clean_database, source, dry_run=True)[0].counts()["doc"]["kept"] == 5
    reusable = reusable_vectors(clean_database, SPACE, [source], SPACE.model, False, lambda _: None)
    assert reusable.hashes == {kind: {"faiss": {text_hash(text) for _, text in few[kind]}} for kind in KINDS}
    assert reusable.refused == {"faiss": {"duplicate": 6}}


def test_without_an_old_store_nothing_happens(clean_database: Database) -> None:
    assert reuse(clean_database) == []
    assert rows(clean_database, "SELECT count(*) FROM store.spaces") == [(0,)]
    assert reusable_vectors(clean_database, SPACE, [], None, False, lambda _: None).refused == {}


@pytest.mark.parametrize("vector_type", ["halfvec", "vector"])
def test_a_vector_that_was_changed_is_found(
    clean_database: Database, few: Any, tmp_path: Path, vector_type: str
) -> None:
    """One per cent of noise is enough, though its cosine is 0.99995."""
    space = Space("space_x", SPACE.model, 64, vector_type)
    source = faiss_store(tmp_path / "f", {"doc": points_of(few["doc"])})
    assert_accounted(reuse(clean_database, source, space=space))
    (key, vector), *_ = sorted((key, vector) for key, (vector, _) in stored(clean_database, "doc", space).items())
    random = np.random.Generator(np.random.PCG64(4)).standard_normal(64).astype(np.float32)
    changed = vector + random * 0.01 / np.linalg.norm(random)
    query = f"UPDATE space_x.doc_embeddings SET embedding = %s::public.{vector_type} WHERE text_hash = %s"
    execute(clean_database, query, str(changed.tolist()), key)
    done = reuse(clean_database, source, space=space)[0]
    assert done.kinds["doc"].unequal == 1
    assert done.kinds["doc"].max_error == pytest.approx(0.01, rel=0.1)
    assert done.unequal_samples[0][0] == "doc"
    execute(clean_database, query, str(vector.tolist()), key)
    assert_accounted(reuse(clean_database, source, space=space))


def test_one_of_several_points_of_a_text_is_enough(clean_database: Database, few: Any, tmp_path: Path) -> None:
    """A new point that comes before the one whose vector was taken makes that no other vector."""
    points = points_of(few["doc"])[:3]
    assert_accounted(reuse(clean_database, faiss_store(tmp_path / "f", {"doc": points})))
    newer = Point(points[1].payload, points[1].vector + np.float32(0.02))
    done = reuse(clean_database, faiss_store(tmp_path / "g", {"doc": [newer, *points]}))
    assert_accounted(done)
    assert done[0].kinds["doc"].kept == 3
    assert refused(done[0]) == {"duplicate": 1}
    alone = reuse(clean_database, faiss_store(tmp_path / "h", {"doc": [newer]}))
    assert alone[0].kinds["doc"].unequal == 1, "the store holds it no more"


def test_a_vector_a_case_and_a_step_share_is_no_changed_one(clean_database: Database, tmp_path: Path) -> None:
    """A step that says what a case says gets its vector, marked as the store's, before the store's own comes."""
    stage(
        clean_database, write_export(tmp_path / "one.db", [case(1, "Log in", steps_separated=[{"content": "Log in"}])])
    )
    held = staged(clean_database)
    assert held["doc"][0][1] == held["step"][0][1]
    reuse(clean_database, faiss_store(tmp_path / "f", {"doc": points_of(held["doc"])}))
    execute(clean_database, f"INSERT INTO {SPACE.name}.step_embeddings SELECT * FROM {SPACE.name}.doc_embeddings")
    points = points_of(held["step"])
    points[0].vector = points[0].vector + np.float32(0.02)
    done = reuse(clean_database, faiss_store(tmp_path / "f", {"step": points}))
    assert_accounted(done)
    assert refused(done[0], "step") == {"duplicate": 1}


def test_the_list_of_refused_points_is_of_the_last_pass(clean_database: Database, few: Any, tmp_path: Path) -> None:
    points = points_of(few["doc"])
    points[0].payload = {"title": "nobody's", "description": None}
    points[1].vector = np.zeros(SPACE.dimensions, np.float32)
    reuse(clean_database, faiss_store(tmp_path / "f", {"doc": points}))
    found = list_refused(clean_database, SPACE)
    assert [(each["point_id"], each["reason"], each["case_id"]) for each in found] == [
        ("5", "duplicate", 6),
        ("0", "unmatched_payload", None),
        ("1", "zero", 2),
    ]
    assert found[1]["text_hash"] == text_hash("nobody's\n").hex()
    assert [each["point_id"] for each in list_refused(clean_database, SPACE, reason=Refusal.ZERO)] == ["1"]
    assert list_refused(clean_database, SPACE, kind="step") == []
    assert len(list_refused(clean_database, SPACE, limit=2)) == 2
    reuse(clean_database, faiss_store(tmp_path / "g", {"doc": points_of(few["doc"])}))
    assert [each["reason"] for each in list_refused(clean_database, SPACE)] == ["duplicate"]
    passes = rows(
        clean_database, "SELECT source, description, counts, finished_at >= started_at FROM store.reuse_passes"
    )
    assert [source for source, *_ in passes] == ["faiss", "faiss"]
    assert passes[0][1] == f"FAISS {tmp_path / 'f' / 'doc.faiss'}"
    assert passes[1][2] == {"doc": {"points": 6, "taken": 2, "kept": 3, "refused": {"duplicate": 1}}}
    assert all(in_order for *_, in_order in passes)


def test_odd_ids_are_recorded(clean_database: Database, few: Any) -> None:
    class Odd:
        provenance = "qdrant"

        def describe(self) -> str:
            return "odd"

        def kinds(self) -> Sequence[Kind]:
            return ["doc"]

        def count(self, kind: Kind) -> int:  # noqa: ARG002
            return 3

        def read(self, kind: Kind) -> Iterator[Batch]:  # noqa: ARG002
            payloads: list[Payload] = [{}, {"testCaseId": 1, "text": "a\0b"}, few["doc"][0][0]]
            yield Batch(["a\0b", "\u4f60\U0001f600", "without"], payloads, [None] * 3, False)

    done = reuse(clean_database, Odd())[0]
    assert refused(done) == {"unmatched_payload": 1, "stale_text": 1, "no_vector": 1}
    assert [each["point_id"] for each in list_refused(clean_database, SPACE)] == [
        "without",
        "\u4f60\U0001f600",
        "a\\0b",
    ]


class StoppedError(Exception):
    """Raised in the middle of a pass."""


def test_a_pass_that_was_stopped_goes_on(clean_database: Database, few: Any, tmp_path: Path) -> None:
    """Batches that were through stay, what is listed is of the pass before, and the end is as of one pass."""
    points = points_of(few["doc"])
    broken = [Point({"title": "nobody's", "description": None}, points[0].vector)] * 3
    reuse(clean_database, faiss_store(tmp_path / "f", {"doc": broken}))
    before = list_refused(clean_database, SPACE)
    assert len(before) == 3
    source = faiss_store(tmp_path / "g", {kind: points_of(few[kind]) for kind in KINDS})

    def stop(_: int) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        reuse(clean_database, source, progress=stop)
    assert len(stored(clean_database, "doc")) == 5
    assert stored(clean_database, "step") == {}
    assert list_refused(clean_database, SPACE) == before
    assert rows(clean_database, "SELECT count(*) FROM store.reuse_passes") == [(1,)]
    done = reuse(clean_database, source)
    assert_accounted(done)
    assert (done[0].kinds["doc"].kept, done[0].kinds["step"].taken) == (5, 7)
    assert Counter(each["reason"] for each in list_refused(clean_database, SPACE)) == {"duplicate": 6}


def test_an_error_of_the_store_ends_the_pass(clean_database: Database, few: Any, tmp_path: Path) -> None:
    source = faiss_store(tmp_path / "f", {"doc": points_of(few["doc"])})

    def read(kind: Kind) -> Iterator[Batch]:
        yield from FaissSource.read(source, kind)
        raise SourceError("the server is gone")

    source.read = read  # type: ignore[method-assign]
    with pytest.raises(SourceError, match="the server is gone"):
        reuse(clean_database, source)
    assert rows(clean_database, "SELECT count(*) FROM store.reuse_passes") == [(0,)]


def test_whoever_writes_vectors_waits_for_the_pass(clean_database: Database, few: Any, tmp_path: Path) -> None:
    source = faiss_store(tmp_path / "f", {"doc": points_of(few["doc"])})
    free: list[bool] = []

    def look(_: int) -> None:
        query = "SELECT pg_try_advisory_lock(hashtext(%s)), pg_advisory_unlock_all()"
        free.append(rows(clean_database, query, f"{SPACE.name}.embeddings")[0][0])

    reuse(clean_database, source, progress=look)
    reuse(clean_database, source, dry_run=True, progress=look)
    assert free == [False, True], "a plan keeps nobody waiting"


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(["same", "near", "far", "zero", "stale", "nobody"])),
        min_size=1, max_size=25,
    )
)  # fmt: skip
def test_any_order_of_points(
    clean_database: Database,
    few: Any,
    tmp_path: Path,
    drawn: list[tuple[int, str]],
) -> None:
    """The first sound point of a text gives the vector, whatever comes before and after; the plan says so."""
    held = few["doc"]
    vectors = old_vectors([text for _, text in held])
    others = old_vectors([text for _, text in held], seed=2)
    made = {
        "same": vectors, "near": vectors + np.float32(0.02), "far": others, "zero": vectors * 0, "stale": vectors,
        "nobody": vectors,
    }  # fmt: skip
    points: list[Point] = []
    first: dict[str, Vector] = {}
    for n, what in drawn:
        payload, text = held[n]
        vector = made[what][n]
        fate: Refusal | None = {
            "zero": Refusal.ZERO, "stale": Refusal.STALE_TEXT, "nobody": Refusal.UNMATCHED_PAYLOAD,
        }.get(what)  # fmt: skip
        if fate is None and text in first:
            a, b = first[text], vector
            same = a @ b / np.linalg.norm(a) / np.linalg.norm(b) >= 0.999
            fate = Refusal.DUPLICATE if same else Refusal.CONFLICTING_DUPLICATE
        elif fate is None:
            first[text] = vector
        changes: Payload = {"stale": {"title": "was"}, "nobody": {"testCaseId": None, "uid": None}}.get(what, {})
        points.append(Point({**payload, **changes}, vector, fate))
    execute(clean_database, f"DROP SCHEMA IF EXISTS {SPACE.name} CASCADE")
    execute(clean_database, "DELETE FROM store.spaces")
    source = faiss_store(tmp_path / "f", {"doc": points})
    planned = reuse(clean_database, source, dry_run=True)[0].counts()
    done = reuse(clean_database, source)
    assert_accounted(done)
    assert planned == done[0].counts()
    assert done[0].kinds["doc"].taken == len(first)
    assert refused(done[0]) == fates(points)
    found = stored(clean_database, "doc")
    assert set(found) == set(map(text_hash, first))
    for text, vector in first.items():
        assert np.linalg.norm(found[text_hash(text)][0] - vector / np.linalg.norm(vector)) <= VALUE_TOLERANCE
    again = reuse(clean_database, source)
    assert_accounted(again)
    assert (again[0].kinds["doc"].kept, refused(again[0])) == (len(first), fates(points))


def test_embedding_waits_until_the_store_was_read(clean_database: Database, few: Any, tmp_path: Path) -> None:
    source = faiss_store(tmp_path, {"doc": points_of(few["doc"])})
    ensure_space(clean_database, SPACE)
    with pytest.raises(SourceError, match=r"\(faiss\) has not been read for space_lexical_64.*materialise reused_vect"):
        check_read(clean_database, SPACE, "doc", ["faiss"])
    reuse(clean_database, source)
    check_read(clean_database, SPACE, "doc", ["faiss"])
    with pytest.raises(SourceError, match=r"\(qdrant\)"):
        check_read(clean_database, SPACE, "doc", ["qdrant", "faiss"])


def test_a_text_staged_after_the_store_was_read_is_not_embedded(
    clean_database: Database, few: Any, tmp_path: Path
) -> None:
    kept = rows(clean_database, "DELETE FROM staging.test_documents WHERE case_id = 1 RETURNING *")
    reuse(clean_database, faiss_store(tmp_path, {"doc": points_of(few["doc"])}))
    check_read(clean_database, SPACE, "doc", ["faiss"])
    marks = ", ".join(["%s"] * len(kept[0]))
    values = [Jsonb(value) if isinstance(value, dict) else value for value in kept[0]]
    execute(clean_database, f"INSERT INTO staging.test_documents VALUES ({marks})", *values)
    with pytest.raises(SourceError, match="1 texts were staged after the old store was read"):
        check_read(clean_database, SPACE, "doc", ["faiss"])
    check_read(clean_database, SPACE, "step", ["faiss"])
    reuse(clean_database, faiss_store(tmp_path, {"doc": points_of(few["doc"])}))
    check_read(clean_database, SPACE, "doc", ["faiss"])


def test_a_space_whose_texts_have_a_prefix_takes_nothing(clean_database: Database, few: Any, tmp_path: Path) -> None:
    prefixed = Space("space_lexical_64_p", "lexical-v1", 64, "halfvec", text_prefix="passage: ")
    with pytest.raises(SourceError, match="QBENCH_TEXT_PREFIX"):
        reuse(clean_database, faiss_store(tmp_path, {"doc": points_of(few["doc"])}), space=prefixed)
