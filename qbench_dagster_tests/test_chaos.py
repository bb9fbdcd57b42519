"""The harness itself, and a few of its faults. Two hundred: `make chaos`."""

from __future__ import annotations

import random
import socket
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

import pytest
import sqlalchemy
import sqlalchemy.exc
import typer

from qbench_dagster.adapters.testrail_export import ExportError, TestRailExport
from qbench_dagster.cli.app import clear_errors
from qbench_dagster_tests.chaos import exports
from qbench_dagster_tests.chaos.exports import walk, write_states
from qbench_dagster_tests.chaos.fault import FAILED, KILLED, Fault
from qbench_dagster_tests.chaos.lanes import Plan
from qbench_dagster_tests.chaos.proxy import DAGSTER, Moment, Proxy
from qbench_dagster_tests.chaos.reader import Reader, wrong
from qbench_dagster_tests.chaos.site import PASSWORD, SPACE, Site, new_site
from qbench_dagster_tests.chaos.trial import KINDS, Trials

MESSAGES = Counter({"land": 60, "stage": 40, "lock": 40, "publish": 60, "ensure": 20, "guard": 4, "start": 38})
"""About what a sync of the site below takes: a moment that is not reached is drawn anew."""


@pytest.fixture(scope="module")
def trials() -> Iterator[Trials]:
    """A site with few cases; the seed decides every moment."""
    with new_site(cases=60, states=2, seed=729, partitions=2) as site, Reader(site) as reader:
        site.messages = MESSAGES
        steps = walk(2)
        next(steps)
        yield Trials(site, reader, steps, seed=729)


@pytest.mark.parametrize("kind", ["kill-run", "stop-server", "export-corrupt"])
def test_nothing_is_lost_but_time(trials: Trials, kind: str) -> None:
    verdict = trials.try_fault(1, kind)
    assert not verdict.skipped
    assert not verdict.wrong, verdict.as_json()
    assert verdict.polls


def test_a_difference_is_seen(trials: Trials) -> None:
    """The guard itself: a word, a vector, a step, a row that belongs to nobody."""
    site: Site = trials.site
    assert site.differences(site.state) == []
    first = "(test_case_id, step_index) = (SELECT test_case_id, step_index FROM store.test_steps ORDER BY 1, 2 LIMIT 1)"
    trials.reader.expect(site.state)
    vector = "text_hash = (SELECT min(text_hash) FROM store.test_documents)"
    for fault, told in (
        (f"UPDATE store.test_steps SET action = 'x' WHERE {first}", "not as it should be"),
        (f"DELETE FROM store.test_steps WHERE {first}", "not as it should be"),
        (f"DELETE FROM {SPACE}.doc_embeddings WHERE {vector}", "document without vector"),
    ):
        before = len(site.differences(site.state))
        site.ask(fault)
        differences = site.differences(site.state)
        assert told in " ".join(differences)
        assert len(differences) >= before
    for _ in range(100):
        seen = trials.reader.expect(site.state)
        if seen.partial_reads:
            break
        threading.Event().wait(0.05)
    assert seen.partial, "the reader saw it too"


def test_a_read_may_be_of_either_version_and_of_no_other() -> None:
    old, new = {1: "a", 2: "b"}, {1: "A", 3: "c"}
    for found in (old, new, {1: "A", 2: "b"}, {1: "a", 2: "b", 3: "c"}):
        assert wrong(found, [old, new]) == []
    assert wrong({1: "?"}, [old, new]) == ["case 1 is of no known version"]
    assert wrong({2: "b"}, [old, new]) == ["case 1 is missing"]
    assert wrong({1: "a", 4: "d"}, [old, new]) == ["case 4 is of no known version"]


def test_a_fault_knows_how_a_run_should_end() -> None:
    fault = Fault("x", "", [KILLED, *FAILED], "space|server")
    assert fault.unclear(KILLED, "") == []
    assert fault.unclear(1, "…\nfailed: pg_tables: No Space left\n") == []
    assert fault.unclear(1, "") == ["it did not tell why"]
    assert fault.unclear(1, "error: it is Tuesday") == ["what it told does not speak of space|server"]
    assert fault.unclear(0, "") == ["exit code 0, not one of -9, 1, 2"]
    assert "it told a traceback" in fault.unclear(1, "error: server\nTraceback (most recent call last):\n")


def test_a_storage_of_dagster_that_is_lost_is_told_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """As Dagster raises it: in place of the driver's error, or while it handles another."""
    url = f"postgresql+psycopg2://u:{PASSWORD}@127.0.0.1:1/x"

    def lose() -> None:
        try:
            sqlalchemy.create_engine(url).connect()
        except sqlalchemy.exc.OperationalError as error:
            raise RuntimeError("too many retries for DB connection") from error

    with pytest.raises(typer.Exit) as ended, clear_errors():
        lose()
    assert ended.value.exit_code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: Dagster cannot reach its storage in PostgreSQL: connection to server")
    assert PASSWORD not in told
    with pytest.raises(ValueError, match="ours"), clear_errors():
        raise ValueError("ours")


