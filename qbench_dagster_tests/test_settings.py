"""The settings: defaults, every variable, what a wrong one is told, and the table in the README."""

from __future__ import annotations

import re
import traceback
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from qbench_dagster.settings import Settings, SettingsError, dagster_storage_url, load_settings

README = Path(__file__).parents[1] / "README.md"
SECRET = "hunter2"
URLS = ["DATABASE_URL", "QBENCH_DAGSTER_DATABASE_URL"]
SECRETS = [
    "DATABASE_URL",
    "QBENCH_TESTRAIL_API_KEY",
    "OPENAI_API_KEY",
    "QBENCH_QDRANT_API_KEY",
    "QBENCH_DAGSTER_DATABASE_URL",
]
FREE = (str, str | None, Path, Path | None)
"""Any text is a name, and any path is one."""
ALIASES = {str(field.alias): name for name, field in Settings.model_fields.items()}

GOOD: dict[str, tuple[str, Any]] = {
    "DATABASE_URL": ("postgresql://ada:hunter2@db/qa", SecretStr("postgresql://ada:hunter2@db/qa")),
    "QBENCH_HOME": ("/data/qbench", Path("/data/qbench")),
    "QBENCH_EXPORT": ("/data/testrail_data.db", Path("/data/testrail_data.db")),
    "QBENCH_TESTRAIL_URL": ("https://acme.testrail.io", "https://acme.testrail.io"),
    "QBENCH_TESTRAIL_USER": ("ada@acme.example", "ada@acme.example"),
    "QBENCH_TESTRAIL_API_KEY": ("hunter2", SecretStr("hunter2")),
    "QBENCH_TESTRAIL_PROJECTS": ("1, 4", "1, 4"),
    "QBENCH_EMBEDDER": ("openai", "openai"),
    "QBENCH_MODEL": ("text-embedding-3-small", "text-embedding-3-small"),
    "QBENCH_DIMENSIONS": ("1536", 1536),
    "QBENCH_TEXT_PREFIX": ("passage: ", "passage: "),
    "QBENCH_QUERY_PREFIX": ("query: ", "query: "),
    "QBENCH_VECTOR_TYPE": ("vector", "vector"),
    "OPENAI_API_KEY": ("sk-hunter2", SecretStr("sk-hunter2")),
    "OPENAI_BASE_URL": ("http://gpu:8000/v1", "http://gpu:8000/v1"),
    "QBENCH_OPENAI_MODE": ("batch", "batch"),
    "QBENCH_SEND_DIMENSIONS": ("false", False),
    "QBENCH_CONCURRENCY": ("4", 4),
    "QBENCH_REQUEST_TIMEOUT_S": ("30", 30),
    "QBENCH_MAX_INPUTS": ("32", 32),
    "QBENCH_MAX_INPUT_TOKENS": ("512", 512),
    "QBENCH_MAX_REQUEST_TOKENS": ("16384", 16384),
    "QBENCH_MAX_USD": ("0.5", 0.5),
    "QBENCH_PRICES": ("/etc/prices.json", Path("/etc/prices.json")),
    "QBENCH_QDRANT_URL": ("http://qdrant:6333", "http://qdrant:6333"),
    "QBENCH_QDRANT_API_KEY": ("hunter2", SecretStr("hunter2")),
    "QBENCH_QDRANT_PATH": ("/data/qdrant", Path("/data/qdrant")),
    "QBENCH_QDRANT_DOCS": ("cases", "cases"),
    "QBENCH_QDRANT_STEPS": ("steps", "steps"),
    "QBENCH_QDRANT_VECTOR": ("dense", "dense"),
    "QBENCH_FAISS_DOCS": ("/data/docs.faiss", Path("/data/docs.faiss")),
    "QBENCH_FAISS_DOCS_METADATA": ("/data/docs.jsonl", Path("/data/docs.jsonl")),
    "QBENCH_FAISS_STEPS": ("/data/steps.faiss", Path("/data/steps.faiss")),
    "QBENCH_FAISS_STEPS_METADATA": ("/data/steps.csv", Path("/data/steps.csv")),
    "QBENCH_FAISS_ALLOW_PICKLE": ("1", True),
    "QBENCH_REUSE_MODEL": ("text-embedding-3-large", "text-embedding-3-large"),
    "QBENCH_REUSE_QUANTIZED": ("true", True),
    "QBENCH_FRESH_SAMPLE": ("50", 50),
    "QBENCH_INDEX": ("halfvec", "halfvec"),
    "QBENCH_HNSW_M": ("24", 24),
    "QBENCH_HNSW_EF_CONSTRUCTION": ("200", 200),
    "QBENCH_SUBVECTOR_DIMENSIONS": ("256", 256),
    "QBENCH_IVFFLAT_LISTS": ("300", 300),
    "QBENCH_EF_SEARCH": ("400", 400),
    "QBENCH_RERANK": ("80", 80),
    "QBENCH_TARGET_RECALL": ("0.99", 0.99),
    "QBENCH_TARGET_P95_MS": ("7.5", 7.5),
    "QBENCH_ADVISOR_SAMPLE": ("20000", 20000),
    "QBENCH_INDEX_MEMORY_MB": ("8192", 8192),
    "QBENCH_INDEX_WORKERS": ("0", 0),
    "QBENCH_QUERY_LOG": ("/data/queries.jsonl", Path("/data/queries.jsonl")),
    "QBENCH_PARITY_QUERIES": ("500", 500),
    "QBENCH_MIN_OVERLAP": ("0.8", 0.8),
    "QBENCH_MIN_MEDIAN_OVERLAP": ("0.9", 0.9),
    "QBENCH_UI_URL": ("https://dagster.example.org", "https://dagster.example.org"),
    "QBENCH_PARTITION_CASES": ("1000", 1000),
    "QBENCH_MAX_DELETE_SHARE": ("0.5", 0.5),
    "QBENCH_SYNC_INTERVAL_S": ("60", 60),
    "QBENCH_SYNC_OVERLAP_S": ("0", 0),
    "QBENCH_SYNC_PARTITIONS": ("5", 5),
    "QBENCH_QUIET_HOURS": ("22:00-06:00", "22:00-06:00"),
    "QBENCH_RECONCILE_AT": ("23:30", "23:30"),
    "QBENCH_TIMEZONE": ("Europe/Berlin", "Europe/Berlin"),
    "QBENCH_STALE_AFTER_H": ("50", 50),
    "QBENCH_HISTORY_DAYS": ("30", 30),
    "QBENCH_PG_MEMORY_MB": ("4096", 4096),
    "QBENCH_STATEMENT_TIMEOUT_S": ("0", 0),
    "QBENCH_DAGSTER_DATABASE_URL": ("postgres://ada:hunter2@db/dg", SecretStr("postgres://ada:hunter2@db/dg")),
}
WRONG = {
    "DATABASE_URL": [f"mysql://ada:{SECRET}@db/qa", SECRET, f"host=db password={SECRET}"],
    "QBENCH_TESTRAIL_URL": ["acme.testrail.io", f"https://ada:{SECRET}@acme.testrail.io"],
    "QBENCH_TESTRAIL_PROJECTS": ["1;4", "web", "1,"],
    "QBENCH_SYNC_INTERVAL_S": ["-1", "5m"],
    "QBENCH_SYNC_OVERLAP_S": ["-1"],
    "QBENCH_SYNC_PARTITIONS": ["0"],
    "QBENCH_QUIET_HOURS": ["22-6", "22:00", "24:00-06:00", "22:00-06:60"],
    "QBENCH_RECONCILE_AT": ["2:00", "25:00", "daily"],
    "QBENCH_TIMEZONE": ["Mars/Olympus", "../etc/passwd"],
    "QBENCH_STALE_AFTER_H": ["1"],
    "QBENCH_HISTORY_DAYS": ["0"],
    "QBENCH_EMBEDDER": ["gpt"],
    "QBENCH_DIMENSIONS": ["1", "4001", "many", "1.5"],
    "QBENCH_VECTOR_TYPE": ["bit"],
    "OPENAI_BASE_URL": ["gpu:8000", f"http://ada:{SECRET}@gpu/v1", f"http://gpu/v1?key={SECRET}"],
    "QBENCH_OPENAI_MODE": ["later"],
    "QBENCH_SEND_DIMENSIONS": ["perhaps"],
    "QBENCH_CONCURRENCY": ["0", "65"],
    "QBENCH_REQUEST_TIMEOUT_S": ["0"],
    "QBENCH_MAX_INPUTS": ["0"],
    "QBENCH_MAX_INPUT_TOKENS": ["15"],
    "QBENCH_MAX_REQUEST_TOKENS": ["15"],
    "QBENCH_MAX_USD": ["-1", "$5"],
    "QBENCH_QDRANT_URL": ["qdrant:6333", f"http://ada:{SECRET}@qdrant"],
    "QBENCH_FAISS_ALLOW_PICKLE": ["why not"],
    "QBENCH_REUSE_QUANTIZED": ["some"],
    "QBENCH_FRESH_SAMPLE": ["-1", "1001"],
    "QBENCH_INDEX": ["none", "flat"],
    "QBENCH_HNSW_M": ["1", "101"],
    "QBENCH_HNSW_EF_CONSTRUCTION": ["3", "1001"],
    "QBENCH_SUBVECTOR_DIMENSIONS": ["0", "4001"],
    "QBENCH_IVFFLAT_LISTS": ["0", "32769"],
    "QBENCH_EF_SEARCH": ["0", "1001"],
    "QBENCH_RERANK": ["0", "10001"],
    "QBENCH_TARGET_RECALL": ["0", "1.1"],
    "QBENCH_TARGET_P95_MS": ["0"],
    "QBENCH_ADVISOR_SAMPLE": ["99"],
    "QBENCH_INDEX_MEMORY_MB": ["63"],
    "QBENCH_INDEX_WORKERS": ["-1", "65"],
    "QBENCH_PARITY_QUERIES": ["9", "10001"],
    "QBENCH_MIN_OVERLAP": ["-0.1", "1.1"],
    "QBENCH_MIN_MEDIAN_OVERLAP": ["-0.1", "1.1"],
    "QBENCH_UI_URL": ["localhost:3000", f"https://ada:{SECRET}@ui"],
    "QBENCH_PARTITION_CASES": ["0"],
    "QBENCH_MAX_DELETE_SHARE": ["-0.1", "20%"],
    "QBENCH_PG_MEMORY_MB": ["64"],
    "QBENCH_STATEMENT_TIMEOUT_S": ["-1"],
    "QBENCH_DAGSTER_DATABASE_URL": [f"sqlite:///{SECRET}"],
}


