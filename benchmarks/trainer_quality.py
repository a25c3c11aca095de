"""What three stages give on real data: each stage at each dimension, sentence-transformers for the same time, each switch.

    python benchmarks/trainer_quality.py [--data FOLDER] --work FOLDER [--parts stages longer ... switches] [--reading lower]

FOLDER (default: the variable DATAKIT_REAL_DATA) has train/ and eval/. The build holds medquad, rqe, pubmedqa, python-api,
disfl-qa, hwu64 and snips, without what eval/ asks (decontamination), with mined and screened negatives. SmolLM2's first four
layers are made bidirectional and trained in three stages with all-MiniLM-L6-v2 as teacher.

stages: the three stages. plain: the first stage without Matryoshka. Fourth stages after these three: longer, the third again with
more weight for few dimensions; neighbours, KL over short texts and those nearest to them; written, the same, mostly over
statements that SmolLM2-135M wrote; similarity, STS-B's training rows; bare, their sentences and the teacher without the grades.
rotated: the teacher, and the last of the models above, after `trainer rotate` with the texts of the build.
peer: sentence-transformers' MatryoshkaLoss over MultipleNegativesRankingLoss with one mined negative, on the same rows, for the
seconds of the three stages. switches: two short stages with every switch on and each turned alone, with two seeds, by `trainer
ablate`: scores on STS-B and the validation split with 95 % intervals, also in switches/ablation.html.

Measured by mteb on eval/ (mixtures/evaluation-sets.yaml): Spearman on STS-B, nDCG@10 on SciFact, Cranfield and CoSQA, accuracy on
Banking77. Texts are cut to 128 tokens, in training to 64. Products of these measurements are in bfloat16 where the processor has
units for it (autocast). --reading lower: texts are read in lower case, and a mean of all layers is pooled. What is finished
is not done again.
"""

from __future__ import annotations

import argparse
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
import torch
import yaml
from quality_recipes import (
    BASE,
    GGUF,
    LENGTH,
    TEACHER,
    bare_recipe,
    distilled_recipe,
    neighbours_recipe,
    recipe,
    sentences_recipe,
    similarity_recipe,
    written_recipe,
)

PREFIXES = [576, 256, 128, 64]
WEIGHTS = [1.0, 1.0, 1.0, 2.0]  # few dimensions lose most
LATER_WEIGHTS = [1.0, 1.0, 2.0, 4.0]
TEST_LENGTH = 128
SETS = ["stsb-en", "scifact", "cranfield", "cosqa", "banking77"]
FOURTH = ["longer", "neighbours", "written", "similarity", "bare"]
PARTS = ["stages", "plain", *FOURTH, "rotated", "peer", "switches"]
READINGS: dict[str, dict[str, Any]] = {"cased": {}, "lower": {"lowercase": True, "layer_weights": [1.0, 0.1, 0.1, 0.1]}}
STEPS = (150, 20, 600)
STEPS_OF_PEER = 10_000  # more than there is time for
ROOT = Path(__file__).resolve().parents[1]


def config(name: str, stages: list[dict[str, Any]], reading: str) -> dict[str, Any]:
    return {
        "name": name, "seed": 7,
        "model": {
            "base": BASE, "gguf": GGUF, "layers": 4,
            "max_length": TEST_LENGTH, "query_prefix": "", "document_prefix": "",
            **READINGS[reading],
        },
        "stages": stages,
        "checkpoint": {"every": 100, "keep": 1},
        "evaluation": {"bm25": False, "queries": 500, "documents": 2000},
    }  # fmt: skip


def stage(name: str, steps: int, rate: float, negatives: int, dimensions: Sequence[int], **loss: Any) -> dict[str, Any]:
    return {
        "name": name,
        "data": {"batch_size": 64, "negatives": negatives, "max_length": LENGTH},
        "loss": {"temperature": 0.05, "dimensions": list(dimensions), "weights": WEIGHTS[: len(dimensions)], **loss},
        "optimizer": {"learning_rate": rate},
        "training": {"steps": steps},
    }


def three_stages(dimensions: Sequence[int], distilled: str) -> list[dict[str, Any]]:
    """The third stage reads the build `distilled`."""
    return [
        stage("contrastive", STEPS[0], 1e-3, 0, dimensions),
        stage("hard-negatives", STEPS[1], 2e-4, 2, dimensions, **REFERENCE),
        distilling("distillation", STEPS[2], 1e-3, dimensions, 0.1, distilled),
    ]


