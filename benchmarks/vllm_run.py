"""One small recipe through a real vLLM, twice: `vllm serve` with the openai engine, and LLM.chat in this process.

    DATAKIT_REAL_DATA=... VENV/bin/python benchmarks/vllm_run.py --model FOLDER

VENV has vLLM (on CPUs: see benchmarks/README.md) and what datakit needs; datakit itself is taken from this folder. Passages of
MedQuAD, two personas each, as plain lines and held to a JSON schema. The offline engine runs twice, each time with a fresh cache,
and once more with another batch size, to tell which answers stay the same.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
RECIPE = """\
name: medical
output: {root}/datasets
cache: {root}/cache
categories:
  medical-questions:
    define: {{task: retrieval}}
    language: en
    sources: [{{type: files, path: {documents}, columns: {{document: answer}}}}]
    synthesis:
      {{engine: written, documents: {passages}, personas_per_document: {personas}, queries: 3, small_model: true}}
engines:
  written: {engine}
split: {{validation: 0}}
"""


@dataclass(frozen=True)
class Outcome:
    """What one build tells."""

    name: str
    version: str
    spent: dict[str, Any]
    facts: dict[str, Any]
    kept: int
    rejected: dict[str, int]
    wall: float
    texts: list[str]


def sample(data: Path, folder: Path, every: int) -> Path:
    """Every so-manieth answer of MedQuAD."""
    path = folder / "documents.jsonl"
    lines = (data / "train" / "medquad.jsonl").read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(lines[::every]) + "\n", encoding="utf-8")
    return path


def build(name: str, root: Path, documents: Path, engine: dict[str, Any], arguments: argparse.Namespace) -> Outcome:
    root.mkdir(parents=True)
    recipe = RECIPE.format(
        root=root, documents=documents, passages=arguments.passages, personas=arguments.personas, engine=json.dumps(engine)
    )
    (root / "mixture.yaml").write_text(recipe)
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "datakit.cli", "build", str(root / "mixture.yaml"), "--workers", "1"],
        cwd=ROOT, env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "2"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    wall = time.monotonic() - started
    if done.returncode:
        raise SystemExit(f"{name} failed with exit status {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
    latest = (root / "datasets" / "medical" / "latest").resolve()
    manifest = json.loads((latest / "manifest.json").read_text())
    (facts,) = json.loads((latest / "run.json").read_text())["engines"].values()
    with sqlite3.connect(root / "cache" / "requests.sqlite") as answers:
        # Keys differ from engine to engine; texts are compared as a whole.
        texts = sorted(text for (text,) in answers.execute("SELECT text FROM answers"))
    category = manifest["categories"]["medical-questions"]
    return Outcome(name, latest.name, manifest["spent"], facts, manifest["totals"]["train"], category["rejected"], wall, texts)


def served(model: Path, log: Path) -> tuple[subprocess.Popen[bytes], str]:
    """`vllm serve`, once it is ready, and its base URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "vllm"), "serve", str(model), "--served-model-name", "m", "--dtype", "float32"]
    # Compiling takes minutes on two cores, and is done again at each start.
    command += ["--enforce-eager", "--max-model-len", "2048", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "2"})
    for _ in range(600):
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=1).status_code == 200:
                return process, f"http://127.0.0.1:{port}/v1"
        except httpx.HTTPError:
            pass
        if process.poll() is not None:
            break
        time.sleep(0.5)
    process.terminate()
    raise SystemExit(f"vllm serve did not come up:\n{log.read_text()[-4000:]}")


def line(outcome: Outcome) -> str:
    seconds, sent = outcome.facts["asking_seconds"], outcome.facts["sent"]
    spent = outcome.spent
    rates = [spent["prompt_tokens"] / seconds, spent["completion_tokens"] / seconds]
    return (
        f"| {outcome.name} | {sent} | {sum(outcome.facts['failed_attempts'].values())} | {seconds:.0f} | {sent / seconds:.2f} "
        f"| {rates[0]:.0f} | {rates[1]:.0f} | {outcome.kept} | {outcome.rejected or 'none'} | {outcome.wall:.0f} |"
    )


def same(a: Outcome, b: Outcome) -> str:
    left = list(b.texts)
    equal = 0
    for text in a.texts:
        if text in left:
            left.remove(text)
            equal += 1
    return f"{a.name} and {b.name}: {equal} of {len(a.texts)} answers are the same; versions {a.version} and {b.version}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a folder that vLLM opens")
    parser.add_argument("--data", type=Path, default=os.environ.get("DATAKIT_REAL_DATA"))
    parser.add_argument("--passages", type=int, default=40)
    parser.add_argument("--personas", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=40)
    parser.add_argument("--temperature", type=float, default=0.7)
    arguments = parser.parse_args()
    if arguments.data is None:
        raise SystemExit("Give --data, or set DATAKIT_REAL_DATA.")
    root = Path(tempfile.mkdtemp(prefix="datakit-vllm-"))
    size, quarter = arguments.batch_size, max(1, arguments.batch_size // 4)
    common = {"temperature": arguments.temperature, "max_tokens": 80}
    offline = {"type": "vllm", "model": str(arguments.model), "dtype": "float32", "max_model_len": 2048, **common}
    offline["options"] = {"enforce_eager": True}
    held = {"structured": "json_schema"}
    outcomes: dict[str, Outcome] = {}

    def told(name: str, engine: dict[str, Any]) -> None:
        outcomes[name] = build(name, root / f"build-{len(outcomes)}", documents, engine, arguments)
        print(line(outcomes[name]), flush=True)

    try:
        documents = sample(arguments.data, root, 40)
        print(f"{arguments.passages} passages, {arguments.personas} personas, {size} requests at once.\n")
        heads = ("engine", "requests", "failed attempts", "seconds", "requests/s", "prompt tokens/s", "written tokens/s", "rows")
        print(f"| {' | '.join((*heads, 'rejected', 'build, s'))} |\n|{'---|' * (len(heads) + 2)}", flush=True)
        server, url = served(arguments.model, root / "serve.log")
        try:
            through = {"type": "openai", "model": "m", "base_url": url, "concurrency": size, "timeout": 600, **common}
            told("vllm serve", through)
            told("vllm serve, JSON schema", {**through, **held})
        finally:
            server.terminate()
            server.wait()
        told("offline", {**offline, "batch_size": size})
        told("offline, JSON schema", {**offline, **held, "batch_size": size})
        told("offline again", {**offline, "batch_size": size})
        told("offline, batches of a quarter", {**offline, "batch_size": quarter})
        print()
        print(same(outcomes["offline"], outcomes["offline again"]))
        # Seeds come from batches, so that this tells of both: of other seeds and of other neighbours.
        print(same(outcomes["offline"], outcomes["offline, batches of a quarter"]))
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
