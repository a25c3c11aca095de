"""The toxicity filter's engines on labelled comments: AUC, precision and recall over thresholds, comments/s; beside a word list.

    python benchmarks/toxicity.py [--words FILE] [--checkpoint FILE --config FOLDER]

--words is a list with one word a line, such as the profanity_wordlist.txt of the package better-profanity (pip download it);
--checkpoint and --config are one of Detoxify's releases and its base model. What is not given is left out, and said so.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from datakit.filters import toxicity_detoxify, toxicity_embedded
from datakit.recipe import ToxicityFilter

Array = np.ndarray[Any, np.dtype[Any]]
THRESHOLDS = (0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)


def comments(data: Path) -> tuple[list[str], Array]:
    with open(data / "filters/toxicity/toxicity_en.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], np.array([row["is_toxic"] == "Toxic" for row in rows])


def counted(words: Path) -> Callable[[list[str]], Array]:
    """How many words of a text are in the list."""
    known = {line.strip().lower() for line in words.read_text(encoding="utf-8").splitlines() if line.strip()}

    def score(texts: list[str]) -> Array:
        found = pl.Series(texts).str.to_lowercase().str.extract_all(r"[\w'*@$!]+")
        return np.array([sum(word in known for word in each) for each in found.to_list()], dtype=np.float64)

    return score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("DATAKIT_REAL_DATA"))
    parser.add_argument("--words", type=Path)
    parser.add_argument("--checkpoint")
    parser.add_argument("--config")
    given = parser.parse_args()
    if not given.data:
        raise SystemExit("Give --data, or DATAKIT_REAL_DATA: the folder of real data sets.")
    texts, toxic = comments(Path(given.data))
    engines: dict[str, Callable[[list[str]], Array]] = {"embedded": lambda each: toxicity_embedded.score(pl.Series(each))}
    if given.words:
        engines["word list"] = counted(given.words)
    else:
        print("No --words: the word list is left out.\n")
    if given.checkpoint and given.config:
        filter = ToxicityFilter(type="toxicity", engine="detoxify", checkpoint=given.checkpoint, config=given.config)
        engines["detoxify"] = lambda each: toxicity_detoxify.score(each, filter)[:, 0]
    else:
        print("No --checkpoint and --config: Detoxify is left out.\n")
    from sklearn.metrics import roc_auc_score

    scores = {}
    print(f"{len(texts):,} comments, {int(toxic.sum())} of them toxic.\n")
    print("| engine | AUC | comments for each second of a processor |\n|---|---|---|")
    for name, score in engines.items():
        score(texts[:10])
        started = time.process_time()
        scores[name] = score(texts)
        speed = len(texts) / max(time.process_time() - started, 1e-9)
        print(f"| {name} | {roc_auc_score(toxic, scores[name]):.3f} | {speed:,.0f} |")
    for name in [each for each in scores if each != "word list"]:
        print(f"\n| {name}, threshold | precision | recall | clean comments rejected |\n|---|---|---|---|")
        for threshold in THRESHOLDS:
            above = scores[name] > threshold
            right = int((above & toxic).sum())
            precision, recall = right / max(int(above.sum()), 1), right / int(toxic.sum())
            print(f"| {threshold} | {precision:.3f} | {recall:.3f} | {above[~toxic].mean():.2%} |")


if __name__ == "__main__":
    main()
