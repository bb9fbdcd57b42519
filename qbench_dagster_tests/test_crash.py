"""Killed anywhere and run again, the published rows equal a clean run's. Twenty kills: `python -m` crash.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qbench_dagster.adapters.sample_writer import write_sample
from qbench_dagster_tests.crash import SPACE, Home, different, draw_moments, kill_once, new_home

CASES = 700


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A home with one run over the sample, which nobody disturbed."""
    export = tmp_path_factory.mktemp("crash") / "export.db"
    write_sample(export, CASES, 729, lambda *_: None, force=False)
    with new_home(export) as home:
        home.run()
        yield home


def test_killed_and_run_again_equals_a_clean_run(clean: Home) -> None:
    first, second, third = draw_moments(3, clean.lasted[0], seed=729)
    with new_home(clean.export) as home:
        # each run goes on where the killed one before it ended; the last is killed again from the beginning
        for victim, after in (("qbench", first), ("postgres", second), ("qbench", second)):
            kill = kill_once(home, victim, after)
            assert kill.partial == [], kill
        home.run()
        assert different(home.published(), clean.published()) == []
        home.forget()
        kill = kill_once(home, "qbench", third)
        assert kill.partial == [], kill
        home.run()
        assert different(home.published(), clean.published()) == []
        assert home.partial_cases() == clean.partial_cases()


def test_the_comparison_sees_a_difference(clean: Home) -> None:
    """The guard itself: one step gone, one word changed, one vector changed."""
    before = clean.published()
    assert before["test_documents"][0] > CASES * 0.99
    assert clean.partial_cases()[1] == []
    first = "(test_case_id, step_index) = (SELECT test_case_id, step_index FROM store.test_steps ORDER BY 1, 2 LIMIT 1)"
    vector = f"text_hash = (SELECT min(text_hash) FROM {SPACE}.doc_embeddings)"
    for fault, hit in (
        (f"UPDATE store.test_steps SET data = 'x' WHERE {first}", ["test_steps"]),
        (f"UPDATE {SPACE}.doc_embeddings SET provenance = 'x' WHERE {vector}", ["doc_embeddings"]),
        (f"DELETE FROM store.test_steps WHERE {first}", ["test_steps"]),
    ):
        last = clean.published()
        with clean.connection() as connection:
            connection.execute(fault)  # type: ignore[arg-type]
        now = clean.published()
        assert different(now, last) == hit
    assert len(clean.partial_cases()[1]) == 1
