"""HTTP over sockets: keep-alive connections, chunked uploads, and the faults that are made of sockets.

What is answered is `server.py`.
"""

from __future__ import annotations

import itertools
import socket
import struct
import sys
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from qbench_dagster_tests.openai_server.control import control
from qbench_dagster_tests.openai_server.faults import Fault
from qbench_dagster_tests.openai_server.replies import Reply

if TYPE_CHECKING:
    from qbench_dagster_tests.openai_server.server import OpenAIServer

CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply, and the one of BROKEN_FAULTS that happens to it on its way."""

    reply: Reply
    fault: Fault | None


class WireServer(ThreadingHTTPServer):
    """Knows its connections, so that closing it ends those that hang."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, openai: OpenAIServer, port: int) -> None:
        self.openai = openai
        self.answers = itertools.count(1)
        self._connections: set[socket.socket] = set()
        self._guard = threading.Lock()
        super().__init__(("127.0.0.1", port), _Handler)

    def server_bind(self) -> None:
        """Without HTTPServer's look-up of the host's name, which may wait for a name server."""
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "127.0.0.1", self.socket.getsockname()[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._guard:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._guard:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is part of the test; a fault of the server's own is not."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def drop_connections(self) -> None:
        with self._guard:
            for connection in self._connections:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue


class _Handler(BaseHTTPRequestHandler):
    """One connection: keep-alive, no Nagle, whole bodies."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: WireServer

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def log_message(self, *_: Any) -> None:
        """The ledger is the log."""

    def _serve(self) -> None:
        openai = self.server.openai
        body = self._read_body()
        if self.path.startswith("/control/"):
            self._send(control(openai, self.command, self.path, body))
            return
        with openai.ledger.request(self.command, urlsplit(self.path).path) as seen:
            answer = openai.answer(self.command, self.path, self.headers, body, seen)  # type: ignore[arg-type]
            match answer.fault:
                case None:
                    self._send(answer.reply)
                case Fault("hang", seconds) if not openai.closing.wait(seconds):
                    self._send(answer.reply)
                case Fault("reset-mid-body"):
                    self._send(answer.reply, half=True)
                    self._reset()
                case _:
                    self._reset()

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, reply: Reply, *, half: bool = False) -> None:
        is_file = not isinstance(reply.body, bytes)
        length = reply.body.stat().st_size if is_file else len(reply.body)  # type: ignore[union-attr,arg-type]
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        self.send_header("Content-Length", str(length))
        self.send_header("x-request-id", f"req_{next(self.server.answers):08d}")
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        rest = length // 2 if half else length
        if isinstance(reply.body, bytes):
            self.wfile.write(memoryview(reply.body)[:rest])
            return
        with reply.body.open("rb") as file:
            while rest and (chunk := file.read(min(CHUNK, rest))):
                self.wfile.write(chunk)
                rest -= len(chunk)

    def _reset(self) -> None:
        """RST instead of FIN: a lingering time of 0, and no `shutdown` before `close`."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()
