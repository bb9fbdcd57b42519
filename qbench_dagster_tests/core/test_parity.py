"""The findings of a report: each passes where its invariant holds, and fails for its own fault."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from qbench_dagster.core import parity
from qbench_dagster.core.parity import MAX_OFFENDERS, Finding, ParityReport, PartitionRow
from qbench_dagster.core.recall import SAMPLES, VectorHealth

ROW = PartitionRow("from_0000000729", source_cases=10, published=9, rejected=1, incomplete=0, steps=30)
COUNTS = {"documents_without_vector": 0, "steps_without_vector": 0, "steps_without_document": 0}
HEALTH = {kind: asdict(VectorHealth(rows=5)) for kind in ("doc", "step")}


def healthy() -> list[Finding]:
    return [
        parity.accounting([ROW], 10, [], 0),
        parity.words_kept(7, {}, published=9),
        parity.published_as_staged(9, [], 0),
        parity.vectors_complete(COUNTS, HEALTH, []),
        parity.least_privilege([], []),
    ]


def report(findings: list[Finding]) -> ParityReport:
    return ParityReport("2026-01-01T00:00:00+00:00", "space_x", findings, [ROW], [], {})


@pytest.mark.parametrize("finding", healthy(), ids=lambda finding: finding.name)
def test_what_is_healthy_passes_without_an_offender(finding: Finding) -> None:
    assert finding.passed
    assert (list(finding.offenders), finding.offender_count) == ([], 0)
    assert finding.summary


def test_the_verdict_needs_every_finding() -> None:
    assert report(healthy()).passed
    for index in range(len(healthy())):
        findings = healthy()
        findings[index] = replace(findings[index], passed=False)
        assert not report(findings).passed


def test_a_report_is_json_with_the_verdict_first() -> None:
    values = report(healthy()).as_json()
    assert next(iter(values)) == "passed"
    assert json.loads(json.dumps(values))["findings"][0]["numbers"]["source_cases"] == 10


def test_a_case_that_is_neither_published_nor_rejected_fails() -> None:
    found = parity.accounting([replace(ROW, published=8)], None, [{"case_id": 800, "wrong": "lost"}], 1)
    assert not found.passed
    assert found.summary == "10 source cases, but 8 published + 1 rejected"
    assert list(found.offenders) == [{"case_id": 800, "wrong": "lost"}]


def test_partitions_that_only_balance_together_fail() -> None:
    rows = [replace(ROW, published=10), replace(ROW, key="from_0000009999", published=8)]
    assert not parity.accounting(rows, 20, [], 0).passed


def test_an_unaccounted_case_fails_though_the_numbers_add_up() -> None:
    assert not parity.accounting([ROW], 10, [{"case_id": 1, "wrong": "published and rejected at once"}], 1).passed


@pytest.mark.parametrize(("in_export", "passed"), [(10, True), (None, True), (11, False), (9, False), (0, False)])
def test_an_export_of_another_size_fails_and_says_so(in_export: int | None, passed: bool) -> None:
    found = parity.accounting([ROW], in_export, [], 0)
    assert found.passed is passed
    assert ("the export itself holds" in found.summary) is not passed


def test_a_case_that_is_published_as_it_was_before_fails_though_the_numbers_add_up() -> None:
    found = parity.accounting([replace(ROW, incomplete=2)], 10, [], 0)
    assert not found.passed
    assert found.summary.endswith("but 2 of them not as the source is now")


@pytest.mark.parametrize("rows", [[], [replace(ROW, source_cases=0, published=0, rejected=0, steps=0)]])
@pytest.mark.parametrize("in_export", [None, 0])
def test_nothing_landed_is_nothing_proven(rows: list[PartitionRow], in_export: int | None) -> None:
    found = parity.accounting(rows, in_export, [], 0)
    assert not found.passed
    assert found.summary.startswith("nothing was landed yet")


def test_cases_compared_and_cases_published_are_two_numbers() -> None:
    found = parity.words_kept(7, {}, published=9)
    assert found.numbers == {"compared": 7, "published": 9, "cases_with_lost_words": 0}
    assert found.summary.startswith("7 of 9 published cases")


def test_a_published_row_that_is_not_what_was_staged_fails() -> None:
    changed = [{"case_id": 800, "differs": "title", "remedy": "UPDATE"}]
    found = parity.published_as_staged(9, changed, 1)
    assert (found.passed, list(found.offenders), found.offender_count) == (False, changed, 1)


def test_unsound_vectors_that_were_not_all_noted_are_told_as_at_least() -> None:
    health = {**HEALTH, "doc": {**HEALTH["doc"], "zero": ["ab" * 32] * SAMPLES}}
    assert f"at least {SAMPLES} unsound" in parity.vectors_complete(COUNTS, health, []).summary
    assert "at least" not in parity.vectors_complete(COUNTS, HEALTH, []).summary


@pytest.mark.parametrize(("count", "told"), [(0, "0 rights"), (1, "1 right "), (2, "2 rights")])
def test_rights_are_counted_in_words(count: int, told: str) -> None:
    assert told in parity.least_privilege([{"object": "store.spaces"}] * count, []).summary


def test_a_lost_word_fails_and_names_the_case() -> None:
    found = parity.words_kept(9, {801: ["page"], 800: [f"w{n}" for n in range(50)]}, published=9)
    assert not found.passed
    assert [offender["case_id"] for offender in found.offenders] == [800, 801]
    assert len(found.offenders[0]["lost"]) == 20
    assert found.offenders[1]["lost"] == ["page"]


@pytest.mark.parametrize("name", COUNTS)
def test_a_row_without_its_vector_or_document_fails(name: str) -> None:
    found = parity.vectors_complete({**COUNTS, name: 2}, HEALTH, [{"case_id": 800, "wrong": "a step has no vector"}])
    assert not found.passed
    assert found.numbers[name] == found.offender_count == 2
    assert found.offenders[0]["case_id"] == 800


@pytest.mark.parametrize("wrong", ["zero", "not_finite", "wrong_norm"])
@pytest.mark.parametrize("kind", ["doc", "step"])
def test_an_unsound_vector_fails_and_is_named(kind: str, wrong: str) -> None:
    found = parity.vectors_complete(COUNTS, {**HEALTH, kind: {**HEALTH[kind], wrong: ["ab" * 32]}}, [])
    assert not found.passed
    assert list(found.offenders) == [{"kind": kind, "text_hash": "ab" * 32, "wrong": wrong}]


@pytest.mark.parametrize("missing", [False, True])
def test_a_right_too_many_or_missing_fails(missing: bool) -> None:
    right = [{"object": "store.test_documents", "privilege": "SELECT"}]
    found = parity.least_privilege([], right) if missing else parity.least_privilege(right, [])
    assert not found.passed
    assert list(found.offenders) == right
    assert found.numbers == {"excess": int(not missing), "missing": int(missing)}


def test_offenders_are_cut_and_their_number_is_not() -> None:
    many = {case_id: ["lost"] for case_id in range(1, 251)}
    found = parity.words_kept(300, many, published=300)
    assert (len(found.offenders), found.offender_count) == (MAX_OFFENDERS, 250)
