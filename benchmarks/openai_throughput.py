"""Requests per second of the openai engine against a server that answers at once, beside a bare AsyncOpenAI loop.

    python benchmarks/openai_throughput.py                    # A/B, three rounds
    python benchmarks/openai_throughput.py --memory 100000    # and the memory of the engine over so many requests

The engine's side is all that a build does for an answer: keys, desk, budget, request cache, and reading the answers back, in
units as large as a step's. The bare loop sends the same bodies and keeps nothing. The server is a process of its own; the two
sides take turns against it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import openai

from datakit.recipe import Budget, OpenAIEngine
from datakit.synthesis.budget import Spent
from datakit.synthesis.desk import StepDesk
from datakit.synthesis.engines import Conversation, Message, make
from datakit.synthesis.request_cache import RequestCache

# Requests of one unit of a step: a shard of rows, four to a request.
UNIT = 65_536 // 4
SYSTEM = "You write the questions that people ask a search engine. " + "You follow what is asked of you to the letter. " * 8
PASSAGE = "Diabetes is a disease in which the levels of blood glucose, also called blood sugar, are too high. " * 9
TEXT = "\n".join(f"{number}. what is it that number {number} of these questions asks about" for number in range(1, 5))
ANSWER = json.dumps(
    {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "logprobs": None, "message": {"role": "assistant", "content": TEXT}}],
        "usage": {"prompt_tokens": 350, "completion_tokens": 60, "total_tokens": 410},
    }
).encode()  # fmt: skip
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER)


class AtOnce(asyncio.Protocol):
    """Answers each request on a connection with the same completion, as soon as its body is there."""

    def __init__(self) -> None:
        self.seen = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.seen += data
        while (end := self.seen.find(b"\r\n\r\n")) >= 0:
            head = self.seen[:end].lower()
            length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0]) if b"content-length:" in head else 0
            if len(self.seen) < end + 4 + length:
                return
            self.seen = self.seen[end + 4 + length :]
            self.transport.write(RESPONSE)


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(AtOnce, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def conversations(numbers: range) -> Iterator[Conversation]:
    for number in numbers:
        yield Conversation((Message("system", SYSTEM), Message("user", f"{PASSAGE}\nWrite 4 questions ({number}).")), 4)


@dataclass(frozen=True)
class Took:
    """Seconds on the clock, and of this process's processors."""

    seconds: float
    processor: float


def timed(work: Callable[[], None]) -> Took:
    started, used = time.perf_counter(), time.process_time()
    work()
    return Took(time.perf_counter() - started, time.process_time() - used)


def bare(url: str, numbers: range, in_flight: int) -> None:
    """The loop that a person would write: `in_flight` workers, one client, nothing kept."""

    async def ask() -> None:
        left = conversations(numbers)
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

            async def work() -> None:
                for conversation in left:
                    response = await client.chat.completions.create(
                        model="m",
                        messages=conversation.as_dicts(),  # type: ignore[arg-type]
                        temperature=0.7,
                        top_p=0.95,
                        max_tokens=256,
                    )
                    assert response.choices[0].message.content == TEXT

            await asyncio.gather(*(work() for _ in range(in_flight)))

    asyncio.run(ask())


def engine(url: str, numbers: range, in_flight: int, watched: Callable[[int], None] = lambda answered: None) -> None:
    """What a step does, with a cache of its own; `watched` is told of each answer."""
    config = OpenAIEngine.model_validate({"type": "openai", "model": "m", "base_url": url, "concurrency": in_flight})
    budget = Budget(requests=10**9, tokens=10**12)
    root = tempfile.mkdtemp(prefix="datakit-throughput-")
    cache = RequestCache(root)
    try:
        desk = StepDesk(cache, "step", config, budget, Spent(), 0, watched)
        asking = make("served", config, "", 0)
        for start in range(numbers.start, numbers.stop, UNIT):
            unit = range(start, min(start + UNIT, numbers.stop))
            answers = desk.answers(asking, asking.batches(list(conversations(unit))))
            assert len(answers) == len(unit)
            assert all(answer.text == TEXT for answer in answers.values())
        assert desk.sent == len(numbers)
    finally:
        cache.close()
        shutil.rmtree(root)


def resident() -> float:
    """MiB of this process that are in memory now."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def compare(url: str, requests: int, rounds: int, in_flight: int) -> None:
    print(f"{requests:,} requests a side and round, {in_flight} in flight. ms is processor time of the client for one request.\n")
    print("| round | bare requests/s | engine requests/s | ratio | bare ms | engine ms |")
    print("|---|---|---|---|---|---|")
    fresh = itertools.count()
    bare(url, range(200), in_flight)
    sides: dict[str, list[float]] = {"bare": [], "engine": []}
    for number in range(rounds):
        took: dict[str, Took] = {}
        # Each side goes first in turn: what the machine does besides hits both.
        for side in ("bare", "engine") if number % 2 == 0 else ("engine", "bare"):
            first = next(fresh) * requests
            ask = bare if side == "bare" else engine
            took[side] = timed(lambda ask=ask, first=first: ask(url, range(first, first + requests), in_flight))  # type: ignore[misc]
            sides[side].append(requests / took[side].seconds)
        plain, ours = took["bare"], took["engine"]
        ratio = plain.seconds / ours.seconds
        print(
            f"| {number + 1} | {requests / plain.seconds:.0f} | {requests / ours.seconds:.0f} | {ratio:.2f} "
            f"| {plain.processor / requests * 1000:.2f} | {ours.processor / requests * 1000:.2f} |",
            flush=True,
        )
    middle = {side: statistics.median(rates) for side, rates in sides.items()}
    print(
        f"| median | {middle['bare']:.0f} | {middle['engine']:.0f} | {middle['engine'] / middle['bare']:.2f} | | |\n", flush=True
    )


def memory(url: str, requests: int, in_flight: int, every: int) -> None:
    print(f"{requests:,} requests through the engine.\n\n| answered | RSS MiB | requests/s since the line before |")
    print("|---|---|---|")
    last = time.perf_counter()

    def watched(answered: int) -> None:
        nonlocal last
        if answered and answered % every == 0:
            now = time.perf_counter()
            print(f"| {answered:,} | {resident():.0f} | {every / (now - last):.0f} |", flush=True)
            last = now

    engine(url, range(requests), in_flight, watched)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=4000, help="of each side in one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--memory", type=int, default=0, help="requests of the run whose memory is told; 0 for none")
    parser.add_argument("--every", type=int, default=10_000, help="answers between two lines of memory")
    parser.add_argument("--profile", action="store_true", help="profile one round of the engine instead")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve())
        return
    server = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        if arguments.profile:
            import cProfile
            import pstats

            profile = cProfile.Profile()
            profile.runcall(engine, url, range(arguments.requests), arguments.in_flight)
            pstats.Stats(profile).sort_stats("tottime").print_stats(40)
            return
        if arguments.rounds:
            compare(url, arguments.requests, arguments.rounds, arguments.in_flight)
        if arguments.memory:
            memory(url, arguments.memory, arguments.in_flight, arguments.every)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
