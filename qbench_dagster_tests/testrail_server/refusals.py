"""What TestRail answers instead of data, in its words, and for which requests a test wants that."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate

USER, KEY = "ada@acme.example", "tr-planted.key/0123456789abcdef"
PAGE = "<html><head><style>body { color: red }</style><title>%s</title></head><body><h1>%s</h1></body></html>"
BROKEN = ("reset", "reset-mid-body", "hang")
"""No whole answer."""

_MESSAGES = {
    403: "The API is disabled for your installation. It can be enabled in the administration area in TestRail under "
    "Administration > Site Settings > API.",
    409: "This TestRail instance is currently in maintenance mode, please try the request again in a few minutes",
    429: "API Rate Limit Exceeded - 180 per minute maximum allowed.",
    503: PAGE % ("Maintenance", "TestRail is being updated"),
}


class RefusalError(Exception):
    """A request that TestRail answers with an error."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}


@dataclass
class Rule:
    """A fault for the requests of a method: after `skip` of them, `times` times."""

    method: str
    skip: int
    fault: str
    times: int
    headers: Mapping[str, str]

    def refusal(self) -> RefusalError:
        """The fault as an answer."""
        if self.fault == "429-date":
            return RefusalError(429, _MESSAGES[429], {"Retry-After": formatdate(time.time() + 7, usegmt=True)})
        if self.fault == "page":
            return RefusalError(200, PAGE % ("Sign in", "Sign in to the network"))
        if self.fault == "echo":  # a careless server
            return RefusalError(500, f"cannot let in {USER} with {KEY}")
        if self.fault == "list":
            return RefusalError(200, '{"error": "no", "items": []}')
        headers = {name.replace("_", "-"): value for name, value in self.headers.items()}
        return RefusalError(int(self.fault), _MESSAGES.get(int(self.fault), "The server had an error."), headers)
