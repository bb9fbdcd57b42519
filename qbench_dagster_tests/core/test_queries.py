"""Query logs: what they may hold, and where each broken line is told; filters drawn from counts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qbench_dagster.core.queries import Filter, Query, QueryLogError, draw_filters, parse_log, sample


def parse(*lines: Any) -> list[Query]:
    return parse_log("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), "log.jsonl")


def test_a_text_log_is_a_query_a_line() -> None:
    found = parse("cannot log in", "", "  reset\tpassword \r", "cannot log in", '"quoted" {not json}')
    assert [(query.text, query.line) for query in found] == [
        ("cannot log in", 1), ("reset\tpassword", 3), ('"quoted" {not json}', 5),
    ]  # fmt: skip
    assert all((query.k, query.filter, query.vector) == (10, None, None) for query in found)


def test_a_json_log_takes_filters_and_vectors() -> None:
    found = parse(
        {"query": "log in", "priority": ["High"], "folder": "Web/Login", "project": 3, "k": 5},
        {"vector": [1, 0.5]},
        {"query": "log in", "tags": ["a", "b"], "test_type": None, "updated_since": "2026-01-31", "suite": [1, 2]},
    )
    assert found[0] == Query("log in", None, 5, Filter(priority=("High",), folder="Web/Login", project=(3,)), 1)
    assert (found[1].vector, found[1].label, found[1].filter) == ((1.0, 0.5), "vector of line 2", None)
    assert found[2].filter == Filter(tags=("a", "b"), suite=(1, 2), updated_since="2026-01-31T00:00:00")
    assert found[0].filter is not None
    assert found[0].filter.describe() == "priority = High, folder = Web/Login, project = 3"
    assert found[2].filter.parameters()["suite"] == [1, 2]


def test_a_log_may_begin_with_a_byte_order_mark_and_hold_a_line_separator() -> None:
    assert parse('\ufeff{"query": "a\u2028b"}')[0].text == "a\u2028b"
    assert len(parse("a\u2028b", "c\x85d")) == 2


GOOD = {"query": "log in"}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{broken", "is no JSON"),
        ("[1]", "is no JSON object"),
        ("[" * 100_000, "is no JSON"),
        ({"queri": "x"}, "has queri; known are"),
        ({}, "needs either query or vector"),
        ({"query": "x", "vector": [1]}, "needs either query or vector"),
        ({"query": "  "}, "not blank"),
        ({"query": 7}, "not blank"),
        ({"query": "a\0"}, "without NUL"),
        ('{"query": "\\ud800"}', "whole characters"),
        ({"query": "x", "k": 0}, "from 1 to 1000"),
        ({"query": "x", "k": True}, "from 1 to 1000"),
        ({"vector": []}, "finite numbers"),
        ('{"vector": [NaN]}', "finite numbers"),
        ('{"vector": [1e999]}', "finite numbers"),
        ({"vector": ["1"]}, "finite numbers"),
        ({"vector": [10**400]}, "finite numbers"),
        ({"vector": [0, 0]}, "is zero"),
        ({"query": "x", "priority": []}, "list of texts"),
        ({"query": "x", "priority": [1]}, "list of texts"),
        ({"query": "x", "tags": ["\0"]}, "list of texts"),
        ({"query": "x", "project": ["1"]}, "list of ids"),
        ({"query": "x", "suite": [2**63]}, "list of ids"),
        ({"query": "x", "folder": ["Web"]}, "folder is to be a text"),
        ({"query": "x", "updated_since": "yesterday"}, "a date like"),
        ({"query": "x", "updated_since": 5}, "a date like"),
    ],
)
def test_a_broken_line_is_named(line: Any, told: str) -> None:
    with pytest.raises(QueryLogError, match=r"^log\.jsonl, line 3") as raised:
        parse(GOOD, "", line)
    assert told in str(raised.value)


@pytest.mark.parametrize("content", ["", "\n  \n"])
def test_a_log_without_a_query_is_none(content: str) -> None:
    with pytest.raises(QueryLogError, match=r"log\.jsonl holds no query"):
        parse_log(content, "log.jsonl")


@given(st.lists(st.text(min_size=1), max_size=30, unique=True), st.integers(1, 40))
def test_a_sample_is_of_the_queries_and_the_same_whatever_their_order(texts: list[str], count: int) -> None:
    queries = [Query(text, line=number) for number, text in enumerate(texts, 1)]
    chosen = sample(queries, count)
    assert len(chosen) == min(count, len(queries))
    assert [query.line for query in chosen] == sorted(query.line for query in chosen)
    other = sample([Query(text, line=number) for number, text in enumerate(reversed(texts), 1)], count)
    assert {query.text for query in other} == {query.text for query in chosen}


@given(st.binary())
@settings(max_examples=300)
def test_whatever_a_log_holds_is_a_query_or_a_clear_error(content: bytes) -> None:
    text = content.decode(errors="replace")
    try:
        assert parse_log(text, "log")
    except QueryLogError as error:
        assert str(error).startswith("log")  # noqa: PT017


VALUES = [("priority", "High", 480), ("priority", "Low", 520), ("tags", "smoke", 55), ("tags", "odd", 5),
          ("project", "3", 1000), ("folder", "Web", 300), ("platforms", "iOS", 6)]  # fmt: skip


def test_drawn_filters_are_a_common_a_medium_and_a_rare_one() -> None:
    drawn = draw_filters(VALUES, 1000)
    assert drawn == [Filter(priority=("Low",)), Filter(tags=("smoke",)), Filter(platforms=("iOS",))]
    assert draw_filters(list(reversed(VALUES)), 1000) == drawn


def test_what_all_cases_have_is_no_filter() -> None:
    assert draw_filters([("project", "3", 1000)], 1000) == []
    assert draw_filters([], 0) == []
    assert draw_filters([("project", "3", 10)], 1000) == [Filter(project=(3,))]
