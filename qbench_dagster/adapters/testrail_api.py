"""TestRail's API v2 over HTTP: one request at a time, tried again where that helps, and what its errors mean for us.

Which addresses are asked, and what is done with the answers, is `testrail_pull.py`. Nothing that leaves here as text
holds the key.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

import httpx2
import tenacity

from qbench_dagster.adapters.secrets import UnusableKeyError, hidden, usable_key
from qbench_dagster.core.pacing import retry_after
from qbench_dagster.core.testrail import NotTestRailError
from qbench_dagster.core.testrail_pages import PAGE, Page, read_page

log = logging.getLogger(__name__)

ATTEMPTS = 12
"""With the pauses between them about four minutes: the daily maintenance of TestRail Cloud takes one to five."""
LONGEST_WAIT_S = 900.0
"""A server that asks for more is not waited for inside a run."""
KEPT = "What was pulled by then is kept: the next pull goes on from there."

_TIMEOUT = httpx2.Timeout(60.0, connect=15.0)
_SHOWN = 300  # characters of what a server says
_BACKOFF = tenacity.wait_random_exponential(multiplier=1, max=60)


class TestRailError(RuntimeError):
    """TestRail did not answer as needed; the text says what it said, and what to do."""

    __test__ = False


class NoAccessError(TestRailError):
    """The user may not see this (403)."""


class UnknownEntityError(TestRailError):
    """There is no such project or suite, any more (400)."""


class _AttemptError(Exception):
    """An attempt that failed, and after how many seconds another may help; None: after a pause of our own."""

    def __init__(self, error: TestRailError, *, retry: bool, wait_s: float | None = None) -> None:
        super().__init__(str(error))
        self.error, self.retry, self.wait_s = error, retry, wait_s


@dataclass(slots=True)
class Traffic:
    """What was asked so far."""

    requests: int = 0
    waited_s: float = 0.0
    """Seconds spent in pauses: TestRail Cloud allows 180 or 300 requests a minute, to all users together."""


class TestRailAPI:
    """One TestRail and one user. Not thread-safe: the limit on requests leaves nothing to gain."""

    __test__ = False

    def __init__(self, url: str, user: str, api_key: str, *, sleep: Callable[[float], None] = time.sleep) -> None:
        """Raises TestRailError for a key that no request can hold; nothing is sent."""
        try:
            key = usable_key("QBENCH_TESTRAIL_API_KEY", api_key)
        except UnusableKeyError as error:
            raise TestRailError(str(error)) from None
        self.url = plain_url(url)
        self.traffic = Traffic()
        self.served_at: int | None = None
        """The server's own time of its last answer, in Unix seconds."""
        self._sleep = sleep
        self._secrets = (key, base64.b64encode(f"{user}:{key}".encode()).decode())
        self._client = httpx2.Client(
            auth=(user, key), timeout=_TIMEOUT, headers={"Content-Type": "application/json"}, follow_redirects=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def entries(self, path: str, name: str) -> list[dict[str, Any]]:
        """All entries of a list, however the server pages it. Not all take a limit: the first page goes without."""
        page = self._page(path, name, 0)
        found = [dict(entry) for entry in page.entries]
        if page.next_offset is not None:
            found += [dict(entry) for more in self.pages(path, name, page.next_offset) for entry in more.entries]
        return found

    def pages(self, path: str, name: str, offset: int) -> Iterator[Page]:
        """The pages of a list from `offset` on."""
        following: int | None = offset
        while following is not None:
            page = self.page(path, name, following)
            yield page
            following = page.next_offset

    def page(self, path: str, name: str, offset: int, limit: int = PAGE) -> Page:
        """One page of a list. Raises TestRailError."""
        return self._page(f"{path}&limit={limit}&offset={offset}", name, offset)

    def _page(self, path: str, name: str, offset: int) -> Page:
        answer = self.get(path)
        try:
            return read_page(answer, name, offset)
        except NotTestRailError as error:
            raise self.unreadable(path, error) from None

    def unreadable(self, path: str, error: NotTestRailError) -> TestRailError:
        """The error of an answer to `path` that is not as documented."""
        return TestRailError(
            f"{self.url} did not answer {path} as TestRail's API v2 does: {self._shown(str(error))} {KEPT}"
        )

    def get(self, path: str) -> Any:
        """What a GET of an address such as `get_suites/1` brings, as JSON values. Raises TestRailError."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, _AttemptError) and error.retry),
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            wait=self._pause,
            before_sleep=self._told,
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return retrying(self._attempt, path)
        except _AttemptError as failed:
            raise failed.error from None

    def _pause(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.wait_s if isinstance(error, _AttemptError) else None
        return float(_BACKOFF(state)) if asked is None else asked

    def _told(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        pause = state.next_action.sleep if state.next_action else 0.0
        self.traffic.waited_s += pause
        # A refusal for the pace is everyday; from the third on somebody at a terminal wonders why nothing goes on.
        level = logging.INFO if state.attempt_number < 3 else logging.WARNING
        said = str(error).removesuffix(KEPT).rstrip()
        log.log(level, "Attempt %d failed, another in %.1f s: %s", state.attempt_number, pause, said)

    def _attempt(self, path: str) -> Any:
        self.traffic.requests += 1
        try:
            response = self._client.get(f"{self.url}/index.php?/api/v2/{path}")
        except httpx2.TimeoutException as error:
            text = f"{self.url} did not answer {path} in time ({type(error).__name__}). {KEPT}"
            raise _AttemptError(TestRailError(text), retry=True) from None
        except httpx2.RequestError as error:
            why = self._shown(f"{type(error).__name__}: {error}").rstrip(".")
            broken = isinstance(error, httpx2.DecodingError)
            text = f"{self.url} {'sent what cannot be unpacked' if broken else 'dropped the connection'} ({why}). "
            if isinstance(error, httpx2.ConnectError | httpx2.ProxyError):
                text = f"Cannot reach {self.url} ({why}). Check QBENCH_TESTRAIL_URL, the network and the proxy. "
            raise _AttemptError(TestRailError(text + KEPT), retry=True) from None
        self.served_at = _timestamp(response.headers.get("date", "")) or self.served_at
        if response.status_code == 200:
            try:
                return json.loads(response.content)
            except (ValueError, RecursionError):
                text = (
                    f"{self.url} answered {path} with a page, not with data: {self._shown(response.text)} It may be in "
                    "maintenance; or a proxy asks for a sign-in, or QBENCH_TESTRAIL_URL is not TestRail's address. "
                )
                raise _AttemptError(TestRailError(text + KEPT), retry=True) from None
        raise self._failure(response, path)

    def _failure(self, response: httpx2.Response, path: str) -> _AttemptError:
        status = response.status_code
        said = self._shown(_message(response))
        answered = f"{self.url} answered {status} to {path}"
        if status in (408, 409, 429) or status >= 500:
            wait = retry_after({name.lower(): value for name, value in response.headers.items()}, time.time())
            if wait is not None and wait > LONGEST_WAIT_S:
                text = f"{answered} and asks to wait {wait / 60:.0f} minutes: {said} Pull again then. {KEPT}"
                return _AttemptError(TestRailError(text), retry=False)
            return _AttemptError(TestRailError(f"{answered}: {said} {KEPT}"), retry=True, wait_s=wait)
        if status == 401:
            text = (
                f"{answered}: it does not accept the user and key. Check QBENCH_TESTRAIL_USER and "
                "QBENCH_TESTRAIL_API_KEY (My Settings, API Keys: a new key counts once the settings are saved)."
            )
            return _AttemptError(TestRailError(text), retry=False)
        if status == 403:
            text = (
                f"{answered}: {said} The user needs a role that reads it, and the API must be on (Administration, Site "
                "Settings, API)."
            )
            return _AttemptError(NoAccessError(text), retry=False)
        if status == 400:
            return _AttemptError(UnknownEntityError(f"{answered}: {said}"), retry=False)
        if 300 <= status < 400:
            target = urlunsplit(urlsplit(response.headers.get("location", ""))._replace(query="", fragment=""))
            said = self._shown(f"it leads to {target}")
        text = f"{answered}: {said} Check QBENCH_TESTRAIL_URL: it is what stands before /index.php in the browser."
        return _AttemptError(TestRailError(text), retry=False)

    def _shown(self, text: str) -> str:
        """What a server said, without tags, secrets and length, as one sentence."""
        text = re.sub(r"<(style|script)\b.*?</\1\s*>|<[^<>]*>", " ", hidden(text, self._secrets), flags=re.I | re.S)
        text = " ".join(text.split())
        text = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
        return text if text.endswith((".", "…", "!")) else text + "."


def plain_url(url: str) -> str:
    """The address as it is shown and asked: of `https://acme.testrail.io/index.php` what stands before the page."""
    return url.rstrip("/").removesuffix("/index.php")


def _message(response: httpx2.Response) -> str:
    try:
        found = response.json()
    except (ValueError, RecursionError):
        return str(response.text)
    return str(found.get("error", found) if isinstance(found, dict) else found)


def _timestamp(date: str) -> int | None:
    try:
        return int(parsedate_to_datetime(date).timestamp())
    except (ValueError, TypeError, OverflowError):
        return None
