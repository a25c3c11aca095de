"""MTEB's families by mteb's own evaluators: local sets as custom tasks, tasks and benchmarks of its registry, every dimension."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datakit.errors import UserError
from trainer.evaluation.bm25 import Bm25Search
from trainer.evaluation.encoder import CachedEncoder, import_mteb, mteb_encoder
from trainer.evaluation.retrieval import check_dimensions
from trainer.evaluation.scores import FamilyScores, TaskScores
from trainer.evaluation.set_data import Reader, Searchable, Table
from trainer.evaluation.sets import (
    BitextSet,
    ClassificationSet,
    ClusteringSet,
    LocalSet,
    Searched,
    StsSet,
    SummarisationSet,
    load_sets,
)
from trainer.model import first_line, quiet

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Family:
    """A family in mteb's words: its type, the class of its tasks, what goes to what (t text, c category), the main score."""

    type: str
    base: str
    category: str
    metric: str


FAMILIES = {
    "retrieval": Family("Retrieval", "AbsTaskRetrieval", "t2t", "ndcg_at_10"),
    "reranking": Family("Reranking", "AbsTaskRetrieval", "t2t", "map_at_1000"),
    "sts": Family("STS", "AbsTaskSTS", "t2t", "cosine_spearman"),
    "pair_classification": Family("PairClassification", "AbsTaskPairClassification", "t2t", "max_ap"),
    "classification": Family("Classification", "AbsTaskClassification", "t2c", "accuracy"),
    "clustering": Family("Clustering", "AbsTaskClustering", "t2c", "v_measure"),
    "bitext": Family("BitextMining", "AbsTaskBitextMining", "t2t", "f1"),
    "summarisation": Family("Summarization", "AbsTaskSummarization", "t2t", "cosine_spearman"),
}


def local_task(local: LocalSet) -> Any:
    """A set as a custom task of mteb (an AbsTask of the set's family), with its data."""
    mteb = import_mteb()
    family, reader = FAMILIES[local.declared.type], Reader(local)
    data, subsets, settings = _data(local, reader)
    metadata = mteb.TaskMetadata(
        name=local.name,
        description=f"A local set ({local.folder}).",
        dataset={"path": local.name, "revision": reader.revision},
        type=family.type,
        category=family.category,
        eval_splits=["test"],
        eval_langs=subsets if subsets is not None else [],  # languages are not known
        main_score=family.metric,
    )
    task = type(local.name, (getattr(mteb.abstasks, family.base),), {"metadata": metadata, **settings})()
    task.dataset, task.data_loaded = data, True
    return task


def _data(local: LocalSet, reader: Reader) -> tuple[dict[str, Any], dict[str, list[str]] | None, dict[str, Any]]:
    """The data in the form of the family's class, its subsets where it has some, and what the class is told."""
    declared = local.declared
    settings: dict[str, Any] = {}
    if isinstance(declared, Searched):
        return {"default": {"test": _searchable(reader.searchable(declared))}}, None, settings
    if isinstance(declared, BitextSet):
        pairs = reader.bitext(declared)
        if declared.pairs is None:
            return {"test": _dataset(pairs["default"])}, None, settings
        return {name: {"test": _dataset(pair)} for name, pair in pairs.items()}, {name: [] for name in pairs}, settings
    if isinstance(declared, ClassificationSet):
        return _classes(reader.labelled(declared.train), reader.labelled(declared.test, several=False)), None, settings
    if isinstance(declared, ClusteringSet):
        table = reader.labelled(declared.file)
        settings = {"max_fraction_of_documents_to_embed": None}
        return {"test": _dataset({"sentences": table["text"], "labels": table["label"]})}, None, settings
    if isinstance(declared, SummarisationSet):
        table = reader.summaries(declared.file)
        return {"test": _dataset(table)}, None, _range(local.name, [grade for row in table["relevance"] for grade in row])
    if isinstance(declared, StsSet):
        table = reader.scored_pairs(declared.file)
        settings = _range(local.name, table["score"])
    else:
        table = reader.labelled_pairs(declared.file, declared.positive)
    if declared.prompts.document is not None:
        types = import_mteb().types.PromptType
        settings |= {"input1_prompt_type": types.query, "input2_prompt_type": types.document}
    return {"test": _dataset(table)}, None, settings