def test_the_defaults() -> None:
    settings = load_settings()
    assert settings.database_url is settings.export is settings.pg_memory_mb is settings.dagster_database_url is None
    assert settings.home == Path(".qbench")
    assert (settings.embedder, settings.model, settings.dimensions) == ("lexical", None, None)
    assert (settings.vector_type, settings.max_usd, settings.old_stores) == ("halfvec", None, [])
    limits = (settings.max_inputs, settings.max_input_tokens, settings.max_request_tokens)
    assert limits == (2048, 8192, 300_000), "OpenAI's"
    assert (settings.index_strategy, settings.hnsw_m, settings.hnsw_ef_construction) == ("auto", 16, 256)
    assert settings.ef_search is settings.rerank is settings.query_log is None, "measured"
    assert (settings.target_recall, settings.min_overlap, settings.min_median_overlap) == (0.95, 0.9, 0.95)
    assert (settings.partition_cases, settings.max_delete_share, settings.statement_timeout_s) == (5000, 0.2, 60)


def test_a_blank_prefix_is_none_and_an_unset_one_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().query_prefix is None
    for text, prefix in (("", None), (" ", ""), ("query: ", "query: ")):
        monkeypatch.setenv("QBENCH_QUERY_PREFIX", text)
        assert load_settings().query_prefix == prefix