def distilling(name: str, steps: int, rate: float, dimensions: Sequence[int], contrastive: float, build: str) -> dict[str, Any]:
    settings = stage(name, steps, rate, 0, dimensions, contrastive=contrastive, distillation=DISTILLATION)
    settings["data"]["build"] = build
    return settings


def fourth_stage(name: str, data: Path, work: Path, distilled: str) -> dict[str, Any]:
    if name == "similarity":
        settings = stage(name, 100, 1e-4, 0, PREFIXES, similarity={})
        settings["data"]["build"] = built(similarity_recipe(data, work), work)
        return settings
    if name == "bare":
        return distilling(name, 90, 5e-4, PREFIXES, 0.0, built(bare_recipe(data, work), work))
    if name in ("neighbours", "written"):
        if name == "neighbours":
            steps, short = 150, neighbours_recipe(data, work)
        else:
            steps, short = 250, written_recipe(data, work, built(sentences_recipe(data, work), work))
        settings = distilling(name, steps, 5e-4, PREFIXES, 0.0, built(short, work))
        settings["data"]["negatives"] = 4
        return settings
    settings = distilling(name, STEPS[2], 1e-3, PREFIXES, 0.1, distilled)
    settings["loss"]["weights"] = LATER_WEIGHTS
    return settings


def scores(model: str, sets: Sequence[str], kept: Path) -> dict[int, dict[str, float]]:
    """mteb's score of each set, by dimension. Kept in a file, so that a model is measured once."""
    from trainer.evaluation.families import evaluate_families
    from trainer.evaluation.retrieval import load
    from trainer.evaluation.scores import FamilyScores
    from trainer.loop import compute_type

    path = kept / f"{'-'.join(sets)}.json"
    if not path.is_file():
        width = load(model).get_embedding_dimension()
        dimensions = sorted({min(width, each) for each in PREFIXES})
        fast = compute_type("auto", torch.device("cpu")) == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            found = evaluate_families(model, str(ROOT / "mixtures/evaluation-sets.yaml"), sets, dimensions=dimensions)
        kept.mkdir(parents=True, exist_ok=True)
        path.write_text(found.model_dump_json(by_alias=True))
    tasks = FamilyScores.model_validate_json(path.read_text()).tasks
    return {dimension: {task.name: task.scores[dimension] for task in tasks} for dimension in tasks[0].scores}


def run(name: str, work: Path, settings: dict[str, Any], build: str) -> Path:
    """Trains, goes on, or finds it finished; returns the folder of the run."""
    folder, file = work / "models" / name, work / f"{name.replace('/', '-')}.yaml"
    file.write_text(yaml.safe_dump(settings))
    with file.with_suffix(".log").open("a") as log:
        command = [sys.executable, "-m", "trainer.cli", "run", str(file), "--data", build, "--output", str(folder)]
        subprocess.run(command, check=True, stdout=log, stderr=log)
    return folder


def branched(name: str, work: Path, kept: list[dict[str, Any]], following: dict[str, Any], build: str, reading: str) -> Path:
    """A run that has the first stages of the run `stages`, which are `kept`, and then another one."""
    first, folder = work / "models/stages", work / "models" / name
    if not folder.is_dir():
        scratch = folder.with_name(f"{folder.name}.tmp")
        shutil.rmtree(scratch, ignore_errors=True)
        for each in kept:
            shutil.copytree(first / each["name"], scratch / each["name"])
        for file in ("before.json", "run.json"):
            shutil.copy(first / file, scratch / file)
        (first / "teacher").mkdir(exist_ok=True)
        (scratch / "teacher").symlink_to(first / "teacher")
        scratch.rename(folder)
    return run(name, work, config("stages", [*kept, following], reading), build)


