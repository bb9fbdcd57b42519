"""The generators of the sample: ids, shares, the planted list. The file is `test_sample_writer.py`."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from qbench_dagster.core.sample import (
    DIFFICULTIES,
    FIRST_ID,
    LAST_ID,
    MAX_CASES,
    case_ids,
    case_rows,
    lookup_rows,
    planted,
)
from qbench_dagster.core.sample.company import AREAS
from qbench_dagster.core.sample.draw import Draw
from qbench_dagster.core.sample.vocabulary import POOLS, fill

N, SEED = 5_000, 7
Row = tuple[Any, ...]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return list(case_rows(N, SEED))


def share(rows: list[Row], column: int) -> float:
    return sum(row[column] is not None for row in rows) / len(rows)


TITLE, TYPE, PRIORITY, REFS, UPDATED, SETUP, STEPS, SEPARATED, COMBINED = 4, 6, 7, 8, 10, 11, 12, 13, 14
COMMENT, AUTOMATED, CUSTOM = 17, 18, 19


@pytest.mark.parametrize("cases", [2, 3, 10, 200, 5_000, 104_121])
def test_ids_ascend_from_the_first_to_the_last(cases: int) -> None:
    ids = list(case_ids(cases, SEED))
    assert len(ids) == cases
    assert (ids[0], ids[-1]) == (FIRST_ID, LAST_ID) == (729, 34_799_866)
    assert all(a < b for a, b in pairwise(ids))


def test_ids_crowd_the_beginning_even_at_the_largest_size() -> None:
    ids = list(case_ids(MAX_CASES, SEED))
    assert len(set(ids)) == MAX_CASES
    limit = FIRST_ID + 0.036 * (LAST_ID - FIRST_ID)
    assert sum(i <= limit for i in ids) / len(ids) == pytest.approx(0.43, abs=0.005)


@pytest.mark.parametrize("cases", [0, -1, MAX_CASES + 1])
@pytest.mark.parametrize("make", [case_ids, case_rows, lookup_rows, planted])
def test_a_number_of_cases_that_cannot_be_made_is_refused(make: Callable[[int, int], Any], cases: int) -> None:
    with pytest.raises(ValueError, match="cases must be at"):
        list(make(cases, SEED))


@pytest.mark.parametrize("cases", [1, 2, 10, 199, 200])
def test_small_samples_have_all_their_rows(cases: int) -> None:
    rows = list(case_rows(cases, SEED))
    assert [row[0] for row in rows] == list(case_ids(cases, SEED))
    assert all(len(row) == 20 for row in rows)


def test_shares_are_those_of_the_original(rows: list[Row]) -> None:
    for column, wanted in [
        (SEPARATED, 0.17), (STEPS, 0.46), (COMBINED, 0.58), (SETUP, 0.48), (REFS, 0.43), (COMMENT, 0.065),
    ]:  # fmt: skip
        assert share(rows, column) == pytest.approx(wanted, abs=0.03), column
    no_text = sum(row[STEPS] is row[SEPARATED] is row[COMBINED] is None for row in rows) / N
    assert no_text == pytest.approx(0.38, abs=0.03)
    automated = Counter(row[AUTOMATED] for row in rows)
    for value, wanted in [(None, 0.67), (0, 0.08), (1, 0.25)]:
        assert automated[value] / N == pytest.approx(wanted, abs=0.02)
    assert Counter(row[PRIORITY] for row in rows)[6] / N == pytest.approx(0.89, abs=0.02)
    assert Counter(row[TYPE] for row in rows)[4] / N == pytest.approx(0.62, abs=0.03)


def test_text_comes_back_as_often_as_in_the_original(rows: list[Row]) -> None:
    assert len({row[TITLE] for row in rows}) / N == pytest.approx(0.56, abs=0.06)
    setups = [row[SETUP] for row in rows if row[SETUP]]
    assert len(set(setups)) / len(setups) == pytest.approx(0.13, abs=0.06)
    bodies = [row[STEPS] for row in rows if row[STEPS]]
    assert len(set(bodies)) / len(bodies) == pytest.approx(0.62, abs=0.08)
    whole = Counter(row[TITLE : TITLE + 1] + row[SETUP : COMBINED + 1] for row in rows)
    assert sum(count for count in whole.values() if count > 1) / N == pytest.approx(0.14, abs=0.05)
    assert sum("Log in as admin" in str(row[STEPS]) + str(row[SEPARATED]) for row in rows) > 40
    assert sum("wrong password" in str(row[TITLE]) for row in rows) > 10
    times = Counter(row[UPDATED] for row in rows)
    assert len(times) / N == pytest.approx(0.36, abs=0.06)


def test_text_lengths_are_those_of_the_original(rows: list[Row]) -> None:
    def lengths(column: int) -> list[int]:
        return sorted(len(row[column]) for row in rows if isinstance(row[column], str) and len(row[column]) < 60_000)

    for column, mean, p95 in [(TITLE, 40, 108), (SETUP, 230, 660), (STEPS, 170, 550), (COMBINED, 370, 920)]:
        found = lengths(column)
        assert sum(found) / len(found) == pytest.approx(mean, rel=0.2), column
        assert found[len(found) * 95 // 100] == pytest.approx(p95, rel=0.25), column


def test_custom_fields_hold_what_the_original_has(rows: list[Row]) -> None:
    keys: Counter[str] = Counter()
    for row in rows:
        try:
            keys.update(list(json.loads(str(row[CUSTOM]))))
        except json.JSONDecodeError:
            keys["broken"] += 1
    assert keys["custom_expected"] == keys["custom_automation_id"] == N - keys["broken"]
    assert all(keys[key] > 50 for key in ("tags", "platforms", "jira_key", "custom_feature_tag"))


def test_projects_suites_and_sections_hold_together() -> None:
    tables: dict[str, list[Any]] = {name: list(rows) for name, rows in lookup_rows(N, SEED)}
    projects = {row[0] for row in tables["projects"]}
    suites = {row[0]: row[1] for row in tables["suites"]}
    sections = {row[0]: row for row in tables["sections"]}
    assert len(projects) == 12
    assert set(suites.values()) == projects
    assert max(row[6] for row in sections.values()) == 7
    assert {row[1] for row in tables["priorities"]} == {
        "1 - High Priority", "2 - Medium Priority", "3 - Low Priority",
    }  # fmt: skip
    assert {"Regression", "Smoke", "Automated", "Manual"} < {row[1] for row in tables["case_types"]}
    for row in sections.values():
        if row[4] in sections and row[0] < 80_000_000:
            assert sections[row[4]][6] == row[6] - 1
            assert sections[row[4]][1] == row[1]
    wrong = {i for name in ("section_cycle", "section_orphan") for i in planted(N, SEED)[name]}
    for case in case_rows(N, SEED):
        assert suites[case[1]] == case[3]
        if case[0] not in wrong:
            assert sections[case[2]][1] == case[1]


def test_every_difficulty_is_planted_from_200_cases_on() -> None:
    for cases in (200, 333, N):
        found = planted(cases, SEED)
        assert list(found) == list(DIFFICULTIES)
        assert all(len(ids) >= DIFFICULTIES[name].least for name, ids in found.items())
        flat = [i for ids in found.values() for i in ids]
        assert len(flat) == len(set(flat)), "a case has at most one difficulty"
    assert len(planted(N, SEED)["blank_title"]) <= 2


def test_below_200_cases_a_difficulty_is_whole_or_absent() -> None:
    for cases in (1, 2, 10, 150, 199):
        for name, ids in planted(cases, SEED).items():
            assert not ids or len(ids) >= DIFFICULTIES[name].least


def test_another_seed_gives_other_cases(rows: list[Row]) -> None:
    assert rows != list(case_rows(N, SEED + 1))
    assert planted(N, SEED) != planted(N, SEED + 1)
    assert list(case_rows(50, SEED)) != list(case_rows(50, -SEED))


def test_rows_do_not_depend_on_the_hash_seed_or_the_global_random() -> None:
    code = (
        "import hashlib, random; random.seed();"
        "from qbench_dagster.core.sample import case_rows, lookup_rows;"
        "d = hashlib.sha256(repr(list(case_rows(300, 7))).encode());"
        "d.update(repr([(t, list(r)) for t, r in lookup_rows(300, 7)]).encode()); print(d.hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True,
        ).stdout
        for hash_seed in ("0", "1", "4711")
    }  # fmt: skip
    assert len(digests) == 1
    here = hashlib.sha256(repr(list(case_rows(300, 7))).encode())
    here.update(repr([(t, list(r)) for t, r in lookup_rows(300, 7)]).encode())
    assert digests == {here.hexdigest() + "\n"}


def test_a_slot_nobody_knows_is_an_error() -> None:
    with pytest.raises(KeyError, match=r"unknown slot \{nonsense\}"):
        fill(Draw(1, "test"), "a {nonsense} word")


def test_every_word_template_can_be_filled() -> None:
    draw = Draw(1, "all")
    templates = [text for pool in POOLS.values() for text in pool]
    for area in AREAS:
        templates += [
            *area.topics,
            *area.titles,
            *area.setups,
            *(text for flow in area.flows for text in flow),
        ]
    for template in templates:
        text = fill(draw, template)
        assert text
        assert "{" not in text
        assert "}" not in text
