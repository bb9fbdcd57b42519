"""`auto`, on real tables: exact where that is fast, binary where signs tell vectors apart, and not where not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qbench_dagster.adapters import advising, indexing
from qbench_dagster.adapters.cutover import indexed_as
from qbench_dagster.adapters.measuring import measure
from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.space import Space
from qbench_dagster.core.advice import Trial
from qbench_dagster.core.indexes import EXACT, IndexSettings
from qbench_dagster_tests.adapters.indexes import build, clustered, fill, indexes, positive, recorded
from qbench_dagster_tests.support import execute, rows

SPACE = Space("space_lexical_256", "lexical-v1", 256, "halfvec")
AUTO = IndexSettings("auto", sample=400, m=8, ef_construction=32, target_recall=0.9)
ROWS = 600


@pytest.fixture
def slow_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the table were so large that exact search takes a second, and every build of a sample one."""
    point, build_index = advising.exact_point, advising.build_index
    monkeypatch.setattr(advising, "exact_point", lambda *a: replace(point(*a), p50_ms=1000.0, p95_ms=1000.0))

    def in_a_second(*arguments: Any) -> float:
        build_index(*arguments)
        return 1.0

    monkeypatch.setattr(advising, "build_index", in_a_second)


def advice(database: Database) -> dict[str, Any]:
    (found,) = recorded(database, "advice", space=SPACE)
    return dict(found)


@pytest.mark.usefixtures("slow_exact")
def test_binary_wins_where_signs_tell_vectors_apart(clean_database: Database) -> None:
    fill(clean_database, clustered(ROWS, 256), SPACE)
    done = build(clean_database, replace(AUTO, target_p95_ms=500), space=SPACE)
    assert (done.strategy, done.rebuilt, done.notes) == ("binary", True, [])
    found = advice(clean_database)
    assert (found["chosen"], found["sample"], found["target_recall"]) == ("binary", 400, 0.9)
    assert [one["strategy"] for one in found["strategies"]] == ["exact", "binary", "subvector", "ivfflat"]
    assert list(found["skipped"]) == ["halfvec"]
    assert found["strategies"][1]["recall_100"] == 1.0, "a search for 100 compares 400, which is all of the sample"
    assert measure(clean_database, SPACE, "doc").reaches(0.9)
    assert [name for name, *_ in indexes(clean_database, SPACE.name)] == ["doc_embeddings_binary_1"]
    assert rows(clean_database, "SELECT to_regclass(%s)", f"{SPACE.name}.doc_embeddings_sample") == [(None,)]


@pytest.mark.usefixtures("slow_exact")
def test_binary_loses_where_all_coordinates_are_positive(clean_database: Database) -> None:
    fill(clean_database, positive(ROWS, 256), SPACE)
    done = build(clean_database, replace(AUTO, ef_search=100, target_p95_ms=500), space=SPACE)
    assert done.strategy != "binary"
    tried = {one["strategy"]: one for one in advice(clean_database)["strategies"]}
    assert tried["binary"]["recall_10"] < 0.5
    assert not tried["binary"]["meets"]
    assert tried[done.strategy]["recall_10"] > 0.9
    assert measure(clean_database, SPACE, "doc").reaches(0.9)


