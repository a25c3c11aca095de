"""`trainer ablate`: one component removed at a time, several seeds, the difference with its interval.

In the output: `builds/` (of the full recipe and the changed ones), `runs/COMPONENT/seed-N` (ordinary runs; `runs/full/seed-N` has
all components), `teacher/` and `scores/` (for all of them), `held-out/`, `ablation.json` and `ablation.html`.

A run shares the leading stages that are equal to the full run's of its seed: they are links to it. Gates are left out, since runs
of different length could not be compared. A model is measured on the validation rows of the full build; where a component changes
the build, on those of them that its validation has too, and the full model again on the same: so no build has trained on them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from itertools import takewhile
from pathlib import Path as FilePath
from typing import Annotated, Self

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field, model_validator
from rich.console import Console

from datakit import storage
from datakit.assets import Assets
from datakit.errors import UserError
from datakit.opened import Build, open_build
from datakit.publish.manifest import File
from datakit.recipe import Model, Path, Recipe
from datakit.recipe_file import load_model, parse
from datakit.schema import digest
from trainer import stages
from trainer.config import Config
from trainer.evaluation import retrieval
from trainer.evaluation.sets import load_sets
from trainer.model import load_encoder
from trainer.run import Run, claim, claimed, open_run, stage_builds
from trainer.studies.ablation_components import Custom, Name, without
from trainer.studies.building import built, digests

log = logging.getLogger(__name__)

FULL = "full"
RESAMPLES = 2_000

# Of each measure, such as "nDCG@10 at 64 dimensions": one number, or one for each query.
Scores = dict[str, list[float]]


class Ablation(Model):
    """An ablation file. Paths begin where the command is given, as those in recipes and run files do."""

    run: Path = Field(description="The run file with all components.")
    recipe: Path | None = Field(None, description="The mixture file; needed where a component changes it.")
    build: Path | None = Field(None, description="A built data set, in place of the recipe.")
    seeds: list[Annotated[int, Field(ge=0, lt=2**63)]] = Field(
        [0, 1], min_length=2, description="Of the run. With two an interval is wide: t is 12.7."
    )
    sets: Path | None = Field(None, description="Local sets, as for `trainer evaluate --sets`, beside the dev metric.")
    components: list[Name | Custom] = Field(min_length=1)

    @model_validator(mode="after")
    def _together(self) -> Self:
        if (self.recipe is None) == (self.build is None):
            raise ValueError("recipe and build: give one of the two")
        names = self.names
        for found in (names, self.seeds):
            if len(set(found)) != len(found):
                raise ValueError(f"found {found}; allowed: different ones")
        if FULL in names:
            raise ValueError(f"components: '{FULL}' is the run with all of them; choose another name")
        return self

    @property
    def names(self) -> list[str]:
        return [each.name if isinstance(each, Custom) else each for each in self.components]


class Difference(BaseModel):
    """What a measure loses without a component: full minus without, paired by seed. Intervals are of 95 %."""

    measure: str
    full: list[float]  # by seed
    without: list[float]
    mean: float
    interval: tuple[float, float]  # over seeds: Student's t
    over_queries: tuple[float, float] | None = None  # of these models: bootstrap; None for sets

    @property
    def supported(self) -> bool:
        return self.interval[0] > 0 or self.interval[1] < 0


class Removed(BaseModel):
    """A component, and what came of the runs without it."""

    name: str
    build: str  # version
    train: int  # rows
    queries: int  # that models were measured on
    shared: list[str]  # stages of the full run that were not trained again
    same: bool  # every seed has the full run's weights: the component had no effect here
    differences: list[Difference]


class Report(BaseModel):
    """ablation.json."""

    name: str
    seeds: list[int]
    gates: bool  # whether the run file has gates, which were left out
    components: list[Removed]


@dataclass(frozen=True)
class Variant:
    """A run file with the data that it is trained and measured on."""

    name: str
    config: Config
    build: Build
    dev: Build


@dataclass(frozen=True)
class Sets:
    """A file of local sets, and a digest of it, of all data that it names and of the package that measures."""

    path: str
    version: str


@dataclass(frozen=True)
class Trained:
    model: str
    run: Run
    shared: list[str]


def ablate(file: str, output: str | None, workers: int | None, console: Console) -> tuple[str, Report]:
    """Does all runs, or what is left of them, and returns the folder and what they say. Writes a report after each component.

    Raises UserError, before anything is trained, where a component is not there to be removed, or a set cannot be read.
    """
    from trainer.studies.ablation_report import write

    wanted = load_model(file, Ablation)
    given = load_model(wanted.run, Config)
    config = given.without_gates()
    recipe = load_model(wanted.recipe, Recipe) if wanted.recipe else None
    values = parse(storage.read_bytes(wanted.recipe).decode(), wanted.recipe)[0] if wanted.recipe else None
    folder = os.path.abspath(os.path.expanduser(output or os.path.join("ablations", config.name)))
    changed = [without(component, values, config) for component in wanted.components]
    for name, (_, other) in zip(wanted.names, changed, strict=True):
        check_model(name, config, other)
    sets = opened(wanted.sets) if wanted.sets else None
    builds = os.path.join(folder, "builds")
    build = built(recipe, builds, workers, console) if recipe is not None else open_build(str(wanted.build))
    mined = (each.train.select(pl.col("negatives").list.len().sum()) for each in stage_builds(config, build).values())
    if "hard_negatives" in wanted.names and not any(frame.collect().item() for frame in mined):
        raise UserError(f"The component 'hard_negatives' cannot be removed: no row of '{build.path}' has mined negatives.")
    whole = Variant(FULL, config, build, build)
    variants = []
    for name, (made, other) in zip(wanted.names, changed, strict=True):
        own = built(made, os.path.join(builds, name), workers, console) if made is not None else build
        variants.append(on(Variant(name, other, own, build), whole, folder))
    for variant in (whole, *variants):
        run = run_of(variant, wanted.seeds[0], folder)
        if not claimed(run):
            stages.preflight(run)
    full = {seed: trained(whole, seed, None, folder, console) for seed in wanted.seeds}
    report = Report(name=config.name, seeds=wanted.seeds, gates=config != given, components=[])
    for variant in variants:
        runs = {seed: trained(variant, seed, full[seed].run, folder, console) for seed in wanted.seeds}
        report.components.append(compared(variant, full, runs, sets, folder))
        write(folder, report)
    return folder, report


def check_model(name: str, config: Config, changed: Config) -> None:
    """Loads the base where a component changes what it is loaded as: so that a mistake is told before the full runs."""
    if changed.model != config.model and load_encoder(changed.model).dimension != load_encoder(config.model).dimension:
        raise UserError(f"The component '{name}' changes the dimension of the vectors, so that the models cannot be compared.")


def on(variant: Variant, whole: Variant, folder: str) -> Variant:
    """A variant with its own build as the data of the stages that name none, measured on what both builds hold out."""
    if variant.build is whole.build:
        return variant
    same = digests(variant.build, "train") == digests(whole.build, "train")
    if same or all(stage.data.build for stage in variant.config.stages):
        why = "the training rows are the same without it" if same else "every stage names a data.build of its own"
        raise UserError(f"The component '{variant.name}' cannot be removed: {why}. Take it out of 'components'.")
    trained_on = Path(variant.build.path)
    changed = [
        stage.model_copy(update={"data": stage.data.model_copy(update={"build": stage.data.build or trained_on})})
        for stage in variant.config.stages
    ]
    return replace(
        variant,
        config=variant.config.model_copy(update={"stages": changed}),
        dev=held_out(whole.build, variant.build, os.path.join(folder, "held-out")),
    )


def held_out(full: Build, other: Build, folder: str) -> Build:
    """The validation rows of `full` that are validation rows of `other` too, as a build.

    What shares a text or a document with them, or is a near duplicate of them, is in neither's training rows: each build's
    own split has seen to it.
    """
    common = set(other.validation.select("row_id").collect().to_series())
    kept = full.validation.select("row_id").collect().to_series().is_in(list(common))
    if kept.all():
        return full
    if not kept.any():
        raise UserError(f"The builds '{full.path}' and '{other.path}' hold out no common row to measure on.")
    version = digest("held-out", full.version, other.version)[:16]
    target, files = os.path.join(folder, version), {}
    if not os.path.isfile(os.path.join(target, "manifest.json")):
        for number, path in enumerate(full.files("validation")):
            table = storage.read_table(path)
            name = f"validation/validation-{number:05d}.parquet"
            rows = table.filter(pc.is_in(table.column("row_id"), pa.array(sorted(common))))
            storage.write_table(os.path.join(target, name), rows)
            files[name] = File(digest=storage.file_digest(os.path.join(target, name)), rows=rows.num_rows)
        manifest = full.manifest.model_copy(update={"version": version, "files": files})
        storage.write_json(os.path.join(target, "manifest.json"), manifest.model_dump(mode="json", by_alias=True))
    return open_build(target)


def run_of(variant: Variant, seed: int, folder: str) -> Run:
    config = variant.config.model_copy(update={"seed": seed})
    return open_run(config, variant.dev, os.path.join(folder, "runs", variant.name, f"seed-{seed}"))


def trained(variant: Variant, seed: int, full: Run | None, folder: str, console: Console) -> Trained:
    """The run of a variant and a seed, done or gone on with."""
    run = run_of(variant, seed, folder)
    shared = common_stages(run, full) if full is not None else []
    claim(run)
    os.makedirs(os.path.join(folder, "teacher"), exist_ok=True)
    linked(os.path.join(folder, "teacher"), run.path("teacher"))
    if full is not None and shared:
        log.info("%s, seed %d: not trained again, as in the full run: %s", variant.name, seed, ", ".join(shared))
        for name in ("before.json", *shared):
            linked(full.path(name), run.path(name))
    log.info("%s, seed %d: '%s'", variant.name, seed, run.folder)
    stages.do(run.config, variant.dev, run.folder, console)
    return Trained(run.path("model"), run, shared)


def common_stages(run: Run, full: Run) -> list[str]:
    """The leading stages whose weights are the same in both runs: all that decides them is equal."""
    one, other = run.identity, full.identity
    if any(one[name] != other[name] for name in ("config", "build", "base", "dimensions", "objectives")):
        return []
    pairs = zip(one["order of stages"], other["order of stages"], strict=False)
    return [name for name, _ in takewhile(lambda pair: one["stages"][pair[0]] == other["stages"][pair[1]], pairs)]


def linked(target: str, link: str) -> None:
    if not os.path.lexists(link):
        os.symlink(os.path.relpath(target, os.path.dirname(link)), link)


def compared(
    variant: Variant, full: Mapping[int, Trained], runs: Mapping[int, Trained], sets: Sets | None, folder: str
) -> Removed:
    """Both models of each seed on the same queries, and on the sets."""
    config = next(iter(full.values())).run.config
    widths = {each for stage in config.stages for each in stage.loss.dimensions} or {load_encoder(config.model).dimension}
    dimensions = sorted({max(widths), min(widths)}, reverse=True)
    found = [
        [{**dev_scores(each.model, variant.dev, config, dimensions, folder), **set_scores(each.model, sets, dimensions, folder)}
         for each in (full[seed], runs[seed])]
        for seed in runs
    ]  # fmt: skip
    measures = list(found[0][0])
    return Removed(
        name=variant.name,
        build=variant.build.version,
        train=variant.build.manifest.totals.train,
        queries=len(found[0][0][measures[0]]),
        shared=next(iter(runs.values())).shared,
        same=all(weights(full[seed].model) == weights(runs[seed].model) for seed in runs),
        differences=[difference(name, [one[name] for one, _ in found], [other[name] for _, other in found]) for name in measures],
    )


def weights(model: str) -> list[str]:
    return [storage.file_digest(str(file)) for file in sorted(FilePath(model).rglob("*.safetensors"))]


def difference(measure: str, full: Sequence[Sequence[float]], without: Sequence[Sequence[float]]) -> Difference:
    """Of values [seeds, queries], or [seeds, 1]."""
    one, other = np.array(full), np.array(without)
    by_seed = (one - other).mean(1)
    return Difference(
        measure=measure,
        full=one.mean(1).tolist(),
        without=other.mean(1).tolist(),
        mean=float(by_seed.mean()),
        interval=t_interval(by_seed),
        over_queries=bootstrap((one - other).mean(0)) if one.shape[1] > 1 else None,
    )


def t_interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean of values [n], n > 1: mean +- t(0.975, n - 1) s / sqrt(n) (Student 1908)."""
    half = t_quantile(len(values)) * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean() - half), float(values.mean() + half)