def test_the_same_plan_makes_the_same_faults(tmp_path: Path) -> None:
    plans = [Plan(200, seed, tmp_path, lanes=lanes).numbered() for seed, lanes in ((1, 1), (1, 2), (2, 2))]
    assert plans[0] == plans[1] != plans[2]
    assert {kind for _, kind in plans[0]} == set(KINDS)
    assert [number for number, _ in plans[0]] == list(range(1, 201))
    assert {kind for _, kind in Plan(len(KINDS), 1, tmp_path).numbered()} == set(KINDS), "each kind before a second"


def test_a_walk_goes_up_and_down() -> None:
    assert list(islice(walk(3), 7)) == [0, 1, 2, 1, 0, 1, 2]
    with pytest.raises(ValueError, match="two are needed"):
        next(walk(1))


def test_states_differ_by_the_edits_of_a_day(tmp_path: Path) -> None:
    first, second = write_states(tmp_path, 2, 100, 1, None)
    old, new = (
        {row[0]: row for row in sqlite3.connect(path).execute("SELECT * FROM cases")} for path in (first, second)
    )
    assert len(new.keys() - old.keys()) == exports.ADDED
    assert len(old.keys() - new.keys()) == exports.REMOVED
    changed = sum(old[case_id] != new[case_id] for case_id in old.keys() & new.keys())
    assert exports.EDITED + exports.STEPPED <= changed <= exports.EDITED + exports.STEPPED + exports.MOVED


def test_a_harmed_export_is_noticed(tmp_path: Path) -> None:
    """Otherwise a fault of the export would be none."""
    state = write_states(tmp_path, 1, 100, 1, None)[0]
    export = tmp_path / "export.db"
    for harm in (lambda: exports.corrupt(export, random.Random(1)), lambda: exports.truncate(export, 0.6),
                 lambda: exports.write_half(export)):  # fmt: skip
        exports.place(state, export)
        harm()
        with pytest.raises(ExportError):
            _read(export)
    exports.place(state, export)
    assert _read(export) == 100


def _read(export: Path) -> int:
    with TestRailExport(export) as opened:
        opened.lookup("sections")
        return len(opened.case_ids())


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    """Before a server that answers each message with itself."""
    path = tmp_path / "s"
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()

    def serve() -> None:
        while True:
            try:
                connection = server.accept()[0]
            except OSError:
                return
            threading.Thread(target=echo, args=(connection,), daemon=True).start()

    def echo(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while piece := connection.recv(65536):
                connection.sendall(piece)

    threading.Thread(target=serve, daemon=True).start()
    with Proxy(path) as running:
        yield running
    server.shutdown(socket.SHUT_RDWR)
    server.close()


def _said(connection: socket.socket, message: bytes) -> bytes:
    connection.sendall(message)
    try:
        return connection.recv(65536)
    except OSError:
        return b""


def test_the_proxy_strikes_at_its_moment(proxy: Proxy) -> None:
    struck = []
    proxy.arm(Moment("publish", 2), lambda: struck.append(True))
    with socket.create_connection(("127.0.0.1", proxy.port), 5) as connection:
        for message, count in (
            (b"hello to qbench run", 0),
            (b"set \0qbench publish from_1", 0),
            (b"insert", 1),
            (b"commit", 1),
        ):
            assert _said(connection, message) == message
            assert len(struck) == count
    assert proxy.seen == {DAGSTER: 1, "publish": 3}


def test_the_proxy_cuts_in_the_middle_of_a_message_and_mends(proxy: Proxy) -> None:
    proxy.arm(Moment("land", 1), proxy.cut)
    with socket.create_connection(("127.0.0.1", proxy.port), 5) as connection:
        assert _said(connection, b"\0qbench land now, and a long message") == b""
    with socket.create_connection(("127.0.0.1", proxy.port), 5) as connection:
        assert _said(connection, b"hello?") == b""
    proxy.mend()
    with socket.create_connection(("127.0.0.1", proxy.port), 5) as connection:
        assert _said(connection, b"hello?") == b"hello?"


def test_the_proxy_holds_what_it_carries(proxy: Proxy) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port), 0.2) as connection:
        assert _said(connection, b"before") == b"before"
        proxy.hold()
        assert _said(connection, b"held") == b""
        proxy.mend()
        connection.settimeout(5)
        assert connection.recv(100) == b"held"
