"""Training a quality model: fastText on labelled rows, in the manner of DataComp-LM (arXiv 2406.11794, section 4).

Labels are good and poor. `judge` takes them from the scores of a judge, `rejected` from what a build kept and rejected of the
rows that a model wrote, and `corrupted` takes each good row and a copy of it that `corrupt` spoils in one way. Rows of one
document are all learnt from or all held out, and a copy stays with its row. One thread and fixed seeds: equal rows give equal
bytes on one machine.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import polars as pl
import pyarrow as pa

from datakit import storage
from datakit.errors import MissingExtra, UserError
from datakit.filters import quality_features
from datakit.filters.corrupt import CORRUPTIONS, Draw, Pair, varied
from datakit.filters.quality_card import Tested, card, svg, tested
from datakit.filters.quality_model import GOOD, MODEL, POOR, probabilities, score
from datakit.filters.quality_rows import as_build, as_rows, expanded, frame, judged, rows, written
from datakit.filters.sides import Array, positive_is_label
from datakit.opened import Build, open_build
from datakit.recipe import QualityModelFilter
from datakit.schema import digest

NOT_SPOILT = "original"
Labels = Literal["judge", "rejected", "corrupted"]

# Ways that spoil the positive, which a class label is not.
_OF_POSITIVE = ("shuffled_positive", "wrong_positive", "truncated_positive", "repeated_positive", "boilerplate", "markup")
# fastText's own: a few dimensions are enough for two classes; pairs and triples of neighbours are hashed into the buckets.
DIMENSIONS, EPOCHS, RATE, NGRAMS, BUCKETS = 8, 8, 0.2, 3, 60_000
LEAST = 200


@dataclass(frozen=True)
class Labelled:
    """Rows with labels: whether each is poor, which are held out, where the label is from (a corruption, "original", ...).

    `graded` is the number of rows that were left out for their `score`.
    """

    rows: pa.Table
    poor: Array
    held_out: Array
    origin: Array
    graded: int = 0

    def where(self, mask: Array) -> Labelled:
        return Labelled(self.rows.filter(pa.array(mask)), self.poor[mask], self.held_out[mask], self.origin[mask], self.graded)


def held_out(rows: pa.Table, share: float, seed: int) -> Array:
    """Which rows are held out: those of a share of the documents, drawn by the document's id."""
    ids = rows.column("document_id").to_pylist()
    return np.array([int(digest("held-out", str(seed), each), 16) < share * 2**128 for each in ids], dtype=bool)


def corrupted(rows: pa.Table, share: float, seed: int, vary: float = 0.0) -> Labelled:
    """Good rows, and one spoilt copy of each; the donor of a wrong positive is on the same side of the split.

    Rows with a graded `score` are left out: a pair may be a poor match on purpose.
    """
    graded = rows.num_rows - rows.column("score").null_count
    rows = rows.filter(pa.compute.is_null(rows.column("score")))
    held, label = held_out(rows, share, seed), positive_is_label(rows)
    queries, positives = rows.column("query").to_pylist(), rows.column("positive").to_pylist()
    ids, categories = rows.column("row_id").to_pylist(), rows.column("category").to_pylist()
    members: dict[tuple[str, bool], list[int]] = {}
    for number, key in enumerate(zip(categories, held.tolist(), strict=True)):
        members.setdefault(key, []).append(number)
    spoilt, origins, at = list[Pair](), list[str](), list[int]()
    if vary:
        for number, each in enumerate(ids):
            draw = Draw(digest("vary", str(seed), each))
            if draw.random() < vary:
                queries[number], positives[number] = varied(Pair(queries[number], positives[number]), draw)
        rows = _with_texts(rows, queries, positives)
    for number, (query, positive) in enumerate(zip(queries, positives, strict=True)):
        draw = Draw(digest("corrupt", str(seed), ids[number]), bool(held[number]))
        own, others = Pair(query, positive), members[categories[number], bool(held[number])]
        other = draw.choice(others)
        names = [name for name in CORRUPTIONS if not (label[number] and name in _OF_POSITIVE)]
        name = draw.choice(names)
        changed = CORRUPTIONS[name](own, Pair(queries[other], positives[other]), draw)
        if changed != own:
            spoilt.append(changed)
            origins.append(name)
            at.append(number)
    copies = rows.take(pa.array(at, pa.int64()))
    copies = _with_texts(copies, [each.query for each in spoilt], [each.positive for each in spoilt])
    return Labelled(
        pa.concat_tables([rows, copies]),
        np.concatenate([np.zeros(rows.num_rows, bool), np.ones(len(at), bool)]),
        np.concatenate([held, held[at]]),
        np.array([*[NOT_SPOILT] * rows.num_rows, *origins], dtype=object),
        graded,
    )


