"""Compares searches and vectors with exact search, with fresh vectors and with old stores, as a parity report asks.

One pass over the stored vectors of a kind serves all of it. What the numbers mean is `core/search_parity.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

from qbench_dagster.adapters.asking import Asking
from qbench_dagster.adapters.embedders import Embedder
from qbench_dagster.adapters.ledger import Account
from qbench_dagster.adapters.old_search import compare_with_old
from qbench_dagster.adapters.old_store import OldStore, read_old
from qbench_dagster.adapters.postgres import Connection, Database
from qbench_dagster.adapters.public_search import PublicSearch, titles_of
from qbench_dagster.adapters.queries import Question, draw_questions, embed_log, filters_of_data
from qbench_dagster.adapters.space import KINDS, Kind, Space, writing
from qbench_dagster.adapters.sql import statement
from qbench_dagster.adapters.vector_pass import ExactAnswers, FreshVectors, K, pass_over
from qbench_dagster.adapters.vector_source import SourceError, VectorSource
from qbench_dagster.core.comparison import Answer, Comparison, answers_compared
from qbench_dagster.core.nearest import Nearest
from qbench_dagster.core.queries import Filter, Query
from qbench_dagster.core.reuse import SAME_TEXT_COSINE, Refusal, Wanted
from qbench_dagster.core.search_parity import NAMES, QUERIES
from qbench_dagster.core.verdict import DISAGREES

FILTERED = 20
"""Drawn questions asked under each filter: enough to find a short answer, and 5 ms each."""
LOCAL_SAMPLE = 500
"""Texts a local model embeds again unless QBENCH_FRESH_SAMPLE says how many: 5,000 take a small one a minute."""
ELSEWHERE = {Refusal.OTHER_MODEL, Refusal.WRONG_DIMENSION}
"""Why a store's vectors cannot be compared at all, which is nobody's fault: reads move to another model."""


def no_stores() -> AbstractContextManager[Sequence[VectorSource]]:
    """Where no old store is named."""
    return nullcontext(())


@dataclass(frozen=True, slots=True)
class ComparisonSettings:
    """What searches are compared with beside exact search, and what is enough. The defaults are the published ones."""

    query_log: Path | None = None
    queries: int = 200
    target_recall: float = 0.95
    min_overlap: float = 0.9
    min_median_overlap: float = 0.95
    fresh_sample: int = 0
    old_stores: Sequence[str] = ()
    """By provenance, those the settings name."""
    open_stores: Callable[[], AbstractContextManager[Sequence[VectorSource]]] = no_stores
    open_embedder: Callable[[], AbstractContextManager[Embedder]] | None = None
    """None: no text may be embedded."""
    account: Account | None = None
    declared_model: str | None = None

    def thresholds(self) -> dict[str, float]:
        """What is enough, by setting."""
        return {name: getattr(self, name) for name in ("target_recall", "min_overlap", "min_median_overlap")}

    def told(self) -> list[Any]:
        """What another report would come of. The log itself and what the old stores hold are for who has read them."""
        return [self.thresholds(), self.queries, self.fresh_sample, list(self.old_stores), self.declared_model,
                self.open_embedder is None]  # fmt: skip


@dataclass(slots=True)
class Compared:
    """What was found: comparisons, and what the findings need beside them."""

    comparisons: list[Comparison] = field(default_factory=list)
    filtered: int = 0
    short: list[dict[str, Any]] = field(default_factory=list)
    search_error: str | None = None
    search_note: str | None = None
    stores: list[OldStore] = field(default_factory=list)
    store_error: str | None = None
    unread: str | None = None
    """Why a store could not be read to its end, where one could not."""
    store_notes: list[str] = field(default_factory=list)
    fresh: list[FreshVectors] = field(default_factory=list)
    fresh_note: str | None = None


class Comparing:
    """Compares one space. `is_read`: whether the functions of `qbench` answer from it."""

    def __init__(self, database: Database, space: Space, settings: ComparisonSettings, *, is_read: bool) -> None:
        self._database = database
        self._space = space
        self._settings = settings
        self._is_read = is_read
        self._found = Compared()
        if not is_read:
            self._found.search_note = f"the search functions do not answer from {space.name}: reads are not on it"

    def run(self, log: Sequence[Query], sources: Sequence[VectorSource], store_error: str | None) -> Compared:
        """Compare both kinds. `log` are the logged queries, if there is a log; `store_error` why no store was opened.

        Raises QueryLogError and EmbeddingError where the log cannot be embedded.
        """
        found, settings = self._found, self._settings
        found.store_error = found.unread = store_error
        with ExitStack() as stack:
            # One that costs money needs a key, which is for who has something to ask.
            asked = self._space.embedder != "openai" or settings.fresh_sample or any(q.text is not None for q in log)
            embedder = stack.enter_context(settings.open_embedder()) if settings.open_embedder and asked else None
            logged = embed_log(self._database, self._space, log, embedder, settings.account) if log else []
            connection = stack.enter_context(self._database.connection("compare searches", long=True))
            filters = filters_of_data(connection)
            asked_filters = list(dict.fromkeys([*(q.filter for q in logged if q.filter), *filters]))
            for kind in KINDS:
                for source in sources if found.store_error is None else ():
                    self._read_old(connection, kind, source, asked_filters)
                self._kind(connection, kind, logged, filters, embedder)
        return found

    def _read_old(self, connection: Connection, kind: Kind, source: VectorSource, filters: Sequence[Filter]) -> None:
        if kind not in source.kinds():
            self._found.store_notes.append(f"not compared: {source.provenance} holds no {NAMES[kind]}")
            return
        wanted = Wanted(self._space.model, self._space.dimensions, self._settings.declared_model, True)
        try:
            self._found.stores.append(read_old(connection, self._space, kind, source, wanted, filters))
        except SourceError as error:
            self._found.store_error = self._found.unread = str(error)

    def _kind(
        self,
        connection: Connection,
        kind: Kind,
        logged: Sequence[Question],
        filters: Sequence[Filter],
        embedder: Embedder | None,
    ) -> None:
        origin, plain = "query log", [question for question in logged if question.filter is None]
        if not plain:
            origin, plain = draw_questions(connection, self._space, kind, self._settings.queries, embedder)
        asked: dict[Filter | None, list[Question]] = (
            {None: plain, **dict.fromkeys(filters, plain[:FILTERED])} if plain else {}
        )
        origins = dict.fromkeys(asked, origin)
        for question in logged:
            if question.filter is not None:
                asked[question.filter] = [*asked.get(question.filter, ()), question]
                origins[question.filter] = "query log"
        exact = ExactAnswers(connection, kind)
        answers = {only: exact.ask(questions, only) for only, questions in asked.items()} if self._is_read else {}
        olds = [old for old in self._found.stores if old.kind == kind and self._comparable(old)]
        beside = {
            (old.source.provenance, only): exact.ask(
                asked[only], None, old.held if only is None else old.by_filter[only][1]
            )
            for old in olds
            for only in asked
            if only is None or only in old.by_filter
        }
        self._pass(connection, kind, exact, embedder)
        public = PublicSearch(connection, self._space, kind) if self._is_read else None
        try:
            for number, (only, questions) in enumerate(asked.items()):
                named = {"kind": kind, "queries_from": origins[only]}
                if public is not None:
                    self._with_exact(connection, public, only, questions, answers[only], number, named)
                for old in olds:
                    if (held := beside.get((old.source.provenance, only))) is not None:
                        self._with_old(connection, public, old, only, questions, held, number, named)
        except psycopg.Error as error:
            self._found.search_error = f"searching {NAMES[kind]} failed: {error.diag.message_primary or error}"
        except SourceError as error:
            self._found.store_error = str(error)

    def _comparable(self, old: OldStore) -> bool:
        """Whether any of its vectors can be searched with our queries; where not, it is told, and may be an error."""
        if not old.points:
            self._found.store_notes.append(f"not compared: {old.source.provenance} holds no {NAMES[old.kind]}")
            return False
        if old.held:
            return True
        reason = old.reasons.most_common(1)[0][0]
        told = f"{old.source.provenance}, {NAMES[old.kind]}: {reason.value}. {reason.remedy}"
        if reason in ELSEWHERE:
            self._found.store_notes.append(f"not compared: {told}")
        else:
            self._found.store_error = self._found.store_error or told
        return False

    def _pass(self, connection: Connection, kind: Kind, exact: ExactAnswers, embedder: Embedder | None) -> None:
        fresh = self._fresh(connection, kind, embedder)
        if fresh is None:
            return pass_over(self._database, self._space, kind, [exact])
        self._found.fresh.append(fresh)
        # Whoever enters requests into the ledger holds the space's lock, or another takes them for a dead run's.
        with writing(self._database, self._space) if fresh.asking.entered else nullcontext():
            return pass_over(self._database, self._space, kind, [exact, fresh])

    def _fresh(self, connection: Connection, kind: Kind, embedder: Embedder | None) -> FreshVectors | None:
        """What embeds texts of `kind` again: all where that costs next to nothing, a sample where it costs time."""
        settings = self._settings
        if embedder is None or (embedder.paid and not settings.fresh_sample):
            paid = "each costs money, and QBENCH_FRESH_SAMPLE is 0"
            why = paid if self._space.embedder == "openai" else "there is no embedder at hand"
            self._found.fresh_note = f"no text was embedded again: {why}"
            return None
        asking = Asking(connection, self._space, kind, embedder, settings.account)
        if self._space.embedder == "lexical":
            return FreshVectors(asking, kind, None, SAME_TEXT_COSINE)
        count = settings.fresh_sample or LOCAL_SAMPLE
        drawn = connection.execute(statement("compare.sql", f"sample_{kind}s"), {"limit": count}, binary=True)
        return FreshVectors(asking, kind, {bytes(key) for (key,) in drawn}, DISAGREES)

    def _with_exact(
        self,
        connection: Connection,
        public: PublicSearch,
        only: Filter | None,
        questions: Sequence[Question],
        exact: Nearest,
        number: int,
        named: dict[str, Any],
    ) -> None:
        found, kind = self._found, named["kind"]
        answers, took = [], []
        public(questions[0].vector, questions[0].k, only)  # the first one loads the index
        for question, best in zip(questions, exact.results(), strict=True):
            reachable = min(question.k, exact.rows)
            ours, ms = public(question.vector, question.k, only)
            took.append(ms)
            at = min(question.k, K)
            answers.append(Answer(question.label, ours[:at], best[: min(at, reachable)], min(at, reachable), at))
            found.filtered += only is not None
            if len(ours) != reachable and only is not None:
                found.short.append(
                    {"kind": kind, "filter": only.describe(), "query": question.label, "k": question.k,
                     "returned": len(ours), "matching": exact.rows}
                )  # fmt: skip
        told = f", only {only.describe()}" if only else ""
        made = answers_compared(
            answers,
            threshold=self._settings.target_recall if only is None else None,
            ours_ms=took,
            theirs_ms=None,
            titles=partial(titles_of, connection, kind),
            name=f"{kind}_search" if only is None else f"{kind}_filtered_{number}",
            title=f"{NAMES[kind]}: search against exact search, {QUERIES[named['queries_from']]} as queries{told}",
            against="exact",
            filter=None if only is None else only.describe(),
            measure="recall",
            **named,
        )
        if made is not None:
            found.comparisons.append(made)

    def _with_old(
        self,
        connection: Connection,
        public: PublicSearch | None,
        old: OldStore,
        only: Filter | None,
        questions: Sequence[Question],
        exact: Nearest,
        number: int,
        named: dict[str, Any],
    ) -> None:
        store, kind = old.source.provenance, old.kind
        told = f", only {only.describe()}" if only else ""
        searched = "search" if public else "exact search"
        values = {
            **named,
            "name": f"{kind}_overlap_{store}" + (f"_{number}" if only else ""),
            "title": f"{NAMES[kind]}: {searched} against {store}, {QUERIES[named['queries_from']]} as queries{told}",
            "against": store,
            "filter": only.describe() if only else None,
            "measure": "overlap",
        }
        thresholds = (self._settings.min_overlap, self._settings.min_median_overlap)
        made, unanswered = compare_with_old(
            connection, self._space, old, questions, only, exact, public=public, thresholds=thresholds, named=values
        )
        if made is not None:
            self._found.comparisons.append(made)
        if unanswered:
            of = f"{unanswered:,} of {len(questions):,} queries for {NAMES[kind]}{told}"
            said = f"{store} answered {of} with nothing held here"
            if made is None and only is None:
                self._found.store_error = self._found.store_error or said
            else:
                self._found.store_notes.append(said)
