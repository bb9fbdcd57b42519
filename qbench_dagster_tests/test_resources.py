"""The resources: which spaces are kept complete, and that clients are closed."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from qbench_dagster.adapters.openai_embedder import OpenAIEmbedder
from qbench_dagster.adapters.postgres import Database
from qbench_dagster.adapters.space import Space, ensure_space
from qbench_dagster.resources import EmbedderResource
from qbench_dagster_tests.support import SPACE, execute

OTHER = Space("space_te3small_1536", "text-embedding-3-small", 1536, "halfvec", "openai")


@pytest.fixture
def embedder(monkeypatch: pytest.MonkeyPatch) -> EmbedderResource:
    monkeypatch.setenv("QBENCH_DIMENSIONS", "64")
    return EmbedderResource()


def test_the_space_that_is_read_is_kept_complete_beside_the_settings_one(
    database: Database, embedder: EmbedderResource
) -> None:
    assert embedder.maintained(database) == [SPACE]
    for space in (SPACE, OTHER):
        ensure_space(database, space)
    execute(database, "UPDATE store.spaces SET active = (name = %s)", SPACE.name)
    assert embedder.maintained(database) == [SPACE]
    execute(database, "UPDATE store.spaces SET active = false")
    execute(database, "UPDATE store.spaces SET active = true WHERE name = %s", OTHER.name)
    assert embedder.maintained(database) == [OTHER, SPACE]


def test_a_space_of_another_versions_texts_is_read_and_not_filled(
    database: Database, embedder: EmbedderResource, caplog: pytest.LogCaptureFixture
) -> None:
    """`ensure_space` refuses it, so that every run would end there."""
    ensure_space(database, OTHER)
    execute(database, "UPDATE store.spaces SET active = true, recipe = 0")
    with caplog.at_level(logging.WARNING, "qbench_dagster.resources"):
        assert embedder.maintained(database) == [SPACE]
        assert embedder.maintained(database) == [SPACE]
    assert len(caplog.records) == 1, "once: a sensor asks every minute"
    assert "space_te3small_1536, which is read, holds vectors of texts of recipe 0" in caplog.text


@pytest.mark.parametrize("fails", [False, True])
def test_a_client_is_closed_whatever_happens(
    embedder: EmbedderResource, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted-0123456789")
    opened = None
    try:
        with embedder.open(OTHER) as opened:
            assert isinstance(opened, OpenAIEmbedder)
            assert not opened._client.api.is_closed()
            if fails:
                raise RuntimeError("it fails")
    except RuntimeError:
        assert fails
    assert opened is not None
    assert opened._client.api.is_closed()
    with embedder.open(replace(SPACE)) as lexical:
        assert lexical.embed(["Log in"]).shape == (1, 64)
