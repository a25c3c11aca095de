"""How varied the texts are that a model wrote: for each persona and each category, and where they have collapsed.

Measured on the published training rows. For each group the texts with the lowest ids are looked at; an id is a digest of its
text, so that this is as good as drawing them, and the same for the same rows. Memory is bounded by the sample, not by the rows.

- distinct-n: distinct n-grams of words by all n-grams (Li et al. 2016, "A Diversity-Promoting Objective Function for Neural
  Conversation Models"). It falls with the number of n-grams, so that it is taken over equally many in all groups of a table.
- similarity: mean cosine of two different texts, by the vectors of the encoder that the build has; else by counts of character
  3-grams. Exact: repeats of a text among the rows. Near: texts that are nearly another one that was looked at.
"""

from __future__ import annotations

import logging
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from threadpoolctl import threadpool_limits

from datakit.encoders.embed import EmbedParameters
from datakit.encoders.vectors import Array, Role, lookup
from datakit.errors import BuildError
from datakit.filters import toxicity_embedded
from datakit.filters.words import WORD, fold
from datakit.publish.manifest import Diversity, Variety
from datakit.publish.written import Sample, lowest, texts, written
from datakit.recipe import Recipe, RoundTripFilter, ToxicityFilter
from datakit.step import Output, Step

if TYPE_CHECKING:
    from datakit.opened import Build

log = logging.getLogger(__name__)

# Distinct texts of a group that are looked at: a mean over their 19,900 pairs moves by less than 0.01.
SAMPLE = 200
# A group with fewer texts is counted and not measured: of a handful of texts nothing can be said.
FEWEST_TEXTS = 10
# Personas that are measured, the most used ones. A list of 200,000 has few rows for each.
MOST_PERSONAS = 200
# N-grams that distinct-n is taken over: at most so many, and where a group has fewer than the least, it has no figure.
MOST_GRAMS, FEWEST_GRAMS = 1_000, 100
# Longer texts are cut: the beginning shows a template as well as the whole.
TEXT_CHARACTERS = 1_000

# Collapse. Measured on the quickstart, whose questions a model of 135M parameters wrote about one subject; on the questions of
# medquad, which people wrote by a few templates; and on three templates with random words in them ("What is the use of X in
# Python?", "What is X?", "How can I use X with Y in Python?"). Distinct-2 of 1,000: 0.63; 0.47; below 0.45.
LEAST_DISTINCT_2 = 0.5
# MiniLM: 0.14 (each persona 0.12 to 0.20); 0.32; 0.21 to 0.53. Characters: 0.15 (0.12 to 0.19); 0.25; 0.49 to 0.78.
MOST_SIMILAR = {"vectors": 0.5, "characters": 0.4}
# Two texts are nearly one: a cosine that only a word or its ending moves.
NEAR = {"vectors": 0.95, "characters": 0.9}
# Every tenth row says what another says; a build with a step of exact dedup on queries has none.
MOST_EXACT = 0.1
# Every fifth text is nearly another one: 0.015 in the quickstart, whose MinHash leaves few; a terse persona 0.11.
MOST_NEAR = 0.2
# The embedded model gives harmless questions 0.02 to 0.05 in the mean.
MOST_TOXIC = 0.2
# Equal use of n personas has the entropy of n. Half of that: most rows come from few of them. Asked from 10 rows a persona on.
LEAST_EVEN, ROWS_A_PERSONA = 0.5, 10

_GRAMS = (1, 2, 3)
_WARNINGS_LOGGED = 10


@dataclass(frozen=True)
class _Vectors:
    """The vectors of an embed step, and how its encoder is called."""

    output: Output
    encoder: str


