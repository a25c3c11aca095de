"""Synthesis in tests: documents, a step over them, and a chat server on loopback that can fail by a script."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from datakit import storage
from datakit.assets import Assets
from datakit.recipe import AnyEngine, Budget, FilesSource, OpenAIEngine, Synthesis
from datakit.registry import Category
from datakit.schema import digest
from datakit.sources.read import documents_step
from datakit.step import Output, Step
from datakit.synthesis.synthesise import synthesise_step

ENTRY = Category(key="asked", family="test", description="", task="question_answering", instruction="Find the answer")


def write_documents(folder: Path, count: int) -> Path:
    """`count` documents of about 60 words, each about a subject of its own."""
    path = folder / "documents.jsonl"
    lines = []
    for number in range(count):
        words = " ".join(f"w{number}x{place}" for place in range(50))
        lines.append(json.dumps({"text": f"Subject {number} is described here. {words}. That is all about it."}))
    path.write_text("\n".join(lines) + "\n")
    return path


def step(
    cache: Path,
    path: Path,
    engine: AnyEngine,
    *,
    budget: Budget | None = None,
    seed: int = 0,
    shard_rows: int = 1000,
    name: str = "synthesise-asked",
    earlier: tuple[Step, ...] = (),
    **synthesis: Any,
) -> Step:
    source = FilesSource.model_validate({"type": "files", "path": str(path), "columns": {"document": "text"}})
    assets = Assets(str(cache))
    read = documents_step("documents-asked", "asked", ENTRY, source, "en", 1000, assets, 0)
    settings = Synthesis.model_validate({"engine": "e", "personas_per_document": 2, "queries": 3, **synthesis})
    return synthesise_step(
        name, "asked", ENTRY, settings, engine, "e", budget or Budget(), seed, read, assets, shard_rows, earlier
    )


def openai_engine(server: ChatServer | str, **options: Any) -> OpenAIEngine:
    url = server if isinstance(server, str) else server.url
    return OpenAIEngine.model_validate({"type": "openai", "model": "m", "base_url": url, "timeout": 5, **options})


def rows(output: Output) -> list[dict[str, Any]]:
    return [row for shard in output.shards for row in storage.read_table(shard).to_pylist()]


def rejected(output: Output) -> list[dict[str, Any]]:
    return [row for shard in output.rejected for row in storage.read_table(shard).to_pylist()]


def contents(output: Output) -> dict[str, bytes]:
    """The published bytes of a step: its Parquet files, and step.json."""
    files = [*output.shards, *output.rejected, storage.join(output.folder, "step.json")]
    return {file.removeprefix(output.folder): storage.read_bytes(file) for file in files}


def run_facts(output: Output) -> dict[str, Any]:
    facts: dict[str, Any] = storage.read_json(storage.join(output.folder, "run.json"))
    return facts


@dataclass(frozen=True)
class Fault:
    """What a server does instead of answering."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    drop: bool = False
    stall: float = 0.0


# What happens to the n-th attempt (from 1) of a request; None lets it through.
Script = Callable[[int, dict[str, Any]], Fault | None]


class ChatServer:
    """A chat server on loopback. It answers a conversation always alike: with three questions about its last words."""

    def __init__(self, script: Script, answer: Callable[[dict[str, Any]], str], usage: bool, delay: float) -> None:
        self.script, self.answer, self.usage, self.delay = script, answer, usage, delay
        self.attempts: list[tuple[str, float]] = []
        self.answered: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.headers: list[dict[str, str]] = []
        self.busy = self.most_at_once = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def _handler(server) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - `self` is the handler's below
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                request = digest(json.dumps(body, sort_keys=True))
                with server._lock:
                    server.attempts.append((request, time.monotonic()))
                    number = sum(1 for each, _ in server.attempts if each == request)
                    server.busy += 1
                    server.most_at_once = max(server.most_at_once, server.busy)
                    server.keys.append(self.headers.get("authorization"))
                    server.headers.append({name.lower(): value for name, value in self.headers.items()})
                try:
                    self._reply(request, body, server.script(number, body))
                finally:
                    with server._lock:
                        server.busy -= 1

            def _reply(self, request: str, body: dict[str, Any], fault: Fault | None) -> None:
                if fault and fault.drop:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return
                time.sleep(server.delay + (fault.stall if fault else 0))
                status = fault.status if fault else 200
                data = fault.body if fault and fault.body is not None else json.dumps(server.reply(body)).encode()
                if status == 200 and (fault is None or fault.body is None):
                    with server._lock:
                        server.answered.append(request)
                        server.bodies.append(body)
                try:
                    self.send_response(status)
                    for name, value in (fault.headers if fault else {}).items():
                        self.send_header(name, value)
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    self.close_connection = True

            def log_message(self, *_: Any) -> None:
                return

        return Handler

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        text = self.answer(body)
        return {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
            **({"usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}} if self.usage else {}),
        }

    def serve(self) -> None:
        self._server.serve_forever(poll_interval=0.01)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def questions(body: dict[str, Any]) -> str:
    """Three questions that depend on all that was said."""
    said = digest(json.dumps(body["messages"]))
    asked = [f"what is {said[start : start + 8]} about" for start in (0, 8, 16)]
    if "response_format" in body:
        return json.dumps({"queries": asked})
    return "\n".join(f"{number}. {question}" for number, question in enumerate(asked, start=1))


@contextmanager
def serving(
    script: Script = lambda number, body: None,
    answer: Callable[[dict[str, Any]], str] = questions,
    *,
    usage: bool = True,
    delay: float = 0.0,
) -> Iterator[ChatServer]:
    server = ChatServer(script, answer, usage, delay)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.close()
        thread.join()