def _dataset(table: Table) -> Any:
    import datasets

    return datasets.Dataset.from_dict(table)


def _searchable(found: Searchable) -> dict[str, Any]:
    titles, bodies = zip(*found.corpus.values(), strict=True)
    return {
        "corpus": _dataset({"id": list(found.corpus), "title": list(titles), "text": list(bodies)}),
        "queries": _dataset({"id": list(found.queries), "text": list(found.queries.values())}),
        "relevant_docs": found.relevant,
        "top_ranked": found.candidates,
    }


def _classes(train: Table, test: Table) -> dict[str, Any]:
    """Labels are numbered, by name, as mteb's tasks have them."""
    numbers = {label: place for place, label in enumerate(sorted({*train["label"], *test["label"]}))}
    return {
        split: _dataset({"text": table["text"], "label": [numbers[label] for label in table["label"]]})
        for split, table in (("train", train), ("test", test))
    }


def _range(name: str, scores: Sequence[float]) -> dict[str, float]:
    """mteb scales scores to [0, 1]; no correlation changes by it."""
    if min(scores) == max(scores):
        raise UserError(f"The set '{name}': all scores are {scores[0]}. A correlation needs different ones.")
    return {"min_score": min(scores), "max_score": max(scores)}


def registry_tasks(names: Iterable[str], benchmark: str | None) -> list[Any]:
    """Tasks of mteb's own registry, by their names and by that of a benchmark; their data are on the Hub.

    Each is there once, or the means would count it twice: one that the benchmark has too is as the benchmark has it.
    """
    mteb = import_mteb()
    tasks: list[Any] = []
    try:
        tasks += mteb.get_benchmark(benchmark).tasks if benchmark is not None else []
        known = {task.metadata.name for task in tasks}
        tasks = [mteb.get_task(name) for name in dict.fromkeys(names) if name not in known] + tasks
    except KeyError as error:
        said = str(error.args[0]).removeprefix("KeyError: ")
        raise UserError(f"mteb has no such task or benchmark: {said} Local sets are declared in a file: --sets FILE.") from error
    if other := next((task.metadata for task in tasks if task.metadata.modalities != ["text"]), None):
        raise UserError(f"The task '{other.name}' is about {' and '.join(other.modalities)}; the models here read text alone.")
    return tasks


def evaluate_families(
    name: str,
    sets: str | None,
    names: Sequence[str] = (),
    benchmark: str | None = None,
    dimensions: Sequence[int] = (),
    bm25: bool = False,
) -> FamilyScores:
    """A model on the sets of a YAML file and on tasks of mteb, at each dimension (default: its own).

    Where `names` are sets of the file, only those of its sets are taken. All data are read before anything is embedded.
    """
    local = load_sets(sets) if sets is not None else []
    chosen = [each for each in local if each.name in names] or local
    others = [each for each in names if each not in {known.name for known in local}]
    encoder = mteb_encoder(name)
    check_dimensions(name, encoder.width, dimensions)
    encoder.sets = {each.name: each.declared for each in chosen}
    tasks = [local_task(each) for each in chosen] + registry_tasks(others, benchmark)
    at = sorted(set(dimensions), reverse=True) or [encoder.width]
    return FamilyScores(
        model=name,
        revision=encoder.mteb_model_meta.revision,
        mteb=_version(),
        width=encoder.width,
        tasks=[evaluate_task(encoder, task, at, bm25) for task in tasks],
    )


def _version() -> str:
    from importlib.metadata import version

    return version("mteb")


