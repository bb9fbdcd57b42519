"""The client against a real HTTP server: what it tries again, for how long, and what it says when it gives up."""

from __future__ import annotations

import logging
import socket
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from qbench_dagster.adapters.testrail_api import ATTEMPTS, NoAccessError, TestRailAPI, TestRailError, UnknownEntityError
from qbench_dagster_tests.support import Time
from qbench_dagster_tests.testrail_server import KEY, USER, TestRailData, TestRailServer


@pytest.fixture
def data() -> TestRailData:
    return TestRailData(
        projects={1: {"id": 1, "name": "Web", "suite_mode": 3}},
        suites={2: {"id": 2, "project_id": 1, "name": "Master"}},
        sections={n: {"id": n, "suite_id": 2, "name": f"Part {n}", "parent_id": None} for n in range(1, 602)},
    )


@pytest.fixture
def server(data: TestRailData) -> Iterator[TestRailServer]:
    with TestRailServer(data) as running:
        yield running


@contextmanager
def client(url: str, time: Time, key: str = KEY) -> Iterator[TestRailAPI]:
    with TestRailAPI(url, USER, key, sleep=time.sleep) as api:
        yield api


def failure(url: str, path: str = "get_projects", time: Time | None = None, key: str = KEY) -> TestRailError:
    """What asking ends with; its text, its traceback and its causes hold no secret."""
    with client(url, time or Time(), key) as api, pytest.raises(TestRailError) as raised:
        api.get(path)
    assert KEY not in "".join(traceback.format_exception(raised.value))
    return raised.value


def test_pages_are_walked_to_the_end(server: TestRailServer) -> None:
    with client(server.url, Time()) as api:
        assert [entry["id"] for entry in api.entries("get_sections/1&suite_id=2", "sections")] == list(range(1, 602))
    assert server.requests == [
        "get_sections/1&suite_id=2",
        *(f"get_sections/1&suite_id=2&limit=250&offset={offset}" for offset in (250, 500)),
    ]


def test_a_server_that_does_not_page_is_asked_once(server: TestRailServer) -> None:
    server.paged = False
    with client(server.url, Time()) as api:
        assert len(api.entries("get_sections/1&suite_id=2", "sections")) == 601
    assert len(server.requests) == 1


def test_an_address_as_it_stands_in_the_browser_will_do(server: TestRailServer) -> None:
    for url in (f"{server.url}/", f"{server.url}/index.php", f"{server.url}/index.php/"):
        with client(url, Time()) as api:
            assert len(api.get("get_projects&limit=250&offset=0")["projects"]) == 1
            assert api.url == server.url


@pytest.mark.parametrize(("fault", "wait"), [("429", 5.0), ("409", 120.0), ("503", 30.0)])
def test_waits_as_long_as_it_is_told(server: TestRailServer, fault: str, wait: float) -> None:
    server.fail("", fault, times=2, Retry_After=f"{wait:.0f}")
    time = Time()
    with client(server.url, time) as api:
        assert api.get("get_priorities") == []
    assert time.slept == [wait, wait]
    assert api.traffic.waited_s == 2 * wait
    assert api.traffic.requests == 3


def test_waits_until_the_date_it_is_told(server: TestRailServer) -> None:
    server.fail("", "429-date")
    time = Time()
    with client(server.url, time) as api:
        api.get("get_priorities")
    assert 5 <= time.slept[0] <= 8


@pytest.mark.parametrize("fault", ["500", "502", "503", "409", "page", "reset", "reset-mid-body", "408"])
def test_what_passes_is_tried_again(server: TestRailServer, fault: str) -> None:
    server.fail("get_sections", fault, skip=1, times=3)
    time = Time()
    with client(server.url, time) as api:
        assert len(api.entries("get_sections/1&suite_id=2", "sections")) == 601
    assert len(time.slept) == 3
    assert all(0 <= pause <= 60 for pause in time.slept)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("409", "maintenance mode"),
        ("503", "503 to get_projects: Maintenance TestRail is being updated"),
        ("page", "with a page, not with data: Sign in Sign in to the network"),
        ("reset", r"dropped the connection \((ReadError|RemoteProtocolError): "),
        ("429", "180 per minute"),
        ("echo", r"cannot let in ada@acme\.example with \[secret\]"),
    ],
)
def test_gives_up_in_the_end_and_says_why(server: TestRailServer, fault: str, said: str) -> None:
    server.fail("", fault, times=1000)
    time = Time()
    error = failure(server.url, time=time)
    assert len(server.requests) == ATTEMPTS
    assert error.args[0].endswith("the next pull goes on from there.")
    assert pytest.raises(TestRailError, match=said).matches(error)
    assert "<" not in str(error)


