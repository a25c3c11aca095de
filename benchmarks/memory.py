"""Peak memory and time per row of a build of generated rows: filters, MinHash, mixture, publish; no mining, no models.

    python benchmarks/memory.py --rows 100000 1000000

Each size is built from empty in a process of its own. Peak memory is that of the whole process tree: the largest sum of the
proportional set sizes (PSS) of the build and its workers, read every 0.2 s.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPE = """\
name: generated
output: {root}/datasets
cache: {root}/cache
categories:
  generated:
    define: {{task: retrieval}}
    language: en
    sources:
      - {{type: files, path: "{root}/rows-*.jsonl", columns: {{query: q, positive: p, document_id: d}}}}
filters:
  - {{type: length}}
  - {{type: quality}}
dedup:
  - {{type: exact, on: pair}}
  - {{type: minhash, on: positive, threshold: 0.8}}
split: {{validation: 0.01}}
mixture: {{temperature: 2.0}}
"""


def write_rows(folder: Path, number: int) -> None:
    """Rows of 40 to 80 words from a vocabulary of 20,000 with Zipf-like frequencies; every twentieth is nearly the one before."""
    draw = random.Random(1)
    words = [f"w{draw.randrange(36**5):x}" for _ in range(20_000)]
    weights = list(itertools.accumulate(1 / (rank + 10) for rank in range(len(words))))
    previous = ""
    file = None
    for i in range(number):
        if i % 250_000 == 0:
            if file:
                file.close()
            file = (folder / f"rows-{i // 250_000:03d}.jsonl").open("w")
        text = previous + " again" if i % 20 == 19 else " ".join(draw.choices(words, cum_weights=weights, k=draw.randint(40, 80)))
        previous = text
        query = " ".join(draw.sample(text.split(), 8))
        assert file is not None
        file.write(json.dumps({"q": query, "p": text, "d": f"d{i // 2}"}) + "\n")
    if file:
        file.close()


def tree_pss(root: int) -> int:
    """Bytes of memory that a process and all below it hold, shared pages counted once."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    todo, total = [root], 0
    while todo:
        pid = todo.pop()
        todo += children.get(pid, [])
        try:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        except OSError:
            continue
    return total


def measure(number: int, workers: int) -> tuple[float, int, str]:
    root = Path(tempfile.mkdtemp(prefix="datakit-memory-"))
    try:
        write_rows(root, number)
        (root / "mixture.yaml").write_text(RECIPE.format(root=root))
        started = time.monotonic()
        command = [sys.executable, "-m", "datakit.cli", "build", str(root / "mixture.yaml"), "--workers", str(workers)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        peak = 0
        while process.poll() is None:
            peak = max(peak, tree_pss(process.pid))
            time.sleep(0.2)
        assert process.stderr is not None
        told = process.stderr.read()
        if process.returncode:
            raise SystemExit(told)
        return time.monotonic() - started, peak, told
    finally:
        shutil.rmtree(root)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", action="store_true", help="print the seconds of each step")
    arguments = parser.parse_args()
    print("| rows | seconds | µs a row | against the first | peak memory (GB) |\n|---|---|---|---|---|")
    first = None
    for number in arguments.rows:
        seconds, peak, told = measure(number, arguments.workers)
        each = seconds / number * 1e6
        first = first or each
        print(f"| {number:,} | {seconds:.1f} | {each:.0f} | {each / first:.2f} | {peak / 1e9:.2f} |", flush=True)
        if arguments.steps:
            print(told)


if __name__ == "__main__":
    main()
