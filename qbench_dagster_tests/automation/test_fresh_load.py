"""After a tick's runs and one reconcile the database equals a fresh load of the edited export, row by row."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from qbench_dagster.adapters.testrail_export import TestRailExport
from qbench_dagster.assets.stage import RUN_TOTALS
from qbench_dagster.automation.reconcile import request_all
from qbench_dagster.core.ranges import ranges_with
from qbench_dagster.partitions import keys_of_tags, registered_ranges
from qbench_dagster_tests.automation.conftest import LOG, set_environment
from qbench_dagster_tests.automation.edits import Amounts, differences, edit_export, published, take_slice, texts_of
from qbench_dagster_tests.automation.world import World, new_world
from qbench_dagster_tests.support import REAL_EXPORT

SPACE = "space_lexical_64"
EVERY, TARGET = 10, 500

pytestmark = pytest.mark.skipif(
    not REAL_EXPORT.exists(), reason="needs the real export, which is not in the repository"
)


def embedded(results: list[dg.ExecuteInProcessResult]) -> int:
    """Texts that runs embedded."""
    return sum(
        int(totals.value.get("texts_embedded", 0))  # type: ignore[union-attr]
        for result in results
        for totals in {
            event.materialization.asset_key: event.materialization.metadata[RUN_TOTALS]
            for event in result.get_asset_materialization_events()
        }.values()
    )


def test_it_follows_a_days_work_on_the_real_export(
    fresh_url: str, other_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = take_slice(REAL_EXPORT, tmp_path / "export.db", EVERY)
    set_environment(monkeypatch, fresh_url, export, tmp_path / "home", TARGET)
    with new_world(fresh_url, export) as world:
        world.age()
        world.plan()
        assert world.load().success
        assert "nothing new" in world.said(0)
        before = texts_of(world.database, SPACE)
        with TestRailExport(export) as source:
            ids = source.case_ids()
        ranges = registered_ranges(world.instance)
        keys = list(ranges)
        assert len(keys) == 8
        busy = [ranges[keys[index]] for index in (0, 1, 3, 6)]
        done = edit_export(export, [each for each in ids if any(each in case_range for case_range in busy)], Amounts())
        world.age()

        first = len(world.runs)
        requests = world.asked()
        requested = [key for each in requests for key in keys_of_tags(world.instance, each.tags)]
        assert requested == ranges_with(done.told, ranges.values())
        assert world.over(requests) == [["0", "1"], ["3"], ["6"]]
        for each in requests:
            assert world.load(each.tags).success
        assert world.said(1).startswith("succeeded")
        night = request_all(world.instance, LOG)
        assert isinstance(night, dg.RunRequest)
        assert world.load(night.tags).success
        synced = world.runs[first:]
        assert "nothing new" in world.said()

        set_environment(monkeypatch, other_url, export, tmp_path / "other", TARGET)
        with new_world(other_url, export) as fresh:
            fresh.plan()
            assert fresh.load().success
            expected = published(fresh.database, SPACE)
            assert differences(published(world.database, SPACE), expected) == {}
            assert len(expected["test_documents"]) > 3900
            new = texts_of(fresh.database, SPACE) - before
        assert texts_of(world.database, SPACE) == before | new
        assert embedded(synced) == len(new) > 200


def test_the_comparison_sees_a_difference(world: World) -> None:
    """The guard itself: a row that is gone, a word and a vector that are others."""
    before = published(world.database, SPACE)
    vector = f"DELETE FROM {SPACE}.doc_embeddings WHERE text_hash ="
    for fault, hit in (
        ("UPDATE store.test_steps SET data = 'x' WHERE test_case_id = 5", {"test_steps": ["5/1"]}),
        ("DELETE FROM store.test_documents WHERE test_case_id = 7", {"test_documents": ["7"], "test_steps": ["7/1"]}),
        (f"{vector} (SELECT text_hash FROM store.test_documents WHERE test_case_id = 9)", {}),
    ):
        with world.database.connection("test") as connection:
            connection.execute(fault)  # type: ignore[arg-type]
        found = differences(published(world.database, SPACE), before)
        assert {name: keys for name, keys in found.items() if name in hit} == hit
        assert found
        before = published(world.database, SPACE)