def test_a_small_table_is_searched_exactly(clean_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(clean_database, clustered(100, 256), SPACE)
    monkeypatch.setattr(advising, "_trial", None)  # nothing is built to find that out
    done = build(clean_database, replace(AUTO, target_p95_ms=10_000), space=SPACE)
    assert (done.strategy, done.bytes) == (EXACT, 0)
    assert "so no index is needed" in advice(clean_database)["why"]
    assert indexes(clean_database, SPACE.name) == []


@pytest.mark.usefixtures("slow_exact")
def test_a_fixed_ef_search_is_measured_once(clean_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(clean_database, clustered(ROWS, 256), SPACE)
    settings = replace(AUTO, ef_search=200, target_p95_ms=500)
    chosen = build(clean_database, settings, space=SPACE).choice
    assert chosen.rerank < 200, "fewer than were asked of the index are enough"
    monkeypatch.setattr(indexing, "search_curve", None)
    assert build(clean_database, settings, space=SPACE).choice == chosen


@pytest.mark.usefixtures("slow_exact")
def test_keeping_an_index_as_it_was_chosen_keeps_the_advice(clean_database: Database) -> None:
    fill(clean_database, clustered(ROWS, 256), SPACE)
    chosen = build(clean_database, replace(AUTO, target_p95_ms=500), space=SPACE)
    before = advice(clean_database)
    kept = build(clean_database, indexed_as(clean_database, SPACE, "doc", AUTO), space=SPACE)
    assert (kept.rebuilt, kept.strategy, advice(clean_database)) == (False, chosen.strategy, before)


@pytest.mark.usefixtures("slow_exact")
def test_advice_is_kept_until_the_rows_double_or_the_target_changes(
    clean_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(clean_database, clustered(ROWS, 256), SPACE)
    settings = replace(AUTO, target_p95_ms=500)
    build(clean_database, settings, space=SPACE)
    before, asked = indexes(clean_database, SPACE.name), []
    real = indexing.advise
    monkeypatch.setattr(indexing, "advise", lambda *a: asked.append(a) or real(*a))  # type: ignore[func-returns-value]
    measured = indexing.search_curve
    monkeypatch.setattr(indexing, "search_curve", None)
    again = build(clean_database, settings, space=SPACE)
    assert (again.rebuilt, again.strategy, asked) == (False, "binary", []), "nothing is measured twice"
    monkeypatch.setattr(indexing, "search_curve", measured)
    table = f"{SPACE.name}.doc_embeddings"
    execute(clean_database, f"INSERT INTO {table} SELECT sha256(text_hash), embedding, 'copy', now() FROM {table}")
    assert not build(clean_database, settings, space=SPACE).rebuilt
    assert (len(asked), advice(clean_database)["rows"]) == (1, 2 * ROWS)
    assert indexes(clean_database, SPACE.name) == before, "the same choice needs no other index"
    build(clean_database, replace(settings, target_recall=0.8), space=SPACE)
    assert (len(asked), advice(clean_database)["target_recall"]) == (2, 0.8)
    fixed = build(clean_database, IndexSettings("binary", m=8, ef_construction=32), space=SPACE)
    assert (fixed.rebuilt, advice(clean_database)["target_recall"]) == (False, 0.8), "of the index that is kept"
    build(clean_database, IndexSettings("subvector", m=8, ef_construction=32), space=SPACE)
    assert recorded(clean_database, "advice", space=SPACE) == (None,)


@pytest.mark.usefixtures("slow_exact")
def test_what_misses_the_target_on_the_whole_table_gives_way_to_the_next(
    clean_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sample is said to speak for binary, the whole table then does not: it is never put to use."""
    fill(clean_database, positive(ROWS, 256), SPACE)
    real = advising._trial

    def hopeful(sample: Any, strategy: str, *rest: Any) -> Trial:
        found = real(sample, strategy, *rest)
        return replace(found, reaches=True) if strategy == "binary" else found

    monkeypatch.setattr(advising, "_trial", hopeful)
    execute(clean_database, "CREATE TABLE public.searched AS SELECT strategy FROM store.index_builds")
    execute(clean_database, """CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN INSERT INTO public.searched VALUES (NEW.strategy); RETURN NEW; END'""")  # fmt: skip
    execute(clean_database, """CREATE TRIGGER note AFTER INSERT OR UPDATE ON store.index_builds
                               FOR EACH ROW EXECUTE FUNCTION public.note()""")  # fmt: skip
    try:
        done = build(clean_database, replace(AUTO, ef_search=100, target_p95_ms=500), space=SPACE)
    finally:
        execute(clean_database, "DROP TRIGGER note ON store.index_builds")
    assert done.strategy != "binary"
    assert any("binary" in note and "misses the recall of 0.9" in note for note in done.notes)
    assert ("binary",) not in rows(clean_database, "SELECT DISTINCT strategy FROM public.searched")
    assert advice(clean_database)["chosen"] == done.strategy
    assert "misses the recall" in advice(clean_database)["why"]
    assert [name.split("_")[2] for name, *_ in indexes(clean_database, SPACE.name)] == (
        [] if done.strategy == EXACT else [done.strategy]
    )
    assert not build(clean_database, replace(AUTO, ef_search=100, target_p95_ms=500), space=SPACE).rebuilt


@pytest.mark.usefixtures("slow_exact")
def test_a_strategy_that_cannot_be_built_is_left_out(clean_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(clean_database, clustered(ROWS, 256), SPACE)
    settings = replace(AUTO, lists=40_000, target_p95_ms=500)  # more than pgvector takes
    assert build(clean_database, settings, space=SPACE).strategy == "binary"
    assert "out of bounds" in advice(clean_database)["skipped"]["ivfflat"]