def t_quantile(count: int) -> float:
    """Standard errors to each side of a mean of `count` values that hold 95 % of Student's t."""
    from scipy.stats import t

    return float(t.ppf(0.975, count - 1))


def bootstrap(values: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of values [queries], drawn anew with replacement (Efron 1979). Always the same."""
    draw = np.random.default_rng(0)
    means = [values[draw.integers(len(values), size=len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def dev_scores(model: str, dev: Build, config: Config, dimensions: Sequence[int], folder: str) -> Scores:
    """nDCG@10 of each query, as the exported model has it."""
    limits = (config.evaluation.queries, config.evaluation.documents)

    def measured() -> Scores:
        task = retrieval.load_task(dev, *limits)
        queries, documents = retrieval.encoded(task, model, dimensions)
        return {
            f"dev {retrieval.METRIC} at {dimension}": retrieval.by_query(task, retrieval.cosines(queries, documents, dimension))
            for dimension in dimensions
        }

    return kept(model, ["dev", dev.version, str(limits), str(dimensions)], folder, measured)


def opened(path: str) -> Sets:
    """Reads the sets once: what is wrong with them is told before anything is trained, and other data are not taken for these."""
    from trainer.evaluation.families import local_task

    revisions = [local_task(each).metadata.revision for each in load_sets(path)]
    return Sets(path, digest(storage.file_digest(path), metadata.version("mteb"), *revisions))


def set_scores(model: str, sets: Sets | None, dimensions: Sequence[int], folder: str) -> Scores:
    """The main score of each local set."""
    if sets is None:
        return {}

    def measured() -> Scores:
        from trainer.evaluation.families import evaluate_families

        tasks = evaluate_families(model, sets.path, dimensions=dimensions).tasks
        return {f"{task.name} {task.metric} at {each}": [score] for task in tasks for each, score in task.scores.items()}

    return kept(model, ["sets", sets.version, str(dimensions)], folder, measured)


def kept(model: str, what: Sequence[str], folder: str, measured: Callable[[], Scores]) -> Scores:
    """Scores of a model from scores/, or measured and put there."""
    version = Assets(os.path.join(folder, ".none")).digest(os.path.realpath(model))
    path = os.path.join(folder, "scores", f"{digest(version, *what)[:16]}.json")
    if not os.path.isfile(path):
        log.info("Measuring '%s'", model)
        storage.write_json(path, list(measured().items()))  # JSON objects would have their keys in the order of letters
    return dict(storage.read_json(path))
