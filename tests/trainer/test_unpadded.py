"""Texts in one row, without padding, against the same texts side by side: vectors, gradients, every base and attention."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from toys import FAMILIES, command_line, save_base, tiny_config, toy_config, write_config

from datakit.errors import UserError
from datakit.opened import Build
from trainer import gradcache, unpadded
from trainer.config import ModelConfig
from trainer.export import export
from trainer.model import Encoder, Tokens, load_encoder

pytestmark = pytest.mark.usefixtures("no_bars")
LAYERED = {"local": {"layers": 0.34, "window": 4}, "strided": {"layers": 0.34, "stride": 3}}
SETTINGS: dict[str, dict[str, Any]] = {
    "bidirectional": {},
    "causal": {"bidirectional": False},
    "layered": {"attention": LAYERED},
    "ALiBi": {"positions": "alibi"},
    "adapters": {"lora": {"rank": 2}},
    "mean of layers": {"layer_weights": [2, 0, 0.5]},
}
CASES = [(kind, setting) for kind in FAMILIES for setting in SETTINGS if kind != "bert" or setting == "bidirectional"]
# More tokens than the 256 positions of BERT; some chunks hold texts of one length, some of several, one a long text alone.
LENGTHS = [1, 1, 2, 3, 3, 3, 5, 8, 8, 13, 21, 40, 60, *[11] * 30]


Family = Callable[..., str]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory, tokenizer: transformers.PreTrainedTokenizerFast) -> Family:
    root = tmp_path_factory.mktemp("families")

    def folder(kind: str, **more: Any) -> str:
        name = "-".join([kind, *more])
        if not (root / name).exists():
            save_base(root / name, tokenizer, tiny_config(kind, **FAMILIES.get(kind, {}), **more))
        return str(root / name)

    return folder


def encoder_of(folder: str, in_rows: bool, **more: Any) -> Encoder:
    encoder = load_encoder(ModelConfig.model_validate({"base": folder, "max_length": 64, **more}), seed=1).double()
    encoder.chunk_tokens = 400
    if in_rows:
        unpadded.turn_on(encoder)
    return encoder.eval()


def tokens_of(lengths: list[int] = LENGTHS) -> Tokens:
    draw = torch.Generator().manual_seed(0)
    return Tokens([torch.randint(2, 64, (length,), generator=draw).tolist() for length in lengths], [0] * len(lengths))


def computed(encoder: Encoder, cached: bool = False) -> dict[str, torch.Tensor]:
    """The vectors, and the gradients of a function of all of them."""
    tokens, kept = tokens_of(), {}

    def objective(vectors: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        kept["vectors"] = vectors.detach().clone()
        aim = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(3), dtype=vectors.dtype)
        return (vectors @ vectors.T).square().sum() + (vectors * aim).sum(), {}

    gradcache.backward(encoder, tokens, 5, objective, cached)
    return kept | {name: each.grad.to_dense() for name, each in encoder.named_parameters() if each.grad is not None}


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # Gemma's norms are in float32; the gradient of a key's bias is 0.
        assert (found[name] - value).norm() <= 1e-6 * value.norm() + 1e-10, name


@pytest.mark.parametrize(("kind", "setting"), CASES)
def test_vectors_and_gradients_are_those_of_padded_texts(kind: str, setting: str, family: Family) -> None:
    settings = SETTINGS[setting]
    encoder = encoder_of(family(kind), True, **settings)
    chunks = encoder.chunks(tokens_of())
    assert sum(LENGTHS[number] for number in chunks[0]) > 256
    same(computed(encoder), computed(encoder_of(family(kind), False, **settings)))


def test_no_layer_sees_padding(family: Family) -> None:
    """What goes through the layers is as many tokens as the texts have."""
    encoder, seen = encoder_of(family("llama"), True), []
    assert encoder.layers is not None
    encoder.layers[0].register_forward_hook(lambda module, inputs, output: seen.append(tuple(inputs[0].shape[:2])))
    encoder(tokens_of())
    assert all(rows == 1 for rows, _ in seen)
    assert sum(count for _, count in seen) == sum(LENGTHS)


@pytest.mark.parametrize("setting", ["bidirectional", "mean of layers"])
def test_with_dropout_every_way_to_save_memory_gives_the_same_gradients(setting: str, family: Family) -> None:
    folder, layers = family("qwen3", attention_dropout=0.2), SETTINGS[setting]
    expected = computed(encoder_of(folder, True, **layers).train())
    for cached, checkpointing in ((True, False), (False, True), (True, True)):
        encoder = encoder_of(folder, True, **layers).train()
        encoder.activation_checkpointing(checkpointing)
        same(computed(encoder, cached), expected)
    vectors = computed(encoder_of(folder, False, **layers))["vectors"]
    assert (vectors - expected["vectors"]).norm() > 0.01  # dropout was on


def test_in_bfloat16_vectors_are_those_of_float32_up_to_rounding(tiny_base: str) -> None:
    found = []
    for compute in (torch.float32, torch.bfloat16):
        encoder = encoder_of(tiny_base, True).float().eval()
        encoder.compute = compute
        found.append(encoder(tokens_of()))
    assert not torch.equal(found[0], found[1])
    assert (found[0] - found[1]).norm() <= 0.02 * found[0].norm()


@pytest.mark.parametrize("setting", ["bidirectional", "layered", "mean of layers"])
def test_an_export_has_no_trace_of_it(setting: str, family: Family, tmp_path: Path) -> None:
    encoder = encoder_of(family("llama"), True, **SETTINGS[setting]).float().eval()
    export(encoder, str(tmp_path / "model"), {"query": "", "document": ""}, "toy", "none", [32], {})
    assert "unpadded" not in json.dumps([file.read_text() for file in (tmp_path / "model").rglob("*.json")])
    texts = ["the red house", "a", "where is the grey apple"]
    vectors = encoder.embed([encoder.query_text(text, None) for text in texts])
    opened = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(texts)
    assert abs(vectors - opened).max() < 1e-5


def test_a_base_that_gives_other_vectors_in_rows_is_refused(family: Family) -> None:
    """RoBERTa counts positions from 2."""
    with pytest.raises(
        UserError, match=r"training\.unpadded: the base '.*' \(roberta\) gives other vectors .*Leave unpadded out\."
    ):
        encoder_of(family("roberta"), True)


def test_a_base_with_an_attention_of_its_own_is_refused(tiny_base: str) -> None:
    encoder = encoder_of(tiny_base, False)
    encoder.base.set_attn_implementation("eager")
    with pytest.raises(UserError, match="attends in a way of its own"):
        unpadded.turn_on(encoder)


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 120))
def test_chunks_hold_every_text_once_by_length_within_the_budget(lengths: list[int], budget: int) -> None:
    found = unpadded.chunks(lengths, budget)
    flat = [number for chunk in found for number in chunk]
    assert sorted(flat) == list(range(len(lengths)))
    assert [lengths[number] for number in flat] == sorted(lengths)
    sizes = [sum(lengths[number] for number in chunk) for chunk in found]
    assert all(size <= budget or len(chunk) == 1 for size, chunk in zip(sizes, found, strict=True))
    assert all(size + lengths[chunk[0]] > budget for size, chunk in zip(sizes, found[1:], strict=False))


def test_a_run_without_padding_learns_the_same(family: Family, toy_build: Build, tmp_path: Path) -> None:
    found = []
    for in_rows in (False, True):
        training = {"unpadded": in_rows, "precision": "float32", "chunk_tokens": 60}
        config = write_config(tmp_path / f"{in_rows}.yaml", toy_config(family("llama"), training=training))
        with pytest.raises(SystemExit) as ended:
            command_line(["run", config, "--data", toy_build.path, "--output", str(tmp_path / f"run-{in_rows}")])
        assert ended.value.code == 0
        found.append(load_file(tmp_path / f"run-{in_rows}/one/model/model.safetensors"))
    assert any(not torch.equal(found[1][name], value) for name, value in found[0].items())
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=0, atol=1e-3, msg=name)