def measure(files: Sequence[str], recipe: Recipe | None = None, steps: Sequence[tuple[Step, Output]] = ()) -> Diversity | None:
    """The diversity of the rows in `files` (schema.EXAMPLE) that a model wrote; None where there are none.

    `recipe` and `steps` are those of the build, where its vectors are still at hand.
    """
    used: Counter[str] = Counter()
    rows = 0
    for frame in written(files):
        rows += frame.height
        used.update(dict(frame.drop_nulls("persona").group_by("persona").len().iter_rows()))
    if not rows:
        return None
    listed = sorted(sorted(used), key=lambda name: -used[name])[:MOST_PERSONAS]
    kinds = {kind: lowest(files, kind, SAMPLE) for kind in ("whole", "category")}
    kinds["persona"] = lowest(files, "persona", SAMPLE, listed)
    ids = {key for groups in kinds.values() for group in groups.values() for key in group.ids}
    meter = _meter(texts(files, ids, TEXT_CHARACTERS), _vectors(recipe, steps), _wants_toxicity(recipe))
    measured = {kind: meter.table(groups) for kind, groups in kinds.items()}
    found = Diversity(
        rows=rows,
        measure=meter.name,
        whole=measured["whole"]["all"],
        categories=measured["category"],
        personas=measured["persona"],
        personas_used=len(used),
        personas_even=_even(used),
    )
    return found.model_copy(update={"warnings": list(warnings(found, meter.kind))})


def warnings(found: Diversity, kind: str) -> Iterator[str]:
    """One sentence with its numbers for each thing that has collapsed. `kind` of similarity: "vectors" or "characters"."""
    enough_rows = found.rows >= ROWS_A_PERSONA * found.personas_used
    if enough_rows and found.personas_even < LEAST_EVEN * found.personas_used:
        yield (
            f"Most rows come from few personas: the {found.rows:,} rows of {found.personas_used} personas are spread as "
            f"those of {found.personas_even:.1f} that are used equally would be; at least half as many are asked for."
        )
    groups = [("the whole", found.whole)] if len(found.categories) != 1 else []
    groups += [(f"the category '{name}'", each) for name, each in found.categories.items()]
    groups += [(f"the persona '{name}'", each) for name, each in found.personas.items()]
    for name, each in groups:
        checks = (
            (each.distinct_2, -1, LEAST_DISTINCT_2, "distinct-2 is {:.2f}, and at least {:.2f} is asked for"),
            (
                each.similarity,
                1,
                MOST_SIMILAR[kind],
                "two texts have a similarity of {:.2f} in the mean, and at most {:.2f} is allowed",
            ),
            (each.exact, 1, MOST_EXACT, "{:.0%} of the rows repeat a text of another, and at most {:.0%} may"),
            (each.near, 1, MOST_NEAR, "{:.0%} of the texts are nearly another one, and at most {:.0%} may be"),
            (each.toxicity, 1, MOST_TOXIC, "toxicity is {:.2f} in the mean, and at most {:.2f} is allowed"),
        )
        said = [
            text.format(value, limit) for value, sign, limit, text in checks if value is not None and sign * (value - limit) > 0
        ]
        if said and (each.texts >= FEWEST_TEXTS or each.rows >= SAMPLE):
            yield f"Little variety in {name} ({each.rows:,} rows): {'; '.join(said)}."


def tell(found: Diversity | None) -> None:
    """Logs what has collapsed."""
    said = found.warnings if found else []
    for sentence in said[:_WARNINGS_LOGGED]:
        log.warning("%s", sentence)
    if len(said) > _WARNINGS_LOGGED:
        log.warning("%d more warnings of this kind are in manifest.json and report.html.", len(said) - _WARNINGS_LOGGED)


def _vectors(recipe: Recipe | None, steps: Sequence[tuple[Step, Output]]) -> _Vectors | None:
    """The vectors of the recipe's encoder: that of the screen, else of the round trip.

    Where texts changed on the way, they were embedded anew, as `embed-NAME-2`: the last step has those that are published.
    """
    if recipe is None:
        return None
    screen = recipe.negatives.screen if recipe.negatives else None
    names = [screen.encoder] if screen else []
    names += [item.encoder for item in recipe.filters if isinstance(item, RoundTripFilter)]
    for name in names:
        for step, output in reversed(steps):
            parameters = step.parameters
            ours = isinstance(parameters, EmbedParameters) and parameters.encoder == recipe.encoders[name]
            if ours and re.fullmatch(rf"embed-{re.escape(name)}(-\d+)?", step.name):
                return _Vectors(output, name)
    return None


def _wants_toxicity(recipe: Recipe | None) -> bool:
    """Whether the build measured toxicity with the embedded model, which is quick; detoxify would take minutes here."""
    return recipe is not None and any(isinstance(item, ToxicityFilter) and item.engine == "embedded" for item in recipe.filters)


