"""The application, reading all the while in a process of its own: every case it sees must be whole, of a known version.

It logs in as a member of qbench_reader and reads the views, past the proxy, one snapshot at a time. Told by lines of
JSON on stdin which states may be seen now, it answers with what it saw since the line before.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import psycopg

from qbench_dagster_tests.chaos.site import FINGERPRINTS, READER, Site

MODULE = "qbench_dagster_tests.chaos.reader"
PAUSE_S = 0.1
LOCK_TIMEOUT_S = 5
SHOWN = 5


@dataclass
class Seen:
    """What was read: `polls` of all cases, `partial` cases with how they were wrong, polls that a lock kept waiting."""

    polls: int = 0
    partial_reads: int = 0
    partial: list[str] = field(default_factory=list)
    blocked: int = 0
    longest_s: float = 0.0
    failed: dict[str, int] = field(default_factory=dict)
    """Polls that failed, by the error: while the server is down, reads fail, and that is no fault of ours."""


class Reader:
    """The reader's process. Use as a context manager."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def __enter__(self) -> Reader:
        command = [sys.executable, "-m", MODULE]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self._say({"url": self._site.url(user=READER), "expected": self._site.expected})
        self.expect(self._site.state)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def expect(self, *states: int) -> Seen:
        """From now on cases may be as in these states; returns what was seen before."""
        self._say(states)
        assert self._process.stdout is not None
        told = json.loads(self._process.stdout.readline())
        return Seen(**told)

    def _say(self, value: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(value) + "\n")
        self._process.stdin.flush()


def wrong(found: Mapping[int, str], allowed: Sequence[Mapping[int, str]]) -> list[str]:
    """Cases that are as in none of the allowed states; one that a state has not may be missing."""
    cases = set(found).union(*allowed)
    return [
        f"case {case_id} {'is of no known version' if case_id in found else 'is missing'}"
        for case_id in sorted(cases)
        if all(found.get(case_id) != state.get(case_id) for state in allowed)
    ]


def poll(connection: psycopg.Connection, allowed: Sequence[Mapping[int, str]], seen: Seen) -> None:
    """Read every case once."""
    began = time.monotonic()
    try:
        found = dict(connection.execute(FINGERPRINTS).fetchall())
    except (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled) as error:
        seen.blocked += 1
        _count(seen, error)
    else:
        seen.polls += 1
        if bad := wrong(found, allowed):
            seen.partial_reads += 1
            seen.partial += bad[: SHOWN - len(seen.partial)]
    seen.longest_s = max(seen.longest_s, time.monotonic() - began)


def _count(seen: Seen, error: Exception) -> None:
    seen.failed[type(error).__name__] = seen.failed.get(type(error).__name__, 0) + 1


def main() -> None:
    """Poll until stdin ends."""
    told = open(0, "rb", buffering=0)  # noqa: SIM115 (stdin: a line that waited in a buffer would not be seen by select)
    given = json.loads(told.readline())
    expected = [{int(case_id): print_ for case_id, print_ in state.items()} for state in given["expected"]]
    allowed: list[dict[int, str]] = []
    connection: psycopg.Connection | None = None
    seen = Seen()
    while True:
        if select.select([told], [], [], PAUSE_S if allowed else None)[0]:
            line = told.readline()
            if not line:
                return
            sys.stdout.write(json.dumps(asdict(seen)) + "\n")
            sys.stdout.flush()
            allowed, seen = [expected[state] for state in json.loads(line)], Seen()
        try:
            if connection is None or connection.closed:
                connection = psycopg.connect(
                    given["url"], autocommit=True, connect_timeout=5, application_name="chaos reader",
                    options=f"-c lock_timeout={LOCK_TIMEOUT_S}s -c statement_timeout=60s -c jit=off",
                )  # fmt: skip
            poll(connection, allowed, seen)
        except psycopg.OperationalError as error:
            _count(seen, error)
            if connection is not None:
                connection.close()
        except psycopg.Error as error:  # a right that is missing, a view that is gone: not what a reader may see
            seen.partial_reads += 1
            seen.partial += [str(error).strip()][: SHOWN - len(seen.partial)]


if __name__ == "__main__":
    main()
