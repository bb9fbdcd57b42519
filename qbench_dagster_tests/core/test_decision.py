"""The sentence on top of a report, and what it says to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from qbench_dagster.assets.parity_report import INVARIANTS
from qbench_dagster.core.decision import BLOCKERS, REMEDIES, decision

PAGE = Path(__file__).parents[2] / "docs" / "parity-report.md"


def report(*failed: str, held: int = 1) -> dict[str, Any]:
    names = [*failed, *(f"held_{n}" for n in range(held))]
    return {"findings": [{"name": name, "title": name.upper(), "passed": name.startswith("held_")} for name in names]}


def test_a_verdict_is_one_sentence() -> None:
    assert decision(report()) == "An application can be switched over."
    assert decision({"findings": []}) == decision({}) == "Not yet: nothing was checked."
    assert decision(report("no_word_lost")) == "Not yet: words of test steps were lost."
    assert (
        decision(report("recall_reaches_target", "old_store_is_covered"))
        == "Not yet: the index misses too many results and the old store holds cases that are missing here."
    )
    three = report("no_word_lost", "reader_has_least_privilege", "recall_reaches_target")
    assert (
        decision(three)
        == "Not yet: words of test steps were lost, the index misses too many results and 1 more check fails."
    )
    assert decision(report("of_another_version")) == "Not yet: “OF_ANOTHER_VERSION” does not hold."


@given(st.sets(st.sampled_from([*BLOCKERS, "unknown_1", "unknown_2"])), st.integers(0, 3))
def test_only_a_report_in_which_all_holds_is_a_yes(failed: set[str], held: int) -> None:
    told = decision(report(*failed, held=held))
    assert (told == "An application can be switched over.") is (not failed and held > 0)
    assert told.count(".") == 1


def test_every_check_of_the_report_is_known_here_and_in_the_docs() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert set(BLOCKERS) == set(REMEDIES)
    assert set(INVARIANTS) <= set(BLOCKERS)
    assert [name for name in BLOCKERS if f"`{name}`" not in text] == []
