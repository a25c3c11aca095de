"""MinHash against datasketch on the answers of medquad: time as ratios, and recall against brute force.

    python benchmarks/minhash.py --data FOLDER [--runs 3] [--out benchmarks/minhash.md]

FOLDER holds train/medquad.jsonl (default: the variable DATAKIT_REAL_DATA). Both sides get the same texts, the same shingles of
three words, the same number of permutations and the same bands, and run by turns in one process. datasketch signs with
`MinHash.bulk`, its fastest way, and verifies with Python sets. Recall counts pairs before survivors are chosen; brute force
intersects all pairs of shingle sets, as strings, by a product of sparse matrices.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasketch import MinHash, MinHashLSH
from shingle_sets import Pairs, brute_force, shingle_sets

from datakit.dedup.candidates import Texts, sign
from datakit.dedup.pairs import near_duplicate_pairs
from datakit.dedup.shingles import shingles
from datakit.dedup.signatures import Bands, band_keys, bands_for, signatures
from datakit.dedup.verify import buckets
from datakit.recipe import MinHashDedup


def datasketch_bands(sets: list[set[str]], bands: Bands, permutations: int) -> tuple[MinHashLSH, list[MinHash]]:
    hashes = MinHash.bulk([[shingle.encode() for shingle in item] for item in sets], num_perm=permutations)
    index = MinHashLSH(num_perm=permutations, params=(bands.bands, bands.rows))
    for number, minhash in enumerate(hashes):
        if sets[number]:
            index.insert(number, minhash)
    return index, hashes


def datasketch_pairs(texts: list[str], threshold: float, bands: Bands, permutations: int) -> Pairs:
    sets = shingle_sets(texts)
    index, hashes = datasketch_bands(sets, bands, permutations)
    found: Pairs = {}
    for number, minhash in enumerate(hashes):
        if not sets[number]:
            continue
        for other in index.query(minhash):
            if other > number:
                common = len(sets[number] & sets[other])
                similarity = common / (len(sets[number]) + len(sets[other]) - common)
                if similarity >= threshold:
                    found[number, other] = similarity
    return found


def datakit_bands(texts: pa.Array, settings: MinHashDedup, bands: Bands) -> Any:
    signed = sign(Texts([pa.chunked_array([texts])]), settings, bands)
    return buckets(np.stack([signed.column(name).to_numpy() for name in signed.column_names if name.startswith("band_")]))


def datakit_pairs(texts: pa.Array, settings: MinHashDedup) -> Pairs:
    table = near_duplicate_pairs(texts, settings)
    left, right = table.column("left").to_pylist(), table.column("right").to_pylist()
    return dict(zip(zip(left, right, strict=True), table.column("jaccard").to_pylist(), strict=True))


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DATAKIT_REAL_DATA"))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--permutations", type=int, default=128)
    parser.add_argument("--out", type=Path, help="also writes the tables there")
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("give the folder of real data with --data, or in DATAKIT_REAL_DATA")
    with (arguments.data / "train" / "medquad.jsonl").open(encoding="utf-8") as file:
        texts = [json.loads(line)["answer"] or "" for line in file]
    arrow = pa.array(texts)
    sets = shingle_sets(texts)
    said = [f"medquad answers: {len(texts):,} texts, {sum(map(len, texts)):,} characters, {sum(map(len, sets)):,} shingles."]

    def settings(threshold: float) -> MinHashDedup:
        return MinHashDedup(type="minhash", threshold=threshold, permutations=arguments.permutations)

    started = time.perf_counter()
    datakit_pairs(arrow[:100], settings(0.8))
    said.append(
        f"First call of ours (compiles, or reads what was compiled): {time.perf_counter() - started:.1f} s, not counted below."
    )
    said += ["", "| what | threshold | ours, s | datasketch, s | ratio |", "|---|---|---|---|---|"]

    def compare(what: str, threshold: float, ours: Callable[[], Any], theirs: Callable[[], Any]) -> None:
        times = [(timed(ours)[0], timed(theirs)[0]) for _ in range(arguments.runs)]
        mine, other = (statistics.median(side) for side in zip(*times, strict=True))
        said.append(f"| {what} | {threshold} | {mine:.2f} | {other:.2f} | {statistics.median(b / a for a, b in times):.1f} |")
        print(said[-1], flush=True)

    bands = bands_for(0.8, arguments.permutations)
    compare(
        "text to signatures and bands",
        0.8,
        lambda: datakit_bands(arrow, settings(0.8), bands),
        lambda: datasketch_bands(shingle_sets(texts), bands, arguments.permutations),
    )
    flat = shingles(arrow, words=True, size=3)
    there = flat.sizes > 0
    starts = np.concatenate(([0], np.cumsum(flat.sizes[there])))
    compare(
        "the same, both given their shingles",
        0.8,
        lambda: buckets(band_keys(signatures(flat.values.astype(np.uint64), starts, arguments.permutations, 1, "rensa"), bands)),
        lambda: datasketch_bands(sets, bands, arguments.permutations),
    )
    recall = [
        "| threshold | bands x rows | true pairs | ours found | recall | datasketch found | recall |",
        "|---|---|---|---|---|---|---|",
    ]
    truth = brute_force(sets, 0.7)
    for threshold in (0.7, 0.8, 0.9):
        bands = bands_for(threshold, arguments.permutations)
        ours, theirs = (
            datakit_pairs(arrow, settings(threshold)),
            datasketch_pairs(texts, threshold, bands, arguments.permutations),
        )
        true = {pair: similarity for pair, similarity in truth.items() if similarity >= threshold}
        assert ours.keys() <= true.keys(), "a pair was found that is none"
        assert all(similarity == true[pair] for pair, similarity in ours.items()), "a similarity is not the true one"
        recall.append(
            f"| {threshold} | {bands.bands} x {bands.rows} | {len(true):,} | {len(ours):,} | {len(ours) / len(true):.4f} "
            f"| {len(theirs):,} | {len(theirs) / len(true):.4f} |"
        )
        print(recall[-1], flush=True)
        compare(
            "text to verified pairs",
            threshold,
            lambda threshold=threshold: near_duplicate_pairs(arrow, settings(threshold)),  # type: ignore[misc]
            lambda threshold=threshold, bands=bands: datasketch_pairs(texts, threshold, bands, arguments.permutations),  # type: ignore[misc]
        )
    report = "\n".join([*said, "", *recall]) + "\n"
    print("\n" + report)
    if arguments.out:
        arguments.out.write_text(report)


if __name__ == "__main__":
    main()
