"""Scripts: which ones a text is written in, and which ones a language is written in.

Letters are told by Unicode blocks, which is enough here: a block holds letters of one script, but for a few signs.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

# First and last code point (hexadecimal) of the letters of a script. Characters elsewhere are of no script.
_RANGES = {
    "Latin": "41-5A 61-7A AA-AA BA-BA C0-D6 D8-F6 F8-24F 250-2AF 1E00-1EFF 2C60-2C7F A720-A7FF FB00-FB06 FF21-FF3A FF41-FF5A",
    "Greek": "370-373 376-37D 37F-3FF 1F00-1FFF",
    "Cyrillic": "400-52F 1C80-1C8F 2DE0-2DFF A640-A69F",
    "Armenian": "531-556 560-588 FB13-FB17",
    "Hebrew": "591-5F4 FB1D-FB4F",
    "Arabic": "620-65F 66E-6D3 6D5-6DC 6DF-6E8 6EA-6EF 6FA-6FF 750-77F 8A0-8FF FB50-FDFF FE70-FEFC",
    "Thaana": "780-7B1",
    "Devanagari": "900-963 970-97F A8E0-A8FF",
    "Bengali": "980-9E3 9F0-9F1",
    "Gurmukhi": "A01-A5E A70-A75",
    "Gujarati": "A81-AE3",
    "Oriya": "B01-B63 B71-B71",
    "Tamil": "B82-BE3",
    "Telugu": "C00-C63",
    "Kannada": "C80-CE3",
    "Malayalam": "D00-D63 D7A-D7F",
    "Sinhala": "D81-DF3",
    "Thai": "E01-E3A E40-E4E",
    "Lao": "E81-ECD EDC-EDF",
    "Tibetan": "F40-FBC F00-F00",
    "Myanmar": "1000-103F 1050-108F A9E0-A9FE AA60-AA7F",
    "Georgian": "10A0-10FF 1C90-1CBF 2D00-2D2F",
    "Ethiopic": "1200-135F 1380-138F 2D80-2DDF AB00-AB2F",
    "Khmer": "1780-17D3 17DC-17DD",
    "Mongolian": "1820-18AA",
    "Hangul": "1100-11FF 3131-318E A960-A97F AC00-D7FF",
    "Kana": "3041-3096 309D-309F 30A1-30FA 30FD-30FF 31F0-31FF FF66-FF6F FF71-FF9D",
    "Han": "3005-3007 3400-4DBF 4E00-9FFF F900-FAFF 20000-323AF",
    # Scripts that no language of lid.176 is written in. Their letters speak against all of them.
    "other": "700-74F 7C0-85F 13A0-13FF 1400-167F 1680-171F 1720-177F 1950-19DF 1A00-1AAD 1B00-1C7F 2C00-2C5F 2C80-2CFF "
    "2D30-2D7F A000-A4CF A4D0-A63F A6A0-A6FF A800-A877 A880-A8D9 A900-A92F A930-A95F A980-A9DF AA00-AA5F AA80-AADF ABC0-ABFF "
    "10000-100FF 10280-10CFF 10D00-10D3F 10F00-1123F 11280-1173F 11800-11FFF 12000-1342F 16800-16FFF 1E000-1E2FF 1E800-1E95F",
}
SCRIPTS: tuple[str, ...] = tuple(_RANGES)

# The languages of lid.176 (BCP 47) that are written in other scripts than Latin.
_LANGUAGES = {
    "Arabic": "ar arz azb ckb fa ku lrc mzn pnb ps sd ug ur",
    "Cyrillic": "av az ba be bg bs bxr ce cv kk krc kv ky lez mhr mk mn mrj myv os ru rue sah sh sr tg tk tt tyv uk uz xal",
    "Devanagari": "bho dty gom hi mai mr ne new sa",
    "Bengali": "as bn bpy",
    "Han": "ja wuu yue zh",
    "Kana": "ja",
    "Hangul": "ko",
    "Georgian": "ka xmf",
    "Hebrew": "he yi",
    "Greek": "el",
    "Armenian": "hy",
    "Thaana": "dv",
    "Gurmukhi": "pa",
    "Gujarati": "gu",
    "Oriya": "or",
    "Tamil": "ta",
    "Telugu": "te",
    "Kannada": "kn",
    "Malayalam": "ml",
    "Sinhala": "si",
    "Thai": "th",
    "Lao": "lo",
    "Tibetan": "bo",
    "Myanmar": "my",
    "Ethiopic": "am",
    "Khmer": "km",
    "Mongolian": "mn",
}
# Of these, the ones that are written in Latin too.
_ALSO_LATIN = frozenset(["az", "bs", "gom", "ku", "sh", "sr", "tk", "tt", "uz"])

# A character of these stands for a syllable or a word, and weighs as much as so many letters.
_WEIGHTS = {"Han": 3, "Hangul": 2, "Kana": 2}


def scripts_of(language: str) -> tuple[str, ...]:
    """The scripts that a language (BCP 47, of those that lid.176 knows) is written in. One that is not listed is Latin."""
    found = tuple(script for script, languages in _LANGUAGES.items() if language in languages.split())
    return (*found, "Latin") if not found or language in _ALSO_LATIN else found


def script_weights(texts: Sequence[str]) -> Array:
    """How many letters of each of SCRIPTS a text has, weighed by what one letter says: float32 (texts, scripts)."""
    lengths = np.fromiter((len(text) for text in texts), np.int64, len(texts))
    # A lone surrogate is a character like any other here: of no script.
    points = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    table, weights = _table()
    kinds = table[np.minimum(points, len(table) - 1)]
    width = len(SCRIPTS) + 1
    rows = np.repeat(np.arange(len(texts)) * width, lengths)
    counts = np.bincount(rows + kinds, minlength=len(texts) * width).reshape(len(texts), width)
    return np.asarray(counts[:, 1:] * weights, np.float32)


@functools.cache
def _table() -> tuple[Array, Array]:
    """The number of its script, from 1, for each code point (0 for none), and the weight of a letter of each script."""
    table = np.zeros(0x323B1, np.uint8)
    for number, ranges in enumerate(_RANGES.values(), start=1):
        for each in ranges.split():
            first, last = (int(end, 16) for end in each.split("-"))
            table[first : last + 1] = number
    weights = np.array([_WEIGHTS.get(script, 1) for script in SCRIPTS], np.float32)
    return table, weights


def compatible(languages: Sequence[str]) -> Array:
    """Which of SCRIPTS a language is written in: 0 or 1, float32 (scripts, languages)."""
    return np.array([[script in scripts_of(language) for language in languages] for script in SCRIPTS], np.float32)