def test_every_setting_is_tried_here() -> None:
    assert set(GOOD) == set(ALIASES)
    free = {alias for alias, name in ALIASES.items() if Settings.model_fields[name].annotation in FREE}
    assert set(ALIASES) - set(WRONG) <= free | set(SECRETS)
    assert {alias for alias, name in ALIASES.items() if "SecretStr" in str(Settings.model_fields[name])} == set(SECRETS)


@pytest.mark.parametrize("variable", sorted(GOOD))
def test_every_variable_is_read(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    text, value = GOOD[variable]
    monkeypatch.setenv(variable, text)
    assert getattr(load_settings(), ALIASES[variable]) == value


@pytest.mark.parametrize(("variable", "text"), [(name, text) for name, texts in WRONG.items() for text in texts])
def test_a_wrong_value_is_named_and_a_secret_is_not(monkeypatch: pytest.MonkeyPatch, variable: str, text: str) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(SettingsError, match=rf"^Check the environment:\n  {variable}: ") as caught:
        load_settings()
    assert SECRET not in "".join([repr(caught.value), *traceback.format_exception(caught.value)])


@pytest.mark.parametrize("variable", URLS)
@given(password=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=10))
def test_no_password_is_said_whatever_it_holds(variable: str, password: str) -> None:
    password = f"\u2020{password}\u2020"
    for scheme in ("mysql", "postgresql"):
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setenv(variable, f"{scheme}://ada:{password}@db/qa")
            try:
                said = f"{load_settings()!r} {load_settings()} {load_settings().shown()}"
            except SettingsError as error:
                said = "".join(traceback.format_exception(error))
                assert scheme == "mysql"
            assert "\u2020" not in said


