"""Section paths: broken trees have a path too, and a path can be taken apart again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbench_dagster.core.folders import folder_path, section_paths
from qbench_dagster.core.model import Section

TREE = {1: Section("Root", None), 2: Section("Login", 1), 3: Section("SSO", 2)}

NAMES = st.text(st.sampled_from("ab/\\ é|"), min_size=1, max_size=8).map(str.strip).filter(bool)


def taken_apart(path: str) -> list[str]:
    """Names of a path: split at each "/" that no backslash stands for."""
    names, escaped = [""], False
    for character in path:
        if escaped or character not in "/\\":
            names[-1] += character
            escaped = False
        elif character == "/":
            names.append("")
        else:
            escaped = True
    assert not escaped
    return names


@pytest.mark.parametrize(("section", "path"), [(1, "Root"), (2, "Root/Login"), (3, "Root/Login/SSO")])
def test_names_from_the_root(section: int, path: str) -> None:
    assert folder_path(section, TREE) == (path, None)


@given(st.lists(NAMES, min_size=1, max_size=6))
def test_a_path_can_be_taken_apart(names: list[str]) -> None:
    sections = {index: Section(name, index - 1 if index else None) for index, name in enumerate(names)}
    path, problem = folder_path(len(names) - 1, sections)
    assert problem is None
    assert path is not None
    assert taken_apart(path) == names


@pytest.mark.parametrize(
    ("name", "written"),
    [("a/b", r"a\/b"), ("a\\b", r"a\\b"), ("a\\/b", r"a\\\/b"), ("R&amp;D", "R&D"), ("<b>x</b>", "x"), ("a\nb", "a b")],
)
def test_slashes_and_backslashes_are_escaped_and_markup_goes(name: str, written: str) -> None:
    assert folder_path(2, {1: Section("r", None), 2: Section(name, 1)}) == (f"r/{written}", None)


def test_a_name_with_a_slash_is_not_two_folders() -> None:
    one = folder_path(1, {1: Section("a/b", None)})
    two = folder_path(2, {1: Section("a", None), 2: Section("b", 1)})
    assert one != two


def test_a_missing_section_has_no_path() -> None:
    assert folder_path(9, TREE) == (None, "section 9 is missing, the path begins below it")


def test_an_orphan_keeps_the_part_that_is_known() -> None:
    sections = {2: Section("Login", 1), 3: Section("SSO", 2)}
    assert folder_path(3, sections) == ("Login/SSO", "section 1 is missing, the path begins below it")


@pytest.mark.parametrize(
    ("circle", "path"), [({1: 1}, "s1"), ({1: 2, 2: 1}, "s2/s1"), ({1: 2, 2: 3, 3: 2}, "s3/s2/s1")]
)
def test_a_circle_ends(circle: dict[int, int], path: str) -> None:
    sections = {key: Section(f"s{key}", parent) for key, parent in circle.items()}
    found, problem = folder_path(1, sections)
    assert found == path
    assert problem is not None
    assert "is its own ancestor" in problem


@given(st.dictionaries(st.integers(0, 6), st.none() | st.integers(0, 8), max_size=7))
def test_any_tree_has_a_path_for_each_section(parents: dict[int, int | None]) -> None:
    sections = {str(key): Section(f"s{key}", None if up is None else str(up)) for key, up in parents.items()}
    paths = section_paths(sections)
    assert paths.keys() == sections.keys()
    for key, path in paths.items():
        names = path.split("/")
        assert names[-1] == f"s{key}"
        assert len(names) == len(set(names)) <= len(sections)
        for child, parent in zip(names[1:], names, strict=False):
            assert f"s{sections[child.removeprefix('s')].parent_id}" == parent
