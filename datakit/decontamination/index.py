"""The index of evaluation texts, and the texts of rows that meet it.

Held in memory: 24 to 48 bytes for each distinct n-gram and each distinct word of the evaluation texts, 4 bytes for each n-gram
that a text has, and 40 bytes for each text. Rows pass by in blocks (words.BLOCK_BYTES); what they need at a time is bounded too.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datakit import storage
from datakit.decontamination.words import Words, blocks, words
from datakit.dedup.compiled import compiled
from datakit.encoders.vectors import load_array, save_array

# Pairs of an n-gram in a text and an evaluation text that has it: so many are counted at a time.
_PAIRS = 4_000_000

_ARRAYS = (
    "sets",
    "grams",
    "exact_keys",
    "exact_texts",
    "vocabulary",
    "table_keys",
    "table_numbers",
    "starts",
    "postings",
    "sizes",
)


@dataclass(frozen=True)
class Index:
    """Evaluation texts are numbered across all sets.

    sets: the set of each text. grams: the number of its distinct n-grams; 0 where it is too short to be looked for in others.
    exact_keys, exact_texts: the hash of the words of each text that has some, sorted, and its number.
    vocabulary: open hash table of the words of all n-grams. table_keys, table_numbers: the same for n-grams, with their numbers.
    starts, postings: the texts that have n-gram g are postings[starts[g]:starts[g + 1]].
    sizes: whether n-grams of so many words are in the table.
    """

    sets: NDArray[np.int32]
    grams: NDArray[np.int32]
    exact_keys: NDArray[np.uint64]
    exact_texts: NDArray[np.int32]
    vocabulary: NDArray[np.uint64]
    table_keys: NDArray[np.uint64]
    table_numbers: NDArray[np.int32]
    starts: NDArray[np.int64]
    postings: NDArray[np.int32]
    sizes: NDArray[np.bool_]

    def save(self, folder: str) -> None:
        for name in _ARRAYS:
            save_array(storage.join(folder, f"{name}.npy"), getattr(self, name))


@functools.lru_cache(maxsize=2)
def loaded(folder: str) -> Index:
    """The index that was saved in a folder; mapped where it is a local one, so that workers share it."""
    return Index(*(np.asarray(load_array(storage.join(folder, f"{name}.npy"))) for name in _ARRAYS))


def build(texts: pa.Array, sets: NDArray[np.int32], long_enough: NDArray[np.bool_], n: int) -> Index:
    """The index of evaluation texts. Those that are not `long_enough` are found only where a text equals them."""
    found = words(texts)
    counts = found.counts
    keys, owners, vocabulary = [], [], [np.zeros(0, np.uint64)]
    sizes = np.zeros(n + 1, bool)
    for text in np.flatnonzero(long_enough & (counts > 0)):
        size = min(n, int(counts[text]))
        sizes[size] = True
        mine = found.hashes[found.starts[text] : found.starts[text + 1]]
        grams = np.unique(_grams(mine, size))
        keys.append(grams)
        owners.append(np.full(len(grams), text, np.int32))
        vocabulary.append(mine)
    every = np.concatenate(keys) if keys else np.zeros(0, np.uint64)
    owner = np.concatenate(owners) if owners else np.zeros(0, np.int32)
    distinct, number = np.unique(every, return_inverse=True)
    order = np.lexsort((owner, number))
    starts = np.searchsorted(number[order], np.arange(len(distinct) + 1)).astype(np.int64)
    table_keys, table_numbers = _table(distinct)
    exact = np.flatnonzero(counts > 0)
    exact = exact[np.lexsort((exact, found.wholes[exact]))]
    return Index(
        sets=sets.astype(np.int32),
        grams=np.bincount(owner, minlength=len(counts)).astype(np.int32),
        exact_keys=found.wholes[exact],
        exact_texts=exact.astype(np.int32),
        vocabulary=_table(np.unique(np.concatenate(vocabulary)))[0],
        table_keys=table_keys,
        table_numbers=table_numbers,
        starts=starts,
        postings=owner[order],
        sizes=sizes,
    )


@dataclass(frozen=True)
class Hits:
    """What was found: text `texts[i]` meets the evaluation text `others[i]`; the exact ones, and the containment of the others.

    A pair is there once for `exact` and once for its containment, where both hold.
    """

    texts: NDArray[np.int64]
    others: NDArray[np.int64]
    exact: NDArray[np.bool_]
    values: NDArray[np.float64]


def find(index: Index, texts: pa.ChunkedArray | pa.Array, threshold: float) -> Hits:
    """All evaluation texts that each text equals, or of whose n-grams it has a share of at least `threshold`."""
    found: list[tuple[NDArray[np.int64], NDArray[np.int64], bool, NDArray[np.float64]]] = []
    for first, block in blocks(texts):
        said = words(block)
        text, other = _equal(index, said)
        found.append((text + first, other, True, np.ones(len(text))))
        for text, other, value in _contained(index, said, threshold):
            found.append((text + first, other, False, value))
    if not found:
        nothing = np.zeros(0, np.int64)
        return Hits(nothing, nothing, nothing.astype(bool), nothing.astype(float))
    return Hits(
        np.concatenate([text for text, _, _, _ in found]),
        np.concatenate([other for _, other, _, _ in found]),
        np.repeat([exact for _, _, exact, _ in found], [len(text) for text, _, _, _ in found]),
        np.concatenate([value for _, _, _, value in found]),
    )


def _equal(index: Index, said: Words) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    there = np.flatnonzero(said.counts > 0)
    left = np.searchsorted(index.exact_keys, said.wholes[there], side="left")
    right = np.searchsorted(index.exact_keys, said.wholes[there], side="right")
    return np.repeat(there, right - left), index.exact_texts[_ranges(left, right)].astype(np.int64)


def _contained(
    index: Index, said: Words, threshold: float
) -> list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]]:
    """(text, evaluation text, containment) of the pairs at or above the threshold, some texts at a time."""
    arguments = (
        said.hashes, said.starts, index.vocabulary, index.table_keys, index.table_numbers, index.sizes,
    )  # fmt: skip
    count = _probe(*arguments, np.zeros(0, np.uint64))
    pairs = np.zeros(count, np.uint64)
    _probe(*arguments, pairs)
    pairs = np.unique(pairs)
    text, gram = (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)
    left, right = index.starts[gram], index.starts[gram + 1]
    ends = np.cumsum(right - left)
    result, begin = [], 0
    while begin < len(text):
        done = ends[begin - 1] if begin else 0
        end = int(np.searchsorted(ends, done + _PAIRS, side="right"))
        end = max(end, begin + 1)
        if end < len(text):  # whole texts, or one
            whole = int(np.searchsorted(text, text[end], side="left"))
            end = whole if whole > begin else int(np.searchsorted(text, text[end], side="right"))
        some = slice(begin, end)
        both = np.repeat(text[some], (right - left)[some]) * len(index.sets) + index.postings[_ranges(left[some], right[some])]
        pair, shared = np.unique(both, return_counts=True)
        other = pair % len(index.sets)
        value = shared / index.grams[other]
        high = value >= threshold - 1e-9
        result.append((pair[high] // len(index.sets), other[high], value[high]))
        begin = end
    return result


def _ranges(left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
    """All numbers from left[i] to right[i], one range after the other."""
    sizes = right - left
    places: NDArray[np.int64] = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes - left, sizes)
    return places


@compiled
def _chain(key: np.uint64, word: np.uint64) -> np.uint64:
    """The hash of an n-gram from that of its beginning. Never 0, which marks a free place."""
    value = key * np.uint64(0x9E3779B97F4A7C15) + word
    value ^= value >> np.uint64(33)
    value *= np.uint64(0xFF51AFD7ED558CCD)
    value ^= value >> np.uint64(33)
    value *= np.uint64(0xC4CEB9FE1A85EC53)
    value ^= value >> np.uint64(33)
    return value | np.uint64(1)


@compiled
def _grams(hashes: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    grams = np.zeros(len(hashes) - size + 1, np.uint64)
    for place in range(len(grams)):
        key = np.uint64(size)
        for word in hashes[place : place + size]:
            key = _chain(key, word)
        grams[place] = key
    return grams


def _table(keys: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    """An open hash table of distinct keys, at most half full, and the place of each key among them."""
    size = 1 << max(2, int(2 * len(keys)).bit_length())
    table, numbers = np.zeros(size, np.uint64), np.zeros(size, np.int32)
    _insert(keys, table, numbers)
    return table, numbers


@compiled
def _insert(keys: NDArray[np.uint64], table: NDArray[np.uint64], numbers: NDArray[np.int32]) -> None:
    mask = np.uint64(len(table) - 1)
    for number in range(len(keys)):
        key = keys[number] | np.uint64(1)
        place = (key >> np.uint64(20)) & mask
        while table[place] != 0 and table[place] != key:
            place = (place + np.uint64(1)) & mask
        table[place] = key
        numbers[place] = number


@compiled
def _place(key: np.uint64, table: NDArray[np.uint64]) -> np.int64:
    """The place of a key in a table; -1 where it is not there."""
    mask = np.uint64(len(table) - 1)
    place = (key >> np.uint64(20)) & mask
    while table[place] != 0:
        if table[place] == key:
            return np.int64(place)
        place = (place + np.uint64(1)) & mask
    return np.int64(-1)


@compiled
def _probe(
    hashes: NDArray[np.uint64],
    starts: NDArray[np.int64],
    vocabulary: NDArray[np.uint64],
    keys: NDArray[np.uint64],
    numbers: NDArray[np.int32],
    sizes: NDArray[np.bool_],
    pairs: NDArray[np.uint64],
) -> int:
    """Finds the n-grams of each text that are in the table. Returns their number; writes (text << 32 | n-gram) if there is room.

    N-grams of each size are looked for at once, as far as the words are in the vocabulary.
    """
    count = 0
    for text in range(len(starts) - 1):
        known = starts[text]  # words up to here are in the vocabulary
        for begin in range(starts[text], starts[text + 1]):
            known = max(known, begin)
            while (
                known < starts[text + 1]
                and known - begin < len(sizes) - 1
                and _place(hashes[known] | np.uint64(1), vocabulary) >= 0
            ):
                known += 1
            for size in range(1, known - begin + 1):
                if not sizes[size]:
                    continue
                key = np.uint64(size)
                for word in hashes[begin : begin + size]:
                    key = _chain(key, word)
                place = _place(key, keys)
                if place >= 0:
                    if count < len(pairs):
                        pairs[count] = (np.uint64(text) << np.uint64(32)) | np.uint64(numbers[place])
                    count += 1
    return count
