"""From settings to adapters: the space, the embedder, the price and the budget they name."""

from __future__ import annotations

from pathlib import Path

import pytest

from qbench_dagster.adapters.embedders import LexicalEmbedder
from qbench_dagster.adapters.openai_embedder import OpenAIEmbedder
from qbench_dagster.adapters.space import Space
from qbench_dagster.core.requests import Limits
from qbench_dagster.core.spaces import space_name
from qbench_dagster.settings import SettingsError, load_settings
from qbench_dagster.wiring import account, counted_tokens, embedder, embedding_space, old_stores, prices

KEY = "sk-planted-hunter2"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, Space("space_lexical_3072", "lexical-v1", 3072, "halfvec", "lexical")),
        ({"dimensions": 64, "vector_type": "vector"}, Space("space_lexical_64_f32", "lexical-v1", 64, "vector")),
        ({"embedder": "openai"}, Space("space_te3large_3072", "text-embedding-3-large", 3072, "halfvec", "openai")),
        (
            {"embedder": "openai", "dimensions": 1024},
            Space("space_te3large_1024", "text-embedding-3-large", 1024, "halfvec", "openai"),
        ),
        (
            {"embedder": "openai", "model": "text-embedding-3-small"},
            Space("space_te3small_1536", "text-embedding-3-small", 1536, "halfvec", "openai"),
        ),
        (
            {"embedder": "openai", "model": "BAAI/bge-m3", "dimensions": 1024},
            Space("space_bge_m3_1024", "BAAI/bge-m3", 1024, "halfvec", "openai"),
        ),
        (
            {"embedder": "local"},
            Space("space_all_minilm_l6_v2_384", "sentence-transformers/all-MiniLM-L6-v2", 384, "halfvec", "local"),
        ),
    ],
)
def test_the_space_is_named_for_what_decides_its_vectors(settings: dict[str, object], expected: Space) -> None:
    assert embedding_space(load_settings(**settings)) == expected


def test_another_prefix_or_recipe_is_another_space() -> None:
    assert space_name("lexical-v1", 3072, "halfvec", recipe=2) == "space_lexical_3072_r2"
    spaces = [embedding_space(load_settings(text_prefix=prefix)) for prefix in ("", "passage: ", "passage:")]
    assert len({space.name for space in spaces}) == 3
    assert [space.text_prefix for space in spaces] == ["", "passage: ", "passage:"]
    asked = embedding_space(load_settings(query_prefix="query: "))
    assert (asked.name, asked.query_prefix) == ("space_lexical_3072", "query: ")
    assert embedding_space(load_settings()).query_prefix is None, "what nobody set changes nothing"


def test_folders_of_one_name_are_spaces_of_their_own(tmp_path: Path) -> None:
    long = "a-model-whose-name-is-longer-than-a-schema-may-be"
    for version, weights in (("v1", b"one"), ("v2", b"two")):
        (tmp_path / version / long).mkdir(parents=True)
        (tmp_path / version / long / "model.safetensors").write_bytes(weights)
    spaces = [
        embedding_space(load_settings(embedder="local", dimensions=8, model=str(tmp_path / version / long)))
        for version in ("v1", "v2")
    ]
    assert len({space.name for space in spaces}) == len({space.model for space in spaces}) == 2
    for version, space in zip(("v1", "v2"), spaces, strict=True):
        fingerprint = space.model.removeprefix(f"{long}@")
        assert space.name.startswith("space_a_model_whose_name_is_l")
        assert space.name.endswith(f"_{fingerprint}_8")
        assert len(space.name) <= 63
        named = load_settings(embedder="local", dimensions=8, model=str(tmp_path / version / long))
        assert embedder(named, space).model == space.model, "the folder the settings name makes them"


def test_a_folder_that_cannot_be_read_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "open", _refuse)
        with pytest.raises(SettingsError, match=r"QBENCH_MODEL: the folder .* cannot be read: not yours"):
            embedding_space(load_settings(embedder="local", dimensions=8, model=str(tmp_path)))


def _refuse(*_: object, **__: object) -> None:
    raise PermissionError("not yours")


