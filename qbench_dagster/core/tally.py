"""What embedding did, by partition and in all. Values only: whoever embeds fills them, the assets tell them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Embedded:
    """What embedding did to one partition: its `rows` hold `texts` distinct texts, `embedded` were missing."""

    rows: int = 0
    texts: int = 0
    embedded: int = 0
    characters: int = 0
    tokens: float = 0.0
    """Its share of what was billed: a request holds texts of several partitions."""
    usd: float = 0.0

    def counts(self) -> dict[str, float]:
        """The counts a person wants to see, and the UI plots by partition."""
        return {
            "rows_with_text": self.rows,
            "texts": self.texts,
            "texts_embedded": self.embedded,
            "characters_embedded": self.characters,
            "rows_written": self.embedded,
            "tokens": round(self.tokens),
            "usd": round(self.usd, 9),
        }


@dataclass(slots=True)
class Embedding:
    """What embedding one table did so far, partition by partition and in all."""

    partitions: dict[str, Embedded] = field(default_factory=dict)
    shared: int = 0
    """Vectors taken over from the other table of the space, which has the same text."""
    in_pieces: int = 0
    """Texts above the token limit, embedded in pieces and averaged."""
    requests: int = 0
    tokens: int = 0
    usd: float = 0.0
    usd_at_risk: float = 0.0
    """Of attempts that may have been billed, though no usable answer came."""

    @property
    def embedded(self) -> int:
        """Texts embedded in all partitions."""
        return sum(done.embedded for done in self.partitions.values())

    def so_far(self) -> dict[str, float]:
        """What a run that ends before everything is embedded has done."""
        return {"texts_embedded": self.embedded, **self.spending()}

    def spending(self) -> dict[str, float]:
        """Requests, tokens and dollars of all partitions, and what no partition can be told of."""
        return {
            "requests": self.requests,
            "tokens": self.tokens,
            "texts_in_pieces": self.in_pieces,
            "texts_shared": self.shared,
            "usd": round(self.usd, 6),
            "usd_at_risk": round(self.usd_at_risk, 6),
        }
