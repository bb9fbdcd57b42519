"""The sample as a file: schema, bytes, refusals, and each planted difficulty in its raw cell."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from qbench_dagster.adapters.sample_writer import SampleSummary, content_sha256, write_sample
from qbench_dagster.core.sample import ALWAYS_FROM, DIFFICULTIES, MAX_CASES, planted

SEED = 7

# (name, declared type, not null, primary key): as the real export declares them.
CASE_COLUMNS = [
    ("id", "INTEGER", 1, 1), ("suite_id", "INTEGER", 1, 0), ("section_id", "INTEGER", 1, 0),
    ("project_id", "INTEGER", 1, 0), ("title", "VARCHAR", 1, 0), ("template_id", "INTEGER", 0, 0),
    ("type_id", "INTEGER", 0, 0), ("priority_id", "INTEGER", 0, 0), ("refs", "VARCHAR", 0, 0),
    ("created_on", "INTEGER", 0, 0), ("updated_on", "INTEGER", 0, 0), ("preconditions", "TEXT", 0, 0),
    ("steps", "TEXT", 0, 0), ("steps_separated", "JSON", 0, 0), ("steps_combined", "TEXT", 0, 0),
    ("jiras", "VARCHAR", 0, 0), ("refs_custom", "VARCHAR", 0, 0), ("comment", "TEXT", 0, 0),
    ("is_automated", "BOOLEAN", 0, 0), ("custom_fields", "JSON", 0, 0),
]  # fmt: skip


def table(path: Path, query: str) -> list[dict[str, Any]]:
    """Rows with raw text: bytes as they lie in the file."""
    with closing(sqlite3.connect(path)) as db:
        db.text_factory = bytes
        db.row_factory = sqlite3.Row
        return [dict(row) for row in db.execute(query)]


@pytest.fixture(scope="module", params=[ALWAYS_FROM, 3_000])
def sample(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SampleSummary:
    return write_sample(tmp_path_factory.mktemp("sample") / "sample.db", request.param, SEED)


@pytest.fixture(scope="module")
def cases(sample: SampleSummary) -> dict[int, dict[str, Any]]:
    return {row["id"]: row for row in table(sample.path, "SELECT * FROM cases")}


@pytest.fixture(scope="module")
def sections(sample: SampleSummary) -> dict[int, dict[str, Any]]:
    return {row["id"]: row for row in table(sample.path, "SELECT * FROM sections")}


def test_the_schema_is_that_of_the_real_export(sample: SampleSummary) -> None:
    with closing(sqlite3.connect(sample.path)) as db:
        columns = [(r[1], r[2], r[3], r[5]) for r in db.execute("PRAGMA table_info(cases)")]
        assert columns == CASE_COLUMNS
        counts = {
            name: len(db.execute(f"PRAGMA table_info({name})").fetchall())
            for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        }
        assert counts == {
            "projects": 8, "suites": 9, "sections": 7, "priorities": 5,
            "case_types": 3, "templates": 3, "cases": 20,
        }  # fmt: skip
        indexes = {r[0] for r in db.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}
        assert indexes == {"ix_cases_suite_id", "ix_cases_section_id", "ix_cases_project_id"}
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("PRAGMA page_size").fetchone() == (4096,)


def test_every_cell_has_the_type_its_column_promises(sample: SampleSummary) -> None:
    with closing(sqlite3.connect(sample.path)) as db:
        for name, kind, _, _ in CASE_COLUMNS:
            wanted = {"INTEGER": "integer", "BOOLEAN": "integer"}.get(kind, "text")
            found = {r[0] for r in db.execute(f"SELECT DISTINCT typeof({name}) FROM cases")}
            assert found <= {wanted, "null"}, name


def test_the_summary_says_what_is_in_the_file(sample: SampleSummary, cases: dict[int, Any]) -> None:
    assert sample.cases == len(cases)
    assert sample.bytes == sample.path.stat().st_size
    assert sample.content_sha256 == content_sha256(sample.path)
    assert sample.difficulties == {name: len(ids) for name, ids in planted(sample.cases, SEED).items()}


def test_the_same_seed_gives_the_same_bytes_in_any_process(tmp_path: Path) -> None:
    code = (
        "import sys; from qbench_dagster.adapters.sample_writer import write_sample;write_sample(sys.argv[1], 700, 7)"
    )
    for name, hash_seed in (("a.db", "1"), ("b.db", "2")):
        env = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], env=env, check=True)
    write_sample(tmp_path / "c.db", 700, 7)
    a, b, c = ((tmp_path / name).read_bytes() for name in ("a.db", "b.db", "c.db"))
    assert a == b == c


def test_another_seed_or_size_gives_another_file(tmp_path: Path) -> None:
    digests = {
        write_sample(tmp_path / f"{cases}-{seed}.db", cases, seed).content_sha256
        for cases, seed in ((300, 7), (300, 8), (301, 7), (300, -7))
    }
    assert len(digests) == 4
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 4


def test_the_content_of_seed_7_is_pinned(tmp_path: Path) -> None:
    # The same on every machine and Python. It changes only when the words or shares are changed.
    assert write_sample(tmp_path / "s.db", 250, 7).content_sha256 == PINNED


PINNED = "eefa5a718f0e07b52321aa35feba84d18c351b73471c564b8404e5e4dbfa8322"


@pytest.mark.parametrize("number", [1, 2, 10, 200])
def test_small_samples_are_whole_exports(tmp_path: Path, number: int) -> None:
    summary = write_sample(str(tmp_path / "s.db"), number, SEED)
    ids = [row["id"] for row in table(summary.path, "SELECT id FROM cases ORDER BY id")]
    assert len(ids) == number
    assert ids[0] == 729
    assert number == 1 or ids[-1] == 34_799_866
    for name in ("projects", "suites", "sections", "priorities", "case_types", "templates"):
        assert table(summary.path, f"SELECT * FROM {name}")


@pytest.mark.parametrize("number", [0, -5, MAX_CASES + 1])
def test_a_number_of_cases_that_cannot_be_made_leaves_no_file(tmp_path: Path, number: int) -> None:
    with pytest.raises(ValueError, match="cases must be at"):
        write_sample(tmp_path / "s.db", number, SEED)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_refused_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        write_sample(path, 10, SEED)
    assert path.read_text() == "mine"
    assert write_sample(path, 10, SEED, force=True).bytes == path.stat().st_size
    assert len(table(path, "SELECT id FROM cases")) == 10
    assert [p.name for p in tmp_path.iterdir()] == ["s.db"]


def made_by_others(path: Path) -> None:
    path.write_text("theirs")


def test_a_file_somebody_made_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with pytest.raises(FileExistsError, match="meanwhile"):
        write_sample(path, 10, SEED, lambda *_: made_by_others(path))
    assert path.read_text() == "theirs"
    assert [p.name for p in tmp_path.iterdir()] == ["s.db"]


def test_a_folder_without_hard_links_gets_its_file_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr("os.link", no_links)
    write_sample(tmp_path / "s.db", 10, SEED)
    assert [p.name for p in tmp_path.iterdir()] == ["s.db"]
    with pytest.raises(FileExistsError):
        write_sample(tmp_path / "t.db", 10, SEED, lambda *_: made_by_others(tmp_path / "t.db"))
    assert (tmp_path / "t.db").read_text() == "theirs"


@pytest.mark.parametrize("suffix", ["-wal", "-journal"])
def test_an_old_journal_beside_the_file_is_refused(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"s.db{suffix}").write_text("old")
    with pytest.raises(FileExistsError, match=suffix):
        write_sample(tmp_path / "s.db", 10, SEED, force=True)


def test_a_missing_folder_and_a_folder_as_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        write_sample(tmp_path / "none" / "s.db", 10, SEED)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        write_sample(tmp_path, 10, SEED, force=True)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_write_leaves_no_file(tmp_path: Path, error: type[BaseException]) -> None:
    def interrupt(done: int, _: int) -> None:
        if done >= 2_000:
            raise error

    with pytest.raises(error):
        write_sample(tmp_path / "s.db", 5_000, SEED, interrupt)
    assert list(tmp_path.iterdir()) == []


def test_progress_ends_with_the_number_of_cases(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_sample(tmp_path / "s.db", 2_500, SEED, lambda done, total: seen.append((done, total)))
    assert seen == [(1_000, 2_500), (2_000, 2_500), (2_500, 2_500)]


Row = dict[str, Any]


def text(row: Row, *names: str) -> str:
    """The cells as text; what is not valid UTF-8 becomes U+FFFD."""
    return "\n".join(row[name].decode("utf-8", "replace") for name in names if row[name] is not None)


def all_text(row: Row) -> str:
    return text(row, *(name for name, value in row.items() if isinstance(value, bytes)))


def separated(row: Row) -> list[dict[str, str]]:
    value = json.loads(row["steps_separated"] or "[]")
    assert isinstance(value, list)
    return value


def is_json(value: bytes | None) -> bool:
    try:
        json.loads(value or b"null")
    except ValueError:
        return False
    return True


def is_utf8(value: object) -> bool:
    try:
        return not isinstance(value, bytes) or bool(value.decode() or True)
    except UnicodeDecodeError:
        return False


def only_spaces(value: bytes | None) -> bool:
    return value is not None and not value.decode("utf-8", "replace").strip()


def several_keys(row: Row) -> bool:
    value = text(row, "jiras")
    return len(value) > 50 and len(re.findall(r"[A-Z]+-\d+", value)) > 8


SCRIPTS = {
    "right_to_left": re.compile("[\u0590-\u06ff]"),
    "cjk": re.compile("[\u3040-\u30ff\u4e00-\u9fff]{8}"),
    "emoji": re.compile("[\U0001f300-\U0001faff]"),
    "zero_width_nbsp": re.compile("\u200b\u00a0"),
}


def in_title_and_steps(pattern: re.Pattern[str]) -> Callable[[Row], bool]:
    return lambda r: bool(pattern.search(text(r, "title")) and pattern.search(text(r, "steps")))


CHECKS: dict[str, Callable[[Row], bool]] = {
    "html": lambda r: all(tag in text(r, "steps") for tag in ("<p>", "<ol>", "<li>", "<td>")),
    "crlf": lambda r: all("\r\n" in text(r, n) for n in ("preconditions", "steps", "steps_combined", "comment")),
    "gherkin": lambda r: all(word in text(r, "steps") for word in ("GIVEN ", "WHEN ", "THEN ")),
    "repeated_steps": lambda r: max(Counter(map(str, separated(r))).values(), default=0) >= 4,
    "several_jira_keys": several_keys,
    "unknown_type": lambda r: r["type_id"] in (977, 978, 14, 15),
    "unknown_priority": lambda r: r["priority_id"] not in (4, 6, 7),
    "broken_json_steps": lambda r: text(r, "steps_separated").startswith("[{") and not is_json(r["steps_separated"]),
    "broken_json_custom_fields": lambda r: not is_json(r["custom_fields"]),
    "expected_only_step": lambda r: (
        is_json(r["steps_separated"]) and any(not step["content"] and step["expected"] for step in separated(r))
    ),
    "very_long_text": lambda r: (
        len(all_text(r)) >= 64_000
        and max(len(text(r, n)) for n in ("preconditions", "steps", "steps_separated")) >= 64_000
    ),
    "nul": lambda r: "\0" in all_text(r) or "\\u0000" in text(r, "steps_separated"),
    "lone_surrogate": lambda r: not all(map(is_utf8, r.values())) or "\\ud800" in text(r, "steps_separated"),
    "control_char": lambda r: "\x03" in text(r, "steps"),
    **{name: in_title_and_steps(pattern) for name, pattern in SCRIPTS.items()},
    "whitespace_only": lambda r: all(only_spaces(r[n]) for n in ("steps", "preconditions", "refs", "comment")),
    "blank_title": lambda r: r["title"].strip() == b"",
    "attachment_image": lambda r: "![](index.php?/attachments/get/7)" in text(r, "steps"),
    "placeholder_tags": lambda r: "<username>" in text(r, "steps"),
    "markdown_table": lambda r: "|---|" in text(r, "steps"),
    "triple_pipe_table": lambda r: "|||:" in text(r, "steps"),
    "code_fence": lambda r: text(r, "steps").count("```") == 2,
    "updated_before_created": lambda r: r["updated_on"] < r["created_on"],
    "combined_only": lambda r: r["steps"] is None and r["steps_separated"] is None and bool(r["steps_combined"]),
    "snake_refs": lambda r: re.match(r"[a-z0-9_]+_v\d, req_", text(r, "refs")) is not None,
    "url_refs": lambda r: "https://tracker.example/browse/" in text(r, "refs"),
}
BY_TABLE = {
    "section_cycle",
    "section_orphan",
    "slash_in_section_name",
    "shared_updated_on",
    "identical_cases",
}


def test_every_difficulty_has_a_check() -> None:
    assert set(CHECKS) | BY_TABLE == set(DIFFICULTIES)
    assert not set(CHECKS) & BY_TABLE


@pytest.mark.parametrize("name", CHECKS)
def test_a_planted_difficulty_is_in_the_raw_cell(sample: SampleSummary, cases: dict[int, Row], name: str) -> None:
    ids = planted(sample.cases, SEED)[name]
    assert ids
    assert [i for i in ids if not CHECKS[name](cases[i])] == []
    if DIFFICULTIES[name].exclusive:
        assert [i for i in cases if CHECKS[name](cases[i])] == ids


@pytest.fixture
def names(sample: SampleSummary) -> dict[str, list[int]]:
    return planted(sample.cases, SEED)


def test_sections_in_a_circle_without_parent_or_missing(
    names: dict[str, list[int]], cases: dict[int, Row], sections: dict[int, Row]
) -> None:
    def ends(section: int | None) -> str:
        seen = set()
        while section is not None:
            if section in seen:
                return "circle"
            seen.add(section)
            if section not in sections:
                return "missing" if len(seen) == 1 else "orphan"
            section = sections[section]["parent_id"]
        return "root"

    found = {i: ends(row["section_id"]) for i, row in cases.items()}
    assert [i for i, end in found.items() if end == "circle"] == names["section_cycle"]
    assert [i for i, end in found.items() if end in ("missing", "orphan")] == names["section_orphan"]
    assert {found[i] for i in names["section_orphan"]} == {"missing", "orphan"}
    circles = {cases[i]["section_id"] for i in names["section_cycle"]}
    assert len(circles) == 3, "two that point at each other and one at itself"


def test_section_names_with_a_slash(
    names: dict[str, list[int]], cases: dict[int, Row], sections: dict[int, Row]
) -> None:
    with_slash = {i for i, row in sections.items() if b"/" in row["name"]}
    assert [i for i, row in cases.items() if row["section_id"] in with_slash] == names["slash_in_section_name"]


def test_cases_that_share_one_updated_on(names: dict[str, list[int]], cases: dict[int, Row]) -> None:
    ids = names["shared_updated_on"]
    assert len(ids) >= 3
    assert len({cases[i]["updated_on"] for i in ids}) == 1


def test_identical_cases_have_at_least_two_twins(names: dict[str, list[int]], cases: dict[int, Row]) -> None:
    columns = ("title", "preconditions", "steps", "steps_separated", "steps_combined")
    groups = Counter(tuple(cases[i][c] for c in columns) for i in names["identical_cases"])
    assert min(groups.values()) >= 3
    assert all(any(key[1:]) for key in groups), "identical in their steps, not only in having none"


def test_unknown_types_are_of_both_kinds(
    names: dict[str, list[int]], cases: dict[int, Row], sample: SampleSummary
) -> None:
    known = {row["id"]: row["name"] for row in table(sample.path, "SELECT id, name FROM case_types")}
    found = {known.get(cases[i]["type_id"]) for i in names["unknown_type"]}
    assert found == {None, b"Dress Rehearsal", b"Gate Drill"}


def test_jira_keys_on_one_line_and_on_several(names: dict[str, list[int]], cases: dict[int, Row]) -> None:
    assert {b"\n" in cases[i]["jiras"] for i in names["several_jira_keys"]} == {True, False}


def test_nul_and_surrogates_are_in_several_columns(names: dict[str, list[int]], cases: dict[int, Row]) -> None:
    nul = [cases[i] for i in names["nul"]]
    assert any(b"\0" in row["title"] for row in nul)
    assert any(b"\0" in (row["steps"] or b"") for row in nul)
    assert any(b"\0" in (row["comment"] or b"") for row in nul)
    odd = [cases[i] for i in names["lone_surrogate"]]
    assert any(b"\xed\xa0\xbd" in (row["steps"] or b"") for row in odd)
    assert any(b"\\ud800" in (row["steps_separated"] or b"") for row in odd)


def test_long_texts_are_in_several_columns(names: dict[str, list[int]], cases: dict[int, Row]) -> None:
    long = [cases[i] for i in names["very_long_text"]]
    for column in ("steps", "preconditions", "steps_separated"):
        assert any(len(row[column] or b"") >= 64_000 for row in long), column
