"""The plan's numbers and what it says of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qbench_dagster.core.plan import KindPlan, Plan, dollars, plan_lines, plan_markdown, plan_rows
from qbench_dagster.core.prices import Price

KIND = KindPlan(
    rows=10, texts=8, stored=1, shared=1, reusable={}, in_batches=0, to_embed=6, tokens=500_000, requests=2, in_pieces=0
)
PLAN = Plan(
    space="space_te3large_3072",
    model="text-embedding-3-large",
    dimensions=3072,
    cases=10,
    rejected=1,
    kinds={"doc": KIND, "step": KIND},
    tokens_by="tiktoken",
    exact_tokens=True,
    usd=10.0,
    usd_by_batch=5.0,
    way="request",
    spent_usd=2.0,
    max_usd=8.0,
    table_bytes=0,
    index_bytes=0,
    seconds=60,
    seconds_by="at a guess",
)


def told(plan: Plan) -> str:
    return "\n".join(plan_lines(plan))


@pytest.mark.parametrize(
    ("way", "budget", "enough"),
    [("request", 11.99, False), ("request", 12, True), ("batch", 6.99, False), ("batch", 7, True), ("batch", 8, True)],
)
def test_the_budget_is_held_against_what_the_chosen_way_costs(way: str, budget: float, enough: bool) -> None:
    plan = replace(PLAN, way=way, max_usd=budget)
    assert plan.within_budget is plan.as_json()["within_budget"] is enough
    assert plan.as_json()["usd_to_pay"] == (5 if way == "batch" else 10)
    assert ("is enough" in told(plan)) is enough
    paid = "$7.00 in all, by batch" if way == "batch" else "$12.00 in all, by requests, now"
    assert f"{paid} (QBENCH_OPENAI_MODE)" in told(plan)


def test_without_a_price_or_a_budget_there_is_no_verdict() -> None:
    assert replace(PLAN, max_usd=None).within_budget is None
    assert replace(PLAN, usd=None, usd_by_batch=None).within_budget is None
    assert "QBENCH_PRICES" in told(replace(PLAN, usd=None, usd_by_batch=None))
    assert dollars(10, None) == (None, None)
    assert dollars(1_000_000, Price(0.13, 0.065)) == (0.13, 0.065)


def test_how_long_it_takes_is_told_for_the_chosen_way() -> None:
    assert "about 60 s at a guess; a batch takes up to a day" in told(PLAN)
    assert "up to a day, by batch" in told(replace(PLAN, way="batch"))
    assert "60 s" not in told(replace(PLAN, way="batch"))


def test_the_table_has_a_column_for_each_kind_and_leaves_out_what_is_nought() -> None:
    heading, *rows = plan_rows(PLAN)
    assert heading == ("", "docs", "steps", "in all")
    assert ("to embed", "6", "6", "12") in rows
    assert not [row for row in rows if row[0] == "awaited from batches"]
    assert PLAN.as_json()["tokens"] == 1_000_000


def test_the_plan_of_each_space_stands_below_the_other() -> None:
    shown = plan_markdown(PLAN, replace(PLAN, space="space_te3small_1536"))
    assert shown.count("| to embed | 6 | 6 | 12 |") == 2
    first, second = shown.split("| to embed |")[1:]
    assert "space_te3large_3072" in first
    assert "space_te3small_1536" in second
    assert "\n\n|" in first, "Markdown needs a blank line before a table"
