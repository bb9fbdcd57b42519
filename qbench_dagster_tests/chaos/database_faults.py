"""What happens to processes, to PostgreSQL and to the way there."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

from qbench_dagster.cli import app
from qbench_dagster_tests.chaos.fault import FAILED, KILLED, Draw, Fault, UnavailableError, moment
from qbench_dagster_tests.chaos.proxy import Moment
from qbench_dagster_tests.chaos.site import DISK_MB, SPACE, WRITER, Site
from qbench_dagster_tests.chaos.warm import Run

LOST = r"PostgreSQL|server|connection|database"
WRITES = ("land", "stage", "lock", "book", "publish", "ensure")
"""Purposes in which something is written."""
ROLLBACK_MESSAGES = 20
"""About as many as one takes; of a moment that is not reached another is drawn."""


def kill_run(site: Site, draw: random.Random) -> Fault:
    """SIGKILL to the run and all it started."""
    at = moment(site, draw) if draw.random() < 0.5 else moment(site, draw, *WRITES)
    return Fault("kill-run", f"SIGKILL at {at}", [KILLED], moment=at, strike=lambda _, run: run.kill(),
                 cold=draw.random() < 0.15)  # fmt: skip


def kill_backend(site: Site, draw: random.Random) -> Fault:
    """SIGKILL to one server process of the run: PostgreSQL ends all others and recovers."""
    at, which = moment(site, draw), draw.random()

    def strike(site: Site, _: Run) -> None:
        found = site.ask(
            "SELECT pid FROM pg_stat_activity WHERE usename = %s ORDER BY pid", WRITER, database="postgres"
        )
        if found:
            os.kill(found[int(which * len(found))][0], signal.SIGKILL)

    return Fault("kill-backend", f"SIGKILL to a backend at {at}", [0, *FAILED], LOST, at, strike=strike,
                 cold=draw.random() < 0.1)  # fmt: skip


def stop_server(site: Site, draw: random.Random) -> Fault:
    """What `pg_ctl stop -m immediate` does; the server is back a second later, or when the run has ended.

    Seldom the latter: a run tries for 30 s before it gives up.
    """
    at, back = moment(site, draw), draw.random() < 0.9

    def strike(site: Site, _: Run) -> None:
        postmaster = site.postmaster()
        postmaster.send_signal(signal.SIGQUIT)
        while _alive(postmaster):
            time.sleep(0.005)
        if back:
            threading.Timer(1.0, site.url).start()

    told = f"stopped at once at {at}, {'back after 1 s' if back else 'down until the end'}"
    return Fault("stop-server", told, [0, *FAILED], LOST, at, strike=strike, cold=draw.random() < 0.1)


def cut(site: Site, draw: random.Random) -> Fault:
    """Every connection breaks in the middle of a message; new ones are refused for a while, or not."""
    at, down_s = moment(site, draw), draw.choice([0.0, 0.0, 0.5, 2.0])

    def strike(site: Site, _: Run) -> None:
        site.proxy.cut()
        threading.Timer(down_s, site.proxy.mend).start()

    return Fault("cut", f"connections cut at {at}, refused for {down_s:g} s", [0, *FAILED], LOST, at, strike=strike,
                 cold=draw.random() < 0.1)  # fmt: skip


def blackhole(site: Site, draw: random.Random) -> Fault:
    """Nothing goes through, and nobody is told; then the network is back, or every connection breaks."""
    at, held_s, breaks = moment(site, draw), draw.choice([1.0, 2.0, 3.0]), draw.random() < 0.5

    def end(site: Site) -> None:
        if breaks:
            site.proxy.drop()
        site.proxy.mend()

    def strike(site: Site, _: Run) -> None:
        site.proxy.hold()
        threading.Timer(held_s, end, [site]).start()

    told = f"nothing goes through from {at} on, for {held_s:g} s, then {'all breaks' if breaks else 'all goes on'}"
    return Fault("blackhole", told, [0, *FAILED] if breaks else [0], LOST, at, strike=strike)


def slow(site: Site, draw: random.Random) -> Fault:
    """Every piece takes its time for a while, in both directions."""
    at, delay_ms = moment(site, draw, *WRITES), draw.choice([5, 20, 50])

    def strike(site: Site, _: Run) -> None:
        site.proxy.delay_s = delay_ms / 1000
        threading.Timer(2.0, site.proxy.mend).start()

    return Fault("slow", f"{delay_ms} ms more a message from {at} on, for 2 s", [0], moment=at, strike=strike)


def disk_full(site: Site, draw: random.Random) -> Fault:
    """The file system of PostgreSQL is full from a moment on: tables cannot grow, or its log cannot."""
    if not site.small_disk:
        raise UnavailableError("a file system of its own cannot be mounted by this user")
    at, left_kb = moment(site, draw, *WRITES), draw.choice([0, 64, 256, 1024])

    def strike(site: Site, _: Run) -> None:
        usage = os.statvfs(site.path)
        used_kb = (usage.f_blocks - usage.f_bfree) * usage.f_frsize // 1024
        _resize(site, f"{used_kb + left_kb}k")

    told = f"disk full from {at} on, but for {left_kb} kB"
    return Fault("disk-full", told, [0, *FAILED], r"space|" + LOST, at, strike=strike,
                 after=lambda site: _resize(site, f"{DISK_MB}m"))  # fmt: skip


def rights(site: Site, draw: random.Random) -> Fault:
    """The pipeline's role loses a right in the middle of a run; a DBA gives it back afterwards.

    To log in soon already: a run tries for 30 s before it gives up.
    """
    room = draw.choice(["landing", "staging", "store", SPACE])
    taken, given = draw.choice([
        (f"REVOKE INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {room} FROM {WRITER}",
         f"GRANT INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {room} TO {WRITER}"),
        (f"REVOKE USAGE ON SCHEMA {room} FROM {WRITER}", f"GRANT USAGE, CREATE ON SCHEMA {room} TO {WRITER}"),
        (f"ALTER ROLE {WRITER} NOLOGIN", f"ALTER ROLE {WRITER} LOGIN"),
    ])  # fmt: skip
    at = moment(site, draw, *WRITES)

    def strike(site: Site, _: Run) -> None:
        site.ask(taken)
        if taken.endswith("NOLOGIN"):
            threading.Timer(2.0, site.ask, [given]).start()

    def give_back(site: Site) -> None:
        site.ask(given)

    return Fault("rights", f"{taken} at {at}", [0, *FAILED], rf"permission|privilege|not permitted|{LOST}", at,
                 strike=strike, after=give_back)  # fmt: skip


def two_runs(site: Site, draw: random.Random) -> Fault:
    """Another run of the same export, begun while the first is under way."""
    at = moment(site, draw, "start", "land", "stage", "publish", "lock")
    return Fault("two-runs", f"another run begins at {at}", [0], moment=at, strike=lambda *_: None, beside=True)


def kill_rollback(_: Site, draw: random.Random) -> Fault:
    """SIGKILL to a rollback."""
    if "rollback" not in {command.callback and command.callback.__name__ for command in app.registered_commands}:
        raise UnavailableError("there is no command `qbench rollback`")
    at = Moment("rollback", draw.randint(1, ROLLBACK_MESSAGES))
    return Fault("kill-rollback", f"SIGKILL at {at}", [KILLED], moment=at, strike=lambda _, run: run.kill(),
                 undoes=True)  # fmt: skip


def clock(site: Site, draw: random.Random) -> Fault:
    """Our machine's clock is wrong for a whole run: days behind the last run's, or years ahead. The server's is not."""
    library, compiler = site.path / "clock.so", shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        raise UnavailableError("a wrong clock is made with LD_PRELOAD and a C compiler")
    if not library.exists():
        source = Path(__file__).with_name("clock.c")
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True, capture_output=True)
    days = draw.choice([-400, -2, 30, 1100])
    wrong = {"LD_PRELOAD": str(library), "CHAOS_CLOCK_S": str(days * 86_400)}
    return Fault("clock", f"clock {days:+} days", [0], cold=True, environment=wrong)


def _alive(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _resize(site: Site, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(site.path)], check=True, capture_output=True)


KINDS: dict[str, Draw] = {
    "kill-run": kill_run, "kill-backend": kill_backend, "stop-server": stop_server, "cut": cut,
    "blackhole": blackhole, "slow": slow, "disk-full": disk_full, "rights": rights, "two-runs": two_runs,
    "kill-rollback": kill_rollback, "clock": clock,
}  # fmt: skip
