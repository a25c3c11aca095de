"""Several objectives in one stage: which rows are whose, whose batch it is, and how much its loss weighs.

With one batch of each objective in a step (training.accumulate = their number), the loss is sum of lambda_t L_t (the brief, V)
over the batches' shares of rows. Weights are those of the config, until `lagging` raises those of objectives that lag behind.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Container, Iterator, Mapping, Sequence

import pyarrow as pa

from datakit.errors import UserError
from datakit.opened import Build
from trainer.config import Lagging, Objective, Stage

log = logging.getLogger(__name__)


def names_of(block: pa.RecordBatch, objectives: Mapping[str, Objective]) -> list[str]:
    """The objective of each row: the first that names its task or its category, '' where none does."""
    if not objectives:
        return [""] * block.num_rows
    pairs = list(zip(block.column("task").to_pylist(), block.column("category").to_pylist(), strict=True))
    names = {
        pair: next((name for name, each in objectives.items() if pair[0] in each.tasks or pair[1] in each.categories), "")
        for pair in set(pairs)
    }
    return [names[pair] for pair in pairs]


def those_of(block: pa.RecordBatch, objectives: Mapping[str, Objective]) -> pa.RecordBatch:
    """The rows of a block that have an objective; all where there are no objectives."""
    return block.filter(pa.array([bool(name) for name in names_of(block, objectives)], pa.bool_())) if objectives else block


def selected(blocks: Iterator[pa.RecordBatch], objectives: Mapping[str, Objective]) -> Iterator[pa.RecordBatch]:
    """those_of many blocks. What was left out stands in the log."""
    left_out = 0
    for block in blocks:
        kept = those_of(block, objectives)
        left_out += block.num_rows - kept.num_rows
        yield kept
    if left_out:
        log.warning("%d rows are left out: they are of none of the objectives %s.", left_out, ", ".join(objectives))


def check(stage: Stage, build: Build, found: Container[str]) -> None:
    """Raises UserError where an objective of a stage is not among those that were found in its rows."""
    if absent := [name for name in stage.objectives if name not in found]:
        wanted = stage.objectives[absent[0]]
        raise UserError(
            f"Stage '{stage.name}': no row that it can be trained on in 'train' of '{build.path}' is of objective '{absent[0]}' "
            f"(tasks: {wanted.tasks}, categories: {wanted.categories}; graded rows need loss.similarity, and a row is of the "
            "first objective that names it). Name others, or leave it out."
        )


def in_turn(batches: list[tuple[int, int, int]], objectives: Sequence[str]) -> list[tuple[int, int, int]]:
    """Batches (group, start, stop) so that objectives, one for each group, take turns, until the first has no more.

    As in round-robin sampling of sentence-transformers: of larger objectives an epoch sees a part, each epoch another one.
    """
    by_objective: dict[str, list[tuple[int, int, int]]] = {name: [] for name in sorted(set(objectives))}
    for batch in batches:
        by_objective[objectives[batch[0]]].append(batch)
    return [batch for together in zip(*by_objective.values(), strict=False) for batch in together]


Progress = Mapping[str, Mapping[str, float]]


def weights(stage: Stage, progress: Progress) -> dict[str, float]:
    """The weight of each objective: that of the config, times lambda, which is 1 at first."""
    return {name: each.weight * progress.get(name, {}).get("lambda", 1.0) for name, each in stage.objectives.items()}


def with_losses(
    progress: Progress, losses: Sequence[tuple[str, float]], step: int, config: Lagging
) -> dict[str, dict[str, float]]:
    """The progress of each objective after a step (from 0) with these losses of its batches; any JSON-able state of a checkpoint.

    r_t is the mean loss of the last period of `every` steps divided by that of the first: the loss ratio of GradNorm (Chen et al.
    2018, arXiv 1711.02257, section 3.1), with means in place of single steps. After each period the softmax of Dynamic Weight
    Average (Liu et al. 2019, arXiv 1803.10704, eq. 7) gives lambda_t = T exp(r_t / temperature) / sum of exp(r_i / temperature)
    over T objectives: of mean 1, and 1 for all after the first. An objective without a batch in a period keeps its r_t.
    """
    found = {name: dict(values) for name, values in progress.items()}
    for name, loss in losses:
        values = found.setdefault(name, {"lambda": 1.0, "ratio": 1.0, "sum": 0.0, "batches": 0.0})
        values["sum"] += loss
        values["batches"] += 1.0
    if (step + 1) % config.every:
        return found
    for values in found.values():
        if values["batches"]:
            mean = values["sum"] / values["batches"]
            first = values.setdefault("first", mean)
            values |= {"sum": 0.0, "batches": 0.0, "ratio": mean / first if first > 0 else 1.0}
    highest = max(values["ratio"] for values in found.values())
    powers = {name: math.exp((values["ratio"] - highest) / config.temperature) for name, values in found.items()}
    for name, power in powers.items():
        found[name]["lambda"] = len(powers) * power / sum(powers.values())
    return found
