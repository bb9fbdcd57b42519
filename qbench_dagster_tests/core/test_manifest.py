"""What a backup says of itself: read back as written, compared table by table, and the rights sorted by role."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbench_dagster.core.manifest import (
    FORMAT,
    Manifest,
    ManifestError,
    TableState,
    differences,
    parse_manifest,
    split_rights,
    wrong_files,
)

names = st.text(min_size=1, max_size=20)
states = st.builds(TableState, st.integers(0, 10**12), st.text("0123456789- ", max_size=40))
manifests = st.builds(
    Manifest, names, names, names, names, names, names, names, st.lists(names), st.dictionaries(names, names),
    st.dictionaries(names, names), st.dictionaries(names, states), st.dictionaries(names, st.integers(0, 10**15)),
)  # fmt: skip


@given(manifests)
def test_it_is_read_as_it_was_written(manifest: Manifest) -> None:
    assert parse_manifest(manifest.dumps()) == manifest
    assert manifest.rows == sum(table.rows for table in manifest.tables.values())
    assert manifest.bytes == sum(manifest.files.values())


def written(**changed: Any) -> str:
    manifest = Manifest("now", "1.2", "url", "18.4", "0.8.5", "public", "18.4", [], {}, {}, {}, {})
    return json.dumps({**json.loads(manifest.dumps()), **changed})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no JSON"),
        ('{"format": 1', "no JSON"),
        ("[]", "no manifest of a backup"),
        ("{}", "no manifest of a backup"),
        ('{"format": 1, "qbench": "1"}', "it lacks created_at, database"),
        (written(format=FORMAT + 1), r"a newer qbench \(1\.2\) wrote it, in format 2; this one reads up to 1"),
        (written(tables={"store.spaces": {"rows": 1}}), "tables or files cannot be read"),
        (written(tables=[1]), "tables or files cannot be read"),
        (written(files={"toc.dat": "many"}), "tables or files cannot be read"),
    ],
)
def test_what_is_no_manifest_says_why(text: str, told: str) -> None:
    with pytest.raises(ManifestError, match=told):
        parse_manifest(text)


@given(st.dictionaries(names, states), st.dictionaries(names, states))
def test_only_equal_tables_do_not_differ(expected: dict[str, TableState], found: dict[str, TableState]) -> None:
    assert differences(expected, expected) == []
    said = differences(expected, found)
    differing = [name for name in {*expected, *found} if expected.get(name) != found.get(name)]
    assert [line.split(" ")[0] for line in said] == [name.split(" ")[0] for name in sorted(differing)]


def test_each_difference_is_told() -> None:
    expected = {"a": TableState(1, "x"), "b": TableState(1000, "x"), "c": TableState(1, "x"), "d": TableState(1, "x")}
    found = {"a": TableState(1, "y"), "b": TableState(999, "x"), "d": TableState(1, "x"), "e": TableState(0, "0 0")}
    assert differences(expected, found) == [
        "a has as many rows as it had (1), and at least one of them differs",
        "b has 999 rows; it had 1,000",
        "c is missing; it had 1 rows",
        "e is not in the backup",
    ]


def test_files_that_are_missing_or_cut() -> None:
    assert wrong_files({"a": 1000, "b": 2, "c": 3}, {"a": 999, "c": 3, "more": 1}) == [
        "a has 999 bytes instead of 1,000",
        "b is missing",
    ]


RIGHTS = '''
\\restrict x
SET row_security = off;
GRANT USAGE ON SCHEMA qbench TO qbench_reader;
GRANT USAGE ON SCHEMA qbench TO grafana;
SET SESSION AUTHORIZATION alice;
GRANT SELECT ON TABLE qbench.test_documents TO "the ""app""" WITH GRANT OPTION;
REVOKE ALL ON FUNCTION qbench.search_hybrid(query_text text) FROM PUBLIC;
GRANT ALL ON FUNCTION qbench."from FROM to TO x"() TO qbench_reader;
GRANT SELECT(title) ON TABLE qbench.test_documents TO bob;
ALTER DEFAULT PRIVILEGES FOR ROLE qbench_owner IN SCHEMA store GRANT SELECT ON TABLES TO qbench_writer;
ALTER DEFAULT PRIVILEGES FOR ROLE qbench_owner IN SCHEMA store REVOKE ALL ON FUNCTIONS FROM PUBLIC;
'''


def test_rights_go_to_the_roles_there_are() -> None:
    everyone = {"qbench_reader", "grafana", 'the "app"', "bob", "qbench_owner", "qbench_writer"}
    kept, missing = split_rights(RIGHTS, everyone)
    assert (len(kept), missing) == (8, [])
    assert all(line.startswith(("GRANT", "REVOKE", "ALTER DEFAULT PRIVILEGES")) for line in kept)
    for role, lost in (("grafana", 1), ('the "app"', 1), ("bob", 1), ("qbench_owner", 2), ("qbench_writer", 1)):
        kept, missing = split_rights(RIGHTS, everyone - {role})
        assert (len(kept), missing) == (8 - lost, [role])
