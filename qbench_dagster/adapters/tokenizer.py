"""The tokens of a text as OpenAI's models count them, by tiktoken; an estimate where that cannot be had.

tiktoken fetches its tables from the network when it does not find them. This never does: it reads the file
tiktoken would have kept, or leaves it to `core/tokens.py`.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from qbench_dagster.core.tokens import estimate

if TYPE_CHECKING:
    from tiktoken import Encoding

log = logging.getLogger(__name__)

TABLES_FILE = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"
"""tiktoken's name for cl100k_base's tables: the SHA-1 of the address it fetches them from."""
TABLES_SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"

_MODELS = ("text-embedding-3-", "text-embedding-ada-002")
# As tiktoken 0.14.0 has it; it gives the pattern only together with tables it may have fetched for that.
_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|"
    r"\s+(?!\S)|\s"
)


class TokenCounter:
    """Counts the tokens of texts. Thread-safe."""

    def __init__(self, encoding: Encoding | None, description: str) -> None:
        self._encoding = encoding
        self._description = description

    @property
    def exact(self) -> bool:
        """Whether the counts are those of the model's own tokenizer."""
        return self._encoding is not None

    def __call__(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text. `<|endoftext|>` in a test case is a text like any other."""
        if self._encoding is None:
            return [estimate(text) for text in texts]
        return [len(self._encoding.encode_ordinary(text)) for text in texts]

    def describe(self) -> str:
        """Where the counts come from, for a person."""
        return self._description


def token_counter(model: str) -> TokenCounter:
    """The counter for `model`, exact where its tokenizer is known and the tables are on this machine.

    The tables are looked for where tiktoken keeps them: in TIKTOKEN_CACHE_DIR, else DATA_GYM_CACHE_DIR, else
    `data-gym-cache` in the folder for temporary files. A file that is not what it should be is left alone, and
    a warning says so.
    """
    if not model.rpartition("/")[2].startswith(_MODELS):  # a gateway names it `openai/text-embedding-3-large`
        return TokenCounter(None, f"an estimate: {model} has another tokenizer than OpenAI's embedding models")
    folder = _folder()
    tables = Path(folder) / TABLES_FILE
    try:
        if not folder or not tables.is_file():
            absent = "tiktoken's tables are not at hand (set TIKTOKEN_CACHE_DIR to a folder that holds them)"
            return TokenCounter(None, f"an estimate: {absent}")
        encoding = _encoding(tables)
    except (OSError, ValueError) as error:
        log.warning("%s: %s; tokens are estimated. Delete it, and let tiktoken fetch it again", tables, error)
        return TokenCounter(None, f"an estimate: tiktoken's tables in {folder} cannot be used")
    return TokenCounter(encoding, "tiktoken cl100k_base")


def _folder() -> str:
    for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if name in os.environ:
            return os.environ[name]  # empty: tiktoken keeps nothing
    return str(Path(tempfile.gettempdir()) / "data-gym-cache")


@lru_cache(maxsize=1)
def _encoding(tables: Path) -> Encoding:
    """cl100k_base of a file of its tables, 0.15 s. Raises OSError, or ValueError if it is another file."""
    from tiktoken import Encoding  # noqa: PLC0415  # 0.1 s that a run with nothing to embed need not spend

    content = tables.read_bytes()
    if hashlib.sha256(content).hexdigest() != TABLES_SHA256:
        raise ValueError(f"these {len(content):,} bytes are not the tables of cl100k_base (SHA-256 differs)")
    lines = (line.split() for line in content.splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    return Encoding("cl100k_base", pat_str=_PATTERN, mergeable_ranks=ranks, special_tokens={})
