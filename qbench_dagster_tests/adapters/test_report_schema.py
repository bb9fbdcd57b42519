"""The report's JSON is what its schema says, and the schema refuses what the report is not."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from qbench_dagster.adapters.report import SCHEMA_VERSION, document, schema
from qbench_dagster_tests.adapters import reports

Path = tuple[str | int, ...]
OPEN = ("asked", "skipped", "numbers", "offenders", "recall", "settings", "thresholds", "versions", "reasons")
"""Objects whose names are not the schema's to say."""
OPTIONAL = ("asked", "settings", "run_id", "export", "index_name", "html")


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    Draft202012Validator.check_schema(schema())
    return Draft202012Validator(schema())


def fields(value: Any, at: Path = ()) -> Iterator[Path]:
    """Each field of the document that the schema names, once for each list."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield (*at, name)
            if name not in OPEN:
                yield from fields(one, (*at, name))
    elif isinstance(value, list) and value:
        yield from fields(value[0], (*at, 0))


def holder(value: Any, at: Path) -> Any:
    """What holds the field."""
    for step in at[:-1]:
        value = value[step]
    return value


def small(report: dict[str, Any]) -> dict[str, Any]:
    """The same with short lists: of the comparisons only one that has every field."""
    details = report["details"]
    (full, *_) = [one for one in details["comparisons"] if one["worst"] and one["latencies_ms"]["theirs"]]
    full["latencies_ms"] = {side: found[:3] for side, found in full["latencies_ms"].items()}
    return {**report, "details": {**details, "comparisons": [full], "history": details["history"][:3]}}


FAILED = small(document(reports.failed_report().as_json()))


@pytest.mark.parametrize("report", [reports.passed_report(), reports.failed_report()], ids=["passed", "failed"])
def test_reports_are_what_the_schema_says(report: Any, validator: Draft202012Validator) -> None:
    made = document(report.as_json())
    assert made["schema_version"] == SCHEMA_VERSION
    assert schema()["properties"]["schema_version"] == {"const": SCHEMA_VERSION}
    validator.validate(made)
    validator.validate({**made, "html": "/reports/parity.html"})


@pytest.mark.parametrize(
    "at", [at for at in fields(FAILED) if at[-1] not in OPTIONAL], ids=lambda at: ".".join(map(str, at))
)
def test_a_field_that_is_missing_or_misspelt_is_refused(at: Path, validator: Draft202012Validator) -> None:
    report = copy.deepcopy(FAILED)
    value = holder(report, at)[at[-1]]
    holder(report, at)[f"{at[-1]}s"] = value
    assert not validator.is_valid(report), "one too many"
    del holder(report, at)[at[-1]]
    assert not validator.is_valid(report), "misspelt"
    del holder(report, at)[f"{at[-1]}s"]
    assert not validator.is_valid(report), "missing"


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_misspelt_optional_field_is_refused(name: str, validator: Draft202012Validator) -> None:
    for place in (FAILED, FAILED["details"], FAILED["details"]["indexes"][0]):
        report = copy.deepcopy(FAILED)
        if place is FAILED:
            report[f"{name}_"] = None
        elif place is FAILED["details"]:
            report["details"][f"{name}_"] = None
        else:
            report["details"]["indexes"][0][f"{name}_"] = None
        assert not validator.is_valid(report)


@pytest.mark.parametrize(
    ("at", "wrong"),
    [
        (("passed",), "yes"), (("schema_version",), 1), (("created_at",), "yesterday"),
        (("findings", 0, "name"), "Not a name"), (("findings", 0, "offender_count"), -1),
        (("partitions", 0, "published"), 1.5), (("details", "target_recall"), 1.2),
        (("details", "comparisons", 0, "against"), "milvus"), (("details", "comparisons", 0, "k"), 0),
        (("details", "comparisons", 0, "summary", "mean"), 1.01), (("details", "comparisons", 0, "measure"), "recal"),
        (("details", "indexes", 0, "strategy"), "none"), (("details", "old_store", 0, "kind"), "docs"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_refused(at: Path, wrong: Any, validator: Draft202012Validator) -> None:
    report = copy.deepcopy(FAILED)
    holder(report, at)[at[-1]] = wrong
    assert not validator.is_valid(report)


def test_reports_of_before_say_that_they_are_of_another_version(validator: Draft202012Validator) -> None:
    old = document(reports.old_report().as_json())
    assert old["schema_version"] == 1
    assert not validator.is_valid(old)
