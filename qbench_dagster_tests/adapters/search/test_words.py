"""Searches by words, by both, and by reference: what matches, in which order, and how two orders are made one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.reading import Filters, find_by_jira_key, hybrid, matched_steps, search
from qbench_dagster.core.lexical import embed
from qbench_dagster_tests.adapters.search.conftest import LOWEST, SPACE
from qbench_dagster_tests.adapters.search.twin import Twin, Words, idf, words_of
from qbench_dagster_tests.support import case, execute, rows, run_pipeline, write_export

D = SPACE.dimensions
RARE = 1000
SENTENCES = [
    "crash in PROJ-123 on login", "user cannot log in", '"one and the same" text', "video does not play",
    '"log in" password', "日本語", "ODD 🙂", "it's 100%", "C40000003", "testrail_40000003 button", "a", "the of and",
    "Delete a file quickly", "nothing-of-this_is.there", '"nothing of this is there" log in', "same SAME Same",
    "press the same button", "ünïcödé login",
]  # fmt: skip


def found_by_words(twin: Twin, words: Words, filters: Filters, common: dict[str, float]) -> dict[int, float]:
    """Which cases match, and the sum of what their words say: every case read, word by word."""
    total = len(twin.cases)
    allowed = [row["test_case_id"] for row in twin.matching(filters)]
    allowed = [key for key in allowed if all(twin.holds(key, phrase) for phrase in words.required)]
    if not words.plain:
        return dict.fromkeys(allowed if words.required else (), 0.0)
    holders = {word: {key for key in allowed if twin.holds(key, word)} for word in words.plain}
    share = {word: min(common.get(token, 0.0) for token in word) for word in words.plain}
    rare = [word for word in words.plain if share[word] * total < RARE]
    said = {
        word: idf(total, max(share[word] * total, len(holders[word]) if word in rare else 0)) for word in words.plain
    }
    matching = set.intersection(*holders.values()).union(*(holders[word] for word in rare))
    sums = {key: sum(said[word] for word in words.plain if key in holders[word]) for key in matching}
    return {key: said for key, said in sums.items() if said >= max(sums.values()) / 2}


@pytest.fixture(scope="module")
def common(published: Database) -> dict[str, float]:
    """The shares of the common words, as the planner's statistics have them."""
    return dict(rows(
        published,
        """SELECT c.lexeme, c.share FROM pg_stats s,
                  unnest(s.most_common_elems::text::text[], s.most_common_elem_freqs) AS c (lexeme, share)
           WHERE s.tablename = 'test_words' AND s.attname = 'words' AND c.lexeme IS NOT NULL""",
    ))  # fmt: skip


def test_the_cases_with_the_words_are_found_in_the_order_of_what_the_words_say(
    unindexed: Database, twin: Twin, common: dict[str, float]
) -> None:
    vocabulary = sorted({word for row in twin.cases[::90] for word in row["title"].split()})
    projects = sorted({row["project_id"] for row in twin.cases})

    @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(
        st.sampled_from(SENTENCES) | st.lists(st.sampled_from(vocabulary), min_size=1, max_size=4).map(" ".join),
        st.sampled_from([1, 10, 300]),
        st.none() | st.lists(st.sampled_from(projects), max_size=3),
    )
    def compare(text: str, k: int, project: list[int] | None) -> None:
        filters = Filters(project=project)
        expected = found_by_words(twin, words_of(text), filters, common)
        found = hybrid(unindexed, text, None, k, filters)
        ids = [row["test_case_id"] for row in found]
        assert len(ids) == len(set(ids)) == min(k, len(expected)), text
        assert set(ids) <= set(expected)
        assert [row["text_rank"] for row in found] == list(range(1, len(ids) + 1))
        if len(expected) <= 300:  # more are not all ranked
            best = sorted(expected.values(), reverse=True)[: len(ids)]
            assert np.allclose([expected[case_id] for case_id in ids], best, rtol=1e-5), text
        assert {(row["similarity"], row["vector_rank"]) for row in found} <= {(None, None)}

    compare()


