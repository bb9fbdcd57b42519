"""Starts real `qbench` commands, each in a process of its own, without waiting for Python's imports each time.

`python -m qbench_dagster_tests.chaos.warm` has imported the package and forks a process for each command it is asked
for. What runs in it is the command line itself, arguments in, exit code out; it can be killed like any other.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any, TextIO

import sqlalchemy.pool

import qbench_dagster

LATE = ("dagster_postgres", "openai", "tiktoken", "matplotlib.pyplot", "jinja2")
"""What a run imports on its way; a second and a half of it."""
MODULE = "qbench_dagster_tests.chaos.warm"
LOOK_S = 0.01


class KeptPool(sqlalchemy.pool.QueuePool):
    """Keeps the connections to Dagster's storage, of which a run opens 750: half of what it costs.

    Each is asked before it is lent whether it still works, so that one which broke is replaced, as it would be anyway.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{**options, "pre_ping": True})


class Run:
    """A command that was started; its output is in files."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.pid = pid
        self.folder = folder
        self.code: int | None = None
        """Exit code, negative of the signal that ended it; None while it runs."""

    @property
    def told(self) -> str:
        """What it wrote to stderr."""
        return (self.folder / "err").read_text(errors="replace")

    @property
    def printed(self) -> str:
        """What it wrote to stdout."""
        return (self.folder / "out").read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL to it and all it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


class Starter:
    """Starts commands, warm or cold. Use as a context manager."""

    def __enter__(self) -> Starter:
        command = [sys.executable, "-m", MODULE]
        self._warm = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us
        )
        self._unread = b""
        self._runs: dict[int, Run] = {}
        self._cold: dict[int, subprocess.Popen[bytes]] = {}
        return self

    def __exit__(self, *_: object) -> None:
        for run in self._runs.values():
            if run.code is None:
                run.kill()
        assert self._warm.stdin is not None
        self._warm.stdin.close()
        self._warm.wait(60)

    def start(self, folder: Path, arguments: Sequence[str], environment: Mapping[str, str], *, cold: bool) -> Run:
        """`qbench` with these arguments, its output in `folder`; `cold`: a new interpreter, as from a shell."""
        folder.mkdir(parents=True, exist_ok=True)
        if cold:
            with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
                command = [sys.executable, "-m", "qbench_dagster.cli", *arguments]
                process = subprocess.Popen(
                    command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                    start_new_session=True,
                )  # fmt: skip
            self._cold[process.pid] = process
            pid = process.pid
        else:
            assert self._warm.stdin is not None
            asked = {"arguments": list(arguments), "environment": dict(environment), "folder": str(folder)}
            self._warm.stdin.write(json.dumps(asked).encode() + b"\n")
            self._warm.stdin.flush()
            while "started" not in (told := self._next(60)):
                self._ended(told)
            pid = told["started"]
        self._runs[pid] = Run(pid, folder)
        return self._runs[pid]

    def wait(self, run: Run, timeout_s: float) -> int:
        """Wait for its end; returns the exit code. Raises TimeoutError."""
        if run.pid in self._cold:
            try:
                run.code = self._cold[run.pid].wait(timeout_s)
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"pid {run.pid} is still running after {timeout_s:.0f} s") from None
            return run.code
        deadline = time.monotonic() + timeout_s
        while run.code is None:
            self._ended(self._next(max(0.0, deadline - time.monotonic())))
        return run.code

    def _ended(self, told: Mapping[str, Any]) -> None:
        self._runs[told["ended"]].code = told["code"]

    def _next(self, timeout_s: float) -> dict[str, Any]:
        assert self._warm.stdout is not None
        while b"\n" not in self._unread:
            if not select.select([self._warm.stdout], [], [], timeout_s)[0]:
                raise TimeoutError(f"a command is still running after {timeout_s:.0f} s")
            self._unread += os.read(self._warm.stdout.fileno(), 65536) or b'{"gone": 1}\n'
        line, _, self._unread = self._unread.partition(b"\n")
        read: dict[str, Any] = json.loads(line)
        if "gone" in read:
            raise RuntimeError("the process that starts commands has ended")
        return read


def main() -> None:
    """Fork a process for each line of stdin, tell of its start and its end on stdout."""
    for module in (*LATE, *(found.name for found in walk_packages(qbench_dagster.__path__, "qbench_dagster."))):
        if not module.endswith("__main__"):
            import_module(module)
    waiting, running = True, set[int]()
    while waiting or running:
        if waiting and select.select([sys.stdin], [], [], LOOK_S)[0]:
            line = sys.stdin.readline()
            waiting = bool(line)
            if line:
                running.add(_fork(json.loads(line)))
            else:
                for pid in running:  # nobody is there to hear of them
                    os.killpg(pid, signal.SIGKILL)
        elif not waiting:
            time.sleep(LOOK_S)
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                running.discard(pid)
                _tell(sys.stdout, ended=pid, code=os.waitstatus_to_exitcode(status))


def _tell(where: TextIO, **values: int) -> None:
    where.write(json.dumps(values) + "\n")
    where.flush()


def _fork(asked: Mapping[str, Any]) -> int:
    pid = os.fork()
    if pid:
        _tell(sys.stdout, started=pid)
        return pid
    code = 1
    try:
        os.setsid()
        folder = Path(asked["folder"])
        for name, number in (("out", 1), ("err", 2)):
            descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(descriptor, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.clear()
        os.environ.update(asked["environment"])
        import_module("qbench_dagster.cli").app(args=asked["arguments"], prog_name="qbench")
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        import traceback  # noqa: PLC0415

        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