@pytest.mark.parametrize("model", ["x" * 200, "m@" + "y" * 200, "@", "Ünï/çode", "///", 'a b"; DROP'])
def test_any_model_gives_a_name_postgresql_takes(model: str) -> None:
    name = space_name(model, 4000, "vector", "passage: ", recipe=12)
    assert name.isidentifier()
    assert name.isascii()
    assert len(name) <= 63


def test_a_model_of_unknown_size_needs_its_dimensions() -> None:
    with pytest.raises(SettingsError, match=r"QBENCH_DIMENSIONS.*BAAI/bge-m3"):
        embedding_space(load_settings(embedder="openai", model="BAAI/bge-m3"))


def test_the_lexical_embedder_has_one_model() -> None:
    with pytest.raises(SettingsError, match="QBENCH_EMBEDDER to openai or local"):
        embedding_space(load_settings(model="text-embedding-3-large"))


def test_openai_needs_a_key_and_gets_what_was_set() -> None:
    with pytest.raises(SettingsError, match="OPENAI_API_KEY is not set"):
        embedder(load_settings(embedder="openai"))
    made = embedder(load_settings(embedder="openai", openai_api_key=KEY, max_inputs=7, concurrency=3))
    assert isinstance(made, OpenAIEmbedder)
    assert (made.model, made.dimensions, made.concurrency, made.paid) == ("text-embedding-3-large", 3072, 3, True)
    assert made.limits == Limits(7, 8192, 300_000)
    assert KEY not in repr(made)


def test_the_embedder_of_another_space_is_that_spaces() -> None:
    """Reads are on one space while the settings fill another: both get the vectors of new texts."""
    other = Space("space_te3small_1536", "text-embedding-3-small", 1536, "halfvec", "openai")
    made = embedder(load_settings(openai_api_key=KEY), other)
    assert (made.model, made.dimensions) == ("text-embedding-3-small", 1536)
    lexical = embedder(load_settings(embedder="openai"), Space("space_lexical_64", "lexical-v1", 64, "halfvec"))
    assert isinstance(lexical, LexicalEmbedder)
    assert lexical.dimensions == 64


def test_a_plan_needs_no_key() -> None:
    settings = load_settings(embedder="openai")
    tokens, limits, free = counted_tokens(settings, embedding_space(settings))
    assert tokens.count(["Log in"])[0] > 0
    assert (limits, free) == (Limits(), None)
    tokens, _, free = counted_tokens(load_settings(), embedding_space(load_settings()))
    assert free is not None
    assert not free.paid


def test_the_account_has_the_price_of_the_way_it_is_asked(tmp_path: Path) -> None:
    settings = load_settings(embedder="openai", max_usd=2.5)
    now = account(settings, embedding_space(settings), "run")
    assert (now.usd_per_million, now.max_usd, now.way, now.run_id) == (0.13, 2.5, "request", "run")
    settings = load_settings(embedder="openai", openai_mode="batch")
    later = account(settings, embedding_space(settings), "run")
    assert (later.usd_per_million, later.max_usd, later.way) == (0.065, None, "batch")
    table = tmp_path / "prices.json"
    table.write_text('{"text-embedding-3-large": {"usd_per_million": 1, "batch_usd_per_million": 0.5}}')
    settings = load_settings(embedder="openai", prices=table)
    assert account(settings, embedding_space(settings), "run").usd_per_million == 1
    assert account(load_settings(), embedding_space(load_settings()), "run").usd_per_million is None


@pytest.mark.parametrize("text", ["{", "[]", '{"m": {}}', '{"m": {"usd_per_million": "x"}}'])
def test_a_wrong_price_table_names_the_file(tmp_path: Path, text: str) -> None:
    table = tmp_path / "prices.json"
    table.write_text(text)
    with pytest.raises(SettingsError, match=r"QBENCH_PRICES: .*prices\.json: "):
        prices(load_settings(prices=table))
    with pytest.raises(SettingsError, match="QBENCH_PRICES"):
        prices(load_settings(prices=tmp_path / "missing.json"))


def test_there_is_one_old_qdrant() -> None:
    settings = load_settings(qdrant_url="http://127.0.0.1:1", qdrant_path="old")
    with pytest.raises(SettingsError, match="QBENCH_QDRANT_URL and QBENCH_QDRANT_PATH"):
        old_stores(settings, embedding_space(settings)).__enter__()
    with old_stores(load_settings(), embedding_space(load_settings())) as sources:
        assert sources == []