def test_an_answer_that_cannot_be_unpacked_is_asked_for_again(server: TestRailServer) -> None:
    server.fail("get_projects", "503", times=2, Content_Encoding="gzip")
    with client(server.url, Time()) as api:
        api.get("get_projects")
    server.fail("get_projects", "503", times=1000, Content_Encoding="gzip")
    error = failure(server.url, time=Time())
    assert pytest.raises(TestRailError, match=r"sent what cannot be unpacked \(DecodingError: ").matches(error)


def test_is_not_kept_waiting_for_an_hour(server: TestRailServer) -> None:
    server.fail("", "429", times=1000, Retry_After="3600")
    time = Time()
    assert "asks to wait 60 minutes" in str(failure(server.url, time=time))
    assert time.slept == []


@pytest.mark.parametrize(
    ("path", "kind", "said"),
    [
        ("get_suites/9", UnknownEntityError, "Field :project_id is not a valid"),
        ("get_cases/1", UnknownEntityError, "Field :suite_id is a required field"),
        ("get_everything/1", TestRailError, "Unknown method 'get_everything'. Check QBENCH_TESTRAIL_URL"),
    ],
)
def test_what_will_not_pass_is_said_at_once(
    server: TestRailServer, path: str, kind: type[TestRailError], said: str
) -> None:
    server.data.projects.setdefault(1, {})
    error = failure(server.url, path)
    assert type(error) is kind
    assert said in str(error)
    assert len(server.requests) == 1


def test_a_wrong_key_is_not_tried_twice(server: TestRailServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = "tr-other.key/fedcba9876543210"
    with client(server.url, Time(), wrong) as api, pytest.raises(TestRailError) as raised:
        api.get("get_projects")
    assert "does not accept the user and key. Check QBENCH_TESTRAIL_USER and QBENCH_TESTRAIL_API_KEY" in str(
        raised.value
    )
    assert len(server.requests) == 1
    assert wrong not in "".join(traceback.format_exception(raised.value)) + caplog.text + repr(vars(raised.value))


def test_what_the_user_may_not_see_is_told_apart(server: TestRailServer) -> None:
    server.no_access = {1}
    assert isinstance(failure(server.url, "get_suites/1"), NoAccessError)
    server.fail("", "403")
    assert "The API is disabled for your installation" in str(failure(server.url))


def test_a_redirect_is_not_followed_with_the_key(server: TestRailServer) -> None:
    server.fail("", "301", Location=f"https://other.example/testrail/index.php?/auth/login/{KEY}")
    said = str(failure(server.url))
    assert "it leads to https://other.example/testrail/index.php." in said
    assert "Check QBENCH_TESTRAIL_URL" in said


def test_nobody_listening_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        error = failure(f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert "Cannot reach http://127.0.0.1" in str(error)
    assert "ConnectError" in str(error)


def test_an_answer_that_is_no_list_is_said(server: TestRailServer) -> None:
    server.fail("", "list")
    with client(server.url, Time()) as api, pytest.raises(TestRailError, match="as TestRail's API v2 does: no list of"):
        api.entries("get_sections/1&suite_id=2", "sections")


def test_a_key_that_is_none_is_not_sent(server: TestRailServer) -> None:
    with pytest.raises(TestRailError, match="QBENCH_TESTRAIL_API_KEY holds white space") as raised:
        TestRailAPI(server.url, USER, "two words")
    assert "two words" not in str(raised.value)


def test_keeps_to_a_limit_of_requests_a_minute(data: TestRailData) -> None:
    time = Time()
    with (
        TestRailServer(data, requests_per_minute=30, clock=time.clock) as server,
        client(server.url, time) as api,
    ):
        for _ in range(50):
            api.get("get_priorities")
    assert server.ledger.refused["429"] == len(time.slept) > 0
    assert time.slept == pytest.approx([2.0] * len(time.slept))  # as long as was told, no longer


def test_the_key_is_nowhere_to_be_seen(server: TestRailServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server.fail("", "echo", times=3)
    with client(server.url, Time()) as api:
        api.get("get_priorities")
        shown: Any = [repr(api), str(api), repr(api.traffic), api.url]
    assert "[secret]" in caplog.text
    assert KEY not in caplog.text + "".join(shown)
    server.fail("", "echo", times=1000)
    failure(server.url)
