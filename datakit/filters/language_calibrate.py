"""Makes the calibration of a fastText language model from labelled sentences.

    python -m datakit.filters.language_calibrate SENTENCES --output FOLDER [--model FILE] [--half] [--torn CODE ...]

SENTENCES is a folder with one text file for each language, named by its code (`de.txt`, one sentence a line). `--half` uses the
sentences whose digest is even, and leaves the others for a test. A language that the model does not know counts too: whatever
the model says of it is wrong.

`--torn` names languages whose file has lost its letters beyond ASCII ("habas" for "habías"). Words with such letters are counted
there as what is left of them, and of the letters themselves nothing is learned.

Each sentence is seen whole and as windows of 1 to 12 words. The telling words are counted on one half of the sentences when the
weights are fitted on the other, and the other way round, so that words do not look more telling than they are.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from datakit import storage
from datakit.assets import locate
from datakit.errors import UserError
from datakit.filters.language_codes import covered
from datakit.filters.language_model import (
    ANCHORS,
    LETTER,
    WORD,
    Array,
    Calibration,
    Identifier,
    Telling,
    hats,
    lines,
    load_bare,
    logit,
    posterior,
    telling_ratios,
    terms,
)
from datakit.filters.words import WORD as COUNTED
from datakit.recipe import LanguageFilter
from datakit.schema import digest

WINDOWS = (1, 2, 3, 4, 6, 8, 12)
# Most telling words and letters of a language, and how often one must have been seen.
_WORDS, _LETTERS, _SEEN = 200, 60, 4
_SMOOTHING = 500.0
# The prior of a language without labelled sentences: each is held to be a tenth as usual as one that has them.
_OTHER = -2.3


def read_sentences(folder: Path) -> pl.DataFrame:
    """Columns language (the model's tag), text, number (a digest of the text: even for calibration, odd for a test)."""
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise UserError(f"'{folder}' should hold one text file for each language, such as de.txt, and there is none.")
    rows = [
        (covered(file.stem)[0], text, int(digest("language", text, size=7), 16))
        for file in files
        for text in (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
        if text
    ]
    return pl.DataFrame(rows, schema=["language", "text", "number"], orient="row").unique(
        ["language", "text"], maintain_order=True
    )


def windows(sentences: pl.DataFrame, count: int) -> pl.DataFrame:
    """The sentences as `count` words of each, at a place drawn by the digest; those that have so many. 0 is the whole."""
    if count == 0:
        return sentences
    kept = []
    for language, text, number in sentences.iter_rows():
        spans = [found.span() for found in _counted().finditer(text)]
        if len(spans) >= count:
            start = (number // 8 + count * 1009) % (len(spans) - count + 1)
            kept.append((language, text[spans[start][0] : spans[start + count - 1][1]], number))
    return pl.DataFrame(kept, schema=sentences.schema, orient="row")


def _counted() -> re.Pattern[str]:
    ranges = {
        "Han": "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff",
        "Hiragana": "\u3041-\u309f",
        "Katakana": "\u30a0-\u30ff",
        "Thai": "\u0e01-\u0e5b",
        "Lao": "\u0e81-\u0edf",
        "Khmer": "\u1780-\u17f9",
        "Myanmar": "\u1000-\u109f",
    }
    return re.compile(re.sub(r"\\p\{(\w+)\}", lambda found: ranges[found.group(1)], COUNTED))


def calibrate(sentences: pl.DataFrame, identifier: Identifier, torn: Sequence[str] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """The numbers of confidence.yaml, and the texts of words.tsv and letters.tsv."""
    known = sentences.filter(pl.col("language").is_in(list(identifier.languages)))
    labelled = sorted(known["language"].unique())
    folds = [known.filter((pl.col("number") // 2 % 2) == fold) for fold in (0, 1)]
    parts = []
    for fold in (0, 1):
        blank = _blank(_counts(folds[1 - fold], torn), identifier)
        for count in (*WINDOWS, 0):
            seen = windows(sentences.filter((pl.col("number") // 2 % 2) == fold), count)
            # Half of the windows are enough for so few numbers.
            seen = seen.filter((pl.col("number") // 4 + count) % 2 == 0)
            parts.append((seen["language"].to_list(), *_features(seen["text"], blank)))
    languages = [language for part in parts for language in part[0]]
    features, shares, words = (np.concatenate([part[at] for part in parts]) for at in (1, 2, 3))
    place = {language: at for at, language in enumerate(identifier.languages)}
    truth = np.array([place.get(language, -1) for language in languages])
    free = np.array([language in labelled for language in identifier.languages])
    weights, prior = _fit_weights(features, shares, words, truth, free)
    scores = np.einsum("nlk,nk->nl", features, hats(words) @ weights) + shares + prior
    distribution = posterior(scores)
    top = distribution.argmax(axis=1)
    slope, offset, other = _fit_confidence(distribution.max(axis=1), top, words, top == truth, free)
    numbers = {
        "weights": {name: _rounded(weights[:, at]) for at, name in enumerate(("model", "words", "letters"))},
        "smoothing": _SMOOTHING,
        "slope": _rounded(slope),
        "prior": {"other": _OTHER, **{code: _rounded(prior[place[code]]) for code in labelled}},
        "offset": {"other": _rounded(other), **{code: _rounded(offset[:, place[code]]) for code in labelled}},
    }
    return numbers, {name: _tsv(*counts) for name, counts in _counts(known, torn).items()}


_Counts = tuple[list[str], list[str], Array, Array]


def _counts(sentences: pl.DataFrame, torn: Sequence[str]) -> dict[str, _Counts]:
    """Words and letters: (parts, languages, counts (parts, languages), totals (languages,))."""
    clean = sentences.select("language", text=lines(sentences["text"]))
    found = {}
    for name, pattern, most in (("words", WORD, _WORDS), ("letters", LETTER, _LETTERS)):
        parts = clean.select("language", part=pl.col("text").str.extract_all(pattern)).explode("part").drop_nulls()
        if name == "letters":
            parts = parts.filter(~pl.col("language").is_in(list(torn)))
        totals = dict(parts.group_by("language").len().sort("language").iter_rows())
        # Scripts without spaces have letters that tell, and no words.
        parts = parts.filter(
            ~pl.col("part").str.contains(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}].")
        )
        counts = parts.group_by("language", "part").len().filter(pl.col("len") >= _SEEN)
        ordered = counts.sort("language", "len", "part", descending=[False, True, False])
        kept = sorted(ordered.group_by("language", maintain_order=True).head(most)["part"].unique())
        rows, columns = {part: at for at, part in enumerate(kept)}, {language: at for at, language in enumerate(totals)}
        table = np.zeros((len(rows), len(columns)))
        for language, part, count in counts.iter_rows():
            if part in rows:
                table[rows[part], columns[language]] = count
        for language in torn if name == "words" else ():
            said = dict(parts.filter(pl.col("language") == language).group_by("part").len().iter_rows())
            for part in kept:
                if not part.isascii():
                    table[rows[part], columns[language]] = said.get(part.encode("ascii", "ignore").decode(), 0)
        found[name] = (kept, list(totals), table, np.array(list(totals.values()), np.float64))
    return found


def _blank(counts: dict[str, _Counts], identifier: Identifier) -> Identifier:
    """The identifier with these telling words, and with nothing weighed."""
    telling: list[Telling] = []
    for parts, languages, table, totals in counts.values():
        says = np.zeros((len(parts), len(identifier.languages)), np.float32)
        says[:, [identifier.languages.index(language) for language in languages]] = telling_ratios(table, totals, _SMOOTHING)
        telling.append(Telling(parts, says))
    zeros = np.zeros((len(ANCHORS), len(identifier.languages)))
    blank = Calibration("", telling[0], telling[1], np.zeros((len(ANCHORS), 3)), zeros[0], np.ones(len(ANCHORS)), zeros)
    return dataclasses.replace(identifier, calibration=blank)


def _features(texts: pl.Series, identifier: Identifier) -> tuple[Array, Array, Array]:
    """Of each text: what is weighed (texts, languages, 3), what is not (texts, languages), and the number of words."""
    found = terms(texts, identifier)
    return np.stack(found.weighed, axis=2).astype(np.float32), found.scripts, found.words


def _fit_weights(features: Array, shares: Array, words: Array, truth: Array, free: Array) -> tuple[Array, Array]:
    """The weights (anchors, 3) and the prior (languages,) of the highest likelihood of the true languages."""
    import torch

    kept = np.flatnonzero(truth >= 0)
    inputs = [torch.from_numpy(array[kept]) for array in (features, shares, hats(words).astype(np.float32), truth)]
    may = torch.from_numpy(free)
    weights = torch.tensor([[1.0, 0.5, 0.5]] * len(ANCHORS), requires_grad=True)
    prior = torch.zeros(len(free), requires_grad=True)

    def loss(batch: list[torch.Tensor]) -> torch.Tensor:
        parts, rest, near, languages = batch
        scores = (
            torch.einsum("nlk,nk->nl", parts, near @ weights) + rest + torch.where(may, prior, torch.full_like(prior, _OTHER))
        )
        return torch.nn.functional.cross_entropy(scores, languages) + 1e-3 * (prior**2).mean()

    _descend([weights, prior], inputs, loss, steps=200, rate=0.05)
    return weights.detach().numpy().astype(np.float64), np.where(free, prior.detach().numpy().astype(np.float64), _OTHER)


def _fit_confidence(highest: Array, top: Array, words: Array, right: Array, free: Array) -> tuple[Array, Array, Array]:
    """The slope (anchors,), the offset (anchors, languages) and the offset of a language without labelled sentences (anchors,).

    A logistic curve (Platt); the offset of a language is drawn to that of all, and more so the fewer texts it has.
    """
    import torch

    inputs = [
        torch.from_numpy(array) for array in (logit(highest).astype(np.float32), top, hats(words).astype(np.float32), right)
    ]
    may = torch.from_numpy(free)
    slope = torch.ones(len(ANCHORS), requires_grad=True)
    common = torch.zeros(len(ANCHORS), requires_grad=True)
    own = torch.zeros(len(free), len(ANCHORS), requires_grad=True)

    def loss(batch: list[torch.Tensor]) -> torch.Tensor:
        logits, language, near, said = batch
        # What is said of a language without labelled sentences is always wrong here, and teaches nothing.
        seen = may[language]
        found = (near @ slope) * logits + (near * (common + own[language])).sum(1)
        likelihood = torch.nn.functional.binary_cross_entropy_with_logits(found, said.float(), reduction="none")
        return (likelihood * seen).sum() / seen.sum() + 2e-5 * (own**2).sum()

    _descend([slope, common, own], inputs, loss, steps=400, rate=0.05)
    shared = common.detach().numpy().astype(np.float64)
    return slope.detach().numpy().astype(np.float64), (shared + own.detach().numpy()).T, shared


def _descend(weights: list[Any], inputs: list[Any], loss: Callable[[list[Any]], Any], *, steps: int, rate: float) -> None:
    """Adam over random batches, always the same ones; the rate falls to nothing."""
    import torch

    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(weights, lr=rate)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, 2 * (1 - step / steps))
        chosen = torch.randint(0, len(inputs[0]), (min(6_000, len(inputs[0])),), generator=generator)
        value = loss([array[chosen] for array in inputs])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()


def _rounded(numbers: Array | float) -> Any:
    return np.round(numbers, 3).tolist()


def _tsv(parts: list[str], languages: list[str], counts: Array, totals: Array) -> str:
    """A line for each part with its count in each language; the first line has the counts of all parts."""

    def line(part: str, row: Array) -> str:
        return f"{part}\t" + " ".join(f"{code}:{int(count)}" for code, count in zip(languages, row, strict=True) if count)

    return "\n".join([line("", totals), *(line(part, row) for part, row in zip(parts, counts, strict=True))]) + "\n"


def write(folder: Path, numbers: dict[str, Any], files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "confidence.yaml").write_text(yaml.safe_dump(numbers, sort_keys=False, default_flow_style=None, width=120))
    for name, text in files.items():
        (folder / f"{name}.tsv").write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the calibration of a fastText language model.")
    parser.add_argument("sentences", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default=str(LanguageFilter.model_fields["model"].default))
    parser.add_argument("--half", action="store_true", help="use the sentences whose digest is even")
    parser.add_argument("--torn", nargs="*", default=[], help="languages whose sentences have lost their letters beyond ASCII")
    given = parser.parse_args()
    try:
        sentences = read_sentences(given.sentences)
        if given.half:
            sentences = sentences.filter(pl.col("number") % 2 == 0)
        numbers, files = calibrate(sentences, load_bare(given.model), given.torn)
        write(given.output, {"model": storage.file_digest(locate(given.model)), **numbers}, files)
    except UserError as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
