"""`trainer loop`: build, train, gate, feedback, and again. Each round trains from the base, so that rounds can be compared.

In the output: `builds/`, and for each round `round-N/run` (an ordinary run) and `round-N/evaluation.json`, whose history are the
scores of the rounds before, and which moves the weights of the next build; `loop.json` and `loop.html`. Nothing else is kept of
where the loop is: what is there is found to be done.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from html import escape
from typing import Any

from pydantic import BaseModel
from rich.console import Console, Group
from rich.table import Table

from datakit import storage
from datakit.errors import BuildError, UserError
from datakit.mixing.feedback import load_evaluation
from datakit.opened import Build
from datakit.recipe import Recipe
from datakit.recipe_file import load_model
from datakit.schema import Evaluation
from trainer import curves, stages
from trainer.config import Config
from trainer.evaluation.retrieval import METRIC
from trainer.report import Metrics
from trainer.studies.building import built, digests

log = logging.getLogger(__name__)


class InRound(BaseModel):
    """A category in a round. `weight` is p_i before limits, `share` its part of the training rows."""

    factor: float  # of the feedback; 1 in the first round
    weight: float
    share: float
    rows: int
    score: float | None = None  # None without validation rows
    queries: int = 0


class Round(BaseModel):
    build: str
    score: float  # over all queries, at the widest dimension
    categories: dict[str, InRound]


class Loop(BaseModel):
    """loop.json. `stopped` says why a round's run did not pass its gate."""

    name: str
    metric: str = METRIC
    rounds: list[Round] = []
    stopped: str | None = None


def loop(
    recipe_file: str, config_file: str, rounds: int, output: str | None, workers: int | None, console: Console
) -> tuple[str, Loop]:
    """Does all rounds, or what is left of them. Returns the folder and how weights and scores moved.

    Raises UserError where feedback could change nothing, BuildError where a gate stops a round; what was done is reported.
    """
    recipe, config = load_model(recipe_file, Recipe), load_model(config_file, Config)
    check(recipe, config)
    folder = os.path.abspath(os.path.expanduser(output or os.path.join("loops", recipe.name)))
    found = Loop(name=recipe.name)
    said: Evaluation | None = None
    first: Build | None = None
    for number in range(1, rounds + 1):
        log.info("Round %d of %d", number, rounds)
        place = os.path.join(folder, f"round-{number}")
        build = built(recipe, os.path.join(folder, "builds"), workers, console, said)
        first = first or build
        check_same_validation(first, build, number)
        try:
            run, metrics = stages.do(config, build, os.path.join(place, "run"), console)
        except BuildError as error:
            write(folder, found.model_copy(update={"stopped": f"Round {number}: {error}"}))
            raise
        path = os.path.join(place, "evaluation.json")
        scores = with_history(load_evaluation(run.path("evaluation.json"), recipe.categories), said)
        storage.write_json(path, scores.model_dump(mode="json", by_alias=True))
        said = load_evaluation(path, recipe.categories)
        found.rounds.append(round_of(build, said, metrics))
        write(folder, found)
    return folder, found


def check(recipe: Recipe, config: Config) -> None:
    """Raises UserError where no round could differ from the one before."""
    mixture = recipe.mixture
    if mixture.total is None and mixture.max_epochs <= 1 and mixture.shortfall != "repeat":
        raise UserError("Without mixture.total every category gives all its rows, and feedback changes nothing. Set 'total'.")
    if mixture.feedback.bound == 1:
        raise UserError("mixture.feedback.bound is 1, so that feedback changes nothing. Give a larger one, such as 2.")
    if recipe.split.validation == 0:
        raise UserError("split.validation is 0: there are no rows to measure on. Give it a share, such as 0.1.")
    if all(stage.data.build for stage in config.stages):
        raise UserError("Every stage has a data.build of its own, so that no build of the loop is trained on. Leave one out.")


def check_same_validation(first: Build, build: Build, number: int) -> None:
    """The split comes before the mixture, so feedback moves no row of it; a data file that was changed does."""
    if digests(first, "validation") != digests(build, "validation"):
        raise BuildError(
            f"Round {number} would be measured on other validation rows than round 1 ('{build.path}', '{first.path}'), so that "
            "scores could not be compared. Were data files changed? Begin anew with another --output."
        )


def with_history(scores: Evaluation, before: Evaluation | None) -> Evaluation:
    """The scores with those of the rounds before as history, oldest first: a plateau is one of rounds, not of base and model."""
    older = before.categories if before else {}
    categories = {
        name: each.model_copy(update={"history": [*older[name].history, older[name].score] if name in older else []})
        for name, each in scores.categories.items()
    }
    return scores.model_copy(update={"categories": categories})


def round_of(build: Build, scores: Evaluation, metrics: Metrics) -> Round:
    notes: dict[str, Any] = next(step.notes for step in build.manifest.steps if step.name == "mix")
    moved = notes.get("feedback", {}).get("categories", {})
    categories = {
        name: InRound(
            factor=moved.get(name, {}).get("factor", 1.0),
            weight=each["probability"],
            share=each["share"],
            rows=each["rows"],
            score=scores.categories[name].score if name in scores.categories else None,
            queries=scores.categories[name].rows if name in scores.categories else 0,
        )
        for name, each in notes["categories"].items()
    }
    return Round(build=build.version, score=metrics.after[max(metrics.after)].score, categories=categories)


def tables(found: Loop) -> Group:
    """Shares and scores by category and round."""
    return Group(*(_table(title, *content) for title, content in parts(found).items()), *remarks(found))


def _table(title: str, heads: Sequence[str], rows: Sequence[tuple[str, list[str]]]) -> Table:
    table = Table(title=title, title_justify="left")
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left")
    for name, values in rows:
        table.add_row(name, *values)
    return table


def parts(found: Loop) -> dict[str, tuple[list[str], list[tuple[str, list[str]]]]]:
    heads = [f"round {number}" for number in range(1, len(found.rounds) + 1)]
    names = list(found.rounds[0].categories) if found.rounds else []

    def rows(said: Any) -> list[tuple[str, list[str]]]:
        return [(name, [said(each.categories[name]) for each in found.rounds]) for name in names]

    scores = rows(lambda each: "" if each.score is None else f"{each.score:.4f}")
    scores.append(("all queries", [f"{each.score:.4f}" for each in found.rounds]))
    return {
        "Share of the training rows (factor of the feedback)": (
            ["category", *heads], rows(lambda each: f"{each.share:.1%} (x{each.factor:.2f})")
        ),
        f"{found.metric} on the validation split, the same rows in all rounds": (["category", *heads], scores),
    }  # fmt: skip


def remarks(found: Loop) -> list[str]:
    said = ["A round is one run with one seed: a difference that another seed would make too says nothing of the mixture."]
    return [*said, found.stopped] if found.stopped else said


def write(folder: str, found: Loop) -> None:
    storage.write_json(os.path.join(folder, "loop.json"), found.model_dump(mode="json"))
    sections = [
        f'<section id="results"><h2>{escape(title)}</h2>{curves.table(heads, rows)}</section>'
        for title, (heads, rows) in parts(found).items()
    ]
    sections.append("".join(f"<p>{escape(each)}</p>" for each in remarks(found)))
    lead = f"{len(found.rounds)} rounds of build, training and feedback."
    page = curves.document(found.name, "loop", lead, sections)
    storage.write_bytes(os.path.join(folder, "loop.html"), page.encode("utf-8", "replace"))
