"""`trainer sweep`: a search over values of a run file by TPE (Bergstra et al. 2011), as optuna has it.

In the output: `identity.json` (what decides the trials), `trials/NUMBER` (ordinary runs, from 1, each with `trial.json`, which is
written last and makes it finished), `teacher/` (for all of them), `sweep.json`, `sweep.html` and `best.yaml`.

The values of a trial are a pure function of the sweep file and the trials before it, so nothing else is kept of where the search
is. Trials share the leading stages that are the same in the first one: they are links to it. Gates are left out, since runs of
different length could not be compared.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

import yaml
from pydantic import BaseModel, Field, ValidationError
from rich.console import Console

from datakit import storage
from datakit.errors import BuildError, MissingExtra, UserError
from datakit.opened import Build, open_build
from datakit.recipe import Model, Path
from datakit.recipe_file import load_model
from datakit.schema import digest
from trainer import stages
from trainer.config import Config
from trainer.evaluation.retrieval import METRIC
from trainer.model import load_encoder
from trainer.run import Run, claim, open_run
from trainer.studies.ablation import common_stages, linked
from trainer.studies.sweep_space import Parameter, Place, Value, Values, own_values, places_of, with_values

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)


class Metric(Model):
    """nDCG@10 of the validation split, as the exported model has it."""

    dimension: int | None = Field(None, ge=1, description="One that a stage trains; the widest when absent.")


class Sweep(Model):
    """A sweep file. Paths begin where the command is given, as those in run files do."""

    run: Path = Field(description="The run file whose values are searched.")
    build: Path | None = Field(None, description="A built data set; --data takes its place.")
    trials: int = Field(ge=1, description="May be raised later: the same command goes on.")
    seed: int = Field(0, description="Of the search; the run file has that of the trials.")
    metric: Metric = Metric()
    space: dict[str, Parameter] = Field(
        min_length=1, description="By dotted place of the run file, such as stages.NAME.optimizer.learning_rate."
    )


class Trial(BaseModel):
    """trial.json: what came of a trial, written when it is done."""

    number: int
    values: Values
    score: float | None = None  # None where it failed
    seconds: float = 0.0  # of its own steps: those of shared stages are not among them
    shared: list[str] = []  # stages of the first trial that were not trained again
    failed: str | None = None


class Report(BaseModel):
    """sweep.json."""

    name: str
    build: str  # version
    metric: str
    gates: bool  # whether the run file has gates, which were left out
    space: dict[str, Parameter]
    outside: list[str]  # places whose value in the run file lies outside the space
    trials: list[Trial]
    importance: dict[str, float]  # shares of the variance; empty where there is none

    @property
    def ranked(self) -> list[Trial]:
        """Trials that have a score, best first; of equal ones the earlier."""
        return sorted((each for each in self.trials if each.score is not None), key=lambda each: -(each.score or 0.0))


@dataclass(frozen=True)
class Search:
    """A sweep file with all that it names."""

    wanted: Sweep
    config: Config  # without gates
    build: Build
    folder: str
    places: dict[str, Place]

    def path(self, number: int, *parts: str) -> str:
        return os.path.join(self.folder, "trials", str(number), *parts)

    def run(self, number: int, values: Mapping[str, Value]) -> Run:
        return open_run(with_values(self.config, self.places, values), self.build, self.path(number))


def sweep(file: str, data: str | None, output: str | None, console: Console) -> tuple[str, Report]:
    """Does all trials, or what is left of them, and returns the folder and what they say. Writes a report after each.

    Raises UserError, before anything is trained, where the space is none of the run file's, or the folder is of another sweep.
    """
    from trainer.studies.sweep_report import write

    try:
        import optuna
    except ImportError as error:
        raise MissingExtra("trainer sweep", "optuna", "sweep") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    wanted = load_model(file, Sweep)
    given = load_model(wanted.run, Config)
    if data is None and wanted.build is None:
        raise UserError(
            f"{file}: build is missing: the data set to train on. Give it there, or with --data datasets/NAME/latest."
        )
    config = given.without_gates()
    folder = os.path.abspath(os.path.expanduser(output or os.path.join("sweeps", config.name)))
    search = Search(wanted, config, open_build(data or str(wanted.build)), folder, places_of(wanted.space, config))
    check(search)
    claim_folder(search)
    own = own_values(wanted.space, search.places, search.config)
    report = Report(
        name=config.name, build=search.build.version, gates=config != given, space=wanted.space, trials=[], importance={},
        metric=f"dev {METRIC} at {wanted.metric.dimension or 'the widest dimension'}",
        outside=[path for path in wanted.space if path not in own],
    )  # fmt: skip
    for number in range(1, wanted.trials + 1):
        path = search.path(number, "trial.json")
        fresh = not os.path.isfile(path)
        if fresh:
            values = proposed(wanted, report.trials) | (own if number == 1 else {})
            log.info("Trial %d of %d: %s", number, wanted.trials, ", ".join(f"{name} {each}" for name, each in values.items()))
            if number == 1:
                lying = f" but for {', '.join(report.outside)}, outside the space" if report.outside else ""
                log.info("Trial 1 has the run file's own values%s", lying)
            storage.write_json(path, tried(search, number, values, report.trials, console).model_dump(mode="json"))
        trial = Trial.model_validate(storage.read_json(path))
        report.trials.append(trial)
        if fresh:
            log.info("Trial %d: %s", number, f"failed. {trial.failed}" if trial.failed else f"{report.metric} {trial.score:.4f}")
        if fresh or number == wanted.trials:
            report = report.model_copy(update={"importance": importance(wanted, report.trials)})
            if report.ranked:
                write_best(search, given, report)
            write(folder, report)
    return folder, report


def said(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, each['loc'])) or 'the file'}: {each['msg']}" for each in error.errors()[:3])


def check(search: Search) -> None:
    """Tries each extreme of the space alone, and loads each base that comes of it: a mistake is told before the first trial."""
    by_model: dict[str, list[Config]] = {}
    for path, parameter in search.wanted.space.items():
        for value in parameter.probes():
            try:
                changed = with_values(search.config, search.places, {path: value})
            except ValidationError as error:
                raise UserError(
                    f"space: '{path}' may be {value!r}, and the run file does not allow it: {said(error)}."
                ) from error
            by_model.setdefault(changed.model.model_dump_json(), []).append(changed)
    for configs in by_model.values():
        encoder = load_encoder(configs[0].model)
        for config in configs:
            trained, asked = stages.matryoshka_dimensions(config, encoder), search.wanted.metric.dimension
            if asked is not None and asked not in trained:
                raise UserError(f"metric.dimension is {asked}; allowed: one that a stage trains: {', '.join(map(str, trained))}.")


def claim_folder(search: Search) -> None:
    """Writes down what the folder is for, when all stages can begin. The number of trials may change.

    Raises UserError where it is for something else.
    """
    # Nothing lies at that path or is written there: it is asked what decides the weights.
    run = open_run(search.config, search.build, search.path(0))
    identity = {name: each for name, each in run.identity.items() if name != "processes"}
    identity |= search.wanted.model_dump(mode="json", include={"space", "metric"}) | {"seed of the sweep": search.wanted.seed}
    path = os.path.join(search.folder, "identity.json")
    if os.path.isfile(path):
        found = storage.read_json(path)
        if differing := sorted(name for name in {*found, *identity} if found.get(name) != identity.get(name)):
            raise UserError(
                f"'{search.folder}' holds a sweep that differs in: {', '.join(differing)}. Its trials cannot be compared with "
                "new ones. Choose another --output, or move that folder away."
            )
    elif os.path.lexists(search.folder) and not (os.path.isdir(search.folder) and not os.listdir(search.folder)):
        raise UserError(f"The output '{search.folder}' is not empty and holds no sweep. Choose another --output.")
    else:
        stages.preflight(run)
        storage.write_json(path, identity)


def tried(search: Search, number: int, values: Values, before: Sequence[Trial], console: Console) -> Trial:
    """The run of a trial, done or gone on with. A trial fails where its values do not go together, or where it diverges."""
    trial = Trial(number=number, values=values)
    try:
        run = search.run(number, values)
    except ValidationError as error:
        return trial.model_copy(update={"failed": f"The run file does not allow these values together: {said(error)}."})
    claim(run)
    os.makedirs(os.path.join(search.folder, "teacher"), exist_ok=True)
    linked(os.path.join(search.folder, "teacher"), run.path("teacher"))
    first = next((each for each in before if os.path.isfile(search.path(each.number, "before.json"))), None)
    if first is not None:
        trial = trial.model_copy(update={"shared": share(run, search.run(first.number, first.values))})
    try:
        _, metrics = stages.do(run.config, search.build, run.folder, console)
    except BuildError as error:
        if (why := diverged(run, error)) is None:
            raise
        return trial.model_copy(update={"failed": why, "seconds": seconds(run)})
    score = metrics.after[search.wanted.metric.dimension or max(metrics.after)].score
    return trial.model_copy(update={"score": score, "seconds": seconds(run)})


def share(run: Run, first: Run) -> list[str]:
    """Links what the first trial has done and this one would do again: leading stages, and what was measured before them."""
    done = takewhile(lambda name: os.path.isfile(first.path(name, "metrics.json")), common_stages(run, first))
    names = list(done)
    if run.identity | {"stages": None} == first.identity | {"stages": None}:
        for name in ("before.json", *names):
            linked(first.path(name), run.path(name))
    return names


def diverged(run: Run, error: BuildError) -> str | None:
    """What loop.stop wrote down, where the error is its own: a full disk is no property of the values."""
    for path in sorted(FilePath(run.folder).glob("*/failed-batch.json")):
        found = storage.read_json(str(path))
        if found["reason"] in str(error):
            return f"Step {found['step']} of stage '{found['stage']}': {found['reason']}."
    return None


def seconds(run: Run) -> float:
    logs = sorted(path for path in FilePath(run.folder).glob("*/log.jsonl") if not path.parent.is_symlink())
    return round(sum(stages.seconds(str(path)) for path in logs), 1)


def frozen(wanted: Sweep, trials: Sequence[Trial]) -> list[FrozenTrial]:
    """The trials as optuna has them. One that failed counts as pruned: TPE learns from it as one worse than all others."""
    from optuna.trial import TrialState, create_trial

    space = {path: parameter.distribution() for path, parameter in wanted.space.items()}
    return [
        create_trial(
            state=TrialState.PRUNED if each.score is None else TrialState.COMPLETE,
            value=each.score,
            params=each.values,
            distributions=dict(space),
        )
        for each in trials
    ]


def proposed(wanted: Sweep, trials: Sequence[Trial]) -> Values:
    """The values of the trial that follows some others, all that decides them: ten are drawn at random, the rest by TPE."""
    import optuna

    seed = int(digest("trial", str(wanted.seed), str(len(trials) + 1))[:8], 16)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    study.add_trials(frozen(wanted, trials))
    asked = study.ask({path: parameter.distribution() for path, parameter in sorted(wanted.space.items())})
    return {path: asked.params[path] for path in wanted.space}


def importance(wanted: Sweep, trials: Sequence[Trial]) -> dict[str, float]:
    """Each parameter's share of the variance of the score: fANOVA (Hutter et al. 2014). Always the same."""
    import optuna

    if len({each.score for each in trials} - {None}) < 2:
        return {}
    study = optuna.create_study(direction="maximize")
    study.add_trials(frozen(wanted, trials))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return {name: float(each) for name, each in optuna.importance.get_param_importances(study, evaluator=evaluator).items()}


def write_best(search: Search, given: Config, report: Report) -> None:
    """best.yaml: the run file, gates included, with the values of the best trial."""
    best = report.ranked[0]
    head = f"# The best of {len(report.trials)} trials: number {best.number}, {report.metric} {best.score:.4f}.\n"
    config = with_values(given, search.places, best.values).model_dump(mode="json")
    text = head + yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    storage.write_bytes(os.path.join(search.folder, "best.yaml"), text.encode())
