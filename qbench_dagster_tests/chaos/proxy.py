"""A proxy before PostgreSQL that can be told to misbehave, and that knows which part of a run it carries.

Loopback TCP in front, the server's Unix socket behind. It counts what clients send by the purpose of their connection
(`qbench publish …`), so that something can happen at, say, the fourth message of publishing. It reads no SQL.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

# The name of a connection, as PostgreSQL's protocol has it: after its length, or ended by a zero when it is made.
PURPOSE = re.compile(rb"\0(?:\0\0[\x07-\x3f])?qbench ([a-z][a-z-]*)")
DAGSTER = "dagster"
"""Purpose of the connections that name none: Dagster's storage."""


@dataclass(frozen=True)
class Moment:
    """Before the `message`-th message (from 1) that clients send in connections of this purpose."""

    purpose: str
    message: int

    def __str__(self) -> str:
        return f"{self.purpose} {self.message}"


@dataclass(eq=False)
class _Carried:
    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    purpose: str = DAGSTER


@dataclass(eq=False)
class _Armed:
    moment: Moment
    strike: Callable[[], None]
    seen: int = 0


@dataclass
class Proxy:
    """Carries everything until told otherwise. Use as a context manager; methods may be called from any thread."""

    upstream: Path
    port: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    """Messages of clients, by purpose."""
    delay_s: float = 0.0
    """How long each piece is kept back, in both directions."""
    _armed: _Armed | None = None
    _carried: set[_Carried] = field(default_factory=set)
    _closed: bool = False
    _cut_half: bool = False

    def __enter__(self) -> Proxy:
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="proxy", daemon=True)
        self._thread.start()
        ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def arm(self, moment: Moment, strike: Callable[[], None]) -> None:
        """Call `strike` once, at `moment`; nothing is carried while it works."""
        self._armed = _Armed(moment, strike)

    def disarm(self) -> None:
        """Nothing is going to happen any more."""
        self._armed = None

    def cut(self) -> None:
        """For a strike: half of the message it came before goes through, then every connection breaks, new ones too."""
        self._cut_half = self._closed = True

    def hold(self) -> None:
        """Nothing goes through any more, and nobody is told."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def mend(self) -> None:
        """Carry everything again; what was held goes on its way."""
        self._closed, self.delay_s = False, 0.0
        self._loop.call_soon_threadsafe(self._open.set)

    def drop(self) -> None:
        """Break every connection there is."""
        self._loop.call_soon_threadsafe(self._drop)

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve(ready))
        self._loop.close()

    async def _serve(self, ready: threading.Event) -> None:
        self._stop, self._open = asyncio.Event(), asyncio.Event()
        self._open.set()
        server = await asyncio.start_server(self._carry, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._stop.wait()
        server.close()
        self._drop()
        self._open.set()
        while self._carried:
            await asyncio.sleep(0.01)

    def _drop(self) -> None:
        for each in self._carried:
            each.client.transport.abort()
            each.server.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        if self._closed:
            client.transport.abort()
            return
        try:
            from_server, server = await asyncio.open_unix_connection(str(self.upstream))
        except OSError:  # nobody is there: so there is nobody here
            client.transport.abort()
            return
        carried = _Carried(client, server)
        self._carried.add(carried)
        pumps = [asyncio.create_task(self._up(carried, reader)), asyncio.create_task(self._down(carried, from_server))]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        for writer in (client, server):
            with suppress(Exception):
                writer.close()
        self._carried.discard(carried)

    async def _up(self, carried: _Carried, reader: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while piece := await reader.read(65536):
                if found := PURPOSE.findall(piece):
                    carried.purpose = found[-1].decode()
                self.seen[carried.purpose] += 1
                self._strike(carried.purpose)
                if self._cut_half:
                    self._cut_half = False
                    carried.server.write(piece[: len(piece) // 2])
                    await carried.server.drain()
                    self._drop()
                    return
                await self._pass(carried.server, piece)

    async def _down(self, carried: _Carried, reader: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while piece := await reader.read(65536):
                await self._pass(carried.client, piece)

    async def _pass(self, writer: asyncio.StreamWriter, piece: bytes) -> None:
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        await self._open.wait()
        writer.write(piece)
        await writer.drain()

    def _strike(self, purpose: str) -> None:
        armed = self._armed
        if armed is None or armed.moment.purpose != purpose:
            return
        armed.seen += 1
        if armed.seen == armed.moment.message:
            self._armed = None
            armed.strike()
