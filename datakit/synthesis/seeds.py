"""Which passages are asked about: drawn at random or evenly from clusters, and as many of each domain as its quota says."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from datakit import storage
from datakit.encoders import encode
from datakit.encoders.vectors import load_array, save_array
from datakit.recipe import ClusterSelect, Encoder, Quota, Synthesis
from datakit.step import Work
from datakit.synthesis import clusters
from datakit.synthesis.allocation import allocate
from datakit.synthesis.passages import Array, Index

log = logging.getLogger(__name__)

# Texts of one unit: the most that a killed build encodes again.
SLICE = 512
# Picks so many of some positions.
Pick = Callable[[Array, int], Array]


@dataclass(frozen=True)
class Slice:
    """Some passages of one file."""

    file: str
    rows: Array


@dataclass(frozen=True)
class Embed:
    """Writes the vectors of a slice as whole numbers (datakit.synthesis.clusters)."""

    encoder: Encoder

    def __call__(self, unit: Slice, folder: str) -> dict[str, Any]:
        texts = storage.read_table(unit.file, columns=["text"]).column("text").take(unit.rows).to_pylist()
        vectors = clusters.whole(encode.encode(self.encoder, "document", texts))
        save_array(storage.join(folder, "vectors.npy"), vectors)
        return {"rows": len(vectors)}


@dataclass(frozen=True)
class Chosen:
    """Clusters the candidates, and writes the positions that are drawn."""

    index: Index
    select: ClusterSelect
    quota: Quota | None
    count: int
    seed: int

    def __call__(self, unit: tuple[Array, Sequence[str]], folder: str) -> dict[str, Any]:
        candidates, files = unit
        vectors = np.concatenate([load_array(file) for file in files])
        wanted = self.select.clusters or clusters.default_number(self.count, len(candidates))
        rank = _places(self.index, candidates)
        found = clusters.fit(vectors, wanted, self.seed, rank)

        def pick(positions: Array, count: int) -> Array:
            return candidates[clusters.spread(vectors, found, rank, np.searchsorted(candidates, positions), count)]

        positions, notes = chosen(self.index, candidates, self.count, self.quota, pick)
        save_array(storage.join(folder, "positions.npy"), positions)
        return {"rows": len(positions), "notes": {**notes, "clusters": len(np.unique(found.labels)), "embedded": len(candidates)}}


def select(work: Work, index: Index, synthesis: Synthesis, encoder: Encoder | None, seed: int) -> tuple[Array, dict[str, Any]]:
    """The positions that are drawn, ascending, and what there is to say of them.

    `clusters` encodes the candidates in fixed slices, and needs the vectors of all of them in memory while it draws: 2 bytes for
    each dimension, 0.8 GB for a million passages and 384 dimensions. `candidates` in the recipe bounds them.
    """
    how, count = synthesis.select, synthesis.documents
    if not isinstance(how, ClusterSelect) or count is None or count >= len(index.first):
        positions, notes = at_random(index, synthesis)
        return positions, _said(notes)
    assert encoder is not None
    candidates = np.sort(index.ordered(index.first)[: how.candidates])
    slices = [
        Slice(file, rows[start : start + SLICE])
        for file, rows in zip(index.files, index.rows(candidates), strict=True)
        for start in range(0, len(rows), SLICE)
    ]
    try:
        work.map("vectors", Embed(encoder), slices, exclusive=True)
    finally:
        encode.load.cache_clear()
    files = [work.files("vectors", number, "vectors.npy") for number in range(len(slices))]
    choose = Chosen(index, how, synthesis.quota, count, seed)
    results = work.map("selected", choose, [(candidates, files)], exclusive=True)
    return np.array(load_array(work.files("selected", 0, "positions.npy"))), _said(results[0]["notes"])


def _said(notes: dict[str, Any]) -> dict[str, Any]:
    for line in notes.get("short", []):
        log.warning("%s", line)
    return notes


def at_random(index: Index, synthesis: Synthesis) -> tuple[Array, dict[str, Any]]:
    """Like `select`, with passages drawn by their digests alone; with the quota, where there is one."""
    count = len(index.first) if synthesis.documents is None else synthesis.documents
    return chosen(index, index.first, count, synthesis.quota, lambda positions, wanted: index.ordered(positions)[:wanted])


def chosen(index: Index, candidates: Array, count: int, quota: Quota | None, pick: Pick) -> tuple[Array, dict[str, Any]]:
    """`count` of the candidates, ascending, picked domain by domain where there is a quota; with notes on the domains."""
    if quota is None:
        return np.sort(pick(candidates, min(count, len(candidates)))), {}
    # An empty domain is none: sources may have both.
    first: dict[str, int] = {}
    same = np.array([first.setdefault(name or "", place) for place, name in enumerate(index.names)], np.int64)
    domains = same[index.domains[candidates]]
    order = np.argsort(domains, kind="stable")
    places, starts = np.unique(domains[order], return_index=True)
    members = dict(zip((index.names[place] or "" for place in places), np.split(candidates[order], starts[1:]), strict=False))
    available = {name: len(members[name]) for name in sorted(members)}
    counts = quotas(quota, count, available)
    parts = [pick(members[name], counts[name]) for name in available if counts[name]]
    positions = np.sort(np.concatenate([*parts, np.zeros(0, np.int64)])).astype(np.int64)
    return positions, _notes(quota, count, available, counts)


def quotas(quota: Quota, count: int, available: Mapping[str, int]) -> dict[str, int]:
    """How many passages each domain gives, of those that it has. "" stands for passages without a domain.

    Domains that the quota does not name share what is left, by their sizes. What a domain lacks is given to the others.
    """
    weights = _weights(quota, available)
    names = sorted(available)
    floors = [quota.floor] * len(names)
    return dict(
        zip(names, allocate(count, [weights[name] for name in names], [available[n] for n in names], floors), strict=True)
    )


def _weights(quota: Quota, available: Mapping[str, int]) -> dict[str, Fraction]:
    if quota.shares == "equal":
        return dict.fromkeys(available, Fraction(1))
    shares = {name: Fraction(str(share)) for name, share in quota.shares.items()}
    left = 1 - sum(shares.values(), Fraction(0))
    others = sum(size for name, size in available.items() if name not in shares)
    return {name: shares[name] if name in shares else max(left, Fraction(0)) * size / others for name, size in available.items()}


def _notes(quota: Quota, count: int, available: Mapping[str, int], counts: Mapping[str, int]) -> dict[str, Any]:
    """What was drawn of each domain, and a sentence for each that falls short; of the first thirty."""
    shares = {} if quota.shares == "equal" else quota.shares
    short = [
        f"The quota asks for {round(share * count):,} passages of the domain '{name}', and there are {available.get(name, 0):,}. "
        "The others give the rest."
        for name, share in shares.items()
        if available.get(name, 0) < int(share * count)
    ]
    total = sum(counts.values())
    if total < min(count, sum(available.values())):
        short.append(f"The domains of the quota have {total:,} passages, and {count:,} are wanted. Name more domains.")
    told = list(shares) or sorted(counts, key=lambda name: (-counts[name], name))[:30]
    return {"domains": {name: counts.get(name, 0) for name in told}, **({"short": short[:30]} if short else {})}


def _places(index: Index, positions: Array) -> Array:
    """For each position, how many of them are drawn before it."""
    places = np.empty(len(positions), np.int64)
    places[np.searchsorted(positions, index.ordered(positions))] = np.arange(len(positions))
    return places
