"""FLOPs of a step against torch's own counter, and the peaks of GPUs by name."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from trainer.flops import HARDWARE, counted, peak_by_name, peak_of, step_flops

LENGTHS = [(3, 40), (2, 17)]  # texts, and tokens of each


@pytest.mark.parametrize("frozen", [False, True])
def test_the_flops_of_a_step_are_those_that_torch_counts(frozen: bool) -> None:
    settings = transformers.Qwen3Config(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, attn_implementation="eager", use_cache=False, is_causal=False,
    )  # fmt: skip
    base = transformers.AutoModel.from_config(settings)
    linear = [each for each in base.modules() if isinstance(each, torch.nn.Linear)]
    for each in linear if frozen else []:
        each.weight.requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        for texts, length in LENGTHS:
            base(input_ids=torch.randint(0, 50, (texts, length))).last_hidden_state.sum().backward()
    shape = counted(settings)
    weights = (value for value in base.parameters() if value is not base.get_input_embeddings().weight)
    trained = sum(value.numel() for value in weights if value.requires_grad)
    tokens, pairs = (sum(texts * length**power for texts, length in LENGTHS) for power in (1, 2))
    # Torch does not count norms; their parameters are few.
    assert step_flops(shape, trained, tokens, pairs) == pytest.approx(counter.get_total_flops(), rel=0.03)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA L40S", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Tesla T4", None),
    ],
)
def test_a_gpu_is_known_by_its_name(name: str, key: str | None) -> None:
    assert peak_by_name(name) == (HARDWARE[key].peak if key else None)


def test_a_processor_has_no_peak_that_is_known() -> None:
    assert peak_of(torch.device("cpu"), torch.bfloat16) is None


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("distilbert", {"dim": 32, "hidden_dim": 96, "n_layers": 1, "n_heads": 4}, 96),
        ("gpt2", {"n_embd": 32, "n_layer": 1, "n_head": 4}, 128),
        ("gpt2", {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_inner": 80}, 80),
        ("t5", {"d_model": 32, "d_ff": 72, "num_layers": 1, "num_heads": 4, "d_kv": 8}, 72),
    ],
)
def test_families_name_the_width_of_their_feed_forward_part_each_in_its_way(
    kind: str, settings: dict[str, int], expected: int
) -> None:
    assert counted(transformers.AutoConfig.for_model(kind, vocab_size=50, **settings)).feed_forward == expected


def test_lora_adapts_what_peft_adapts() -> None:
    bert = transformers.BertConfig(vocab_size=50, num_hidden_layers=1)
    assert counted(bert).adapters == 13_824  # without the pooler: four of 768 + 768, two of 768 + 3072
    assert counted(bert, ("dense",)).adapters == 13_824 - 3 * 2 * 768
    assert counted(bert, ("ense",)).adapters == 0
