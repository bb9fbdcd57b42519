"""What embedding is going to take, told before anything is spent: texts, tokens, dollars, disk, time. Numbers only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from qbench_dagster.core.indexes import EXACT, entry_bytes
from qbench_dagster.core.prices import Price, cost

PAGE = 8168
"""Bytes of an 8 KB page of PostgreSQL that rows can use; a row that is kept in line does not cross pages."""
ROW_OVERHEAD = 100
"""Header, text hash, provenance, time stamp, line pointer and alignment of a row of vectors."""
HNSW_OVERHEAD = 110
"""Headers of an HNSW element and its neighbour list: 690 bytes a row measured at binary, 3,072 dimensions, m 16."""
Way = Literal["request", "batch"]
"""How an embedding service is asked: now, or by batch."""
ASSUMED_TOKENS_PER_MINUTE = 1_000_000
"""OpenAI's limit of the first paid tier; the account's own is known from the first answer's headers on."""


@dataclass(frozen=True, slots=True)
class KindPlan:
    """One table of the space: `rows` staged hold `texts` distinct texts.

    `stored` have a vector, `shared` get it from the other table, `reusable` from an old store (by its name),
    `in_batches` were sent and are awaited, `to_embed` remain, of `tokens`, `in_pieces` of them too long for one input.
    """

    rows: int
    texts: int
    stored: int
    shared: int
    reusable: Mapping[str, int]
    in_batches: int
    to_embed: int
    tokens: int
    requests: int
    in_pieces: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole of it. Dollars are None where the price of the model is not known."""

    space: str
    model: str
    dimensions: int
    cases: int
    rejected: int
    kinds: Mapping[str, KindPlan]
    tokens_by: str
    exact_tokens: bool
    usd: float | None
    usd_by_batch: float | None
    way: Way
    """How the settings ask for it: which of the two it will cost."""
    spent_usd: float
    max_usd: float | None
    table_bytes: int
    index_bytes: int
    seconds: float
    seconds_by: str
    refused: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """What old stores hold and cannot give, by store and reason."""

    @property
    def to_embed(self) -> int:
        """Texts to embed, of cases and steps together."""
        return sum(kind.to_embed for kind in self.kinds.values())

    @property
    def tokens(self) -> int:
        """Tokens to embed."""
        return sum(kind.tokens for kind in self.kinds.values())

    @property
    def usd_to_pay(self) -> float | None:
        """What it costs the way it is asked for."""
        return self.usd_by_batch if self.way == "batch" else self.usd

    @property
    def within_budget(self) -> bool | None:
        """Whether the whole of it fits the budget, the way it is asked for; None without a budget or a price."""
        if self.max_usd is None or self.usd_to_pay is None:
            return None
        return self.spent_usd + self.usd_to_pay <= self.max_usd

    def as_json(self) -> dict[str, Any]:
        """The plan as JSON values, and as a person reads it: its `table`, heading first, and `notes`."""
        return {
            **asdict(self),
            "to_embed": self.to_embed,
            "tokens": self.tokens,
            "usd_to_pay": self.usd_to_pay,
            "within_budget": self.within_budget,
            "table": plan_rows(self),
            "notes": plan_lines(self),
        }


def dollars(tokens: int, price: Price | None) -> tuple[float | None, float | None]:
    """(now, by batch) of `tokens`; None where the price is not known."""
    if price is None:
        return None, None
    return cost(tokens, price.usd_per_million), cost(tokens, price.batch_usd_per_million)


def table_bytes(texts: int, dimensions: int, vector_type: str) -> int:
    """Disk that the rows of `texts` vectors take: whole pages, for a row does not cross them."""
    row = dimensions * (2 if vector_type == "halfvec" else 4) + 8 + ROW_OVERHEAD
    return _pages(texts, row)


def index_bytes(texts: int, dimensions: int, strategy: str, m: int) -> int:
    """Disk that the approximate index of `texts` vectors takes; of `auto`, that of what it mostly takes."""
    if strategy == EXACT:
        return 0
    links = 0 if strategy == "ivfflat" else 12 * m + HNSW_OVERHEAD
    return _pages(texts, entry_bytes(dimensions, "binary" if strategy == "auto" else strategy, None) + links)


def _pages(rows: int, size: int) -> int:
    if size > PAGE:  # kept out of line, in chunks of about a quarter page
        return rows * (size + 4 * 40)
    return -(-rows // (PAGE // size)) * 8192


def plan_rows(plan: Plan) -> list[tuple[str, ...]]:
    """The plan's table, heading first: a column for each kind, then the sum."""
    sources = sorted({name for kind in plan.kinds.values() for name in kind.reusable})
    counts: list[tuple[str, Callable[[KindPlan], int]]] = [
        ("rows", lambda kind: kind.rows),
        ("distinct texts", lambda kind: kind.texts),
        ("stored already", lambda kind: kind.stored),
        *((f"reusable from {name}", lambda kind, name=name: kind.reusable.get(name, 0)) for name in sources),
        ("the same text is in the other table", lambda kind: kind.shared),
        ("awaited from batches", lambda kind: kind.in_batches),
        ("to embed", lambda kind: kind.to_embed),
        ("tokens", lambda kind: kind.tokens),
        ("requests, at least", lambda kind: kind.requests),
        ("texts sent in pieces", lambda kind: kind.in_pieces),
    ]
    rows = [("", *(f"{name}s" for name in plan.kinds), "in all")]
    for label, count in counts:
        numbers = [count(kind) for kind in plan.kinds.values()]
        if any(numbers) or label == "to embed":
            rows.append((label, *(f"{number:,}" for number in [*numbers, sum(numbers)])))
    return rows


