"""Texts as sets of shingles: runs of words or characters, hashed, in flat arrays.

No Python object is made for a word, a shingle or a set: texts are read from Arrow's UTF-8 buffers, and a set is a sorted slice
of one array. A shingle is a 32-bit hash. Two different shingles of two texts with n shingles together share a hash with a
probability below n^2 / 2^33, which for a thousand shingles moves a Jaccard similarity by 0.001 once in ten thousand pairs.
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

# Bytes of text that are worked on at a time: it bounds the memory for what lies between text and shingles.
BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class Shingles:
    """Sets of hashed shingles of n texts: set i is values[starts[i]:starts[i + 1]], sorted, each value once.

    values: uint32. starts: int64 of n + 1. A text of nothing but punctuation has an empty set.
    """

    values: NDArray[np.uint32]
    starts: NDArray[np.int64]

    @property
    def sizes(self) -> NDArray[np.int64]:
        return np.diff(self.starts)


# Punctuation that carries meaning in code, numbers and names: "C#", "50%", "a*b". Like symbols, each is a word of its own.
MEANINGFUL = "#%&*/@\\"

# Marks a character of the table below that is a word of its own.
ALONE = 1 << 31


@functools.cache
def folded_characters() -> NDArray[np.uint32]:
    """What each code point of the basic plane counts as: its case-folded form, or 0 where it separates words.

    Letters, marks, numbers and the underscore make words. Symbols, MEANINGFUL, and the characters of scripts without spaces
    between words are words of their own (ALONE). A character whose folded form is two (the German sharp s) stays as it is.
    """
    table = np.zeros(0x10000, np.uint32)
    for code in range(0x10000):
        character = chr(code)
        kind = unicodedata.category(character)[0]
        if kind == "S" or character in MEANINGFUL:
            table[code] = code | ALONE
        elif kind in "LMN" or character == "_":
            folded = character.casefold()
            if len(folded) != 1:
                folded = character.lower()
            table[code] = ord(folded) if len(folded) == 1 else code
            if 0x0E00 <= code <= 0x0EFF or 0x3040 <= code <= 0x9FFF:  # Thai, Lao; kana, Han
                table[code] |= ALONE
    return table


def shingles(texts: pa.ChunkedArray | pa.Array, *, words: bool, size: int) -> Shingles:
    """The shingles of each text, `size` words or characters long; a shorter text is one shingle. Null is the empty text.

    Case, punctuation and the amount of white space do not count; what makes a word, `folded_characters` says.
    """
    blocks = []
    for data, offsets in _blocks(texts):
        hashes = np.empty(len(data) + len(offsets), np.uint32)
        ends = np.empty(len(offsets) - 1, np.int64)
        _hash_shingles(data, offsets, folded_characters(), words, size, hashes, ends)
        blocks.append(_sorted_sets(hashes[: ends[-1]], ends))
    if not blocks:
        return Shingles(np.empty(0, np.uint32), np.zeros(1, np.int64))
    sizes = np.concatenate([np.diff(block.starts) for block in blocks])
    return Shingles(np.concatenate([block.values for block in blocks]), np.concatenate(([0], np.cumsum(sizes))))


def _blocks(texts: pa.ChunkedArray | pa.Array) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """(UTF-8 bytes, offsets of the texts and of the end) of runs of texts of about BLOCK_BYTES together."""
    for chunk in texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]:
        if not len(chunk):
            continue
        array = chunk.cast(pa.large_string()).fill_null("")
        _, offset_buffer, data_buffer = array.buffers()
        offsets = np.frombuffer(offset_buffer, np.int64, len(array) + 1, array.offset * 8)
        data = np.frombuffer(data_buffer, np.uint8) if data_buffer is not None and data_buffer.size else np.empty(0, np.uint8)
        first = 0
        while first < len(array):
            last = int(np.searchsorted(offsets, offsets[first] + BLOCK_BYTES, side="right")) - 1
            last = min(max(last, first + 1), len(array))
            begin, end = offsets[first], offsets[last]
            yield data[begin:end], offsets[first : last + 1] - begin
            first = last


def _sorted_sets(hashes: NDArray[np.uint32], ends: NDArray[np.int64]) -> Shingles:
    """Sorts the hashes of each text, and drops those that it has twice."""
    text = np.repeat(np.arange(len(ends), dtype=np.uint64), np.diff(ends, prepend=0))
    keys = np.sort((text << np.uint64(32)) | hashes)
    first = np.ones(len(keys), bool)
    np.not_equal(keys[1:], keys[:-1], out=first[1:])
    keys = keys[first]
    starts = np.searchsorted(keys, np.arange(len(ends) + 1, dtype=np.uint64) << np.uint64(32))
    return Shingles(keys.astype(np.uint32), starts.astype(np.int64))


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
def _hash_run(ring: NDArray[np.uint64], last: int, length: int) -> np.uint32:
    """The hash of the `length` newest entries of the ring, oldest first; `last` is the number of the newest."""
    value = np.uint64(length)
    for number in range(last - length + 1, last + 1):
        value = _mix(value * np.uint64(0x9E3779B97F4A7C15) + ring[number % len(ring)])
    return np.uint32(value >> np.uint64(32))


@compiled
def _hash_shingles(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    fold: NDArray[np.uint32],
    words: bool,
    size: int,
    hashes: NDArray[np.uint32],
    ends: NDArray[np.int64],
) -> None:
    """Writes the shingle hashes of each text, in the order of the text, and for each text the end of its hashes."""
    ring = np.zeros(size, np.uint64)  # the newest units; a unit is a word's hash, or a character
    fresh = np.zeros(2, np.uint64)  # the units that one character of the text adds: at most two
    filled = 0
    for text in range(len(offsets) - 1):
        position, end = offsets[text], offsets[text + 1]
        units = 0
        word = np.uint64(0)
        inside: bool = False  # in a word; among characters: after a character that counts
        while position <= end:
            character = np.uint32(0)  # the end of the text counts as white space
            alone = False
            if position < end:
                byte = np.uint32(data[position])
                length = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
                code = byte if length == 1 else byte & np.uint32(0x7F >> length)
                for follower in range(1, length):
                    if position + follower < end:
                        code = (code << np.uint32(6)) | np.uint32(data[position + follower] & 0x3F)
                character = fold[code] if code < 0x10000 else code | np.uint32(ALONE)
                alone = bool(character >= ALONE)
                character &= np.uint32(ALONE - 1)
                position += length
            else:
                position += 1
            added = 0
            if words:
                if inside and (character == 0 or alone):
                    fresh[added] = word
                    added += 1
                    inside = False
                if alone:
                    fresh[added] = np.uint64(character)
                    added += 1
                elif character != 0:
                    word = _mix((word if inside else np.uint64(0)) * np.uint64(31) + np.uint64(character))
                    inside = True
            else:
                if character != 0:
                    if units > 0 and not inside:  # whatever stands between two characters that count is one space
                        fresh[added] = np.uint64(32)
                        added += 1
                    fresh[added] = np.uint64(character)
                    added += 1
                inside = bool(character != 0)
            for number in range(added):
                ring[units % size] = fresh[number]
                units += 1
                if units >= size:
                    hashes[filled] = _hash_run(ring, units - 1, size)
                    filled += 1
        if 0 < units < size:
            hashes[filled] = _hash_run(ring, units - 1, units)
            filled += 1
        ends[text] = filled