@dataclass(frozen=True)
class _Meter:
    """Measures groups of texts. `place` is where an id is in the arrays, which are for all texts that are looked at."""

    place: Mapping[str, int]
    texts: Sequence[str]
    words: Sequence[Sequence[str]]
    given: Array
    toxicity: Array | None
    vectors: _Vectors | None

    @property
    def kind(self) -> str:
        return "vectors" if self.vectors else "characters"

    @property
    def name(self) -> str:
        return f"vectors of the encoder '{self.vectors.encoder}'" if self.vectors else "counts of character 3-grams"

    def table(self, groups: Mapping[str, Sample]) -> dict[str, Variety]:
        """The variety of each group, so that groups may be compared."""
        grams = {name: [self._grams(group, n) for n in _GRAMS] for name, group in groups.items()}
        enough = [grams[name] for name, group in groups.items() if len(group.ids) >= FEWEST_TEXTS]
        sizes = [
            min([MOST_GRAMS, *(size for each in enough if (size := len(each[place])) >= FEWEST_GRAMS)])
            for place in range(len(_GRAMS))
        ]
        return {name: self._variety(group, grams[name], sizes) for name, group in groups.items()}

    def _grams(self, group: Sample, n: int) -> list[tuple[str, ...]]:
        result: list[tuple[str, ...]] = []
        for key in group.ids:
            words = self.words[self.place[key]]
            result.extend(tuple(words[start : start + n]) for start in range(len(words) - n + 1))
            if len(result) >= MOST_GRAMS:
                break
        return result[:MOST_GRAMS]

    def _variety(self, group: Sample, grams: Sequence[Sequence[tuple[str, ...]]], sizes: Sequence[int]) -> Variety:
        exact = round(1 - len(group.ids) / group.having, 3)
        if len(group.ids) < FEWEST_TEXTS:
            return Variety(rows=group.rows, texts=len(group.ids), exact=exact)
        distinct = [
            round(len(set(some[:size])) / size, 3) if len(some) >= max(size, FEWEST_GRAMS) else None
            for some, size in zip(grams, sizes, strict=True)
        ]
        places = np.array([self.place[key] for key in group.ids])
        similarity, near = self._similar(group.ids, places)
        return Variety(
            rows=group.rows,
            texts=len(group.ids),
            distinct_1=distinct[0],
            distinct_2=distinct[1],
            distinct_3=distinct[2],
            similarity=similarity,
            exact=exact,
            near=near,
            toxicity=None if self.toxicity is None else round(float(self.toxicity[places].mean()), 3),
        )

    def _similar(self, ids: Sequence[str], places: Array) -> tuple[float, float]:
        """The mean cosine of two texts, and the share of the texts that are nearly one before them."""
        if self.vectors:
            vectors = np.zeros((len(ids), 0))
            for role, mine in _roles(self.given[places]):
                some = lookup(self.vectors.output, role, [ids[place] for place in mine]).astype(np.float64)
                vectors = vectors if vectors.shape[1] else np.zeros((len(ids), some.shape[1]))
                vectors[mine] = some
        else:
            vectors = _characters([self.texts[place] for place in places])
        # One thread, and rounded: the last bits of a product, which depend on threads and machine, decide nothing.
        with threadpool_limits(1):
            cosines = np.round(vectors @ vectors.T, 6)
        pairs = cosines[np.tril_indices(len(ids), -1)]
        nearest = np.tril(cosines, -1).max(axis=1)
        return round(float(pairs.mean()), 3), round(float((nearest >= NEAR[self.kind]).mean()), 3)


def _roles(given: Array) -> Iterator[tuple[Role, Array]]:
    roles: tuple[tuple[Role, bool], ...] = (("query", False), ("document", True))
    for role, wanted in roles:
        mine = np.flatnonzero(given == wanted)
        if len(mine):
            yield role, mine


