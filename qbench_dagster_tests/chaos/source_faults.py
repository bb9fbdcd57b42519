"""What happens to the export, and what the embedding service does."""

from __future__ import annotations

import random
import sqlite3
import threading
from collections.abc import Callable

from qbench_dagster_tests.chaos import exports
from qbench_dagster_tests.chaos.fault import FAILED, Draw, Fault, moment, nothing
from qbench_dagster_tests.chaos.site import Site
from qbench_dagster_tests.openai_server import Fault as Answer

UNUSABLE = r"damaged|not a SQLite database|cannot be read|cut off|no table|is empty|written over"
WAITED_FOR_S = 1.5
"""How long a lock is held: a run waits 30 s for it."""


def _file_fault(kind: str, site: Site, draw: random.Random, told: str, harm: Callable[[Site], None]) -> Fault:
    """Harm done before the run, or while it reads."""
    if draw.random() < 0.5:
        return Fault(kind, f"{told}, before the run", FAILED, UNUSABLE, before=harm)
    at = moment(site, draw, "guard", "land")
    return Fault(kind, f"{told}, at {at}", [0, *FAILED], UNUSABLE, at, strike=lambda site, _: harm(site))


def corrupt(site: Site, draw: random.Random) -> Fault:
    """Pages of the file are overwritten."""
    seed = draw.random()
    return _file_fault("export-corrupt", site, draw, "pages overwritten",
                       lambda site: exports.corrupt(site.export, random.Random(seed)))  # fmt: skip


def truncated(site: Site, draw: random.Random) -> Fault:
    """The file is cut off, or whole and without many of its cases."""
    share = draw.uniform(0.05, 0.95)
    if draw.random() < 0.4:
        gone = 0.5 + share / 2
        return Fault("export-truncated", f"{gone:.0%} of the cases are missing", FAILED, "gone from the export",
                     before=lambda site: exports.lose_cases(site.export, gone))  # fmt: skip
    return _file_fault("export-truncated", site, draw, f"cut off at {share:.0%}",
                       lambda site: exports.truncate(site.export, share))  # fmt: skip


def replaced(site: Site, draw: random.Random) -> Fault:
    """The file of before takes its place while it is read; whole, so either of the two is fine."""
    at, before = moment(site, draw, "start", "guard", "land"), site.states[site.state]
    return Fault("export-replaced", f"by the one of before at {at}", [0], moment=at,
                 strike=lambda site, _: exports.place(before, site.export))  # fmt: skip


def overwritten(site: Site, draw: random.Random) -> Fault:
    """A copy over the file in use stops half way: old pages, new pages, a torn one."""
    share, before = draw.uniform(0.1, 0.9), site.states[site.state]
    at = moment(site, draw, "guard", "land")
    # Where the pages that are read are all of one of the two files, there is nothing to notice.
    return Fault("export-overwritten", f"{share:.0%} of it, at {at}", [0, *FAILED], f"{UNUSABLE}|gone from the export",
                 at, strike=lambda site, _: exports.overwrite(site.export, before, share))  # fmt: skip


def locked(site: Site, draw: random.Random) -> Fault:
    """Another program holds the file's lock for a while, as while it writes."""
    del draw

    def hold(site: Site) -> None:
        writer = sqlite3.connect(site.export, isolation_level=None, check_same_thread=False)
        writer.execute("BEGIN EXCLUSIVE")
        threading.Timer(WAITED_FOR_S, writer.close).start()

    return Fault("export-locked", f"for {WAITED_FOR_S:g} s", [0], before=hold)


def half_written(site: Site, draw: random.Random) -> Fault:
    """Whoever wrote it was killed while writing."""
    del site, draw
    return Fault("export-half", "its writer was killed", FAILED, UNUSABLE,
                 before=lambda site: exports.write_half(site.export))  # fmt: skip


def _service_fault(kind: str, told: str, answers: list[Answer], *, ends: str = "") -> Fault:
    """The next answers, from the first or the second request on. `ends`: what it says if the run cannot go on."""
    return Fault(kind, told, FAILED if ends else [0], ends, before=lambda site: site.service.fail_next(*answers),
                 after=lambda site: site.service.faults.clear())  # fmt: skip


def refuses(_: Site, draw: random.Random) -> Fault:
    """It refuses, and answers when asked again; or it refuses for good."""
    kind, ends = draw.choice([
        *((kind, "") for kind in ("500", "503", "429", "429-bare", "html-502")),
        ("quota", "credit"), ("bad-key", "OPENAI_API_KEY"), ("no-model", "QBENCH_MODEL"),
    ])  # fmt: skip
    times = 1 if ends else draw.randint(1, 2)
    return _service_fault("service-refuses", f"{times} x {kind}", [Answer(kind, 0.05)] * times, ends=ends)


def drops(_: Site, draw: random.Random) -> Fault:
    """It drops the connection, before or in the middle of its answer, or takes its time."""
    kind, times = draw.choice(["reset", "reset-mid-body", "hang"]), draw.randint(1, 2)
    return _service_fault("service-drops", f"{times} x {kind}", [Answer(kind, 1.5)] * times)


def nonsense(_: Site, draw: random.Random) -> Fault:
    """It answers with something that is not what was asked for."""
    kind = draw.choice(["nan", "zero", "short", "swapped-index", "not-json", "wrong-dimension"])
    if kind == "wrong-dimension":
        return _service_fault("service-nonsense", kind, [Answer(kind)], ends="QBENCH_DIMENSIONS")
    times = draw.randint(1, 2)
    return _service_fault("service-nonsense", f"{times} x {kind}", [Answer(kind)] * times)


def undisturbed(_: Site, __: random.Random) -> Fault:
    """No fault: what it is compared with."""
    return Fault("none", "", [0], before=nothing)


KINDS: dict[str, Draw] = {
    "export-corrupt": corrupt, "export-truncated": truncated, "export-replaced": replaced,
    "export-overwritten": overwritten, "export-locked": locked, "export-half": half_written,
    "service-refuses": refuses, "service-drops": drops, "service-nonsense": nonsense,
}  # fmt: skip