def _with_texts(rows: pa.Table, queries: list[str], positives: list[str]) -> pa.Table:
    for side, texts in (("query", queries), ("positive", positives)):
        at = rows.schema.get_field_index(side)
        rows = rows.set_column(at, rows.schema.field(at), pa.array(texts, rows.schema.field(at).type))
    return rows


def train(labelled: Labelled, seed: int) -> Any:
    """A quantised fastText model of the rows that are not held out."""
    learnt = labelled.where(~labelled.held_out)
    if min(int(learnt.poor.sum()), int((~learnt.poor).sum())) < LEAST:
        raise UserError(
            f"There are {int((~learnt.poor).sum()):,} good and {int(learnt.poor.sum()):,} poor rows to learn from, and at least "
            f"{LEAST} of each are needed. Give more rows, or other --labels.{_left_out(labelled)}"
        )
    fasttext = trainable()
    told = quality_features.lines(learnt.rows)
    order = sorted(range(len(told)), key=lambda each: digest("order", str(seed), str(each), told[each]))
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "rows.txt")
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(f"{POOR if learnt.poor[each] else GOOD} {told[each]}\n" for each in order)
        fixed = {"thread": 1, "seed": seed, "verbose": 0, "label": "__label__", "loss": "softmax", "minCount": 3}
        model = fasttext.train_supervised(path, dim=DIMENSIONS, epoch=EPOCHS, lr=RATE, wordNgrams=NGRAMS, bucket=BUCKETS, **fixed)
        model.quantize(path, thread=1, verbose=0, dsub=2)
    return model


def _left_out(labelled: Labelled) -> str:
    """A sentence about graded rows, if there are any. A file may have a column `score` that means something else."""
    if not labelled.graded:
        return ""
    return f" {labelled.graded:,} rows with a graded `score` are left out: they may be poor matches on purpose."


def trainable() -> Any:
    """The module fasttext, if it can train. fasttext-predict installs a module of the same name that cannot."""
    try:
        import fasttext
    except ImportError as error:
        raise MissingExtra("Training a quality model", "fasttext-community", "") from error
    if not hasattr(fasttext, "train_supervised"):
        raise UserError(
            "The module 'fasttext' that is installed cannot train: 'fasttext-predict' was installed after 'fasttext-community', "
            "and both bring a module of this name. Install it anew with: "
            "pip install --force-reinstall --no-deps fasttext-community"
        )
    return fasttext