@pytest.mark.parametrize("variable", ["HOME", "EXPORT", "DIMENSIONS", "SPACE", "EMBEDDER"])
def test_only_our_own_variables_are_read(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """$HOME is everybody's: were it read, the embedded PostgreSQL would lie in the user's home folder."""
    before = load_settings()
    monkeypatch.setenv(variable, "/somewhere")
    assert load_settings() == before


def test_every_wrong_variable_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QBENCH_HNSW_M", "1")
    monkeypatch.setenv("QBENCH_EF_SEARCH", "0")
    with pytest.raises(SettingsError) as caught:
        load_settings(dimensions=1)
    lines = str(caught.value).splitlines()[1:]
    assert sorted(line.split(":")[0].strip() for line in lines) == [
        "QBENCH_DIMENSIONS", "QBENCH_EF_SEARCH", "QBENCH_HNSW_M",
    ]  # fmt: skip


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_settings()
    for variable in ALIASES:
        monkeypatch.setenv(variable, "")
    assert load_settings() == before


def test_overrides_win_and_none_is_no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QBENCH_EXPORT", "environment.db")
    assert load_settings(export=Path("argument.db")).export == Path("argument.db")
    assert load_settings(export=None).export == Path("environment.db")


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_settings().dimensions = 2


def test_what_is_shown_hides_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, (text, _) in GOOD.items():
        monkeypatch.setenv(variable, text)
    shown = load_settings().shown()
    assert list(shown) == list(ALIASES)
    assert [shown[name] for name in SECRETS] == ["(set)"] * len(SECRETS)
    assert shown["QBENCH_DIMENSIONS"] == "1536"
    assert SECRET not in repr(shown)
    assert SECRET not in repr(load_settings())


def test_what_is_not_set_is_not_shown() -> None:
    unset = {alias for alias, name in ALIASES.items() if Settings.model_fields[name].default is None}
    assert set(ALIASES) - set(load_settings().shown()) == unset
    assert {*SECRETS, "QBENCH_EXPORT", "QBENCH_MAX_USD"} < unset


@pytest.mark.parametrize("name", ["qdrant_path", "qdrant_url", "faiss_docs", "faiss_steps"])
def test_an_old_store_is_known_by_where_it_is(name: str) -> None:
    stores = load_settings(**{name: "http://old" if name == "qdrant_url" else "old"}).old_stores
    assert stores == [name.split("_", maxsplit=1)[0]]


def test_folders_do_not_move_with_the_working_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings().reports == tmp_path / ".qbench" / "reports"
    assert load_settings().dagster_home == tmp_path / ".qbench" / "dagster"


@pytest.mark.parametrize(
    ("url", "schema", "expected"),
    [
        ("postgresql://a:b@h:1/d", None, "postgresql+psycopg2://a:b@h:1/d"),
        ("postgres://h/d", None, "postgresql+psycopg2://h/d"),
        ("postgresql+psycopg://h/d", None, "postgresql+psycopg2://h/d"),
        ("postgresql://h/d", "dagster", "postgresql+psycopg2://h/d?options=-csearch_path%3Ddagster"),
        (
            "postgresql://u@/d?host=/tmp/a%20b&port=5432",
            "dagster",
            "postgresql+psycopg2://u@/d?host=/tmp/a%20b&port=5432&options=-csearch_path%3Ddagster",
        ),
        (
            "postgresql://h/d?options=-cwork_mem%3D8MB&sslmode=require",
            "dagster",
            "postgresql+psycopg2://h/d?sslmode=require&options=-cwork_mem%3D8MB%20-csearch_path%3Ddagster",
        ),
    ],
)
def test_dagsters_url(url: str, schema: str | None, expected: str) -> None:
    assert dagster_storage_url(url, schema=schema) == expected


def test_dagsters_url_leads_to_its_schema(fresh_url: str) -> None:
    url = dagster_storage_url(fresh_url, schema="dagster").replace("+psycopg2", "")
    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SHOW search_path")
            assert cursor.fetchone() == ("dagster",)
    finally:
        connection.close()


def variables_in_table(markdown: str) -> list[str]:
    """First column of the table of settings."""
    table = re.search(r"^\| *setting *\|.*\n\|[-:| ]+\n((?:\|.*\n?)+)", markdown, re.MULTILINE | re.IGNORECASE)
    assert table is not None, "the README has no table of settings"
    return [line.split("|")[1].strip().strip("`") for line in table[1].splitlines()]


def test_the_readme_lists_every_setting() -> None:
    assert sorted(variables_in_table(README.read_text(encoding="utf-8"))) == sorted(ALIASES)


def test_a_setting_the_readme_forgot_is_seen() -> None:
    lines = README.read_text(encoding="utf-8").splitlines(keepends=True)
    without = "".join(line for line in lines if not line.startswith("| `QBENCH_HNSW_M`"))
    assert set(ALIASES) - set(variables_in_table(without)) == {"QBENCH_HNSW_M"}
