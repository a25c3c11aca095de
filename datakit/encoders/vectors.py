"""Reading the vectors that an embed step wrote.

Layout of its output: `vectors/NNNNN/` has `ids.npy` (n ids) and `vectors.npy` (n, d) float32 for each fixed slice of texts, and
`index/00000/` has, for each role, all ids in ascending order (`ROLE-ids.npy`), where each one is (`ROLE-places.npy`: slice, row)
and which slices belong to the role (`slices.json`). An id is kept as its 16 bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from fsspec.implementations.local import LocalFileSystem

from datakit import storage
from datakit.errors import BuildError
from datakit.step import Output

Role = Literal["query", "document"]
ROLES: tuple[Role, ...] = ("query", "document")

Array = np.ndarray[Any, np.dtype[Any]]
ID = np.dtype("S16")


def pack(ids: Sequence[str]) -> Array:
    """Ids (32 hex digits each) as an array of their 16 bytes, dtype S16. It sorts and compares as the ids do."""
    if any(len(each) != 32 for each in ids):
        wrong = next(each for each in ids if len(each) != 32)
        raise BuildError(f"The id '{wrong}' of a text is not a digest of 32 hex digits. Was the row normalised?")
    return np.frombuffer(bytes.fromhex("".join(ids)), dtype=ID)


def unpack(ids: Array) -> list[str]:
    """The inverse of `pack`."""
    digits = np.ascontiguousarray(ids).tobytes().hex()
    return [digits[start : start + 32] for start in range(0, len(digits), 32)]


def save_array(path: str, array: Array) -> None:
    with storage.atomic(path) as file:
        np.save(file, np.ascontiguousarray(array), allow_pickle=False)


def load_array(path: str) -> Array:
    """An array that `save_array` wrote; mapped, not read, where it is a local file."""
    fs, inner = storage.filesystem(path)
    if isinstance(fs, LocalFileSystem):
        array: Array = np.load(inner, mmap_mode="r", allow_pickle=False)
    else:
        array = np.load(io.BytesIO(storage.read_bytes(path)), allow_pickle=False)
    return array


def blocks(output: Output, role: Role, slices: int = 8) -> Iterator[tuple[list[str], Array]]:
    """All vectors of a role in bounded blocks: (ids, float32 array (n, d)). Each text comes once, in a fixed order.

    A block holds `slices` slices of the embed step (512 texts each). Vectors have length 1.
    """
    start, stop = storage.read_json(_index(output, "slices.json"))[role]
    for first in range(start, stop, slices):
        numbers = range(first, min(first + slices, stop))
        ids = [load_array(_slice(output, number, "ids.npy")) for number in numbers]
        vectors = [load_array(_slice(output, number, "vectors.npy")) for number in numbers]
        yield unpack(np.concatenate(ids)), np.concatenate(vectors)


def lookup(output: Output, role: Role, ids: Sequence[str] | Array) -> Array:
    """The vectors of some texts, in the order of `ids` (hex strings, or packed): float32, (n, d), of length 1.

    An id that the embed step has not seen in this role is a BuildError.
    """
    wanted = ids if isinstance(ids, np.ndarray) else pack(ids)
    found = np.zeros((len(wanted), dimension(output)), np.float32)
    if not len(wanted):
        return found
    known = load_array(_index(output, f"{role}-ids.npy"))
    at, there = _find(known, wanted)
    missing = ~there
    if missing.any():
        raise BuildError(
            f"The step '{output.report.name}' has no vector for the {role} '{unpack(wanted[missing][:1])[0]}' "
            f"({int(missing.sum())} are missing). Its texts must include those of the step that reads it."
        )
    places = load_array(_index(output, f"{role}-places.npy"))[at]
    order = np.argsort(places[:, 0], kind="stable")
    numbers, starts = np.unique(places[order, 0], return_index=True)
    for number, rows in zip(numbers, np.split(order, starts[1:]), strict=True):
        found[rows] = load_array(_slice(output, int(number), "vectors.npy"))[places[rows, 1]]
    return found


def holds(output: Output, role: Role, ids: Sequence[str]) -> Array:
    """Whether the embed step has a vector for each of some texts: bool, (n)."""
    return _find(load_array(_index(output, f"{role}-ids.npy")), pack(ids))[1]


def _find(known: Array, wanted: Array) -> tuple[Array, Array]:
    """Where each of some ids is among those known, which ascend, and whether it is there. Nothing is copied: they may be many."""
    at = np.searchsorted(known, wanted)
    there = known[np.minimum(at, len(known) - 1)] == wanted if len(known) else np.zeros(len(wanted), bool)
    return at, there


def lookup_any(outputs: Sequence[Output], role: Role, ids: Sequence[str]) -> Array:
    """As `lookup`, in several outputs of one encoder: each vector from the first that has it."""
    wanted = np.array(ids, dtype=object)
    left = np.arange(len(wanted))
    found = np.zeros((len(wanted), max(dimension(output) for output in outputs)), np.float32)
    for output in outputs[:-1]:
        seen = holds(output, role, wanted[left].tolist())
        found[left[seen]] = lookup(output, role, wanted[left[seen]].tolist())
        left = left[~seen]
    if len(left):
        found[left] = lookup(outputs[-1], role, wanted[left].tolist())
    return found


def dimension(output: Output) -> int:
    """The number of dimensions; 0 where the embed step saw no text."""
    return int(output.report.notes["dimension"])


def _index(output: Output, name: str) -> str:
    return storage.join(output.folder, "index", "00000", name)


def _slice(output: Output, number: int, name: str) -> str:
    return storage.join(output.folder, "vectors", f"{number:05d}", name)
