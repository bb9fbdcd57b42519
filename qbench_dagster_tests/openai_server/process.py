"""The server as a process of its own: its command line, what steers it from outside, and how fast it is alone."""

from __future__ import annotations

import argparse
import http.client
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from qbench_dagster_tests.openai_server.batch_lines import BatchRules
from qbench_dagster_tests.openai_server.server import KEY, OpenAIServer

MODULE = "qbench_dagster_tests.openai_server"


class Control:
    """A server in another process: its address, and its control requests."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        self._address = urlsplit(base_url).netloc

    def ledger(self, *, texts: bool = False, times: bool = False) -> dict[str, Any]:
        """The ledger's summary."""
        asked = "&".join(name for name, wanted in (("texts=1", texts), ("times=1", times)) if wanted)
        return self._ask("GET", f"/control/ledger?{asked}")

    def clear_ledger(self) -> None:
        """Forget what was billed."""
        self._ask("POST", "/control/ledger/clear")

    def faults(self, **asked: Any) -> None:
        """Set faults; see `control.control` for what can be asked."""
        self._ask("POST", "/control/faults", asked)

    def batches(self, **asked: Any) -> None:
        """Queue outcomes of batches (`next`), or move them on (`advance`)."""
        self._ask("POST", "/control/batches", asked)

    def _ask(self, method: str, target: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        connection = http.client.HTTPConnection(self._address, timeout=30)
        try:
            connection.request(method, target, json.dumps(body or {}))
            answer = connection.getresponse()
            read: dict[str, Any] = json.loads(answer.read())
        finally:
            connection.close()
        if answer.status != 200:
            raise ValueError(f"{method} {target}: {read['error']}")
        return read


@contextmanager
def served(*arguments: str) -> Iterator[Control]:
    """The server as its own process, with these command line arguments, until the block ends."""
    command = [sys.executable, "-m", MODULE, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            base_url = process.stdout.readline().strip()
            if not base_url:
                raise RuntimeError(f"{' '.join(command)} ended with {process.wait()} before it printed its address")
            yield Control(base_url)
        finally:
            process.terminate()


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; the first line printed is the base URL."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=main.__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--key", default=KEY, help="the API key that is let in")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=DIMENSIONS")
    parser.add_argument("--requests-per-minute", type=int)
    parser.add_argument("--tokens-per-minute", type=int)
    parser.add_argument("--burst-seconds", type=float, default=60.0)
    parser.add_argument("--no-retry-headers", action="store_true")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds a request takes at least")
    parser.add_argument("--batch-polls", type=int, default=1)
    parser.add_argument("--max-enqueued-tokens", type=int)
    parser.add_argument("--benchmark", action="store_true", help="measure such a server instead of serving")
    given = parser.parse_args(arguments)
    if given.benchmark:
        sys.stdout.write(benchmark() + "\n")
        return
    stop = [signal.SIGTERM, signal.SIGINT]
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)  # before the threads, which inherit it
    with OpenAIServer(
        port=given.port,
        key=given.key,
        models={name: int(size) for name, _, size in (model.partition("=") for model in given.model)} or None,
        requests_per_minute=given.requests_per_minute,
        tokens_per_minute=given.tokens_per_minute,
        burst_seconds=given.burst_seconds,
        retry_headers=not given.no_retry_headers,
        latency_s=given.latency,
        batch_polls=given.batch_polls,
        batch_rules=BatchRules(max_enqueued_tokens=given.max_enqueued_tokens),
    ) as server:
        sys.stdout.write(server.base_url + "\n")
        sys.stdout.flush()
        signal.sigwait(stop)


def benchmark(requests: int = 20, inputs: int = 2048) -> str:
    """What a server in its own process can serve: base64, 3,072 dimensions, one connection that parses nothing."""
    words = "open the page and log in with a wrong password then check that message number"
    bodies = [
        json.dumps(
            {
                "model": "text-embedding-3-large",
                "encoding_format": "base64",
                "input": [f"{words} {request * inputs + number}" for number in range(inputs)],
            }
        )
        for request in range(requests + 1)
    ]
    with served() as control:
        connection = http.client.HTTPConnection(urlsplit(control.base_url).netloc)
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        began = 0.0
        for number, body in enumerate(bodies):
            connection.request("POST", "/v1/embeddings", body, headers)
            answer = connection.getresponse().read()
            if number == 0:  # the pool of vectors was drawn
                began = time.perf_counter()
        took = time.perf_counter() - began
        connection.close()
    rate = requests * inputs / took
    return (
        f"{rate:,.0f} texts/s, {took / requests * 1000:.0f} ms and {len(answer) / 1e6:.1f} MB "
        f"a request of {inputs} texts"
    )
