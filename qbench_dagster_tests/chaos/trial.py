"""One fault: a sync that meets it, a sync that repairs, and everything that has to hold in between and afterwards."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from qbench_dagster.core.texts import text_hash
from qbench_dagster_tests.chaos import database_faults, source_faults
from qbench_dagster_tests.chaos.exports import place
from qbench_dagster_tests.chaos.fault import Draw, Fault, UnavailableError
from qbench_dagster_tests.chaos.reader import Reader
from qbench_dagster_tests.chaos.site import IN_FLIGHT, RUN_S, Site, Vectors, free_of_secrets
from qbench_dagster_tests.chaos.warm import Run

KINDS: dict[str, Draw] = {**database_faults.KINDS, **source_faults.KINDS}
DRAWS = 5
"""How often a moment is drawn anew that the run did not reach, before the fault is given up as not made."""


@dataclass
class Verdict:
    """What came of one fault. `wrong` is empty where all held."""

    number: int
    kind: str
    told: str = ""
    codes: list[int] = field(default_factory=list)
    """Exit codes of the run that met it, and of one beside it."""
    retried: bool = False
    """Whether the run that met it did not bring the sync to its end."""
    unclear: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    partial_reads: int = 0
    partial: list[str] = field(default_factory=list)
    blocked: int = 0
    polls: int = 0
    longest_read_s: float = 0.0
    vectors_lost: int = 0
    paid_twice: int = 0
    seconds: float = 0.0
    skipped: str = ""
    said: str = ""
    """The end of what the run told."""

    @property
    def wrong(self) -> bool:
        """Whether anything did not hold."""
        return bool(
            self.unclear or self.differences or self.partial_reads or self.blocked or self.vectors_lost
            or self.paid_twice
        )  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        """Every field, and whether all held."""
        return {**asdict(self), "ok": not self.wrong}


@dataclass
class Trials:
    """A site that goes from state to state, one fault at each step."""

    site: Site
    reader: Reader
    steps: Iterator[int]
    seed: int

    def learn(self) -> Verdict:
        """One sync that nobody disturbs: how many messages it takes, and that it reaches the clean result at all."""
        began, verdict = time.monotonic(), Verdict(0, "none", "nothing")
        there = self._next_state()
        self.site.proxy.seen.clear()
        self._repair(verdict, there, Counter(), {})
        self.site.messages = Counter(self.site.proxy.seen)
        verdict.seconds = round(time.monotonic() - began, 2)
        return verdict

    def try_fault(self, number: int, kind: str) -> Verdict:
        """Let a sync meet a fault of `kind`, repair, and judge."""
        began, draw = time.monotonic(), random.Random(f"{self.seed} {number} {kind}")
        verdict = Verdict(number, kind)
        try:
            for _ in range(DRAWS):
                fault = KINDS[kind](self.site, draw)
                if self._meet_undoing(verdict, fault) if fault.undoes else self._meet(verdict, fault):
                    break
            else:
                verdict.skipped = "no moment that was drawn was reached"
        except UnavailableError as error:
            verdict.skipped = str(error)
        except (RuntimeError, TimeoutError) as error:  # of a run that nothing disturbed, or that nobody gets rid of
            verdict.differences.append(str(error))
            self._begin_anew(self.site.state)
        verdict.seconds = round(time.monotonic() - began, 2)
        return verdict

    def _next_state(self) -> int:
        there = next(self.steps)
        self.site.prune()
        self.site.service.ledger.clear()
        self.reader.expect(self.site.state, there)
        return there

    def _meet(self, verdict: Verdict, fault: Fault) -> bool:
        """Whether the fault was made; then `verdict` tells what came of it."""
        site, there = self.site, self._next_state()
        before = site.vectors()
        place(site.states[there], site.export)
        fault.before(site)
        begun, beside = list[Run](), list[Run]()
        struck = self._arm(fault, begun)
        begun.append(site.start(cold=fault.cold, extra=fault.environment))
        if fault.beside and struck.wait(RUN_S):
            beside.append(site.start())
        verdict.codes = [site.wait(run) for run in [*begun, *beside]]
        site.proxy.disarm()
        site.proxy.mend()
        waiting = site.service.faults.waiting()
        fault.after(site)
        site.settle()
        stored, billed = site.vectors(), Counter(site.service.billed)
        verdict.vectors_lost += sum(1 for key, digest in before.items() if stored.get(key) != digest)
        made = struck.is_set() and not waiting
        if made:
            verdict.told, verdict.said = fault.told, begun[0].told[-1500:]
            verdict.retried = any(verdict.codes)
            for code, run in zip(verdict.codes, [*begun, *beside], strict=True):
                verdict.unclear += fault.unclear(code, run.told)
                if not free_of_secrets(site, [run.told, run.printed]):
                    verdict.unclear.append("it told a secret")
            verdict.paid_twice += self._paid_twice(billed, stored)
        self._repair(verdict, there, billed, stored)
        return made or verdict.wrong

    def _arm(self, fault: Fault, begun: Sequence[Run]) -> threading.Event:
        """Let it strike the run that is going to be in `begun`, at its moment; the event tells that it has."""
        struck = threading.Event()

        def strike() -> None:
            while not begun:  # it has been started, but we have not been told yet
                time.sleep(0.001)
            struck.set()
            if fault.strike is not None:
                fault.strike(self.site, begun[0])

        if fault.moment is None:
            struck.set()
        else:
            self.site.proxy.arm(fault.moment, strike)
        return struck

    def _meet_undoing(self, verdict: Verdict, fault: Fault) -> bool:
        """The same for the rollback of a sync, which is undone in turn: so that the walk goes on from there."""
        site, here, there = self.site, self.site.state, self._next_state()
        place(site.states[there], site.export)
        site.succeed(site.start(), "a sync")
        site.settle()
        begun = list[Run]()
        struck = self._arm(fault, begun)
        begun.append(site.start("rollback", self._latest("sync"), "--yes"))
        verdict.codes = [site.wait(begun[0])]
        site.proxy.disarm()
        site.settle()
        if struck.is_set():
            verdict.told, verdict.retried = fault.told, True
            verdict.unclear += fault.unclear(verdict.codes[0], begun[0].told)
        if site.published() != site.expected[here]:
            verdict.differences += site.differences(there)  # all of it or nothing
            site.succeed(site.start("rollback", self._latest("sync"), "--yes"), "a rollback")
            verdict.differences += site.differences(here)
        site.succeed(site.start("rollback", self._latest("rollback"), "--yes"), "the rollback of a rollback")
        verdict.differences += site.differences(there)
        self._repair(verdict, there, Counter(site.service.billed), site.vectors())
        return struck.is_set() or verdict.wrong

    def _latest(self, kind: str) -> str:
        """Number of the last entry of this kind in the history."""
        return str(self.site.ask("SELECT max(id) FROM store.sync_runs WHERE kind = %s", kind)[0][0])

    def _paid_twice(self, billed: Counter[str], stored: Vectors) -> int:
        """Texts that a run paid for and neither stored nor can have had in flight, or that it paid for again."""
        hashes = {digest for _, digest in stored}
        spoilt = sum(seen.inputs for seen in self.site.service.ledger.seen if seen.outcome.startswith("fault:"))
        again = billed.total() - len(billed)
        unstored = [text for text in billed if text_hash(text) not in hashes]
        return max(0, again - spoilt) + max(0, len(unstored) - IN_FLIGHT - spoilt)

    def _repair(self, verdict: Verdict, there: int, billed: Counter[str], stored: Vectors) -> None:
        """One more run, and what has to be so after it."""
        site = self.site
        place(site.states[there], site.export)
        site.service.faults.clear()
        run = site.start()
        if code := site.wait(run):
            verdict.differences.append(f"the run after it ended with {code}: {run.told[-1500:]}")
        site.settle()
        verdict.differences += site.differences(there)
        hashes = {digest for _, digest in stored}
        verdict.paid_twice += sum(1 for text in site.service.billed - billed if text_hash(text) in hashes)
        now = site.vectors()
        verdict.vectors_lost += sum(1 for key, digest in stored.items() if now.get(key) != digest)
        site.state = there
        seen = self.reader.expect(there)
        verdict.polls += seen.polls
        verdict.partial_reads += seen.partial_reads
        verdict.partial += seen.partial
        verdict.blocked += seen.blocked
        verdict.longest_read_s = round(max(verdict.longest_read_s, seen.longest_s), 3)
        if verdict.differences:  # what is found next is to be of the next fault
            self._begin_anew(there)

    def _begin_anew(self, state: int) -> None:
        """Load the state into an empty database in place of what is wrong."""
        site = self.site
        self.reader.expect()
        site.new_database("qbench")
        place(site.states[state], site.export)
        site.succeed(site.start(), "a clean load")
        site.settle()
        self.reader.expect(state)