def evaluate_task(encoder: CachedEncoder, task: Any, dimensions: Sequence[int], bm25: bool = False) -> TaskScores:
    """mteb's scores of one task at each dimension, and of BM25 where that is asked for and the task is retrieval."""
    parts = getattr(task.metadata, "tasks", None) or [task]  # of an aggregate
    remote = [part for part in parts if not part.data_loaded]
    for part in remote:
        try:
            part.load_data()
        except Exception as error:  # of the Hub, of datasets, of HTTP: whatever its data ask for
            raise UserError(
                f"The data of mteb's task '{part.metadata.name}' could not be loaded: {first_line(error).rstrip('.')}. They are "
                "fetched from the Hugging Face Hub, which needs a network; local sets (--sets) need none."
            ) from error
    encoder.used.clear()
    found: dict[int, list[dict[str, Any]]] = {}
    for dimension in dimensions:
        encoder.dimension = dimension
        found[dimension] = _run(task, parts, encoder)
    encoder.dimension = None
    metadata = task.metadata
    searched = _run(task, parts, Bm25Search()) if bm25 and metadata.type == "Retrieval" else None
    for part in remote:
        part.unload_data()
    if remote:
        encoder.vectors.clear()  # a benchmark's texts would not all stay in memory
    scores = TaskScores(
        name=metadata.name,
        family=metadata.type,
        metric=metadata.main_score,
        source="mteb" if remote else "local",
        revision=metadata.revision,
        prompts=dict(encoder.used),
        scores={dimension: _mean(entries, "main_score") for dimension, entries in found.items()},
        subsets=_subsets(found),
        metrics={dimension: _metrics(entries) for dimension, entries in found.items()},
        bm25=None if searched is None else _mean(searched, "main_score"),
    )
    if wrong := [dimension for dimension, score in scores.scores.items() if not math.isfinite(score)]:
        raise UserError(f"The set '{scores.name}' gives no {scores.metric} at {wrong[0]} dimensions: its texts look all alike.")
    shown = ", ".join(f"{score:.4f} ({dimension})" for dimension, score in scores.scores.items())
    log.info("%s %s: %s %s", scores.family, scores.name, scores.metric, shown)
    return scores


def _run(task: Any, parts: Sequence[Any], model: Any) -> list[dict[str, Any]]:
    """mteb's scores for each split and subset. Tasks draw from a state of their own, which is set back for every run."""
    mteb = import_mteb()
    for part in parts:
        part.rng_state, part.np_rng = random.Random(part.seed), np.random.default_rng(part.seed)
    options = {"batch_size": 32, "show_progress_bar": False}
    with quiet():
        result = mteb.evaluate(
            model, task, encode_kwargs=options, cache=None, co2_tracker=False, show_progress_bar=False
        ).task_results[0]
    return [{"split": split, **entry} for split, entries in result.scores.items() for entry in entries]


def _mean(entries: Sequence[Mapping[str, Any]], metric: str) -> float:
    return float(np.mean([entry[metric] for entry in entries]))


def _subsets(found: Mapping[int, Sequence[Mapping[str, Any]]]) -> dict[str, dict[int, float]]:
    """The main score of each subset, where a task has several; of each split too, where it has several of those."""
    subsets: dict[str, dict[int, float]] = {}
    for dimension, entries in found.items():
        several = len({entry["split"] for entry in entries}) > 1
        for entry in entries if len(entries) > 1 else ():
            name = f"{entry['split']}/{entry['hf_subset']}" if several else entry["hf_subset"]
            subsets.setdefault(name, {})[dimension] = float(entry["main_score"])
    return subsets


def _metrics(entries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """All metrics of mteb that are finite numbers, but for nAUC, which says how well similarities tell hard queries."""
    names = [name for name, value in entries[0].items() if isinstance(value, float) and not name.startswith("nauc_")]
    return {name: value for name in names if math.isfinite(value := _mean(entries, name))}
