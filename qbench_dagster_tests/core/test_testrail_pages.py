"""Pages of the API: both forms of a list, walked to the end, and what is no page."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbench_dagster.core.testrail import NotTestRailError
from qbench_dagster.core.testrail_pages import Page, read_page

ONE, TWO = {"id": 1}, {"id": 2}


def bulk(*entries: Any, following: Any = None, **more: Any) -> dict[str, Any]:
    """An answer in pages."""
    return {
        "offset": 0,
        "limit": 2,
        "size": len(entries),
        "_links": {"next": following},
        "cases": list(entries),
        **more,
    }


def test_both_forms_of_a_list() -> None:
    assert read_page([ONE, TWO], "cases", 0) == Page([ONE, TWO], None, whole=True)
    assert read_page(bulk(ONE), "cases", 250) == Page([ONE], None)
    link = "/api/v2/get_cases/1&suite_id=2&limit=2&offset=252"
    assert read_page(bulk(ONE, TWO, following=link), "cases", 250) == Page([ONE, TWO], 252)


def test_a_page_short_of_its_limit_is_followed_where_the_link_leads() -> None:
    """The server leaves out what the user may not see, after it has cut the page."""
    assert read_page(bulk(ONE, following="…&offset=500"), "cases", 250).next_offset == 500


def test_of_a_link_only_the_offset_counts() -> None:
    assert read_page(bulk(ONE, TWO, following="https://evil.example/?offset=2"), "cases", 0).next_offset == 2
    assert read_page(bulk(ONE, TWO, following="somewhere"), "cases", 10).next_offset == 12


def test_without_links_a_full_page_is_not_the_last() -> None:
    answer = {"offset": 4, "limit": 2, "size": 2, "cases": [ONE, TWO]}
    assert read_page(answer, "cases", 4).next_offset == 6
    assert read_page({**answer, "cases": [ONE]}, "cases", 4).next_offset is None
    assert read_page({"cases": [ONE]}, "cases", 0).next_offset is None


@pytest.mark.parametrize(
    "answer", [{"error": "no"}, {"cases": {}}, "text", None, 3, [ONE, 5], bulk("x"), {"suites": []}]
)
def test_what_is_no_page_is_said(answer: Any) -> None:
    with pytest.raises(NotTestRailError, match="cases"):
        read_page(answer, "cases", 0)


@pytest.mark.parametrize("offset", [250, 249, 0])
def test_a_page_that_leads_back_is_not_followed(offset: int) -> None:
    with pytest.raises(NotTestRailError, match=f"begins at {offset}"):
        read_page(bulk(ONE, following=f"&offset={offset}"), "cases", 250)


@given(st.integers(0, 40), st.integers(1, 7))
def test_walked_to_the_end_every_entry_comes_once(count: int, limit: int) -> None:
    everything = [{"id": number} for number in range(count)]
    found: list[Any] = []
    offset: int | None = 0
    while offset is not None:
        shown = everything[offset : offset + limit]
        more = f"&limit={limit}&offset={offset + limit}" if offset + limit < count else None
        page = read_page(bulk(*shown, following=more), "cases", offset)
        found += page.entries
        offset = page.next_offset
    assert found == everything