def peer(work: Path, build: Path, base: Path, seconds: float) -> None:
    """sentence-transformers' trainer on the rows of the build, for so many seconds."""
    import datasets
    import polars as pl
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
    from transformers import TrainerCallback

    from trainer.loop import compute_type
    from trainer.schedule import rate

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

    began = 0.0

    def passed() -> float:
        return (time.monotonic() - began) / seconds

    class Watch(TrainerCallback):
        def on_train_begin(self, *arguments: Any, **more: Any) -> None:
            nonlocal began
            began = time.monotonic()

        def on_step_end(self, arguments: Any, state: Any, control: Any, **more: Any) -> None:
            control.should_training_stop = passed() >= 1

    # As ours: in bfloat16 where the machine is faster in it, with warm-up and cosine, over time, as steps are not known before.
    bf16 = compute_type("auto", torch.device("cpu")) == torch.bfloat16
    model = SentenceTransformer(str(base.resolve()), device="cpu")
    model.max_seq_length = LENGTH
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(work / "peer"), per_device_train_batch_size=64, max_steps=STEPS_OF_PEER, learning_rate=1e-3,
        report_to="none", save_strategy="no", logging_steps=25, disable_tqdm=True, use_cpu=True, batch_sampler="no_duplicates",
        multi_dataset_batch_sampler="proportional", seed=7, bf16=bf16,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate(int(passed() * STEPS_OF_PEER) if step else 0, STEPS_OF_PEER, warmup=0.1, floor=0.0)
    )
    loss = MatryoshkaLoss(model, MultipleNegativesRankingLoss(model), PREFIXES)
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=datasets.DatasetDict(parts), loss=loss, callbacks=[Watch()],
        optimizers=(optimizer, schedule),
    )  # fmt: skip
    trainer.train()
    print(f"sentence-transformers: {trainer.state.global_step} steps in {time.monotonic() - began:.0f} s", flush=True)
    model.max_seq_length = TEST_LENGTH
    model.save(str(folder))


def rotated(name: str, model: str, runs: Path, build: str) -> str:
    """The folder of a model after `trainer rotate`, with the texts of a build."""
    folder = runs / "models" / f"{label(name)}-rotated"
    if not folder.is_dir():
        options = ["--data", build, "--output", str(folder), "--rows", "4000", *(f"--dimension={each}" for each in PREFIXES[1:])]
        subprocess.run([sys.executable, "-m", "trainer.cli", "rotate", model, *options], check=True)
    return str(folder)


def label(name: str) -> str:
    """The name of a model as that of a file."""
    return name.replace(" ", "-").replace(":", "").replace(",", "")


REFERENCE: dict[str, Any] = {"false_negative_margin": 0.1, "focal": {"gamma": 0.5}}
# A row's documents alone, at the temperature of the other stages, taught less (benchmarks/README.md).
DISTILLATION = {
    "teacher": TEACHER, "max_length": LENGTH, "documents": "texts", "teacher_temperature": 0.1, "student_temperature": 0.1,
}  # fmt: skip
CURRICULUM = {"start": 0.2, "end": 0.9, "until": 0.7}


