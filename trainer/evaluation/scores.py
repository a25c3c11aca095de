"""results.json of an evaluation by families, and its tables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, computed_field
from rich.table import Table

from datakit.errors import UserError

# By dimension, widest first. JSON files have their keys in the order of letters.
Scores = Annotated[dict[int, float], AfterValidator(lambda found: dict(sorted(found.items(), reverse=True)))]


class TaskScores(BaseModel):
    """What mteb found for one task. Higher is better."""

    name: str
    family: str  # mteb's type of the task
    metric: str  # mteb's main score
    source: Literal["local", "mteb"]
    revision: str  # of the data: the digest of a local set's files
    prompts: dict[str, str]  # what stood before queries, documents, and texts of tasks that do not tell the two
    scores: Scores  # the main score, the mean over splits and subsets
    subsets: dict[str, Scores] = {}  # where there are several
    metrics: dict[int, dict[str, float]]
    bm25: float | None = None


class FamilyScores(BaseModel):
    """results.json."""

    model_config = ConfigDict(populate_by_name=True)

    version: Literal[1] = Field(1, alias="schema")
    model: str
    revision: str
    mteb: str  # its version
    width: int  # dimensions of the model
    tasks: list[TaskScores]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def families(self) -> dict[str, Scores]:
        """The mean over the tasks of each family."""
        names = dict.fromkeys(task.family for task in self.tasks)
        return {name: _mean([task.scores for task in self.tasks if task.family == name]) for name in names}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def mean_of_tasks(self) -> Scores:
        return _mean([task.scores for task in self.tasks])

    @computed_field  # type: ignore[prop-decorator]
    @property
    def mean_of_families(self) -> Scores:
        """The mean over families of each one's mean: families count alike, however many tasks they have."""
        return _mean(list(self.families.values()))


def common(scores: Sequence[Scores]) -> list[int]:
    """The dimensions that all have, widest first. A file may be put together from two evaluations."""
    return [dimension for dimension in scores[0] if all(dimension in each for each in scores)]


def _mean(scores: Sequence[Scores]) -> Scores:
    return {dimension: float(np.mean([each[dimension] for each in scores])) for dimension in common(scores)}


def writable(path: str) -> str:
    """The path of a file that is yet to be written. Raises UserError where it cannot be, before the work for it is done."""
    if os.path.isdir(path):
        raise UserError(f"'{path}' is a folder, and a file is to be written there. Give another --output.")
    if taken := next((each for each in Path(path).parents if each.is_file()), None):
        raise UserError(f"'{taken}' is a file, and a folder is needed there for '{path}'. Give another --output.")
    return path


def table(found: FamilyScores) -> Table:
    """One row for each task, one column for each dimension; means of the families that have several, and of all."""
    shown = Table(title=f"{found.model}, by mteb {found.mteb}", title_justify="left")
    for name in ("family", "task", "metric"):
        shown.add_column(name)
    dimensions = list(found.tasks[0].scores)
    for dimension in dimensions:
        shown.add_column(str(dimension), justify="right")
    if bm25 := any(task.bm25 is not None for task in found.tasks):
        shown.add_column("BM25", justify="right")

    def row(family: str, name: str, metric: str, scores: Scores, beside: float | None = None) -> None:
        lexical = [] if not bm25 else ["" if beside is None else f"{beside:.3f}"]
        shown.add_row(family, name, metric, *(f"{scores[dimension]:.3f}" for dimension in dimensions), *lexical)

    for family, mean in found.families.items():
        tasks = [task for task in found.tasks if task.family == family]
        for task in tasks:
            row(family, task.name, task.metric, task.scores, task.bm25)
        if len(tasks) > 1:
            row(family, "mean", "", mean)
        shown.add_section()
    row("mean of tasks", "", "", found.mean_of_tasks)
    row("mean of families", "", "", found.mean_of_families)
    return shown
