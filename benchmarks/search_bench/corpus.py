"""Vectors and cases to search: seeded, made block by block, never all in memory. No database and no engine here.

A vector is an area, a topic in it, a family within that and a deviation of its own, as test cases are. How much of each
is calibrated on the vectors of real cases: by the cosines of their 1st, 10th, 100th and 1,000th neighbours, and by
the recall of an HNSW graph over ef_search.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct

from qbench_dagster.core.recall import TIE

BLOCK = 4096
FAMILY_CASES = 6
"""Mean cases of a family; their sizes follow a power law, so a few families hold thousands."""
RANK = 512
"""Directions that topics and families differ in."""
EDITS = 256
"""Directions that the cases of one family differ in; few of them count, as their spectrum falls."""
AREAS = 12
FIRST_ID = 729
VOCABULARY = 30_000
TITLE_WORDS, BODY_WORDS, QUERY_WORDS = 8, 24, 4

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Filter:
    """One filter: how many rows match, and whether these lie together (`by topic`) or anywhere."""

    name: str
    share: float
    by_topic: bool
    column: str
    value: str | int


FILTERS = (
    Filter("50 %", 0.5, False, "priority", "Medium"),
    Filter("5 %", 0.05, False, "priority", "Critical"),
    Filter("0.1 %", 0.001, False, "tags", "quarantined"),
    Filter("50 %, by topic", 0.5, True, "project_id", 1),
    Filter("5 %, by topic", 0.05, True, "project_id", 2),
    Filter("0.1 %, by topic", 0.001, True, "folder_structure", "Archive"),
)
"""What rows match by chance is the easy kind of filter: they are everywhere. Of those that match by topic most
queries have none nearby, which is the hard kind for a graph."""


Beta = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Structure:
    """How vectors lie to one another. Shares of variance are drawn from beta distributions."""

    shared: float
    """Length of what all vectors share."""
    topics: float
    """Topics, as a multiple of the square root of rows."""
    topic: Beta | None
    """Share of an area's variance that its topics make; None: topics have nothing in common."""
    family: Beta
    """Share of a topic's that its families make,"""
    case: Beta
    """and of a family's that its cases make."""
    mixed: Beta | None
    """How much of another family a case has, up to half; None: nothing, so that families are islands."""
    falling: tuple[float, float]
    """Exponents of the spectra of what topics and families differ in, and of what cases do."""


STRUCTURES = {
    "semantic": Structure(0.29, 1, (4, 3), (3, 4), (2, 4), (2, 3), (0.65, 0.8)),
    "lexical": Structure(0.26, 2, None, (3, 3), (1, 1.5), None, (0.4, 0.6)),
}
"""`semantic`: as a language model places real cases (all-MiniLM-L6-v2). `lexical`: as the lexical embedder does, with
families that have little in common: the harder kind for a graph. page.py tells how near both are to what they imitate.
"""