def run(
    paths: Sequence[str],
    labels: Sequence[str],
    output: str,
    command: str,
    *,
    test: Sequence[str] = (),
    query: str = "query",
    positive: str = "positive",
    vary: float = 0.0,
    share: float = 0.2,
    seed: int = 17,
    criterion: str = "quality",
    good: float = 4.0,
    poor: float = 2.0,
    licence: str | None = None,
) -> list[Tested]:
    """Trains on the rows of a build or of files, and writes model, card and curve into the folder `output`.

    The first result is on held-out rows; one more for each build of `test`, on rows that a model wrote for it.
    """
    trainable()
    for way in labels:
        if way not in get_args(Labels):
            raise UserError(f"--labels is '{way}'. Allowed: {', '.join(get_args(Labels))}.")
    build = as_build(paths)
    parts = []
    for way in labels:
        if way == "corrupted":
            parts.append(corrupted(rows(paths, query, positive), share, seed, vary))
            continue
        if build is None:
            raise UserError(
                f"--labels {way} needs a build, a folder such as datasets/NAME/latest, and {', '.join(paths)} is none."
            )
        table, is_poor = judged(build, criterion, good, poor) if way == "judge" else written(build)[:2]
        name = np.where(is_poor, f"{way}: poor", f"{way}: good").astype(object)
        parts.append(Labelled(table, is_poor, held_out(table, share, seed), name))
    labelled = Labelled(
        pa.concat_tables([each.rows for each in parts]),
        poor=np.concatenate([each.poor for each in parts]),
        held_out=np.concatenate([each.held_out for each in parts]),
        origin=np.concatenate([each.origin for each in parts]),
        graded=sum(each.graded for each in parts),
    )
    model = train(labelled, seed)
    path = os.path.join(output, MODEL)
    os.makedirs(output, exist_ok=True)
    with storage.atomic(path) as file, tempfile.TemporaryDirectory() as folder:
        model.save_model(os.path.join(folder, MODEL))
        data = Path(folder, MODEL).read_bytes()
        file.write(data)
    unseen = labelled.where(labelled.held_out)
    quality = probabilities(model, quality_features.lines(unseen.rows))
    threshold = QualityModelFilter(type="quality_model").threshold
    results = [tested("held-out rows", quality, unseen.poor, unseen.origin, threshold)]
    for place in test:
        table, is_poor, reasons = written(open_build(place))
        told = probabilities(model, quality_features.lines(table))
        results.append(tested("rows that a model wrote, kept or rejected by a build", told, is_poor, reasons, threshold))
    text = card(results, _trained(labelled, labels, share), command, licence or _licences(build), len(data))
    storage.write_bytes(os.path.join(output, "README.md"), text.encode())
    storage.write_bytes(os.path.join(output, "curve.svg"), svg(results).encode())
    return results


def _trained(labelled: Labelled, labels: Sequence[str], share: float) -> str:
    learnt = labelled.where(~labelled.held_out)
    lines = [
        f"Labels: {', '.join(labels)}. {int((~learnt.poor).sum()):,} good and {int(learnt.poor.sum()):,} poor rows; "
        f"another {share:.0%} of the documents are held out, with their spoilt copies.{_left_out(labelled)}\n\n"
        "| category | good | poor |\n|---|---|---|"
    ]
    categories = np.array(learnt.rows.column("category").to_pylist(), dtype=object)
    for name in sorted(set(categories.tolist())):
        here = categories == name
        lines.append(f"\n| {name} | {int((here & ~learnt.poor).sum()):,} | {int((here & learnt.poor).sum()):,} |")
    return "".join(lines)


def _licences(build: Build | None) -> str:
    sources = [source for entry in build.manifest.categories.values() for source in entry.sources] if build is not None else []
    found = sorted({source.licence for source in sources if source.licence})
    return "; ".join(found) or "as the texts it was trained on"


def score_file(
    path: str, model: str, output: str, query: str = "query", positive: str = "positive", force: bool = False
) -> tuple[int, float]:
    """Writes the rows of a file with a further column `quality` as Parquet; returns their number and their mean quality.

    Raises a UserError for several files, for an output that is there already (unless `force`), or whose name says another format.
    """
    storage.check_output(output, [".parquet"], force)
    file, *more = expanded([path])
    if more:
        raise UserError(f"'{path}' names {1 + len(more)} files, and one is scored at a time. Give one of them, such as '{file}'.")
    found = frame(file, query, positive)
    scores = score(as_rows(found), model)
    own = [name for name in found.columns if name not in ("query", "positive") or name in (query, positive)]
    table = found.select(own).with_columns(quality=pl.Series(scores, dtype=pl.Float32)).to_arrow()
    storage.write_table(output, table)
    return len(scores), float(scores.mean()) if len(scores) else float("nan")
