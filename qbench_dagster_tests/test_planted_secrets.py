"""No secret is kept or shown: values planted in every setting that is one, then looked for in all that a run leaves."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql

from qbench_dagster.settings import Settings
from qbench_dagster_tests.support import case, write_export
from qbench_dagster_tests.terminal import Terminal

PASSWORD = "pw-Planted/0123456789@x"
SECRETS = {
    "OPENAI_API_KEY": "planted-openai-0123456789",
    "QBENCH_QDRANT_API_KEY": "planted-qdrant-0123456789",
    "QBENCH_TESTRAIL_API_KEY": "planted-testrail-0123456789",
}
USER = "planted@example.com"


class _Echo(BaseHTTPRequestHandler):
    """Refuses every request, and quotes what came with it: the key as it was sent, and as it was meant."""

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        kind, _, given = (self.headers.get("Authorization") or "").partition(" ")
        meant = base64.b64decode(given).decode() if kind == "Basic" else given
        sent = [meant, given, self.headers.get("api-key")]
        body = json.dumps({"error": {"message": f"wrong key: {sent}", "type": "auth"}, "status": {"error": str(sent)}})
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.send_response(400)  # its words are quoted, where those of a 401 need not be
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    do_GET = do_POST = do_PUT = _answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Not on our stderr."""


@pytest.fixture
def echo() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def forms() -> dict[str, str]:
    """Each secret as it may turn up: as it is, as a URL has it, as a header has it."""
    found = {}
    for name, secret in {"DATABASE_URL": PASSWORD, **SECRETS}.items():
        found[name] = secret
        found[f"{name}, quoted"] = quote(secret, safe="")
    found["TestRail's header"] = base64.b64encode(f"{USER}:{SECRETS['QBENCH_TESTRAIL_API_KEY']}".encode()).decode()
    return found


def leaks(where: str, text: str) -> list[str]:
    return [f"{name} in {where}" for name, form in forms().items() if form in text]


def stored(url: str) -> Iterator[tuple[str, str]]:
    """Every table of the database, as text: rooms, history, Dagster's runs, events and their metadata."""
    with psycopg.connect(url) as connection:
        tables = connection.execute(
            "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE c.relkind = 'r' AND n.nspname NOT LIKE 'pg_%' AND n.nspname <> 'information_schema'"
        ).fetchall()
        for table in tables:
            query = sql.SQL("SELECT coalesce(string_agg(t::text, chr(10)), '') FROM {} t").format(
                sql.Identifier(*table)
            )
            (found,) = connection.execute(query).fetchone() or ("",)
            yield ".".join(table), found


def test_every_secret_of_the_settings_is_planted_here() -> None:
    secret = {str(field.alias) for field in Settings.model_fields.values() if "Secret" in str(field.annotation)}
    assert secret == {*SECRETS, "DATABASE_URL", "QBENCH_DAGSTER_DATABASE_URL"}


def test_no_planted_secret_is_left_anywhere(
    fresh_url: str, tmp_path: Path, echo: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_EVENT_BATCH_SIZE", "1")
    export = write_export(tmp_path / "export.db", [case(n, f"Case {n}", steps="Do it") for n in range(1, 6)])
    host, refusing = urlsplit(fresh_url), f"http://127.0.0.1:{echo.server_address[1]}"
    url = urlunsplit(host._replace(netloc=f"postgres:{quote(PASSWORD, safe='')}@"))
    home = tmp_path / "home"
    terminal = Terminal(home, {"DATABASE_URL": url, "QBENCH_EXPORT": str(export), "QBENCH_DIMENSIONS": "64",
                               "QBENCH_TARGET_RECALL": "0.1", **SECRETS})  # fmt: skip
    paid = {"QBENCH_EMBEDDER": "openai", "OPENAI_BASE_URL": f"{refusing}/v1"}
    testrail = {"QBENCH_TESTRAIL_URL": refusing, "QBENCH_TESTRAIL_USER": USER, "QBENCH_EXPORT": ""}
    unreachable = f"postgresql://postgres:{quote(PASSWORD, safe='')}@127.0.0.1:1/nowhere?password={PASSWORD}"
    told = {
        "a run whose embedder refuses the key": terminal("run", code=1, **paid),
        "a run whose old store refuses the key": terminal("run", code=1, QBENCH_QDRANT_URL=refusing),
        "a pull that TestRail refuses": terminal("pull", code=1, **testrail),
        "a run that succeeds": terminal("run", "--json"),
        "settings": terminal("status", "--json"),
        "no database": terminal("status", code=2, DATABASE_URL=unreachable),
        "no database that can be read": terminal("status", code=2, DATABASE_URL=url.replace("%40", "@")),
        "no storage": terminal("run", code=2, QBENCH_DAGSTER_DATABASE_URL=unreachable),
    }
    asked = " ".join(echo.asked)  # type: ignore[attr-defined]
    assert all(path in asked for path in ("/v1/embeddings", "/collections", "index.php?/api/v2/")), asked
    found = []
    for name, done in told.items():
        found += leaks(f"stdout of {name}", done.out) + leaks(f"stderr of {name}", done.err)
    for table, text in stored(fresh_url):
        found += leaks(table, text)
    files = [path for path in home.rglob("*") if path.is_file()]
    assert {"parity.html", "parity.json", "dagster.yaml"} <= {path.name for path in files}
    for path in files:
        found += leaks(str(path.relative_to(home)), path.read_text(errors="replace"))
    assert found == []
    events = dict(stored(fresh_url))["dagster.event_logs"]
    assert events.count("wrong key") >= 3, "the services' words are there, the keys are not"
