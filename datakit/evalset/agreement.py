"""Reads the labels of an evaluation set: how far annotators agree, what the labels say of the set, and judgements from them."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from textwrap import shorten
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from datakit import storage
from datakit.calibrate import wilson
from datakit.errors import UserError
from datakit.evalset import labels
from datakit.evalset.draw import POSITIVE, write_lines, write_qrels

MOST_SHOWN = 10


def cohen_kappa(first: Sequence[int], second: Sequence[int], weighted: bool = False) -> float | None:
    """Agreement of two annotators beyond chance, at most 1 (Cohen 1960). None where both always give one and the same grade.

    `weighted`: a disagreement counts by how far the grades lie apart (Cohen 1968, linear weights), not all alike.
    """
    grades = np.arange(max([*first, *second], default=0) + 1)
    observed = np.zeros((len(grades), len(grades)))
    np.add.at(observed, (list(first), list(second)), 1)
    distance = np.abs(np.subtract.outer(grades, grades)).astype(float)
    if not weighted:
        distance = (distance > 0).astype(float)
    chance = (distance * np.outer(observed.sum(1), observed.sum(0))).sum() / max(1, len(first))
    return None if chance == 0 else float(1 - (distance * observed).sum() / chance)


def krippendorff_alpha(units: Sequence[Sequence[int]], ordinal: bool = False) -> float | None:
    """Agreement of any number of annotators beyond chance, of whom each labelled what they labelled (Krippendorff 2011,
    "Computing Krippendorff's Alpha-Reliability"). None where all labels are alike, or no unit has two of them.

    `units`: the grades that each pair was given. `ordinal`: grades have an order, and more labels between two mean more distance.
    """
    size = max((grade for unit in units for grade in unit), default=0) + 1
    counts = np.array([np.bincount(unit, minlength=size) for unit in units if len(unit) > 1], float).reshape(-1, size)
    weighed: NDArray[Any] = counts.T / (counts.sum(1) - 1)
    coincidences = weighed @ counts - np.diag(weighed.sum(1))
    of = coincidences.sum(0)
    if ordinal:
        middle = np.cumsum(of) - of / 2
        distance = np.subtract.outer(middle, middle) ** 2
    else:
        distance = 1 - np.eye(size)
    chance = (distance * np.outer(of, of)).sum() / max(1, of.sum() - 1)
    return None if chance == 0 else float(1 - (distance * coincidences).sum() / chance)


def agreement(folder: str) -> dict[str, Any]:
    """Figures of all labels-NAME.jsonl in the folder. Writes agreement.json, disagreements.jsonl and qrels/annotated.tsv.

    A pair's grade is the one that most annotators gave; of a tie the lower one, and the tie is counted and listed. Judged are the
    queries whose pairs all have a label; those without a relevant document cannot be measured, and are left out.
    """
    pairs = {each["pair"]: each for each in labels.pairs_of(folder)}
    sources = {each["pair"]: each["source"] for each in labels.records(folder, "key.jsonl")}
    found = {name: labels.read(path, set(pairs)) for name, path in labels.annotators(folder).items()}
    given = {name: grades for name, grades in found.items() if grades}
    if not given:
        raise UserError(f"'{folder}' has no labels (labels-NAME.jsonl). Give some: datakit annotate {folder} --annotator NAME.")
    of = {pair: {name: grades[pair] for name, grades in given.items() if pair in grades} for pair in pairs}
    agreed = {pair: majority(list(each.values())) for pair, each in of.items() if each}
    grades = {pair: grade for pair, (grade, _) in agreed.items()}
    several = [list(each.values()) for each in of.values() if len(each) > 1]
    queries: dict[str, list[str]] = {}
    for pair, each in pairs.items():
        queries.setdefault(each["query_id"], []).append(pair)
    whole = {query: members for query, members in queries.items() if grades.keys() >= set(members)}
    judged = {query: members for query, members in whole.items() if any(grades[pair] for pair in members)}
    disputed = [
        {**pairs[pair], "source": sources[pair], "labels": each, "grade": grades[pair], "tie": agreed[pair][1]}
        for pair, each in of.items()
        if len(set(each.values())) > 1
    ]
    disputed.sort(key=lambda line: (-(max(line["labels"].values()) - min(line["labels"].values())), line["pair"]))
    miners = sorted({sources[pair] for pair in grades} - {POSITIVE})
    facts = {
        "schema": 1,
        "pairs": len(pairs),
        "labelled": {name: len(each) for name, each in given.items()},
        "two": [_two(one, other, of.values()) for one, other in itertools.combinations(given, 2)],
        "alpha": {
            "pairs": len(several),
            "nominal": krippendorff_alpha(several),
            "ordinal": krippendorff_alpha(several, ordinal=True),
        },
        "disagreements": len(disputed),
        "ties": sum(tied for _, tied in agreed.values()),
        "positives": _graded([grade for pair, grade in grades.items() if sources[pair] == POSITIVE]),
        "negatives": _graded([grade for pair, grade in grades.items() if sources[pair] != POSITIVE]),
        "miners": {name: _graded([grade for pair, grade in grades.items() if sources[pair] == name]) for name in miners},
        "queries": {
            "judged": len(judged),
            "without_relevant": len(whole) - len(judged),
            "not_all_labelled": len(queries) - len(whole),
        },
    }
    write_lines(folder, "disagreements.jsonl", disputed)
    write_qrels(
        os.path.join(folder, "qrels/annotated.tsv"),
        sorted((query, pairs[pair]["document_id"], grades[pair]) for query, members in judged.items() for pair in members),
    )
    storage.write_json(os.path.join(folder, "agreement.json"), facts)
    return facts


def majority(grades: Sequence[int]) -> tuple[int, bool]:
    """The grade given most often, the lowest of several such, and whether there are several."""
    counts = Counter(grades)
    most = [grade for grade, count in counts.items() if count == max(counts.values())]
    return min(most), len(most) > 1


def _two(one: str, other: str, labelled: Iterable[Mapping[str, int]]) -> dict[str, Any]:
    both = [(each[one], each[other]) for each in labelled if one in each and other in each]
    first, second = [grade for grade, _ in both], [grade for _, grade in both]
    return {
        "annotators": [one, other],
        "pairs": len(both),
        "same": sum(one == other for one, other in both),
        "kappa": cohen_kappa(first, second),
        "weighted_kappa": cohen_kappa(first, second, weighted=True),
    }


def _graded(grades: Sequence[int]) -> dict[str, Any]:
    """How many have each grade, and the share of those at least partly relevant with its 95 % interval."""
    hits = sum(grade > 0 for grade in grades)
    share = {"share": hits / len(grades), "interval": list(wilson(hits, len(grades)))} if grades else {}
    return {"labelled": len(grades), "grades": [grades.count(grade) for grade in range(len(labels.GRADES))], "relevant": share}


def shown(folder: str, facts: Mapping[str, Any]) -> RenderableType:
    """The figures for a person, and the widest disagreements."""
    parts: list[RenderableType] = []
    if facts["two"]:
        table = Table(title="Agreement of two annotators", title_justify="left")
        for heading in ("annotators", "pairs", "same label", "kappa", "weighted kappa"):
            table.add_column(heading, justify="left" if heading == "annotators" else "right")
        for two in facts["two"]:
            same = _share(two["same"] / two["pairs"], wilson(two["same"], two["pairs"])) if two["pairs"] else "-"
            figures = (_figure(two["kappa"]), _figure(two["weighted_kappa"]))
            table.add_row(" and ".join(two["annotators"]), f"{two['pairs']:,}", same, *figures)
        alpha = facts["alpha"]
        parts += [
            table,
            f"Krippendorff's alpha of the {alpha['pairs']:,} pairs that several labelled: {_figure(alpha['nominal'])}, with the "
            f"order of the grades {_figure(alpha['ordinal'])}.",
        ]
    else:
        parts.append(f"One annotator ({next(iter(facts['labelled']))}): agreement needs a second one.")
    table = Table(title="What the labels say of the set", title_justify="left")
    for heading in ("", "labelled", *labels.GRADES, "at least partly relevant"):
        table.add_column(heading, justify="right" if heading else "left")
    lines = {"positives": facts["positives"], "hard negatives": facts["negatives"]}
    for name, each in (lines | {f"  {miner}": each for miner, each in facts["miners"].items()}).items():
        share = each["relevant"]
        said = _share(share["share"], share["interval"]) if share else "-"
        table.add_row(name, f"{each['labelled']:,}", *(f"{count:,}" for count in each["grades"]), said)
    queries = facts["queries"]
    parts += [
        table,
        "Hard negatives that are relevant are false negatives; positives that are not, wrong pairs.",
        f"qrels/annotated.tsv judges {queries['judged']:,} queries. Left out: {queries['not_all_labelled']:,} with pairs without "
        f"a label, {queries['without_relevant']:,} without a relevant document.",
    ]
    if facts["disagreements"]:
        parts.append(
            f"Disagreements: {facts['disagreements']:,}, all in disagreements.jsonl. Ties, of which the lower grade counts: "
            f"{facts['ties']:,}."
        )
        table = Table(title="The widest disagreements", title_justify="left")
        for heading in ("pair", "labels", "query", "document"):
            table.add_column(heading, no_wrap=heading == "pair")
        for each in labels.records(folder, "disagreements.jsonl")[:MOST_SHOWN]:
            said = ", ".join(f"{name} {grade}" for name, grade in each["labels"].items()) + (" (tie)" if each["tie"] else "")
            # As text: nothing in it is markup of the terminal.
            table.add_row(each["pair"], said, *(Text(shorten(each[name], 90, placeholder="…")) for name in ("query", "document")))
        parts.append(table)
    return Group(*parts)


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _share(share: float, interval: Sequence[float]) -> str:
    return f"{share:.1%} ({interval[0]:.1%} to {interval[1]:.1%})"
