"""From an evaluation of a model to a factor for the weight of each category in the next build.

For category i with score s_i over n_i rows (higher is better), and its settings in the recipe (`mixture.feedback`):

    c_i = n_i / (n_i + rows)                                          confidence: a score of few rows says little
    m   = sum_j c_j s_j / sum_j c_j                                   the mean, over the categories with a score
    a   = sum_j c_j |s_j| / sum_j c_j                                 its scale, so that any metric will do
    raise_i = clip((m - s_i) / (poor a), 0, 1)                        the model is poor there
    lower_i = clip(1 - (max h_i - min h_i) / (w plateau |h_i|), 0, 1) the score no longer moves
    f_i = bound ^ (c_i (raise_i - lower_i))                           in [1 / bound, bound]

h_i are the score and the `window` older ones before it, w the steps between them, |h_i| their mean size. With fewer than two
older scores (one, where `window` is 1) nothing is called a plateau; a score that falls is none. The category's weight is then
f_i n_i^(1/T).

Why so: weights rise where the model is poor, and fall where it no longer gains. A category that is poor and no longer gains is
pushed both ways: more of the same rows has not helped. The factor is exponential, so that raising and lowering are alike, and c_i
is the usual shrinkage towards the mean (Efron and Morris 1975), with a fixed prior weight. It is a rule of thumb, not the optimum
of anything; DoReMi (arXiv 2305.10429) also moves weights by e^(excess loss).

A round is a pure function of the recipe and the evaluation: factors apply to the recipe's weights and do not pile up over rounds,
so `bound` bounds what feedback does in all. A share, before limits, changes by bound^2 at most, since the weights of the others
change too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from datakit import storage
from datakit.errors import UserError
from datakit.recipe import Feedback
from datakit.schema import CategoryScore, Evaluation

EVALUATION_VERSION = 1


def load_evaluation(path: str, categories: Iterable[str]) -> Evaluation:
    """The file evaluation.json. Raises UserError where it is none, or scores a category that the recipe does not have."""
    try:
        found = Evaluation.model_validate_json(storage.read_bytes(path))
    except FileNotFoundError as error:
        raise UserError(f"The evaluation '{path}' does not exist. `trainer` writes one: DIR/evaluation.json.") from error
    except IsADirectoryError as error:
        raise UserError(f"'{path}' is a folder; the file evaluation.json is needed here.") from error
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, each['loc'])) or 'the file'}: {each['msg']}" for each in error.errors()[:5])
        raise UserError(
            f"'{path}' is no evaluation: {said}. It must hold schema, model, build, metric, and for each category score, rows "
            "and history, as `trainer` writes it."
        ) from error
    if found.schema_version != EVALUATION_VERSION:
        raise UserError(f"'{path}' has the schema {found.schema_version}, and this datakit reads {EVALUATION_VERSION}.")
    if not found.categories:
        raise UserError(f"'{path}' has no score of any category, so it says nothing about the weights.")
    known = list(categories)
    if unknown := [name for name in found.categories if name not in known]:
        raise UserError(
            f"'{path}' has scores of {_listed(unknown)}, which the recipe does not have (it has: {_listed(known, 20)}). "
            "Was another recipe evaluated? Take these out of the file, or name them in the recipe."
        )
    for name, each in found.categories.items():
        if not all(map(math.isfinite, [each.score, *each.history])):
            raise UserError(f"'{path}': the score or the history of '{name}' is no finite number.")
    return found


def _listed(names: list[str], most: int = 5) -> str:
    said = ", ".join(f"'{name}'" for name in names[:most])
    return f"{said} and {len(names) - most} more" if len(names) > most else said


def factors(evaluation: Evaluation, settings: Feedback) -> dict[str, float]:
    """f_i for each category that the evaluation has; the others keep their weight. The formula stands at the top of this file."""
    mean, scale = _level(evaluation.categories, settings)
    bound = math.log(settings.bound)
    result = {}
    for name, each in evaluation.categories.items():
        push = poor(each, mean, scale, settings) - plateau(each, settings)
        # Rounded, so that manifest and rows tell of the same number, and clipped, since exp(log(x)) may be a last bit above x.
        factor = round(math.exp(bound * confidence(each, settings) * push), 6)
        result[name] = min(max(factor, 1 / settings.bound), settings.bound)
    return result


def _level(scores: Mapping[str, CategoryScore], settings: Feedback) -> tuple[float, float]:
    """The mean score and the mean size of a score, both weighted by confidence."""
    whole = sum(confidence(each, settings) for each in scores.values())
    if not whole:
        return 0.0, 0.0
    mean = sum(confidence(each, settings) * each.score for each in scores.values()) / whole
    return mean, sum(confidence(each, settings) * abs(each.score) for each in scores.values()) / whole


def confidence(score: CategoryScore, settings: Feedback) -> float:
    """c_i: 0 without rows, 1/2 at `rows`, near 1 with many."""
    return score.rows / (score.rows + settings.rows) if score.rows else 0.0


def poor(score: CategoryScore, mean: float, scale: float, settings: Feedback) -> float:
    """raise_i, from 0 (the score is the mean, or better) to 1."""
    whole = settings.poor * scale
    return min(1.0, max(0.0, (mean - score.score) / whole)) if whole else 0.0


def plateau(score: CategoryScore, settings: Feedback) -> float:
    """lower_i, from 0 (the score moves, or there are too few to tell) to 1 (it is the same each time)."""
    seen = [*score.history, score.score][-(settings.window + 1) :]
    steps = len(seen) - 1
    if steps < min(2, settings.window):
        return 0.0
    moved = max(seen) - min(seen)
    allowed = steps * settings.plateau * sum(map(abs, seen)) / len(seen)
    return max(0.0, 1.0 - moved / allowed) if allowed else float(not moved)


def explained(
    evaluation: Evaluation, settings: Feedback, before: Mapping[str, float], after: Mapping[str, float], rows: Mapping[str, int]
) -> dict[str, Any]:
    """What manifest and report tell: `before` and `after` are p_i without and with the factors, `rows` those without them."""
    mean, scale = _level(evaluation.categories, settings)
    found = factors(evaluation, settings)
    result: dict[str, Any] = {
        "model": evaluation.model,
        "build": evaluation.build,
        "metric": evaluation.metric,
        "mean": round(mean, 6),
        "bound": settings.bound,
        "categories": {},
    }
    for name in before:
        each = evaluation.categories.get(name)
        entry: dict[str, Any] = {
            "factor": found.get(name, 1.0),
            "weight_before": round(before[name], 6),
            "weight_after": round(after[name], 6),
            "rows_before": rows[name],
            "why": "no score: keeps its weight",
        }
        if each is not None:
            entry |= {"score": each.score, "rows": each.rows, "history": list(each.history)}
            entry["why"] = _why(each, poor(each, mean, scale, settings), plateau(each, settings), found[name])
        result["categories"][name] = entry
    return result


def _why(score: CategoryScore, raised: float, lowered: float, factor: float) -> str:
    if not score.rows:
        return "no rows were measured: keeps its weight"
    said = [text for text, there in (("below the mean", raised), ("on a plateau", lowered)) if there]
    if not said:
        return "neither below the mean nor on a plateau: keeps its weight"
    change = "raised" if factor > 1 else "lowered" if factor < 1 else "keeps its weight"
    return f"{' and '.join(said)}: {change}"
