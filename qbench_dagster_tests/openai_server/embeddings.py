"""POST /v1/embeddings: what is asked, whether it may be, and the body that answers it. No HTTP, no rate limits."""

from __future__ import annotations

import binascii
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qbench_dagster_tests.openai_server.replies import (
    REFERENCE,
    bad_request,
    too_many_tokens_in_input,
    too_many_tokens_in_request,
    unknown_model,
)
from qbench_dagster_tests.openai_server.vectors import count_words, vectors_of

MODELS = {"text-embedding-3-large": 3072, "text-embedding-3-small": 1536}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that is answered."""

    texts: list[str]
    model: str
    dimensions: int
    encoding: str
    tokens: int

    def body(self, damage: str | None = None) -> bytes:
        """OpenAI's answer as JSON, with something wrong where `damage` is one of VECTOR_FAULTS.

        Written by hand: 2,048 vectors are 33 MB of base64, which json.dumps would go through once more.
        """
        vectors = vectors_of(self.texts, self.dimensions, self.model)
        indices = list(range(len(vectors)))
        order = list(indices)
        middle = len(vectors) // 2
        match damage:
            case "short":
                order.pop()
            case "reordered":
                order.reverse()
            case "swapped-index":
                indices[-1] = 0 if len(indices) > 1 else 1
            case "nan":
                vectors[middle, 0] = np.nan
            case "zero":
                vectors[middle] = 0
            case "wrong-dimension":
                vectors = np.ascontiguousarray(vectors[:, :-1])
        parts = [b'{"object": "list", "data": [']
        for row in order:
            parts += [
                b'{"object": "embedding", "index": %d, "embedding": ' % indices[row],
                *self._written(vectors[row]),
            ]
        if order:
            parts[-1] = parts[-1][:-2]  # no comma after the last
        usage = {"prompt_tokens": self.tokens, "total_tokens": self.tokens}
        parts.append(f'], "model": {json.dumps(self.model)}, "usage": {json.dumps(usage)}}}'.encode())
        return b"".join(parts)

    def _written(self, vector: NDArray[np.float32]) -> tuple[bytes, ...]:
        if self.encoding == "float":
            return (json.dumps(vector.tolist()).encode(), b"}, ")
        return (b'"', binascii.b2a_base64(vector.data, newline=False), b'"}, ')


@dataclass(frozen=True)
class Rules:
    """What one request may ask. The numbers are OpenAI's."""

    models: Mapping[str, int] = field(default_factory=lambda: dict(MODELS))
    max_inputs: int = 2048
    max_input_tokens: int = 8192
    max_request_tokens: int = 300_000
    count_tokens: Callable[[str], int] = count_words

    def check(self, body: Mapping[str, Any]) -> Asked:
        """What `body` asks. Raises RefusalError as OpenAI refuses it."""
        model = body.get("model")
        if not isinstance(model, str) or not model:
            raise bad_request("you must provide a model parameter")
        if model not in self.models:
            raise unknown_model(model)
        dimensions = self._dimensions(model, body.get("dimensions"))
        encoding = body.get("encoding_format", "float")
        if encoding not in {"float", "base64"}:
            raise bad_request(
                f"Invalid value: '{encoding}'. Supported values are: 'float' and 'base64'.",
                param="encoding_format",
                code="invalid_value",
            )
        texts = self._texts(body.get("input"))
        counts = [self.count_tokens(text) for text in texts]
        if max(counts) > self.max_input_tokens:
            raise too_many_tokens_in_input(max(counts), self.max_input_tokens)
        if sum(counts) > self.max_request_tokens:
            raise too_many_tokens_in_request(sum(counts), self.max_request_tokens)
        return Asked(texts, model, dimensions, encoding, sum(counts))

    def _dimensions(self, model: str, asked: Any) -> int:
        if asked is None:
            return self.models[model]
        if not model.startswith("text-embedding-3-"):
            raise bad_request("This model does not support specifying dimensions.", param="dimensions")
        if not isinstance(asked, int) or isinstance(asked, bool) or not 1 <= asked <= self.models[model]:
            raise bad_request(
                f"Invalid value for 'dimensions' = {asked}. Must be between 1 and {self.models[model]}.",
                param="dimensions",
            )
        return asked

    def _texts(self, given: Any) -> list[str]:
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise bad_request(f"'$.input' is invalid. {REFERENCE}", param="input")
        if not texts:
            raise bad_request("[] is too short - 'input'", param="input")
        if not all(texts):
            raise bad_request(f"'$.input' is invalid: an input cannot be an empty string. {REFERENCE}", param="input")
        if len(texts) > self.max_inputs:
            raise bad_request(
                f"Invalid 'input': array too long. Expected an array with maximum length {self.max_inputs}, "
                f"but got an array with length {len(texts)} instead.",
                param="input",
                code="array_above_max_length",
            )
        return texts
