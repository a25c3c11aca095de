"""What came of a stage, what its gate makes of that, and what stands at the top of the run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Literal

from pydantic import BaseModel

from datakit import storage
from trainer import curves, distributed
from trainer.config import Gate, Stage
from trainer.evaluation import objectives, retrieval
from trainer.evaluation.objectives import Measured, Score
from trainer.evaluation.retrieval import Task
from trainer.model import Encoder
from trainer.report import Attempt, ByDimension, Metrics, StageMetrics, evaluation
from trainer.run import Run, point

Decision = Literal["go on", "repeat", "stop"]


class Outcome(BaseModel):
    """metrics.json of one attempt at a stage, written last: with it the attempt is finished."""

    learning_rate: float
    steps: int
    seconds: float
    taken: int  # the step whose weights were exported; the next stage begins with them
    before: ByDimension
    after: ByDimension
    objectives: dict[str, Score] = {}  # after

    @property
    def scores(self) -> tuple[float, float]:
        """The dev metric before and after, at the widest dimension."""
        return self.before[max(self.before)].score, self.after[max(self.after)].score

    @property
    def gain(self) -> float:
        return self.scores[1] - self.scores[0]


def decide(gate: Gate | None, attempts: Sequence[Outcome]) -> Decision:
    """What follows after the last of some attempts at a stage."""
    if gate is None or attempts[-1].gain >= gate.min_gain:
        return "go on"
    if len(attempts) <= gate.repeats:
        return "repeat"
    return "go on" if gate.otherwise == "go_on" else "stop"


def best(attempts: Sequence[Outcome]) -> int:
    """The place of the attempt that gained most: the one that passed where one did, as no other reached as much."""
    return max(range(len(attempts)), key=lambda place: attempts[place].gain)


def of_stage(stage: Stage, attempts: Sequence[Outcome]) -> StageMetrics:
    chosen = attempts[best(attempts)]
    records = [
        Attempt(
            learning_rate=each.learning_rate,
            before=each.scores[0],
            after=each.scores[1],
            needed=stage.gate.min_gain if stage.gate else None,
            decision=decide(stage.gate, attempts[: number + 1]),
        )
        for number, each in enumerate(attempts)
    ]
    return StageMetrics(
        name=stage.name,
        steps=chosen.steps,
        seconds=chosen.seconds,
        after=chosen.after,
        attempts=records,
        # A stage without objectives is trained on all rows.
        trained=list(stage.objectives or chosen.objectives),
        objectives=chosen.objectives,
    )


def baseline(run: Run, encoder: Encoder, task: Task, dimensions: list[int], measured: Mapping[str, Measured]) -> ByDimension:
    """The results of the base as it came, and of what stands beside it: measured once, before the training, and kept."""
    path = run.path("before.json")
    if not os.path.isfile(path):
        beside = {"BM25": retrieval.evaluate_bm25(task)} if run.config.evaluation.bm25 else {}
        for name in run.config.evaluation.encoders:
            ((dimension, found),) = retrieval.evaluate_encoder(task, name).items()
            short = f"{_short(name)} ({dimension})"
            # Models of this trainer are all in a folder `model`.
            beside[f"{name} ({dimension})" if short in beside else short] = found
        before = retrieval.measure(encoder, task, dimensions)
        metrics = Metrics(
            name=run.config.name,
            version=run.version,
            build=run.build.version,
            queries=len(task.queries),
            documents=len(task.documents),
            skipped=task.skipped,
            before=before,
            stages=[],
            after=before,
            beside=beside,
            objectives=objectives.measure(encoder, measured),
        )
        storage.write_json(path, metrics.model_dump(mode="json"))
    return Metrics.model_validate(storage.read_json(path)).before


def _short(name: str) -> str:
    """A name for a table: the package or the last part of a path."""
    package = name.startswith("package:")
    return name.removeprefix("package:").split("/")[0] if package else os.path.basename(os.path.normpath(name))


def metrics_of(run: Run, stages: Sequence[StageMetrics]) -> Metrics:
    """The run as far as it has come; the model that stands at its top is that of the last stage that was passed."""
    base = Metrics.model_validate(storage.read_json(run.path("before.json")))
    passed = [stage for stage in stages if stage.attempts[-1].decision == "go on"]
    after = passed[-1].after if passed else base.before
    lost = objectives.forgotten([stage.objectives for stage in stages], [stage.trained for stage in stages])
    told = [stage.model_copy(update={"forgotten": each}) for stage, each in zip(stages, lost, strict=True)]
    return base.model_copy(update={"version": run.version, "stages": told, "after": after})


@distributed.main_first()
def publish(run: Run, metrics: Metrics, model: str | None) -> None:
    """Puts evaluation.json, metrics.json, report.html and a link to the folder `model` at the top of the run."""
    content = metrics.model_dump(mode="json")
    told, page = run.path("metrics.json"), run.path("report.html")
    if os.path.isfile(page) and os.path.isfile(told) and storage.read_json(told) == content:
        return
    # The page is written last, from the numbers: where it stands, all is there.
    with suppress(FileNotFoundError):
        os.remove(page)
    if model is not None:
        point(run.path("model"), model)
    widest = max(metrics.after)
    scores = evaluation(run.title, run.build.version, metrics.after[widest], metrics.before[widest])
    storage.write_json(run.path("evaluation.json"), scores.model_dump(mode="json", by_alias=True))
    storage.write_json(told, content)
    curves.write(run.folder)