def switches(data: Path, work: Path, runs: Path, sets: Sequence[str], reading: str) -> None:
    """Two short stages with every switch on, and each turned alone, by `trainer ablate`, on fewer rows for the teacher."""
    mixture = {"temperature": 2.0, "total": 4_000, "caps": {"intent": 300, "assistant-intent": 100}}
    build = built({**recipe(data, work), "name": "switches", "mixture": mixture}, work)
    first, second = stage("contrastive", 60, 1e-3, 0, PREFIXES), stage(
        "refined", 30, 2e-4, 2, PREFIXES, **REFERENCE, mixing={}, triangle={"weight": 0.1}, distillation=DISTILLATION
    )  # fmt: skip
    second["data"] |= {"batch_size": 32, "curriculum": CURRICULUM}
    settings = config("switches", [first, second], reading)
    settings["model"]["max_length"] = LENGTH
    settings["evaluation"] |= {"queries": 300, "documents": 1000}
    known = yaml.safe_load((ROOT / "mixtures/evaluation-sets.yaml").read_text())["sets"]
    ablation = {
        "run": str(runs / "switches-run.yaml"), "build": build, "sets": str(runs / "switches-sets.yaml"), "seeds": [0, 1],
        "components": [
            "hard_negatives", "distillation", "focal", "mixing",
            {"name": "curriculum", "run": {"stages.1.data.curriculum": None}},
            {"name": "false-negative-mask", "run": {"stages.1.loss.false_negative_margin": None}},
            {"name": "gamma-0.5-not-2", "run": {"stages.1.loss.focal.gamma": 2.0}},
            {"name": "triangle", "run": {"stages.1.loss.triangle": None}},
            "bidirectional",
        ],
    }  # fmt: skip
    for name, values in (("run", settings), ("sets", {"sets": {each: known[each] for each in sets}}), ("ablation", ablation)):
        (runs / f"switches-{name}.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    command = [sys.executable, "-m", "trainer.cli", "ablate", str(runs / "switches-ablation.yaml")]
    subprocess.run([*command, "--output", str(runs / "switches")], check=True)


def seconds_of(folder: Path) -> float:
    """Seconds of the steps of all stages; what the teacher took beside them is in the log of the run."""
    return float(sum(each["seconds"] for each in json.loads((folder / "metrics.json").read_text())["stages"]))


def built(settings: dict[str, Any], work: Path) -> str:
    """The path of a build, made where it is not there."""
    path = work / "datasets" / settings["name"] / "latest"
    if not path.exists():
        file = work / f"{settings['name']}-recipe.yaml"
        file.write_text(yaml.safe_dump(settings))
        subprocess.run([sys.executable, "-m", "datakit.cli", "build", str(file)], check=True)
    return str(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DATAKIT_REAL_DATA"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--reading", choices=READINGS, default="cased")
    parser.add_argument("--seconds", type=float, help="of sentence-transformers; default: what the three stages took")
    arguments = parser.parse_args()
    if arguments.data is None or not Path(arguments.data).is_dir():
        raise SystemExit("Name the folder of real data with --data or DATAKIT_REAL_DATA.")
    work, data = arguments.work.absolute(), Path(arguments.data).absolute()
    os.environ["DATAKIT_REAL_DATA"] = str(data)
    work.mkdir(parents=True, exist_ok=True)
    build, distilled = built(recipe(data, work), work), built(distilled_recipe(data, work), work)
    three = three_stages(PREFIXES, distilled)
    reading = arguments.reading
    runs = work if reading == "cased" else work / reading
    base, stages = runs / "models/base", runs / "models/stages"
    if not base.is_dir():
        untrained(base, reading)
    models = {"base": str(base), "all-MiniLM-L6-v2, the teacher": TEACHER}
    for name, trained in (("stages", three), ("plain", three_stages(PREFIXES[:1], distilled)[:1])):
        if name in arguments.parts:
            folder = run(name, runs, config(name, trained, reading), build)
            models |= {f"{name}: {each['name']}": str(folder / each["name"] / "model") for each in trained}
    for name in FOURTH:
        if name in arguments.parts:
            folder = branched(name, runs, three, fourth_stage(name, data, work, distilled), build, reading)
            models[f"stages, then {name}"] = str(folder / name / "model")
    if "rotated" in arguments.parts:
        for name in ("all-MiniLM-L6-v2, the teacher", list(models)[-1]):
            models[f"{name}, rotated"] = rotated(name, models[name], runs, build)
    if "peer" in arguments.parts:
        peer(runs, Path(build), base, arguments.seconds or seconds_of(stages))
        models["sentence-transformers"] = str(runs / "models/peer/model")
    columns = ["model", "dimensions", *arguments.sets, "kept, mean"]
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name, model in models.items():
        found = scores(model, arguments.sets, runs / "scores" / label(name))
        widest = found[max(found)]
        for dimension, values in found.items():
            kept = np.mean([values[each] / widest[each] for each in arguments.sets])
            shown = " | ".join(f"{values[each]:.3f}" for each in arguments.sets)
            print(f"| {name} | {dimension} | {shown} | {kept:.1%} |", flush=True)
    if "switches" in arguments.parts:
        switches(data, work, runs, ["stsb-en"], reading)


def untrained(folder: Path, reading: str) -> None:
    """The base as it is before the training, as a sentence-transformers folder."""
    from trainer.config import Config
    from trainer.export import export
    from trainer.stages import prepared

    settings = Config.model_validate(config("base", [stage("none", 1, 1e-4, 0, PREFIXES)], reading))
    encoder = prepared(settings, settings.stages[0])
    export(encoder, str(folder), {"query": "", "document": ""}, "base", "none", PREFIXES, {})


if __name__ == "__main__":
    main()
