"""The dev metric of each objective, on its rows of a build's validation split, and what later stages made of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import BaseModel

from datakit.opened import Build
from trainer.config import Config, Objective
from trainer.data import part_files, usable_blocks
from trainer.evaluation import retrieval
from trainer.evaluation.similarity import Pairs, spearman
from trainer.heads import through
from trainer.model import Encoder
from trainer.objectives import those_of

log = logging.getLogger(__name__)


class Score(BaseModel):
    """Higher is better."""

    metric: str
    score: float
    rows: int


@dataclass(frozen=True)
class Labelled:
    """Q texts of known classes, and C different texts that stand for classes: names of them, or exemplars."""

    queries: list[tuple[str, str | None]]
    documents: list[tuple[str, str | None]]
    wanted: list[str]  # Q labels
    labels: list[str]  # C labels


Measured = retrieval.Task | Pairs | Labelled


def load(build: Build, config: Config) -> dict[str, Measured]:
    """What each objective of a run is measured on. Those with no row in the validation split are told in the log."""
    found: dict[str, Measured] = {}
    for name, objective in config.objectives.items():
        blocks = usable_blocks(part_files(build, "validation"), graded=True)
        frame = pl.DataFrame(pa.Table.from_batches([those_of(block, {name: objective}) for block in blocks]))
        if frame.is_empty():
            log.warning("The objective '%s' is not measured: no row of 'validation' in '%s' is of it.", name, build.path)
        else:
            found[name] = _measured(frame, build, {name: objective}, config)
    return found


def _measured(frame: pl.DataFrame, build: Build, objective: Mapping[str, Objective], config: Config) -> Measured:
    """Pairs where all rows are graded, classes where none has in-batch negatives, else retrieval."""
    queries = list(frame.select("query", "instruction").iter_rows())
    if not frame["score"].has_nulls():
        return Pairs(queries, list(frame.select("positive", "document_instruction").iter_rows()), frame["score"].to_numpy())
    if not frame["in_batch_negatives"].fill_null(True).any():
        classes = frame.with_columns(label=pl.coalesce("label", "positive"))
        texts = classes.unique("positive", keep="first").sort("positive")
        documents = list(texts.select("positive", "document_instruction").iter_rows())
        return Labelled(queries, documents, classes["label"].to_list(), texts["label"].to_list())
    return retrieval.load_task(build, config.evaluation.queries, config.evaluation.documents, objective)


def measure(encoder: Encoder, measured: Mapping[str, Measured]) -> dict[str, Score]:
    """The score of each objective, at the whole vector, through its head where there is one.

    ndcg@10 of retrieval; spearman of graded pairs; accuracy of classes: the share of texts that are nearest, of all texts but
    themselves, to one of their class.
    """
    scores = {}
    for name, each in measured.items():
        head = dict(encoder.heads.items()).get(name)
        sides = [
            [encoder.query_text(text, instruction) for text, instruction in each.queries],
            [encoder.document_text(text, instruction) for text, instruction in each.documents],
        ]
        queries, documents = (retrieval.unit(through(head, encoder.embed(side))) for side in sides)
        if isinstance(each, Pairs):
            found = spearman((queries * documents).sum(1), each.scores)
            scores[name] = Score(metric="spearman", score=0.0 if found is None else found, rows=len(queries))
        elif isinstance(each, Labelled):
            itself = np.array([text for text, _ in each.queries])[:, None] == np.array([text for text, _ in each.documents])
            nearest = np.where(itself, -np.inf, queries @ documents.T).argmax(1)
            right = np.array([each.labels[number] for number in nearest]) == np.array(each.wanted)
            scores[name] = Score(metric="accuracy", score=float(right.mean()), rows=len(queries))
        else:
            (result,) = retrieval.evaluate_vectors(each, queries, documents, [queries.shape[1]]).values()
            scores[name] = Score(metric=retrieval.METRIC, score=result.score, rows=len(queries))
    return scores


def forgotten(history: Sequence[Mapping[str, Score]], trained: Sequence[Sequence[str]]) -> list[dict[str, float]]:
    """For each stage, how far each objective fell below its best after an earlier stage (Chaudhry et al. 2018, arXiv 1801.10112).

    history: the scores after each stage; trained: its objectives. An earlier stage counts from the first that trained the
    objective. Below 0 where it rose still (eq. 3). Objectives that no earlier stage trained are absent.
    """
    result = []
    for number, scores in enumerate(history):
        first = {name: place for place in reversed(range(number)) for name in trained[place]}
        best = {name: max(each[name].score for each in history[place:number]) for name, place in first.items() if name in scores}
        result.append({name: value - scores[name].score for name, value in best.items()})
    return result