def test_two_rankings_become_one_by_their_ranks(unindexed: Database, twin: Twin) -> None:
    priorities = sorted({row["priority"] for row in twin.cases} - {None})

    @settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(
        st.sampled_from(SENTENCES),
        st.sampled_from([1, 10, 60]),
        st.none() | st.lists(st.sampled_from(priorities), max_size=2),
        st.floats(0, 3),
        st.floats(0.1, 3),
        st.none() | st.floats(-0.1, 0.5),
    )
    def compare(
        text: str, k: int, priority: list[str] | None, by_vector: float, by_words: float, minimum: float | None
    ) -> None:
        filters = Filters(priority=priority)
        vector = embed([text], D)[0]
        found = hybrid(
            unindexed, text, vector, k, filters, min_similarity=minimum, vector_weight=by_vector, text_weight=by_words
        )
        words = words_of(text)
        depth = max(2 * k, 50)
        near = [(key, cosine) for key, cosine in twin.nearest(vector, filters, minimum)
                if all(twin.holds(key, phrase) for phrase in words.required)][:depth] if by_vector else []  # fmt: skip
        cosines = dict(twin.nearest(vector, filters))
        worded = [row["test_case_id"] for row in hybrid(unindexed, text, None, depth, filters)]
        in_words = {key: rank for rank, key in enumerate(worded, 1)}
        for row in found:
            key = row["test_case_id"]
            assert abs(row["similarity"] - cosines[key]) < 2e-6
            assert minimum is None or row["similarity"] >= minimum
            assert all(twin.holds(key, phrase) for phrase in words.required)
            score = sum(weight / (60 + row[name]) for name, weight in
                        (("vector_rank", by_vector), ("text_rank", by_words)) if row[name])  # fmt: skip
            assert abs(row["score"] - score) < 1e-12
            if row["vector_rank"]:  # among equals and near equals another may stand there
                assert abs(near[row["vector_rank"] - 1][1] - cosines[key]) < 4e-6
            if len(worded) < 50:
                assert row["text_rank"] == in_words.get(key)
        scores = [row["score"] for row in found]
        assert scores == sorted(scores, reverse=True)
        if by_vector:
            assert len(found) >= min(k, len(near))

    compare()


def test_a_search_by_both_is_complete_where_few_match(indexed: tuple[Database, str], twin: Twin) -> None:
    database, _ = indexed
    for row in twin.cases[:2500:400]:
        filters = Filters(folder=row["folder_structure"])
        matching = twin.matching(filters)
        for k in (1, 10, 1000):
            found = hybrid(database, "user cannot log in", embed(["user cannot log in"], D)[0], k, filters)
            assert len(found) == min(k, len(matching))
        assert {hit["test_case_id"] for hit in found} <= {match["test_case_id"] for match in matching}


def test_a_weight_of_nothing_leaves_its_ranking_out(unindexed: Database) -> None:
    text = "press the same button"
    vector = embed([text], D)[0]
    by_vector = hybrid(unindexed, text, vector, 20, Filters(), text_weight=0)
    assert [row["test_case_id"] for row in by_vector] == [
        row["test_case_id"] for row in search(unindexed, vector, 20, Filters())
    ]
    assert {row["text_rank"] for row in by_vector} == {None}
    by_words = hybrid(unindexed, text, vector, 20, Filters(), vector_weight=0)
    assert [row["test_case_id"] for row in by_words] == [
        row["test_case_id"] for row in hybrid(unindexed, text, None, 20, Filters())
    ]
    assert {row["vector_rank"] for row in by_words} == {None}


def test_the_steps_that_match_are_shown(unindexed: Database, twin: Twin) -> None:
    step = max(twin.steps[:3000], key=lambda row: (len(row["action"]), row["test_case_id"]))
    text = step["action"]
    found = matched_steps(unindexed, [step["test_case_id"], LOWEST], text, embed([text], D)[0])
    assert step["step_index"] in [row["step_index"] for row in found[step["test_case_id"]]]
    assert all(1 <= len(steps) <= 2 for steps in found.values())
    assert found[LOWEST][0]["action"] == "Press the same button"
    assert matched_steps(unindexed, [LOWEST], "nothing-of-this", None) == {}


# What is a word


CASES = [
    case(1, "Reboot in PROJ-123", steps="Look at error_code_42 of user.login"),
    case(2, "PROJ-12 and PROJ-1234", steps="GET /api/v2/users?id=7#top <b>bold</b> a@b.org"),
    case(3, "ログイン画面 を開く", steps="用户无法登录系统"),
    case(4, "Ünïcödé Straße ﬁle naïve", steps="Größe ½ ① ﷺ"),
    case(5, "ไม่สามารถเข้าสู่ระบบ", steps="ភាសាខ្មែរ ພາສາລາວ"),
    case(6, "Don't stop", steps="It is 100% & more; a|b !c (d) e:* 'f' \"g\" \\h"),
    case(7, "🙂 emoji 🙃", steps="-5 +6 1e5 12e3x 3.14 v1.2.3-rc4 10.0.0.1"),
    case(8, "Log in", refs="https://jira.example.org/browse/PROJ-12, OTHER-7", steps="Log in again"),
    case(9, "x" * 3000 + " huge word", steps="w " * 60_000),
    case(10, "Nothing but\\backslash and 100%_under", jiras="proj-12x, XPROJ-12"),
    case(11, "Of the key", custom_fields={"jira_key": "PROJ-12"}),
]


