"""Time and peak memory of one text of 2,048 tokens, forward and backward: full attention against layers that differ.

    python benchmarks/attention.py [--length 2048] [--repeats 3]

A random Llama of 12 layers (384 dimensions, 6 heads); each case in a process of its own, as peaks never fall. `held` is the peak
above what the process held before, in MiB; seconds are the median. Padded: two texts, the shorter of three quarters the length.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from typing import Any

import torch
import transformers

from trainer import attention
from trainer.config import ModelConfig

CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "local everywhere": {"attention": {"local": {"layers": 1}}},
    "strided everywhere": {"attention": {"strided": {"layers": 1}}},
    "layered": {"attention": {"local": {}, "strided": {}}},
    "full, ALiBi": {"positions": "alibi"},
    "layered, ALiBi": {"attention": {"local": {}, "strided": {}}, "positions": "alibi"},
}


def measured(case: dict[str, Any], length: int, repeats: int, padded: bool) -> tuple[float, float]:
    """Seconds and MiB."""
    torch.manual_seed(0)
    settings = transformers.LlamaConfig(
        vocab_size=1000, hidden_size=384, intermediate_size=1024, num_hidden_layers=12, num_attention_heads=6,
        num_key_value_heads=6, max_position_embeddings=length, use_cache=False, is_causal=False,
    )  # fmt: skip
    attention.plan(settings, ModelConfig.model_validate({"base": "random", **case}))
    base = transformers.AutoModel.from_config(settings)
    attention.turn_on(base, "random")
    ids = torch.randint(2, 1000, (2 if padded else 1, length))
    mask = (torch.arange(length) < torch.tensor([[length], [3 * length // 4]])).long() if padded else None
    base(input_ids=ids[:, :64]).last_hidden_state.sum().backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        base(input_ids=ids, attention_mask=mask).last_hidden_state.sum().backward()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{arguments.length} tokens, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'':24}{'seconds':>10}{'held MiB':>10}")
    for padded in (False, True):
        for name, case in CASES.items():
            # A fresh process with nothing of this one.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                seconds, held = pool.apply(measured, (case, arguments.length, arguments.repeats, padded))
            print(f"{name + (', padded' if padded else ''):24}{seconds:10.2f}{held:10.0f}")


if __name__ == "__main__":
    main()