@dataclass(frozen=True)
class Corpus:
    """`rows` unit vectors of `dimensions`, the cases they belong to, and queries that are none of them."""

    rows: int
    dimensions: int
    queries: int = 200
    seed: int = 729
    structure: str = "semantic"

    @property
    def _structure(self) -> Structure:
        return STRUCTURES[self.structure]

    def _generator(self, *purpose: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64([self.seed, *purpose]))

    @cached_property
    def _rank(self) -> int:
        return min(RANK, self.dimensions)

    @cached_property
    def topics(self) -> int:
        """How many topics there are."""
        return max(4, int(self._structure.topics * self.rows**0.5))

    @cached_property
    def _topic_of_family(self) -> Rows:
        families = max(8, self.rows // FAMILY_CASES)
        return self._generator(1).choice(self.topics, families, p=_power_law(self.topics, 0.9))

    @cached_property
    def _family(self) -> Rows:
        """Family of each row, and after them of each query."""
        families = len(self._topic_of_family)
        return self._generator(2).choice(families, self.rows + self.queries, p=_power_law(families, 0.8))

    @cached_property
    def topic(self) -> Rows:
        """Topic of each row, and after them of each query."""
        return self._topic_of_family[self._family]

    @cached_property
    def _spread(self) -> tuple[Floats, Floats]:
        """(share of a topic's variance that its families make, share of a family's that its cases make)."""
        within_topic = self._generator(5).beta(*self._structure.family, self.topics)
        within_family = self._generator(6).beta(*self._structure.case, len(self._topic_of_family))
        return within_topic.astype(np.float32), within_family.astype(np.float32)

    @cached_property
    def _centres(self) -> NDArray[np.float16]:
        """(families, rank): 171 MB at 1,000,000 rows."""
        spectrum = _spectrum(self._rank, self._structure.falling[0], 3)
        topics = self._generator(7).standard_normal((self.topics, self._rank), dtype=np.float32) * spectrum
        if self._structure.topic is not None:
            areas = self._generator(14).standard_normal((AREAS, self._rank), dtype=np.float32) * spectrum
            area = self._generator(15).choice(AREAS, self.topics, p=_power_law(AREAS, 0.7))
            own = self._generator(16).beta(*self._structure.topic, self.topics).astype(np.float32)[:, None]
            topics = np.sqrt(1 - own) * areas[area] + np.sqrt(own) * topics
        share = self._spread[0][self._topic_of_family][:, None]
        families = self._generator(8)
        centres = np.empty((len(share), self._rank), dtype=np.float16)
        for start in range(0, len(share), BLOCK):
            part = slice(start, start + BLOCK)
            own = families.standard_normal((len(share[part]), self._rank), dtype=np.float32) * spectrum
            centres[part] = np.sqrt(1 - share[part]) * topics[self._topic_of_family[part]] + np.sqrt(share[part]) * own
        return centres

    @cached_property
    def _axes(self) -> tuple[Rows, Floats]:
        """(where the strong directions lie before they are rotated, what all vectors share)."""
        shared = self._generator(10).standard_normal(self.dimensions)
        order = self._generator(9).permutation(self.dimensions)
        return order, (shared * self._structure.shared / np.linalg.norm(shared)).astype(np.float32)

    def vectors(self, block: int) -> NDArray[np.float16]:
        """Block number `block` of the vectors, as half precision stores them: up to (4096, dimensions)."""
        return self._vectors(np.arange(block * BLOCK, min(self.rows, (block + 1) * BLOCK)), block)

    @cached_property
    def query_vectors(self) -> Floats:
        """(queries, dimensions): of the same families, and no row's."""
        return self._vectors(np.arange(self.rows, self.rows + self.queries), -1 % 2**31).astype(np.float32)

    def _vectors(self, rows: Rows, stream: int) -> NDArray[np.float16]:
        generator = self._generator(11, stream)
        order, shared = self._axes
        family = self._family[rows]
        own = self._spread[1][family] * generator.gamma(1, 1, len(rows)).astype(np.float32)
        own = np.clip(own, 0.01, 0.95)[:, None]
        edits = min(EDITS, self.dimensions)
        edit = generator.standard_normal((len(rows), edits), dtype=np.float32)
        edit *= _spectrum(edits, self._structure.falling[1], 1)
        centre = self._centres[family].astype(np.float32)
        if self._structure.mixed is None:
            # Each family is edited in directions of its own, as a template is where its blanks are.
            directions = (family[:, None] * 7919 + np.arange(edits)) % self.dimensions
        else:
            directions = np.broadcast_to(np.arange(edits), (len(rows), edits))
            mixed = generator.beta(*self._structure.mixed, len(rows)).astype(np.float32)[:, None] / 2
            other = self._family[generator.integers(0, self.rows, len(rows))]
            centre = (1 - mixed) * centre + mixed * self._centres[other].astype(np.float32)
            centre /= np.linalg.norm(centre, axis=1, keepdims=True)
        found = np.zeros((len(rows), self.dimensions), dtype=np.float32)
        found[np.arange(len(rows))[:, None], order[directions]] = edit * np.sqrt(own)
        found[:, order[: self._rank]] += np.sqrt(1 - own) * centre
        # A rotation: the strong directions come to lie across all coordinates, as in a learnt embedding.
        found = dct(found, norm="ortho", axis=1, overwrite_x=True)
        found += shared
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        return found.astype(np.float16)

    def blocks(self) -> Iterator[tuple[Rows, NDArray[np.float16]]]:
        """Every (row numbers, vectors)."""
        for block in range(-(-self.rows // BLOCK)):
            rows = np.arange(block * BLOCK, min(self.rows, (block + 1) * BLOCK))
            yield rows, self.vectors(block)

    @cached_property
    def _columns(self) -> dict[str, NDArray[np.str_] | Rows]:
        generator = self._generator(12)
        topic = self.topic[: self.rows]
        # Topics are dealt out in a random order, small ones first to the archive, until each has its share of rows.
        size = np.bincount(topic, minlength=self.topics)
        archive = np.argsort(size, kind="stable")
        archive = archive[(np.cumsum(size[archive]) <= max(1, self.rows // 1000)) & (size[archive] > 0)]
        order = generator.permutation(self.topics)
        dealt = (np.cumsum(size[order]) - size[order] / 2) / self.rows
        project = np.empty(self.topics, dtype=np.int64)
        project[order] = 1 + np.searchsorted([0.5, 0.55], dealt)
        folder = np.where(np.isin(topic, archive), "Archive", np.char.add("Area ", (topic % 40).astype(str)))
        return {
            "priority": generator.choice(["Medium", "High", "Low", "Critical"], self.rows, p=[0.5, 0.3, 0.15, 0.05]),
            "tags": np.where(generator.random(self.rows) < 0.001, "quarantined", "regression"),
            "project_id": project[topic],
            "folder_structure": folder,
        }

    def matching(self, given: Filter) -> NDArray[np.bool_]:
        """Whether each row matches."""
        return np.asarray(self._columns[given.column] == given.value)

    def payloads(self, rows: Rows) -> list[dict[str, str | int]]:
        """What filters look at, a dictionary a row."""
        columns = [values[rows].tolist() for values in self._columns.values()]
        return [dict(zip(self._columns, values, strict=True)) for values in zip(*columns, strict=True)]

    def case(self, row: int) -> dict[str, str | int]:
        """The columns of a row: its text, and what filters look at."""
        words = self._words(row, TITLE_WORDS + BODY_WORDS)
        said = {name: values[row].item() for name, values in self._columns.items()}
        said["folder_structure"] = f"{said['folder_structure']}/Topic {self.topic[row]}"
        return {**said, "title": " ".join(words[:TITLE_WORDS]), "description": " ".join(words[TITLE_WORDS:])}

    def query_text(self, query: int) -> str:
        """Words that the cases of the query's topic use."""
        return " ".join(self._words(self.rows + query, QUERY_WORDS))

    def _words(self, row: int, count: int) -> list[str]:
        """Words by Zipf's law: half of them by the whole corpus's ranking, half by that of the row's topic."""
        generator = self._generator(13, row)
        ranks = (VOCABULARY ** generator.random(count)).astype(np.int64) - 1  # P(rank) falls as 1 / rank
        shift = np.where(generator.random(count) < 0.5, 0, 1 + int(self.topic[row]) * 7919)
        return [WORDS[number] for number in (ranks + shift) % VOCABULARY]


def _power_law(count: int, exponent: float) -> NDArray[np.float64]:
    """Probabilities of `count` things, falling with their number."""
    weights: NDArray[np.float64] = (np.arange(count) + 5.0) ** -exponent
    return weights / weights.sum()


def _spectrum(directions: int, exponent: float, flat: int) -> Floats:
    """Falling as (direction + flat) ** -exponent, of length 1."""
    falling = (np.arange(directions) + float(flat)) ** -exponent
    return (falling / np.linalg.norm(falling)).astype(np.float32)


def _word(number: int) -> str:
    syllables = [first + vowel for first in "bdfgklmnprstvz" for vowel in "aeiou"]
    parts = [syllables[number % 70], syllables[number // 70 % 70], syllables[number // 4900 % 70]]
    return "".join(parts)


WORDS = tuple(_word(number) for number in range(VOCABULARY))


def text_hash(row: int) -> bytes:
    """The key a row's vector is stored under."""
    return hashlib.sha256(b"case %d" % row).digest()


class Truth:
    """The exact ten nearest rows of each query, without a filter and with each: fed block by block."""

    def __init__(self, corpus: Corpus, k: int = 10) -> None:
        self._corpus = corpus
        self._queries = corpus.query_vectors / np.linalg.norm(corpus.query_vectors, axis=1, keepdims=True)
        self._masks = {"": None, **{each.name: corpus.matching(each) for each in FILTERS}}
        self._best = {name: np.full((corpus.queries, k), -np.inf, dtype=np.float32) for name in self._masks}

    def add(self, rows: Rows, vectors: NDArray[np.float16]) -> None:
        """Take a block in."""
        single = vectors.astype(np.float32)
        single /= np.linalg.norm(single, axis=1, keepdims=True)
        scores = self._queries @ single.T
        for name, mask in self._masks.items():
            kept = scores if mask is None else scores[:, mask[rows]]
            best = self._best[name]
            merged = np.concatenate([best, kept], axis=1)
            self._best[name] = np.partition(merged, merged.shape[1] - best.shape[1], axis=1)[:, -best.shape[1] :]

    def recall(self, found: list[list[float]], name: str = "") -> float:
        """Mean recall@k of what was found for the first queries: `found` are true cosines.

        What is as near as the k-th nearest counts, whichever row it is; only what can be found is asked for.
        """
        shares = []
        for cosines, best in zip(found, self._best[name], strict=False):
            reachable = best[np.isfinite(best)]
            if len(reachable):
                near = sum(cosine >= reachable.min() - TIE for cosine in cosines)
                shares.append(min(near, len(reachable)) / len(reachable))
        return float(np.mean(shares)) if shares else 1.0
