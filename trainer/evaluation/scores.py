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
    """As `rows`, with a line between families."""
    heads, parts = rows(found, 3)
    shown = Table(title=f"{found.model}, by mteb {found.mteb}", title_justify="left")
    for number, head in enumerate(heads):
        shown.add_column(head, justify="left" if number < 3 else "right")
    for part in parts:
        for row in part:
            shown.add_row(*row)
        shown.add_section()
    return shown


def rows(found: FamilyScores, digits: int) -> tuple[list[str], list[list[list[str]]]]:
    """Heads, and rows by family: each task, the mean of families that have several; last the means of all."""
    dimensions = common([task.scores for task in found.tasks])
    lexical = any(task.bm25 is not None for task in found.tasks)

    def row(family: str, name: str, metric: str, scores: Scores, bm25: float | None = None) -> list[str]:
        beside = [] if not lexical else ["" if bm25 is None else f"{bm25:.{digits}f}"]
        return [family, name, metric, *(f"{scores[each]:.{digits}f}" for each in dimensions), *beside]

    parts = []
    for family, mean in found.families.items():
        tasks = [task for task in found.tasks if task.family == family]
        parts.append([row(family, task.name, task.metric, task.scores, task.bm25) for task in tasks])
        if len(tasks) > 1:
            parts[-1].append(row(family, "mean", "", mean))
    means = {"mean of tasks": found.mean_of_tasks, "mean of families": found.mean_of_families}
    parts.append([row(name, "", "", scores) for name, scores in means.items()])
    return ["family", "task", "metric", *map(str, dimensions), *(["BM25+"] if lexical else [])], parts
