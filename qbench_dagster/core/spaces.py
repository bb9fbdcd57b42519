"""The names of embedding spaces: a model, its dimensions, the prefix of its texts. Change one, and it is another."""

from __future__ import annotations

import hashlib
import re

from qbench_dagster.core.model import TEXT_RECIPE

SHORT = {
    "lexical-v1": "lexical",
    "text-embedding-3-large": "te3large",
    "text-embedding-3-small": "te3small",
    "text-embedding-ada-002": "ada002",
}
LONGEST = 32
"""PostgreSQL cuts identifiers at 63 bytes; dimensions and suffixes need the rest."""


def _plain(text: str) -> str:
    return re.sub("[^a-z0-9]+", "_", text.lower()).strip("_")


def space_name(model: str, dimensions: int, vector_type: str, text_prefix: str = "", recipe: int = TEXT_RECIPE) -> str:
    """Schema of the space, e.g. `space_te3large_3072`; `_f32` for vector(D), `_p1a2b3c` for texts with a prefix.

    What follows an `@` in `model`, the fingerprint of a folder's files, is in the name whole, however long that is.
    """
    name, at, version = model.rpartition("/")[2].partition("@")
    version = f"_{_plain(version)}" if at else ""
    slug = SHORT.get(model) or _plain(name)[: max(0, LONGEST - len(version))] + version[:LONGEST]
    suffix = ("" if vector_type == "halfvec" else "_f32") + ("" if recipe == 1 else f"_r{recipe}")
    if text_prefix:
        suffix += f"_p{hashlib.sha256(text_prefix.encode()).hexdigest()[:6]}"
    return f"space_{slug or 'model'}_{dimensions}{suffix}"
