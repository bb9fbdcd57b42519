"""A semantic embedder on this machine: a sentence-transformers model, free and offline once its files are here.

Only the model's life (import, load, encode) is here. The package is optional: `pip install 'qbench_dagster[local]'`.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qbench_dagster.adapters.embedders import AtRisk, EmbeddingError
from qbench_dagster.core.requests import Answer, Limits

log = logging.getLogger(__name__)

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_DIMENSIONS = 384
INPUTS = 256
"""Texts handed over at once. The model takes 32 of them at a time, so more would only hold more text in memory."""
UNLIMITED = 1_000_000
"""Tokenizers without a limit say 10^30; no model here attends to a million tokens."""


DECIDING = {".json", ".txt", ".model", ".safetensors", ".bin", ".pt"}
"""Kinds of files that decide a model's vectors: how it is put together, its vocabulary, its weights."""
SAMPLES = 64
SAMPLE_BYTES = 16_384
"""What is read of a file for a fingerprint: 1 MiB all over it, for a model that was trained further may keep layers."""


def model_name(model: str) -> str:
    """What is recorded of `model`: a name of the hub as it is, of a folder its own name and a fingerprint of its files.

    Two folders of one name may hold two models, whose vectors must not meet. `minilm@1a2b3c4d`; reads 1 MiB a file.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return f"{path.resolve().name}@{_fingerprint(tuple(_deciding_files(path)))}"
    return path.resolve().name if path.is_absolute() or model.startswith(".") else model


def _deciding_files(folder: Path) -> list[tuple[str, Path, int, int]]:
    """(name within `folder`, file, size, time of change) of what decides the vectors; its modules are folders of it."""
    files = [path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.suffix in DECIDING]
    named = [(path.relative_to(folder).as_posix(), path) for path in files if path.is_file()]
    visible = [(name, path) for name, path in named if not name.startswith(".")]
    return [(name, path, path.stat().st_size, path.stat().st_mtime_ns) for name, path in sorted(visible)]


@lru_cache(maxsize=8)
def _fingerprint(files: tuple[tuple[str, Path, int, int], ...]) -> str:
    """Eight digits that another model of the same name has differently. Asked often, so it is kept."""
    found = hashlib.sha256()
    for name, path, size, _ in files:
        found.update(f"{name} {size}\n".encode())
        with path.open("rb") as file:
            if size <= SAMPLES * SAMPLE_BYTES:
                found.update(file.read())
                continue
            for sample in range(SAMPLES):
                file.seek(sample * (size - SAMPLE_BYTES) // (SAMPLES - 1))
                found.update(file.read(SAMPLE_BYTES))
    return found.hexdigest()[:8]


@dataclass(frozen=True, slots=True)
class _Loaded:
    model: Any
    counter: Any
    """A tokenizer of its own for counting: one that two threads use at once raises "Already borrowed"."""
    tokens_per_input: int


class SentenceEmbedder:
    """Vectors of a sentence-transformers model. Imports and loads it when first asked, once."""

    provenance = "local"
    concurrency = 1  # one request already keeps every core busy
    paid = False
    token_ceiling = None

    def __init__(self, model: str = DEFAULT_MODEL, dimensions: int = DEFAULT_DIMENSIONS) -> None:
        """`model` is a name of the Hugging Face hub or a local folder, `dimensions` those of the space."""
        self._source = model
        self._loaded: _Loaded | None = None
        self._loading, self._encoding, self._counting = threading.Lock(), threading.Lock(), threading.Lock()
        self._limits: Limits | None = None
        self.model = model_name(model)
        self.dimensions = dimensions

    @property
    def limits(self) -> Limits:
        """The model's own: longer inputs it would cut without a word. Loads the model."""
        if self._limits is None:
            tokens = self._ready().tokens_per_input
            self._limits = Limits(inputs=INPUTS, tokens_per_input=tokens, tokens_per_request=INPUTS * tokens)
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._limits = limits

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text by the model's own tokenizer, without those it frames a text with. At least 1."""
        if not texts:
            return []
        counter = self._ready().counter
        with self._counting:
            # verbose=False: that a text is longer than the model takes is why it is counted, and no warning.
            found = counter(list(texts), add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        return [max(1, len(tokens)) for tokens in found]

    def request(self, texts: Sequence[str], at_risk: AtRisk | None = None) -> Answer:  # noqa: ARG002
        """Unit vectors of `texts`; nothing is billed. Raises EmbeddingError."""
        return Answer(self.embed(texts), 0)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors (len(texts), dimensions). What is over `limits.tokens_per_input` is cut: `core/packing.py`.

        Raises EmbeddingError if the model cannot be used, or gives what is no unit vector.
        """
        if not texts:
            return np.empty((0, self.dimensions), dtype=np.float32)
        model = self._ready().model
        inputs = [text if text.strip() else " " for text in texts]
        with self._encoding:
            found = model.encode(inputs, batch_size=32, show_progress_bar=False, convert_to_numpy=True)
        vectors = np.asarray(found, dtype=np.float32)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not (np.isfinite(norms) & (norms > 0)).all():
            raise EmbeddingError(f"The model {self.model} gave a vector that is zero or not finite: set QBENCH_MODEL.")
        return np.asarray(vectors / norms, dtype=np.float32)

    def stop(self) -> None:
        """Nothing ever waits here."""

    def close(self) -> None:
        """The model is let go of with the embedder."""

    def _ready(self) -> _Loaded:
        with self._loading:
            if self._loaded is None:
                self._loaded = self._load()
        return self._loaded

    def _load(self) -> _Loaded:
        try:
            # torch and transformers take 4 s to import, which a run with nothing to embed need not spend.
            from sentence_transformers import SentenceTransformer  # noqa: PLC0415
        except ImportError as error:
            raise EmbeddingError(
                f"QBENCH_EMBEDDER=local needs sentence-transformers ({error}): pip install 'qbench_dagster[local]'"
            ) from None
        model = self._open(SentenceTransformer)
        found = model.get_embedding_dimension()
        if found != self.dimensions:
            raise EmbeddingError(
                f"The model {self.model} gives {found} dimensions, the space has {self.dimensions}: "
                f"set QBENCH_DIMENSIONS={found}, or QBENCH_MODEL to a model of {self.dimensions}."
            )
        return _Loaded(model, copy.deepcopy(model.tokenizer), _tokens_per_input(model))

    def _open(self, transformer: Any) -> Any:
        folder = Path(self._source).expanduser()
        if folder.is_dir():
            source, ways = str(folder), [True]
        else:
            # From the cache first: asking the hub for news costs a request a file, and 70 s of retries offline.
            source, ways = self._source, [True, False]
        name, _, fingerprint = self._source.partition("@")
        if fingerprint and not folder.is_dir():
            raise EmbeddingError(
                f"{self._source} was a folder {name} on the machine that made its vectors. Set QBENCH_MODEL to where "
                "that folder is here, unchanged."
            )
        failure: Exception | None = None
        for only_local in ways:
            if not only_local:
                log.warning("the model %s is not on this machine yet; downloading it", self.model)
            try:
                return transformer(source, local_files_only=only_local)
            except Exception as error:  # OSError, ValueError, the hub's and safetensors' own kinds
                failure = error
        raise EmbeddingError(
            f"The model {self._source} can be neither read from this machine nor downloaded "
            f"({type(failure).__name__}: {' '.join(str(failure).split())[:300]}). Set QBENCH_MODEL to the name of a "
            "sentence-transformers model, or, without a network, to a folder that holds one."
        ) from None


def _tokens_per_input(model: Any) -> int:
    """Tokens of a text that the model reads: its own limit, less the frame and the prompt it puts before each text."""
    tokenizer = model.tokenizer
    whole = min(model.max_seq_length or tokenizer.model_max_length, UNLIMITED)
    prompt = (model.prompts or {}).get(model.default_prompt_name or "", "")
    before = len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) if prompt else 0
    return max(1, int(whole) - int(tokenizer.num_special_tokens_to_add()) - before)
