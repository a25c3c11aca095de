"""A reverse proxy on loopback that fails a share of the requests, and counts what it did.

Faults, in equal shares: 429 with Retry-After, 500, a dropped connection, a stall of 30 s, and a body that is broken JSON. Which
request fails is drawn from a seed. `forwarded` counts each request (digest of its body) that reached the server and whose answer
was handed on.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import threading
from collections import Counter

import httpx

FAULTS = ("rate_limited", "server_error", "dropped", "stalled", "broken_json")
STALL = 30.0


class FaultyServer:
    """Serves on a port of 127.0.0.1 in a thread of its own; `rate` may be changed at any time."""

    def __init__(self, upstream: str, rate: float = 0.3, seed: int = 1) -> None:
        self.upstream = upstream
        self.rate = rate
        self.faults: Counter[str] = Counter()
        self.forwarded: Counter[str] = Counter()
        self._draw = random.Random(seed)
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self.port = 0
        threading.Thread(target=self._run, daemon=True).start()
        self._ready.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._client = httpx.AsyncClient(timeout=300)
        self._ready.set()
        self._loop.run_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        method, path, _ = head.split("\r\n", 1)[0].split(" ")
        headers = {
            name.lower(): value for name, value in (line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        }
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if self._draw.random() < self.rate:
            return await self._fail(self._draw.choice(FAULTS), writer)
        answer = await self._client.request(
            method, self.upstream + path.removeprefix("/v1"), content=body, headers={"content-type": "application/json"}
        )
        await self._answer(writer, answer.status_code, answer.content)
        if answer.status_code == 200:
            self.forwarded[hashlib.blake2b(body, digest_size=8).hexdigest()] += 1
        return True

    async def _fail(self, fault: str, writer: asyncio.StreamWriter) -> bool:
        self.faults[fault] += 1
        if fault == "rate_limited":
            await self._answer(writer, 429, b'{"error": {"message": "slow down"}}', "Retry-After: 1\r\n")
        elif fault == "server_error":
            await self._answer(writer, 500, b'{"error": {"message": "it broke"}}')
        elif fault == "broken_json":
            await self._answer(writer, 200, b'{"choices": [{"message": {"content": "1. wh')
        else:
            if fault == "stalled":
                await asyncio.sleep(STALL)
            writer.transport.abort()
            return False
        return True

    async def _answer(self, writer: asyncio.StreamWriter, status: int, body: bytes, more: str = "") -> None:
        head = f"HTTP/1.1 {status} Status\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{more}\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