@pytest.fixture(scope="module")
def small(module_database: Database, tmp_path_factory: pytest.TempPathFactory) -> Database:
    """A few odd cases; no statistics were ever taken of them."""
    run_pipeline(module_database, write_export(tmp_path_factory.mktemp("words") / "export.db", CASES), space=SPACE)
    return module_database


@pytest.mark.parametrize(
    ("query", "first"),
    [("PROJ-123", [1]), ("crash in PROJ-123 on login", [1]), ("proj-12", [2, 8, 11]), ("proj_123", [1]),
     ("PROJ-1234", [2]),
     ("error_code_42", [1]), ("ERROR-CODE-42", [1]), ("user.login", [1]), ("/api/v2/users", [2]), ("C7", [7]),
     ("testrail_5", [5]), ("ログイン", [3]), ("画面", [3]), ("登录", [3]), ("开く", []), ("unicode", [4]),
     ("STRASSE", []), ("straße", [4]), ("file", [4]), ("ÜNÏCÖDÉ", [4]), ("naive", [4]), ("เข้าสู่", [5]), ("ខ្មែរ", [5]),
     ("don't", [6]), ("'f'", [6]), ("e:*", [6]), ("a|b", [6]), ("100%", [6, 10]), ("-5", [5, 7]), ("1e5", [7]),
     ("12e3x", [7]),
     ("v1.2.3-rc4", [7]), ("10.0.0.1", [7]), ("v1", [7]),
     ("3.14", [7]), ('"log in"', [8]), ('"in log"', []), ("huge", [9]),
     ('"100%_under"', [10]), ("but\\backslash", [10]), ("a@b.org", [2]), ('"unfinished', [])],
)  # fmt: skip
def test_identifiers_phrases_and_other_scripts_are_found(small: Database, query: str, first: list[int]) -> None:
    found = [row["test_case_id"] for row in hybrid(small, query, None, len(first) or 1, Filters())]
    assert sorted(found) == first


def test_vectors_that_nobody_analyzed_are_searched(small: Database) -> None:
    """As they are between the first load and the first index or autovacuum: their number is -1."""
    execute(small, "DELETE FROM store.index_builds")
    execute(small, "UPDATE pg_class SET reltuples = -1 WHERE relname LIKE '%embeddings'")
    vector = embed(["Log in"], D)[0]
    assert len(hybrid(small, "log in", vector, 3, Filters())) == 3
    assert hybrid(small, "log in", vector, 3, Filters(project=[-1])) == []


def test_a_phrase_is_required_of_what_the_vector_finds_too(small: Database) -> None:
    vector = embed(["Log in"], D)[0]
    assert len(hybrid(small, "log in", vector, 20, Filters())) == len(CASES)
    assert [row["test_case_id"] for row in hybrid(small, '"log in" again', vector, 20, Filters())] == [8]
    assert hybrid(small, '"in log"', vector, 20, Filters()) == []


@pytest.mark.parametrize(
    ("key", "found"),
    [("PROJ-12", [(11, "jira_key"), (8, "jira_key")]), ("proj-12", [(11, "jira_key"), (8, "jira_key")]), ("PROJ-1", []),
     (" PROJ-12 ", [(11, "jira_key"), (8, "jira_key")]),
     ("https://any.example.org/browse/PROJ-12?x=1", [(11, ""), (8, "")]),
     ("OTHER-7", [(8, "jira")]), ("XPROJ-12", [(10, "jira_key")]), ("12", []), ("ROJ-12", []), ("PROJ.12", []),
     ("https://jira.example.org/browse/PROJ-12", [(11, ""), (8, "")])],
)  # fmt: skip
def test_a_key_finds_its_cases_and_those_that_refer_to_it(
    small: Database, key: str, found: list[tuple[int, str]]
) -> None:
    hits = find_by_jira_key(small, key, 10, Filters())
    assert sorted((row["test_case_id"], row["matched"]) for row in hits) == sorted(
        (case_id, how or "jira_key") for case_id, how in found
    )


def test_an_identifier_in_a_sentence_is_found(unindexed: Database, twin: Twin) -> None:
    for row in twin.cases[7:2500:500]:
        text = f"user cannot log in C{row['test_case_id']}"
        found = hybrid(unindexed, text, embed([text], D)[0], 3, Filters())
        assert row["test_case_id"] in [hit["test_case_id"] for hit in found]