def _meter(found: pl.DataFrame, vectors: _Vectors | None, toxicity: bool) -> _Meter:
    column = found.get_column("text")
    ids, given = found.get_column("id").to_list(), found.get_column("given").to_numpy()
    if vectors:
        try:
            for role, mine in _roles(given):
                lookup(vectors.output, role, [ids[place] for place in mine])
        except BuildError as error:
            log.warning("The diversity report compares texts by their characters, since vectors are missing: %s", error)
            vectors = None
    return _Meter(
        place={key: place for place, key in enumerate(ids)},
        texts=column.to_list(),
        words=fold(column).str.extract_all(WORD).to_list(),
        given=given,
        toxicity=toxicity_embedded.score(column) if toxicity else None,
        vectors=vectors,
    )


def _characters(texts: Sequence[str]) -> Array:
    """Counts of the character 3-grams of each text, each row of length 1: (texts, 3-grams that occur)."""
    padded = [f" {' '.join(text.lower().split())} ".encode("utf-32-le", "replace") for text in texts]
    grams = [[zlib.crc32(text[start : start + 12]) for start in range(0, len(text) - 8, 4)] for text in padded]
    _, columns = np.unique(np.array([gram for some in grams for gram in some], np.uint32), return_inverse=True)
    rows = np.repeat(np.arange(len(texts)), [len(some) for some in grams])
    counts = np.zeros((len(texts), columns.max(initial=0) + 1))
    np.add.at(counts, (rows, columns), 1.0)
    lengths = np.sqrt((counts * counts).sum(axis=1, keepdims=True))
    return np.asarray(counts / np.where(lengths > 0, lengths, 1.0))


def _even(used: Counter[str]) -> float:
    """How many personas that are used equally would be spread as these are: the exponential of the entropy of their shares."""
    total = used.total()
    return (
        round(math.exp(-sum(count / total * math.log(count / total) for _, count in sorted(used.items()))), 1) if total else 0.0
    )


HEADS = ("rows", "distinct-1", "distinct-2", "distinct-3", "similarity", "exact", "near", "toxicity")


def lines(groups: Mapping[str, Variety]) -> list[tuple[str, list[str]]]:
    """Name and cells (HEADS) of each group, those with most rows first; "–" is not measured."""
    ordered = sorted(groups.items(), key=lambda item: (-item[1].rows, item[0]))
    return [(name, cells(each)) for name, each in ordered]


def cells(each: Variety) -> list[str]:
    """The figures of a group as they are shown (HEADS)."""
    figures = (each.distinct_1, each.distinct_2, each.distinct_3, each.similarity)
    shares = (each.exact, each.near)
    return [
        f"{each.rows:,}",
        *("–" if value is None else f"{value:.2f}" for value in figures),
        *("–" if value is None else f"{100 * value:.0f} %" for value in shares),
        "–" if each.toxicity is None else f"{each.toxicity:.2f}",
    ]


def table(build: Build) -> RenderableType:
    """The diversity of a build for the command line, readable at 100 columns.

    A build that was published without it is measured now, by characters.
    """
    found = build.manifest.diversity or measure(build.files("train"))
    if found is None:
        return Text(f"{build.name} {build.version}: no row to train on was written by a model.")
    parts: list[RenderableType] = [Text(f"{build.name} {build.version}", style="bold"), Text(), Text(heading(found)), Text()]
    for title, groups in (("category", found.categories), ("persona", found.personas)):
        shown = Table(title, box=None, padding=(0, 2, 0, 0), header_style="dim")
        for head in HEADS:
            shown.add_column(head.replace("distinct", "dist"), justify="right", no_wrap=True)
        for name, row in lines(groups):
            shown.add_row(Text(name, overflow="ellipsis", no_wrap=True), *row)
        if groups:
            parts += [shown, Text()]
    parts += [Text(sentence, style="yellow") for sentence in found.warnings] or [Text("Nothing has collapsed.", style="dim")]
    return Group(*parts)


def heading(found: Diversity) -> str:
    """What was measured, in words."""
    left = found.personas_used - len(found.personas)
    personas = (
        f", by {found.personas_used:,} personas (as spread as {found.personas_even:,} that are used equally"
        f"{f'; the {len(found.personas)} most used are listed' if left else ''})"
        if found.personas_used > 1
        else ""
    )
    return f"{found.rows:,} rows to train on were written by a model{personas}. Similarity is by {found.measure}."