def plan_lines(plan: Plan) -> list[str]:
    """What the table does not say: tokens, dollars, budget, disk, time, and what old stores cannot give."""
    space = f"{plan.space} ({plan.model}, {plan.dimensions} dimensions)"
    lines = [f"{plan.cases:,} cases staged, {plan.rejected:,} rejected; space {space}"]
    if plan.usd is None:
        lines.append(f"The price of {plan.model} is not known: name it in a file and set QBENCH_PRICES.")
    elif plan.tokens:
        lines.append(f"{_usd(plan.usd)} now, {_usd(plan.usd_by_batch or 0)} by batch; tokens by {plan.tokens_by}")
    elif plan.to_embed:
        lines.append("Nothing to pay: the embedder is on this machine.")
    else:
        lines.append("Nothing to embed, nothing to pay.")
    if plan.spent_usd:
        lines.append(f"{_usd(plan.spent_usd)} spent on this space so far, with what is reserved for what is on its way")
    if plan.within_budget is not None:
        way = "by batch" if plan.way == "batch" else "by requests, now"
        fits = "is enough" if plan.within_budget else "is not enough: embedding stops there, and can be resumed"
        paid = f"{_usd((plan.usd_to_pay or 0) + plan.spent_usd)} in all, {way} (QBENCH_OPENAI_MODE)"
        lines.append(f"The budget of {_usd(plan.max_usd or 0)} (QBENCH_MAX_USD) {fits}; {paid}.")
    lines.append(f"disk {plan.table_bytes / 2**20:,.0f} MiB of vectors, {plan.index_bytes / 2**20:,.0f} MiB of index")
    if plan.to_embed:
        if plan.tokens and plan.way == "batch":
            lines.append("up to a day, by batch")
        else:
            lines.append(
                f"about {_duration(plan.seconds)} {plan.seconds_by}" + "; a batch takes up to a day" * (plan.tokens > 0)
            )
    for store, reasons in plan.refused.items():
        told = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in reasons.items())
        if told:
            lines.append(f"points of {store} that cannot be used: {told}")
    return lines


def plan_markdown(*plans: Plan) -> str:
    """The plan of each space for the UI, one below the other."""
    found = []
    for plan in plans:
        heading, *rows = plan_rows(plan)
        found += [f"| {' | '.join(heading)} |", f"|{' --- |' * len(heading)}"]
        found += [*(f"| {' | '.join(row)} |" for row in rows), "", *(f"- {line}" for line in plan_lines(plan)), ""]
    return "\n".join(found)


def _usd(dollars: float) -> str:
    """Cents, and below a dollar what they are made of."""
    return f"${dollars:,.2f}" if dollars >= 1 else f"${dollars:,.4f}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:,.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"