def test_every_reference_of_the_sample_is_found(unindexed: Database, twin: Twin) -> None:
    checked = 0
    for case_id, keys in list(twin.issues.items())[::60]:
        for key in keys[:2]:
            ids = [row["test_case_id"] for row in find_by_jira_key(unindexed, key, 1000, Filters())]
            assert case_id in ids, key
            checked += 1
    assert checked > 10


# When they are indexed


def words_of_cases(database: Database) -> dict[int, tuple[Any, ...]]:
    return {
        row[0]: row[1:]
        for row in rows(database, "SELECT test_case_id, words::text, recipe, xmin::text FROM store.test_words")
    }


def test_words_are_written_with_their_case_and_with_it_alone(database: Database, tmp_path: Path) -> None:
    cases = [case(n, f"Number n{n}", steps=f"Do thing {n}") for n in (1, 2, 3)]
    path = tmp_path / "export.db"
    run_pipeline(database, write_export(path, cases), space=SPACE)
    before = words_of_cases(database)
    changed = [{**cases[0], "title": "Of another name"}, cases[1]]
    run_pipeline(database, write_export(path, changed), space=SPACE, max_delete_share=1)
    after = words_of_cases(database)
    assert after[2] == before[2], "not touched"
    assert set(after) == {1, 2}
    assert [row["test_case_id"] for row in hybrid(database, "another", None, 5, Filters())] == [1]
    assert hybrid(database, "n1", None, 5, Filters()) == []


def test_missing_and_outdated_words_make_a_range_due_and_are_written(database: Database, tmp_path: Path) -> None:
    path = write_export(tmp_path / "export.db", [case(n, f"Number n{n}") for n in (1, 2, 3)])
    run_pipeline(database, path, space=SPACE)
    before = words_of_cases(database)
    execute(database, "DELETE FROM store.test_words WHERE test_case_id = 1")  # as published by a version without
    execute(database, "UPDATE store.test_words SET words = '', recipe = 0 WHERE test_case_id = 2")
    from qbench_dagster.adapters.publishing import ranges_due  # noqa: PLC0415

    outcome = run_pipeline(database, path, space=SPACE)
    (published,) = outcome.published.values()
    assert (published.written, published.rows_written) == (0, 2)
    assert {key: row[:2] for key, row in words_of_cases(database).items()} == {k: row[:2] for k, row in before.items()}
    assert ranges_due(database, list(outcome.ranges.values())) == set()
    execute(database, "DELETE FROM store.test_words WHERE test_case_id = 3")
    assert ranges_due(database, list(outcome.ranges.values())) == set(outcome.ranges)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40))
def test_a_text_finds_itself_whatever_it_holds(small: Database, text: str) -> None:
    (answer,) = rows(
        small,
        """SELECT numnode(q), store.words_of(t) @@ q, store.words_of('before ' || t || ' after') @@ q
           FROM (SELECT %s::text AS t) AS t, phraseto_tsquery('simple', store.plain_text(t)) AS q""",
        text,
    )
    assert answer[0] == 0 or answer[1:] == (True, True)


def test_a_long_phrase_is_cut_between_words(small: Database) -> None:
    """A half word would be required and found nowhere."""
    phrase = " ".join(f"word{number}" for number in range(100))
    ((required,),) = rows(small, "SELECT word::text FROM store.query_words(%s) WHERE required", f'"{phrase}"')
    words = [part.strip("'") for part in required.split(" <-> ")]
    assert 30 < len(words) < 100
    assert words == phrase.split()[: len(words)]
    assert rows(small, "SELECT count(*) FROM store.query_words(%s) WHERE required", '"' + 400 * "x" + '"') == [(1,)]


def test_words_and_phrases_of_long_texts_fit(small: Database) -> None:
    """What is worst for a tsvector of 1 MB: many different characters of a script without spaces."""
    assert rows(small, "SELECT length(store.words_of(%s)) > 5000", " ".join(f"w{n}" for n in range(200_000))) == [
        (True,)
    ]
    text = "".join(map(chr, [*range(0x20000, 0x2A000), *range(0x4E00, 0x9FFF)]))
    assert rows(
        small,
        "SELECT length(setweight(store.words_of(%s), 'A') || setweight(store.words_of(%s), 'B') || store.words_of(%s)) "
        "> 50000",
        text, text[::-1], text[30_000:],
    ) == [(True,)]  # fmt: skip
