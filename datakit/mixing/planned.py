"""What a mixture comes to, before a row is drawn: rows of each category and language, and what the manifest says of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from datakit.errors import UserError
from datakit.mixing.draw import Stratum
from datakit.mixing.feedback import explained, factors
from datakit.mixing.weights import Allocation, allocate, by_language, probabilities
from datakit.recipe import Mixture, Model
from datakit.registry import Category
from datakit.schema import Evaluation

log = logging.getLogger(__name__)


class MixParameters(Model):
    """What decides a mixture. `members` are the categories of each quota, `feedback` is the evaluation that moves its weights."""

    mixture: Mixture
    seed: int
    shard_rows: int
    members: tuple[tuple[str, ...], ...] = ()
    feedback: Evaluation | None = None


def quota_members(mixture: Mixture, entries: Mapping[str, Category]) -> list[list[str]]:
    """The categories of each quota. `entries` says what the recipe's categories are.

    Raises UserError where a quota has none, or where a category is in two.
    """
    members: list[list[str]] = []
    held: dict[str, str] = {}
    for number, quota in enumerate(mixture.quotas):
        place = f"mixture.quotas.{number} ({quota.name})"
        if quota.category is not None:
            pool = [quota.category]
        elif quota.family is not None:
            pool = [name for name, entry in entries.items() if entry.family == quota.family]
        else:
            pool = [name for name, entry in entries.items() if entry.task == quota.task]
        if not pool:
            kinds = sorted({entry.family if quota.family is not None else entry.task for entry in entries.values()})
            raise UserError(f"{place}: no category of the recipe is of that kind; there are {', '.join(kinds)}.")
        for name in pool:
            if name in held:
                raise UserError(
                    f"{place}: the category '{name}' is in the quota of {held[name]} too. A category is in one quota."
                )
            held[name] = quota.name
        members.append(sorted(pool))
    return members


def planned(parameters: MixParameters, available: Mapping[str, int]) -> Allocation:
    """The rows of each category. Logs what the recipe asks for and cannot have; raises UserError where it shall stop."""
    mixture = parameters.mixture
    moved = None if parameters.feedback is None else factors(parameters.feedback, mixture.feedback)
    allocation = allocate(available, mixture, parameters.members, moved)
    if mixture.total is None and mixture.max_epochs <= 1 and mixture.shortfall != "repeat":
        what = [f"the temperature {mixture.temperature:g} changes"] if mixture.temperature != 1 else []
        what += ["the evaluation changes"] if moved else []
        for each in what:
            log.warning(
                "mix: %s nothing here: without 'total', and with 'max_epochs' at most 1, every category gives all its rows under "
                "its cap. Set 'total', or raise 'max_epochs'.",
                each,
            )
    if allocation.shortfall:
        epochs = mixture.repeat_epochs if mixture.shortfall == "repeat" else mixture.max_epochs
        # Without a total only quotas ask for more rows than there are.
        asked, lower = ("mixture.total is", "'total'") if mixture.total else ("the mixture with its quotas is", "the quotas")
        sentence = (
            f"{asked} {allocation.requested} rows, and the {sum(available.values())} training rows give "
            f"{allocation.total} at most with {epochs:g} epochs, the caps and the quotas"
        )
        if mixture.shortfall == "stop":
            raise UserError(
                f"{sentence}. Lower {lower}, raise 'max_epochs' or the caps, or set 'shortfall: renormalise' to take fewer."
            )
        log.warning("mix: %s; %d rows are taken.", sentence, allocation.total)
    if short := ran_out(mixture, available, allocation):
        said = ", ".join(f"'{name}' ({available[name]} rows, its share is {allocation.shares[name]})" for name in short[:5])
        said += f" and {len(short) - 5} more" if len(short) > 5 else ""
        if mixture.shortfall == "stop":
            raise UserError(
                f"Categories run out with 'max_epochs' {mixture.max_epochs:g}: {said}. Lower 'total' or 'temperature', raise "
                "'max_epochs', give them a cap, or set 'shortfall' to 'renormalise' (others give more) or 'repeat'."
            )
        log.info("mix: categories run out: %s; shortfall is '%s'.", said, mixture.shortfall)
    return allocation


def ran_out(mixture: Mixture, available: Mapping[str, int], allocation: Allocation) -> list[str]:
    """The categories whose share is more than their rows give in `max_epochs`; a cap that is reached first is no running out."""
    return [
        name
        for name, share in allocation.shares.items()
        if allocation.limits[name] < min(share, mixture.caps.get(name, share)) and available[name]
    ]


def strata(
    mixture: Mixture, allocation: Allocation, available: Mapping[str, int], spoken: Mapping[str, Mapping[str, int]]
) -> tuple[dict[Stratum, int], dict[Stratum, int]]:
    """Rows that each stratum shall give, and those it has; of strata with rows."""
    if mixture.language_temperature is None:
        there = {(name, ""): rows for name, rows in available.items() if rows}
        return {each: allocation.rows[each[0]] for each in there}, there
    wanted, there = dict[Stratum, int](), dict[Stratum, int]()
    for name, counts in spoken.items():
        for language, rows in by_language(allocation.rows[name], counts, mixture).items():
            wanted[name, language], there[name, language] = rows, counts[language]
    return wanted, there


def notes(
    parameters: MixParameters,
    available: Mapping[str, int],
    allocation: Allocation,
    spoken: Mapping[str, Mapping[str, int]],
    wanted: Mapping[Stratum, int],
) -> dict[str, Any]:
    """What the manifest says: for each category its rows, its limit, p_i, what was taken, how often, and its languages."""
    mixture, feedback = parameters.mixture, parameters.feedback
    p = before = probabilities(available, mixture.temperature)
    result: dict[str, Any] = {}
    if feedback is not None:
        p = probabilities(available, mixture.temperature, factors(feedback, mixture.feedback))
        plain = allocate(available, mixture, parameters.members).rows
        result["feedback"] = explained(feedback, mixture.feedback, before, p, plain)
    quotas = {name: quota.name for quota, pool in zip(mixture.quotas, parameters.members, strict=True) for name in pool}
    categories: dict[str, Any] = {}
    for name, rows in allocation.rows.items():
        languages = {language: {"available": there} for language, there in spoken.get(name, {}).items()}
        for language, entry in languages.items():
            if (name, language) in wanted:
                entry["rows"] = wanted[name, language]
        categories[name] = {
            "available": available[name],
            "limit": allocation.limits[name],
            "probability": round(p[name], 6),
            "rows": rows,
            "share": round(rows / allocation.total, 6) if allocation.total else 0.0,
            "epochs": round(rows / available[name], 6) if available[name] else 0.0,
            **({"quota": quotas[name]} if name in quotas else {}),
            "languages": languages,
        }
    return result | {
        "temperature": mixture.temperature,
        "language_temperature": mixture.language_temperature,
        "shortfall": mixture.shortfall,
        "ran_out": ran_out(mixture, available, allocation),
        "batch_groups": mixture.batch_groups,
        "requested": allocation.requested,
        "total": allocation.total,
        "categories": categories,
    }
