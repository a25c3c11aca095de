"""Texts as hashed words, the same whatever their case, punctuation, white space and form of characters.

Each character counts as its compatibility decomposition (NFKD), case-folded both ways, without accents (U+0300 to U+036F).
Letters, marks and numbers make words. Invisible characters do not count. All else, punctuation and symbols, separates: "C++" and
"C" are equal here, which for a comparison with an evaluation set is the safe side. Characters of scripts without spaces between
words are words of their own. A hash has 64 bits; word order is kept.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datakit.dedup.compiled import compiled

# Bytes of text that are worked on at a time: it bounds the memory for what lies between a text and its hits.
BLOCK_BYTES = 4 << 20

# Marks a character that is a word of its own.
ALONE = 1 << 31

# No character has more than six words (U+3316) for its three bytes.
_WORDS_A_BYTE = 2

_HAN = ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0x20000, 0x2A6E0), (0x2A700, 0x2EBF0), (0x30000, 0x323B0))
_UNSPACED = ((0x0E00, 0x0F00), (0x1000, 0x10A0), (0x1780, 0x1800), (0x3040, 0x3100))
_HANGUL = (0xAC00, 0xD7A4)


@dataclass(frozen=True)
class Words:
    """The words of n texts, hashed, in order: those of text i are hashes[starts[i]:starts[i + 1]].

    hashes: uint64. starts: int64 of n + 1. wholes: uint64 of n, the hash of all words of a text; 0 for a text without words.
    """

    hashes: NDArray[np.uint64]
    starts: NDArray[np.int64]
    wholes: NDArray[np.uint64]

    @property
    def counts(self) -> NDArray[np.int64]:
        return np.diff(self.starts)


def words(texts: pa.Array) -> Words:
    """The words of each text; null is the empty text. All in memory: give the texts in `blocks`."""
    array = texts.cast(pa.large_string()).fill_null("")
    _, offset_buffer, data_buffer = array.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64, len(array) + 1, array.offset * 8)
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer is not None and data_buffer.size else np.empty(0, np.uint8)
    data = data[offsets[0] : offsets[-1]]
    hashes = np.empty(_WORDS_A_BYTE * len(data), np.uint64)
    starts, wholes = np.zeros(len(array) + 1, np.int64), np.zeros(len(array), np.uint64)
    places, codes = folded_characters()
    _hash_words(data, offsets - offsets[0], places, codes, hashes, starts, wholes)
    return Words(hashes[: starts[-1]].copy(), starts, wholes)


def blocks(texts: pa.ChunkedArray | pa.Array) -> Iterator[tuple[int, pa.Array]]:
    """(first, texts): runs of texts of about BLOCK_BYTES together; `first` is the place of the first one."""
    first = 0
    for chunk in texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]:
        array = chunk.cast(pa.large_string())
        offsets = np.frombuffer(array.buffers()[1], np.int64, len(array) + 1, array.offset * 8) if len(array) else np.zeros(1)
        begin = 0
        while begin < len(array):
            end = int(np.searchsorted(offsets, offsets[begin] + BLOCK_BYTES, side="right")) - 1
            end = min(max(end, begin + 1), len(array))
            yield first + begin, array.slice(begin, end - begin)
            begin = end
        first += len(array)


def weight(text: str) -> float:
    """How many words a text says, for telling short ones: a character that is a word of its own counts half."""
    found = words(pa.array([text]))
    alone = sum(bool(code & ALONE) for code in _folded_text(text))
    return len(found.hashes) - alone / 2


def _folded_text(text: str) -> list[int]:
    places, codes = folded_characters()
    return [int(code) for character in text for code in codes[places[ord(character)] : places[ord(character) + 1]]]


@functools.cache
def folded_characters() -> tuple[NDArray[np.int32], NDArray[np.uint32]]:
    """What each character counts as: codes[places[c]:places[c + 1]]. 0 separates words, ALONE marks one of its own."""
    found: dict[int, list[int]] = {}
    skipped = (*_HAN, _HANGUL)
    for code in range(0x110000):
        if any(first <= code < end for first, end in skipped) or 0xD800 <= code < 0xF900 or 0x323B0 <= code < 0xE0000:
            continue
        if code >= 0xE0200:
            break
        found[code] = _folded(chr(code))
    lengths = np.ones(0x110000, np.int32)  # what is not in `found` is one code: a separator, if nothing below says else
    for code, folded in found.items():
        lengths[code] = len(folded)
    places = np.zeros(0x110001, np.int32)
    np.cumsum(lengths, out=places[1:])
    codes = np.zeros(places[-1], np.uint32)
    for code, folded in found.items():
        codes[places[code] : places[code + 1]] = folded
    for first, end in _HAN:
        codes[places[first:end]] = np.arange(first, end, dtype=np.uint32) | np.uint32(ALONE)
    codes[places[_HANGUL[0] : _HANGUL[1]]] = np.arange(*_HANGUL, dtype=np.uint32)
    return places, codes


def _folded(character: str) -> list[int]:
    text = character
    while True:
        # Both ways: the upper case of some letters is that of others (dotless i, long s).
        further = unicodedata.normalize("NFKD", text).casefold().upper().casefold()
        if further == text:
            break
        text = further
    codes = []
    for one in unicodedata.normalize("NFKD", text):
        code, kind = ord(one), unicodedata.category(one)
        if 0x300 <= code < 0x370 or kind in ("Cf", "Me") or 0xFE00 <= code < 0xFE10 or 0xE0100 <= code < 0xE01F0:
            continue
        if kind[0] not in "LMN":
            codes.append(0)
        elif any(first <= code < end for first, end in (*_HAN, *_UNSPACED)):
            codes.append(code | ALONE)
        else:
            codes.append(code)
    return codes


@compiled
def _mix(value: np.uint64) -> np.uint64:
    """The finaliser of MurmurHash3 (64 bit): every bit of the result depends on every bit of the value."""
    value ^= value >> np.uint64(33)
    value *= np.uint64(0xFF51AFD7ED558CCD)
    value ^= value >> np.uint64(33)
    value *= np.uint64(0xC4CEB9FE1A85EC53)
    value ^= value >> np.uint64(33)
    return value


@compiled
def _hash_words(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    places: NDArray[np.int32],
    codes: NDArray[np.uint32],
    hashes: NDArray[np.uint64],
    starts: NDArray[np.int64],
    wholes: NDArray[np.uint64],
) -> None:
    """Writes the hashes of the words of each text, where they start, and the hash of them all."""
    filled = 0
    for text in range(len(offsets) - 1):
        position, end = offsets[text], offsets[text + 1]
        word, whole = np.uint64(0), np.uint64(0)
        inside: bool = False
        while position <= end:
            first, last = places[32], places[33]  # the end of the text counts as a space
            if position < end:
                byte = np.uint32(data[position])
                length = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
                code = byte if length == 1 else byte & np.uint32(0x7F >> length)
                for follower in range(1, length):
                    if position + follower < end:
                        code = (code << np.uint32(6)) | np.uint32(data[position + follower] & 0x3F)
                first, last = places[code], places[code + 1]
                position += length
            else:
                position += 1
            for place in range(first, last):
                folded = codes[place]
                alone: bool = bool(folded >= ALONE)
                if inside and (folded == 0 or alone):
                    hashes[filled] = word
                    filled += 1
                    whole = _mix(whole * np.uint64(0x9E3779B97F4A7C15) + word)
                    inside = False
                if alone:
                    word = _mix(np.uint64(folded))
                    hashes[filled] = word
                    filled += 1
                    whole = _mix(whole * np.uint64(0x9E3779B97F4A7C15) + word)
                elif folded != 0:
                    word = _mix((word if inside else np.uint64(0)) * np.uint64(31) + np.uint64(folded))
                    inside = True
        wholes[text] = whole
        starts[text + 1] = filled
