"""Kills a command with SIGKILL at random moments, starts it again, and compares what it made with an undisturbed run.

    python benchmarks/kills.py build mixtures/quickstart.yaml --kills 10
    python benchmarks/kills.py train mixtures/quickstart-train.yaml --data datasets/quickstart/latest --kills 10

The undisturbed run comes first and gives the length; the kills are drawn over it, each in what is then left to do.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

# What says when and how fast, and so differs from run to run by nature.
NOT_COMPARED = {"run.json", "metrics.jsonl", "log.jsonl"}


def digests(folder: Path, suffixes: tuple[str, ...] | None = None) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.blake2b(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in NOT_COMPARED and (suffixes is None or path.suffix in suffixes)
    }


def build_command(recipe: str, root: Path) -> tuple[list[str], Path]:
    value = yaml.safe_load(Path(recipe).read_text())
    value |= {"output": str(root / "datasets"), "cache": str(root / "cache")}
    # YAML 1.1 reads the key `on` as true.
    value["dedup"] = [{("on" if key is True else key): item for key, item in entry.items()} for entry in value.get("dedup", [])]
    file = root / "mixture.yaml"
    file.write_text(yaml.safe_dump(value, sort_keys=False).replace("'on':", "on:"))
    return [sys.executable, "-m", "datakit.cli", "build", str(file)], root / "datasets" / value["name"] / "latest"


def train_command(config: str, data: str, root: Path) -> tuple[list[str], Path]:
    return [sys.executable, "-m", "trainer.cli", "run", config, "--data", data, "--output", str(root / "model")], root / "model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["build", "train"])
    parser.add_argument("file")
    parser.add_argument("--data", default="datasets/quickstart/latest")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    roots = [Path(tempfile.mkdtemp(prefix="datakit-kills-")) for _ in range(2)]
    try:
        results, length = [], 0.0
        for number, root in enumerate(roots):
            if arguments.what == "build":
                command, result = build_command(arguments.file, root)
            else:
                command, result = train_command(arguments.file, arguments.data, root)
            killed = []
            began = time.monotonic()
            while number == 1 and len(killed) < arguments.kills:
                process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                after = draw.uniform(0.5, max(4.0, 1.6 * length / arguments.kills))
                try:
                    process.wait(timeout=after)
                    print(
                        f"finished within {after:.1f} s, after {len(killed)} kills; the rest fall on a finished run", flush=True
                    )
                    killed += [0.0] * (arguments.kills - len(killed))
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    killed.append(round(after, 1))
                    print(f"killed after {after:.1f} s", flush=True)
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            if number == 0:
                length = time.monotonic() - began
                print(f"undisturbed: {length:.1f} s", flush=True)
            results.append(digests(result.resolve(), None if arguments.what == "build" else (".safetensors",)))
        same = results[0] == results[1]
        print(f"{arguments.kills} kills; {len(results[0])} files compared: {'identical' if same else 'DIFFERENT'}")
        if not same:
            for name in sorted({*results[0], *results[1]}):
                if results[0].get(name) != results[1].get(name):
                    print("  differs:", name)
            raise SystemExit(1)
    finally:
        for root in roots:
            shutil.rmtree(root)


if __name__ == "__main__":
    main()
