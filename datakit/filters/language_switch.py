"""Texts that change their language on the way, after MaskLID (Kargaran et al., arXiv 2406.06263).

MaskLID masks what the dominant language explains, and asks again for the language of what is left. Here each word has a
distribution over languages, seen in a window with its neighbours. The dominant language is the one that explains all words best.
The second is the one that explains most of what the dominant one does not; the words that it explains better are asked again as
one text, and count when that text is in another language than the dominant one, and not in one that is easily taken for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from datakit.filters.language_model import WORD, Array, Identifier, decide, evidence, lines, posterior

# A word says at most so much against a language: names and numbers are in none.
_FLOOR = -5.0
# A word's neighbours count half: nobody changes the language at each word.
_NEAR = 0.5
# By so much a word must be better explained by another language.
_MARGIN = 2.0
# The words of a text that are looked at, and the fewest that make a second language.
_WORDS = 100
_FEWEST = 2

# Languages that a few words do not tell apart. A text in one is not mixed with another.
CLOSE = (
    "no da sv nn fo is",
    "bs hr sr sh sl mk bg",
    "id ms min jv su",
    "cs sk pl",
    "es pt gl ca ast an it oc fr la ro",
    "de nl lb nds af fy gsw bar",
    "ru uk be bg sr mk rue",
    "tr az tk uz tt",
    "hi mr ne sa bho mai",
    "bn as bpy",
    "ar arz fa ur ps pnb sd ckb",
    "zh wuu yue ja",
    "fi et",
    "lt lv",
    "ka xmf",
    "he yi",
)


@dataclass(frozen=True)
class Mixed:
    """Of each text: how sure it is that it is mixed (0: it is not), the share of words in the second language, both languages."""

    confidence: Array
    share: Array
    pair: list[tuple[str, str] | None]


def mixed(texts: pl.Series, identifier: Identifier) -> Mixed:
    """Looks for a second language in each text; ask in portions."""
    clean = lines(texts)
    words = clean.str.extract_all(WORD).list.head(_WORDS)
    distinct = words.explode(empty_as_null=False).drop_nulls().unique(maintain_order=True)
    said = _said(distinct, identifier)
    number = {word: at for at, word in enumerate(distinct.to_list())}
    close = _close(identifier.languages)
    rest: list[str] = []
    found: list[tuple[int, int, int, float]] = []
    for row, parts in enumerate(words.to_list()):
        if len(parts) >= 2 * _FEWEST:
            second = _second(said[[number[part] for part in parts]], close)
            if second is not None:
                chosen, dominant, other = second
                rest.append(" ".join(parts[at] for at in chosen))
                found.append((row, dominant, other, len(chosen) / len(parts)))
    confidence, share = np.zeros(len(texts)), np.zeros(len(texts))
    pair: list[tuple[str, str] | None] = [None] * len(texts)
    if found:
        again = evidence(pl.Series(rest, dtype=pl.String), identifier)
        distribution = posterior(again.scores)
        _, sure = decide(again, identifier)
        for at, (row, dominant, _other, part) in enumerate(found):
            top = int(distribution[at].argmax())
            if not close[dominant, top]:
                confidence[row], share[row] = sure[at], part
                pair[row] = (identifier.languages[dominant], identifier.languages[top])
    return Mixed(confidence, share, pair)


def _said(words: pl.Series, identifier: Identifier) -> Array:
    """The logarithm of the distribution over languages of each word: float32 (words, languages)."""
    if not len(words):
        return np.zeros((0, len(identifier.languages)), np.float32)
    return np.log(np.maximum(posterior(evidence(words, identifier).scores), np.exp(_FLOOR)))


def _second(said: Array, close: Array) -> tuple[list[int], int, int] | None:
    """The words of a second language, the dominant one and the second; `said` is (words, languages), log probabilities."""
    dominant = int(said.sum(axis=0).argmax())
    against = said - said[:, dominant : dominant + 1]
    window = against.copy()
    window[1:] += _NEAR * against[:-1]
    window[:-1] += _NEAR * against[1:]
    gain = np.maximum(window - _MARGIN, 0).sum(axis=0)
    gain[close[dominant]] = 0
    other = int(gain.argmax())
    chosen = np.flatnonzero(window[:, other] > _MARGIN).tolist()
    return (chosen, dominant, other) if len(chosen) >= _FEWEST else None


def _close(languages: tuple[str, ...]) -> Array:
    """Which languages are easily taken for one another: bool (languages, languages)."""
    groups = [frozenset(group.split()) for group in CLOSE]
    return np.array([[one == two or any({one, two} <= group for group in groups) for two in languages] for one in languages])
