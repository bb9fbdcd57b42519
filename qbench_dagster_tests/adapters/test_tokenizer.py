"""Token counts: exact where tiktoken's tables are on this machine, an estimate elsewhere, the network never."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import Any

import pytest

from qbench_dagster.adapters import tokenizer
from qbench_dagster.adapters.tokenizer import TABLES_FILE, token_counter
from qbench_dagster.core.tokens import estimate
from qbench_dagster_tests.core.test_tokens import ENGLISH, OTHERS, TECHNICAL

MODEL = "text-embedding-3-large"
TABLES = Path(tokenizer._folder()) / TABLES_FILE  # before a test sets the environment
TEXTS = ["Open the page", "", "保存ボタンをクリック", "<|endoftext|>"]
ABSENT = "an estimate: tiktoken's tables are not at hand (set TIKTOKEN_CACHE_DIR to a folder that holds them)"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def no_tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without the tables: the folder for temporary files is empty."""
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    monkeypatch.delenv("DATA_GYM_CACHE_DIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def made_up_tables(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Tables of single bytes only, which pass for the real ones: each byte of a text is a token."""
    import base64  # noqa: PLC0415
    import hashlib  # noqa: PLC0415

    content = b"".join(b"%s %d\n" % (base64.b64encode(bytes([byte])), byte) for byte in range(256))
    monkeypatch.setattr(tokenizer, "TABLES_SHA256", hashlib.sha256(content).hexdigest())
    tokenizer._encoding.cache_clear()
    return content


def test_without_tables_it_is_an_estimate_and_says_so(no_tables: Path, caplog: pytest.LogCaptureFixture) -> None:
    counter = token_counter(MODEL)
    assert not counter.exact
    assert counter.describe() == ABSENT
    assert counter(TEXTS) == [estimate(text) for text in TEXTS]
    assert not caplog.records  # a machine without the tables is nothing to warn about


@pytest.mark.parametrize("name", ["TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"])
def test_a_folder_without_the_tables_is_an_estimate_and_stays_empty(
    name: str, no_tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, str(tmp_path / "gone"))
    assert token_counter(MODEL).describe() == ABSENT
    assert not list(tmp_path.iterdir())


def test_an_empty_setting_keeps_nothing_and_asks_nobody(no_tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    monkeypatch.chdir(no_tables)
    (no_tables / TABLES_FILE).write_bytes(b"not for us")
    assert token_counter(MODEL).describe() == ABSENT


@pytest.mark.parametrize("content", [b"", b"not tables", b"\x00" * 1_681_126])
def test_a_corrupt_file_is_left_alone_with_a_warning(
    content: bytes, no_tables: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tables = no_tables / TABLES_FILE
    tables.write_bytes(content)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(no_tables))
    with caplog.at_level(logging.WARNING):
        counter = token_counter(MODEL)
    assert not counter.exact
    assert counter.describe() == f"an estimate: tiktoken's tables in {no_tables} cannot be used"
    assert counter(TEXTS) == [estimate(text) for text in TEXTS]
    assert str(tables) in caplog.text
    assert "SHA-256" in caplog.text
    assert tables.read_bytes() == content


@pytest.mark.parametrize("content", [b"YQ==\n", b"YQ== one\n", b"Y 1\n"])
def test_tables_that_cannot_be_read_are_an_estimate(
    content: bytes, no_tables: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import hashlib  # noqa: PLC0415

    (no_tables / TABLES_FILE).write_bytes(content)
    monkeypatch.setattr(tokenizer, "TABLES_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(no_tables))
    tokenizer._encoding.cache_clear()
    assert not token_counter(MODEL).exact
    assert str(no_tables / TABLES_FILE) in caplog.text


@pytest.mark.parametrize("where", ["TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR", "data-gym-cache"])
def test_tables_are_found_where_tiktoken_keeps_them(
    where: str, no_tables: Path, made_up_tables: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = no_tables / where
    folder.mkdir()
    (folder / TABLES_FILE).write_bytes(made_up_tables)
    if where.isupper():
        monkeypatch.setenv(where, str(folder))
    counter = token_counter(MODEL)
    assert counter.exact
    assert counter.describe() == "tiktoken cl100k_base"
    assert counter(["Open the page", "", "é", "<|endoftext|>"]) == [13, 0, 2, 13]


def test_the_first_setting_is_the_one_tiktoken_reads(
    no_tables: Path, made_up_tables: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (no_tables / TABLES_FILE).write_bytes(made_up_tables)
    monkeypatch.setenv("DATA_GYM_CACHE_DIR", str(no_tables))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(no_tables / "gone"))
    assert not token_counter(MODEL).exact


@pytest.mark.parametrize(
    ("model", "known"),
    [
        ("text-embedding-3-large", True),
        ("text-embedding-3-small", True),
        ("text-embedding-ada-002", True),
        ("openai/text-embedding-3-large", True),
        ("BAAI/bge-m3", False),
        ("my-text-embedding-3-large", False),
    ],
)
def test_another_model_is_known_to_count_otherwise(
    model: str, known: bool, no_tables: Path, made_up_tables: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (no_tables / TABLES_FILE).write_bytes(made_up_tables)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(no_tables))
    counter = token_counter(model)
    assert counter.exact is known
    if not known:
        assert counter.describe() == f"an estimate: {model} has another tokenizer than OpenAI's embedding models"
        assert counter(TEXTS) == [estimate(text) for text in TEXTS]


@pytest.mark.skipif(not TABLES.is_file(), reason="tiktoken's tables are not on this machine")
def test_real_tables_count_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(TABLES.parent))
    tokenizer._encoding.cache_clear()
    counter = token_counter(MODEL)
    assert counter.exact
    rows = ENGLISH + TECHNICAL + OTHERS
    assert counter([text for text, _ in rows]) == [tokens for _, tokens in rows]
    assert counter(["a" * 100_000, " " * 100_000, "a\ud800b"]) == [12_500, 782, 3]
