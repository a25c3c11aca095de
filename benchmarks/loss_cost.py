"""What the loss costs alone, forward and backward: one dimension, Matryoshka, and two ways to do without blocks.

    python benchmarks/loss_cost.py [--rows 2048] [--negatives 8] [--runs 3]

Random vectors of 576 dimensions; N = rows x (1 + negatives) documents. Each side is a process of its own; in each run they take
turns. Seconds are medians over the runs; memory is the peak resident size less that before the loss.
"plain torch" is one matrix of cosines, log-softmax and autograd; "a product for each prefix" repeats it for each dimension, as
sentence-transformers' MatryoshkaLoss does.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from torch.nn.functional import cross_entropy, normalize

from trainer.config_loss import LossConfig
from trainer.losses import Targets, batch_loss

WIDTH = 576
PREFIXES = [576, 256, 128, 64]
SIDES = {
    "ours, 576": LossConfig(dimensions=[WIDTH]),
    "ours, 576/256/128/64": LossConfig(dimensions=PREFIXES),
    "plain torch, 576": [WIDTH],
    "a product for each prefix": PREFIXES,
}


def measure(side: str, rows: int, negatives: int) -> None:
    draw = torch.Generator().manual_seed(1)
    queries, documents = (
        normalize(torch.randn(count, WIDTH, generator=draw), dim=1).requires_grad_() for count in (rows, rows * (1 + negatives))
    )
    positive = torch.arange(rows)
    targets = Targets(
        positive=positive,
        candidates=torch.ones(rows, len(documents), dtype=torch.bool),
        own=(rows + torch.arange(rows * negatives)).view(rows, negatives),
        equal_queries=torch.eye(rows, dtype=torch.bool),
        in_batch=torch.ones(rows, dtype=torch.bool),
    )
    config = SIDES[side]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    if isinstance(config, LossConfig):
        loss, _ = batch_loss(queries, documents, targets, config, 0.05, 0)
    else:
        loss = torch.zeros(())
        for dimension in config:
            logits = normalize(queries[:, :dimension], dim=1) @ normalize(documents[:, :dimension], dim=1).T / 0.05
            logits = logits.masked_fill(~targets.candidates, -torch.inf)
            loss = loss + cross_entropy(logits, positive) / len(config)
    torch.autograd.backward(loss)
    seconds = time.monotonic() - started
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"seconds": seconds, "memory": memory, "loss": loss.item()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--negatives", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        measure(arguments.side, arguments.rows, arguments.negatives)
        return
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(arguments.runs):
        for side, results in found.items():
            sizes = ["--rows", str(arguments.rows), "--negatives", str(arguments.negatives)]
            command = [sys.executable, __file__, "--side", side, *sizes]
            results.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    first = next(iter(found))
    base = {name: statistics.median(each[name] for each in found[first]) for name in ("seconds", "memory")}
    print(f"{arguments.rows:,} rows, {arguments.negatives} negatives each; {torch.get_num_threads()} threads.\n")
    print("| loss | seconds | against one dimension | memory, MB | against one dimension |\n|---|---|---|---|---|")
    for side, results in found.items():
        seconds, memory = (statistics.median(each[name] for each in results) for name in ("seconds", "memory"))
        print(f"| {side} | {seconds:.2f} | {seconds / base['seconds']:.2f} | {memory:,.0f} | {memory / base['memory']:.2f} |")


if __name__ == "__main__":
    main()
