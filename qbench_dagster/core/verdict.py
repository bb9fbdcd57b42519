"""What to make of suspicious vectors, once texts were embedded again: errors, warnings, or nothing. Values only.

How vectors become suspicious is `suspicion.py`; embedding texts again is `adapters/examining.py`.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from qbench_dagster.core.recall import SAMPLES
from qbench_dagster.core.suspicion import MEASURED, Suspects

ERRORS = ("zero", "not_finite", "wrong_norm", "constant", "disagrees")
"""No model makes these, or the text's own fresh vector is another one."""
WARNINGS = ("random", "duplicate")
"""A model may make these of odd texts: a few are normal until a fresh embedding says otherwise."""

CONFIRMS = 0.99
"""Cosine with a fresh embedding of its text that clears a suspect. Half precision alone leaves 0.9999 and more."""
DISAGREES = 0.98
"""Below this cosine a stored vector is another text's or another model's: services answer within 0.999 of before."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Why one vector is listed. `hashes` has its own, and a second text that shares it, if that is the reason."""

    hashes: Sequence[bytes]
    detail: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is left of the suspects, by each of ERRORS and WARNINGS: how many, and at most ten to look at."""

    counts: Mapping[str, int]
    listed: Mapping[str, Sequence[Evidence]]
    cleared: int
    unconfirmed: int


def judge(found: Suspects, fresh: Mapping[bytes, float], staged: Container[bytes]) -> Verdict:
    """Weigh what was found against the cosines of stored vectors with `fresh` embeddings of their texts.

    A suspect that agrees is cleared: a lexical model gives texts that differ in case one vector. One that
    disagrees is an error, whatever it was suspected of. The rest stay what they were, except a text that no case
    has (not in `staged`) and that shares its vector with one that was cleared.
    """
    cleared = {text_hash for text_hash, cosine in fresh.items() if cosine >= CONFIRMS}
    settled = cleared | {text_hash for text_hash, cosine in fresh.items() if cosine < DISAGREES}
    listed: dict[str, list[Evidence]] = {}
    counts: dict[str, int] = {}
    for kind in MEASURED:
        kept = found.by_kind[kind]
        open_to_doubt = kind in ("constant", "random")
        left = [index for index, key in enumerate(kept.hashes) if not (open_to_doubt and key in settled)]
        counts[kind] = kept.count - len(kept.hashes) + len(left)
        listed[kind] = [Evidence([kept.hashes[index]], _detail(found, kind, index)) for index in left[:SAMPLES]]
    shared = [group for group in found.duplicates() if _unsettled(group, cleared, settled, staged)]
    counts["duplicate"] = len(shared)
    listed["duplicate"] = [Evidence(group[:2], f"{len(group)} texts have this vector") for group in shared[:SAMPLES]]
    told = {*found.by_kind["zero"].hashes, *found.by_kind["not_finite"].hashes}
    wrong = sorted((cosine, key) for key, cosine in fresh.items() if cosine < DISAGREES and key not in told)
    counts["disagrees"] = len(wrong)
    listed["disagrees"] = [
        Evidence([text_hash], f"cosine {cosine:.3f} with a fresh embedding of its text")
        for cosine, text_hash in wrong[:SAMPLES]
    ]
    suspected = found.suspected()
    return Verdict(
        counts,
        listed,
        cleared=sum(text_hash in cleared for text_hash in suspected),
        unconfirmed=sum(text_hash not in fresh for text_hash in suspected),
    )


def _unsettled(group: Sequence[bytes], cleared: set[bytes], settled: set[bytes], staged: Container[bytes]) -> bool:
    vouched = any(text_hash in cleared for text_hash in group)
    return any(text_hash not in settled and (text_hash in staged or not vouched) for text_hash in group)


def _detail(found: Suspects, kind: str, index: int) -> str:
    if kind == "wrong_norm":
        return f"its length is {found.by_kind[kind].measures[index]:g}, not 1"
    if kind == "random":
        nearest = found.by_kind[kind].measures[index]
        return (
            f"its nearest of {found.references} is at cosine {nearest:.3f}; a random one stays below {found.chance:.3f}"
        )
    return {"zero": "all 0", "not_finite": "holds NaN or infinity", "constant": "a handful of distinct values"}[kind]


@dataclass(frozen=True, slots=True)
class Suspect:
    """One vector for a person to look at. `text` is an excerpt, None with `case_id` where no case has the text now."""

    text_hash: str
    detail: str
    provenance: str | None = None
    text: str | None = None
    case_id: int | None = None


@dataclass(frozen=True, slots=True)
class Fresh:
    """Stored vectors against fresh embeddings of `texts` texts drawn at random; cosines None where there is no text."""

    texts: int
    min_cosine: float | None
    median_cosine: float | None


@dataclass(frozen=True, slots=True)
class Examined:
    """What is suspicious in one table: by each of ERRORS and WARNINGS how many, and at most ten to look at."""

    kind: str
    rows: int
    counts: Mapping[str, int]
    """Vectors; under `duplicate` those that several texts share."""
    suspects: Mapping[str, Sequence[Suspect]]
    cannot_tell: str | None
    """Why random vectors could not be looked for, where they could not."""
    references: int
    typical: float | None
    """Cosine of the median vector with the nearest of the references."""
    chance: float | None
    """What a random vector stays below, and a true one does not."""
    cleared: int
    """Suspects that are what the embedder makes of their text, seen by embedding it again."""
    unconfirmed: int
    """Suspects not embedded again: the embedder is paid, their text is gone, or there are too many."""
    tokens: int
    """Billed for embedding again."""
    fresh: Fresh | None
    """None where no sample was asked for."""
    fresh_failed: str | None
    """Why texts could not be embedded again, where they could not."""

    @property
    def errors(self) -> dict[str, int]:
        """Faults, by kind: these vectors have to be made again."""
        return {kind: self.counts[kind] for kind in ERRORS if self.counts[kind]}

    @property
    def warnings(self) -> dict[str, int]:
        """What a model may have made of odd texts, by kind."""
        return {kind: self.counts[kind] for kind in WARNINGS if self.counts[kind]}

    @property
    def passed(self) -> bool:
        """Whether there are no errors, and what was to be embedded again was."""
        return not self.errors and self.fresh_failed is None
