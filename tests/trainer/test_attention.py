"""Attention by layer against explicit masks, written from the definition: every base, every padding, saved and opened again."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
import transformers
from pydantic import ValidationError
from sentence_transformers import SentenceTransformer
from toys import save_base, tiny_config

from datakit.errors import UserError
from trainer import attention
from trainer.base import load_base
from trainer.config import ModelConfig
from trainer.embedder import Embedder
from trainer.export import export
from trainer.finished import merge
from trainer.model import Encoder, Prompted, load_encoder

pytestmark = pytest.mark.usefixtures("no_bars")

FAMILIES: dict[str, dict[str, Any]] = {**toys.FAMILIES, "mistral": {"sliding_window": 17}}
DECODERS = [kind for kind in FAMILIES if kind != "bert"]
LAYERED = {"local": {"layers": 0.34, "window": 6}, "strided": {"layers": 0.34, "stride": 4}}
# With blocks of few queries, so that short texts have several.
LENGTHS = (1, 2, 29, 41)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "BLOCK", 3)


Family = Callable[[str], str]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory, tokenizer: transformers.PreTrainedTokenizerFast) -> Family:
    root = tmp_path_factory.mktemp("families")

    def folder(kind: str) -> str:
        if not (root / kind).exists():
            save_base(root / kind, tokenizer, tiny_config(kind, **FAMILIES[kind]))
        return str(root / kind)

    return folder


def encoder_of(folder: str, **more: Any) -> Encoder:
    return load_encoder(ModelConfig.model_validate({"base": folder, **more})).eval()


def in_float64(base: Any) -> Any:
    """The base with norms that do not go through float32, where a last bit may flip."""

    def exact(norm: Any, hidden: Any) -> Any:
        epsilon = getattr(norm, "variance_epsilon", None) or norm.eps
        scale = norm.weight + (1 if "Gemma" in type(norm).__name__ else 0)
        return scale * hidden * (hidden.square().mean(-1, keepdim=True) + epsilon).rsqrt()

    for module in base.double().modules():
        if "RMSNorm" in type(module).__name__:
            module.forward = partial(exact, module)
    return base


class Unrotated(torch.nn.Module):
    """Rotary embeddings of angle 0, whatever the position."""

    def forward(self, hidden: Any, position_ids: Any) -> Any:
        cosines = torch.ones(*position_ids.shape, 8, dtype=hidden.dtype)
        return cosines, torch.zeros_like(cosines)


def press_slopes(heads: int) -> list[float]:
    """`get_slopes` of the authors' code."""

    def of_a_power(n: int) -> list[float]:
        start = 2 ** (-(2 ** -(math.log2(n) - 3)))
        return [start * start**i for i in range(n)]

    if math.log2(heads).is_integer():
        return of_a_power(heads)
    closest = 2 ** math.floor(math.log2(heads))
    return of_a_power(closest) + press_slopes(2 * closest)[0::2][: heads - closest]


def naive(folder: str, causal: bool, window: int | None, stride: int, alibi: bool) -> Any:
    """The base in float64, its three layers each with a mask of its own: local, full, strided."""
    base = in_float64(transformers.AutoModel.from_pretrained(folder, use_cache=False).eval())
    own = getattr(base.config, "sliding_window", None)
    base.config.is_causal = causal

    def attend(module: Any, query: Any, key: Any, value: Any, real: Any, scaling: float, **_: Any) -> Any:
        heads, length = query.shape[1:3]
        visible = torch.zeros(length, length, dtype=torch.bool)
        for i in range(length):
            for j in range(length):
                near = window is None or module.layer_idx != 0 or abs(i - j) <= window // 2
                same = module.layer_idx != 2 or (i - j) % stride == 0
                inside = own is None or abs(i - j) < own + (not causal)
                visible[i, j] = near and same and inside and (j <= i or not causal)
        output = torch.zeros_like(query)
        for head in range(heads):
            group = head * key.shape[1] // heads
            scores = query[:, head] @ key[:, group].mT * scaling
            if alibi:
                places = torch.arange(length, dtype=torch.float64)
                scores = scores - press_slopes(heads)[head] * (places[:, None] - places).abs()
            allowed = visible & real[:, None, :]
            # A row that sees nothing is padding, and comes to nothing.
            weights = torch.where(allowed, scores, -1e30).softmax(2) * allowed
            output[:, head] = weights @ value[:, group]
        return output.transpose(1, 2), None

    transformers.AttentionInterface.register("naive", attend)
    transformers.AttentionMaskInterface.register("naive", lambda attention_mask, **_: attention_mask)
    base.set_attn_implementation("naive")
    if alibi:
        base.rotary_emb = Unrotated()
    return base


def padded(side: str, lengths: tuple[int, ...] = LENGTHS) -> tuple[Any, Any]:
    """Ids and mask of texts, padded to the longest on a side; "none": all as long as the longest."""
    longest = max(lengths)
    places = torch.arange(longest)
    counts = torch.tensor([longest] * len(lengths) if side == "none" else lengths)[:, None]
    mask = places < counts if side != "left" else places >= longest - counts
    ids = torch.randint(2, 40, mask.shape, generator=torch.Generator().manual_seed(longest))
    return ids.where(mask, 1), mask.long()


def outputs_and_gradients(base: Any, side: str) -> dict[str, Any]:
    ids, mask = padded(side)
    base.zero_grad()
    # No mask at all where there is no padding, as in Encoder; the naive attention always wants one.
    given = None if side == "none" and base.config._attn_implementation != "naive" else mask
    hidden = base(input_ids=ids, attention_mask=given).last_hidden_state
    weights = torch.randn(hidden.shape, dtype=hidden.dtype, generator=torch.Generator().manual_seed(0)) * mask[:, :, None]
    (hidden * weights).sum().backward()
    gradients = {name: value.grad.to_dense() for name, value in base.named_parameters() if value.grad is not None}
    return {"outputs": (hidden * mask[:, :, None]).detach(), **gradients}


CASES = [
    *((kind, True, positions) for kind in FAMILIES for positions in ("base", "alibi") if (kind, positions) != ("bert", "alibi")),
    *((kind, False, positions) for kind in DECODERS for positions in ("base", "alibi")),
]


@pytest.mark.parametrize(("kind", "bidirectional", "positions"), CASES)
def test_outputs_and_gradients_are_those_of_explicit_masks(
    kind: str, bidirectional: bool, positions: str, family: Family, tmp_path: Path
) -> None:
    expected_base = naive(family(kind), not bidirectional, 6, 4, positions == "alibi")
    config = {"attention": LAYERED, "positions": positions, "bidirectional": bidirectional}
    base = encoder_of(family(kind), **config).base
    base.save_pretrained(tmp_path / "saved")
    lives = {
        "loaded": in_float64(base),
        "opened by transformers": in_float64(transformers.AutoModel.from_pretrained(tmp_path / "saved").eval()),
    }
    assert lives["opened by transformers"].config._attn_implementation == "trainer.attention"
    for side in ("none", "right", "left"):
        expected = outputs_and_gradients(expected_base, side)
        for life, each in lives.items():
            found = outputs_and_gradients(each, side)
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=0, atol=1e-9, msg=f"{life}, {side}, {name}")
    full = in_float64(encoder_of(family(kind), bidirectional=bidirectional).base)
    assert (outputs_and_gradients(full, "none")["outputs"] - outputs_and_gradients(base, "none")["outputs"]).abs().max() > 0.01


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12, 14, 16, 71])
def test_slopes_are_those_of_the_authors(heads: int) -> None:
    torch.testing.assert_close(attention.slopes(heads).double(), torch.tensor(press_slopes(heads), dtype=torch.float64))


@pytest.mark.parametrize(
    ("length", "window", "stride"), [(1, 4, 3), (40, 2, 7), (40, 3, 2), (64, 64, 4), (65, 80, 5), (130, 12, 3)]
)
@pytest.mark.parametrize("causal", [False, True])
def test_any_length_window_and_stride_are_exact_in_one_layer(length: int, window: int, stride: int, causal: bool) -> None:
    """A window and a stride in one layer, as in a base with a sliding window of its own; and layers that share a bias."""
    torch.manual_seed(length)
    query, key, value = (torch.randn(2, heads, length, 4, dtype=torch.float64) for heads in (4, 2, 2))
    real = torch.rand(2, length) < 0.8
    config = transformers.PreTrainedConfig()
    config.trainer_attention = {"windows": [window, window], "strides": [stride, stride], "alibi": True}
    mask_function = (
        transformers.masking_utils.causal_mask_function if causal else transformers.masking_utils.bidirectional_mask_function
    )
    sight = attention.sight(length, length, mask_function, real, config)
    module = torch.nn.Module()
    module.config, module.num_key_value_groups = config, 2
    distance = torch.arange(length)[:, None] - torch.arange(length)
    visible = (
        (distance.abs() <= window // 2) & (distance % stride == 0) & (~torch.tensor(causal) | (distance >= 0)) & real[:, None]
    )
    scores = query @ key.repeat_interleave(2, 1).mT * 0.3 - torch.tensor(press_slopes(4))[:, None, None] * distance.abs()
    expected = scores.masked_fill(~visible[:, None], -1e30).softmax(3) @ value.repeat_interleave(2, 1)
    for module.layer_idx in (0, 1):
        found, _ = attention.attend(module, query, key, value, sight, scaling=0.3)
        rows = real & visible.any(2)
        torch.testing.assert_close(found[rows], expected.transpose(1, 2)[rows], rtol=0, atol=1e-12)
        assert found.isfinite().all()


TEXTS = ["the red house", "a", "what is green horse the river turns black and the stone falls is where the apple", "grey apple"]


def bare(texts: list[str]) -> list[Prompted]:
    return [Prompted("", text) for text in texts]


def exported(encoder: Encoder, folder: Path) -> str:
    export(encoder, str(folder), {"query": "", "document": ""}, "toy", "v1", [32], {32: 0.5})
    return str(folder)


@pytest.mark.parametrize("positions", ["base", "alibi"])
@pytest.mark.parametrize("kind", ["llama", "phi3"])
def test_an_export_keeps_its_attention_or_is_not_opened(
    kind: str, positions: str, family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = encoder_of(family(kind), attention=LAYERED, positions=positions)
    folder, copied = exported(encoder, tmp_path / "model"), str(tmp_path / "copy")
    vectors = encoder.embed(bare(TEXTS))
    plain = encoder_of(family(kind)).embed(bare(TEXTS))
    assert np.abs(vectors - plain).max() > 0.01
    opened = SentenceTransformer(folder, device="cpu")
    opened.encode(TEXTS)
    opened.save(copied)
    again = encoder_of(folder)  # whose run says nothing about attention
    found = {
        "alone": np.concatenate([encoder.embed(bare([text])) for text in TEXTS]),
        "opened": opened.encode(TEXTS),
        "a copy": SentenceTransformer(copied, device="cpu").encode(TEXTS),
        "Embedder": Embedder.load(folder).encode(TEXTS, prompt=""),
        "again": again.embed(bare(TEXTS)),
    }
    for name, each in found.items():
        np.testing.assert_allclose(each, vectors, atol=1e-5, rtol=0, err_msg=name)
    changed = encoder_of(folder, attention={"local": {"layers": 1, "window": 2}}).base.config.trainer_attention
    assert changed == {"windows": [2, 2, 2], "strides": [1, 1, 1], "alibi": positions == "alibi"}
    assert encoder_of(folder, layers=2).base.config.trainer_attention["windows"][:2] == [6, None]
    card = (tmp_path / "model" / "README.md").read_text()
    assert "import trainer.attention" in card
    words = "bidirectional attention to a window of 6 tokens in 1 of them, all tokens in 1 of them, every 4th token in 1 of them"
    assert words + (", ALiBi" if positions == "alibi" else "") in card
    # A process in which trainer was never imported.
    monkeypatch.delitem(transformers.AttentionInterface._global_mapping, "trainer.attention")
    monkeypatch.delitem(transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS, attention.UNROTATED)
    for path in (folder, copied):
        for opens in (SentenceTransformer, transformers.AutoModel.from_pretrained):
            with pytest.raises((ValueError, KeyError), match=r"trainer\.(attention|unrotated)"):
                opens(path)


def test_models_of_unlike_attention_are_not_merged(family: Family, tmp_path: Path) -> None:
    folders = [
        exported(encoder_of(family("llama"), attention=each), tmp_path / str(number))
        for number, each in enumerate((LAYERED, None))
    ]
    with pytest.raises(UserError, match="The models differ in attention by layer"):
        merge.merge(folders, str(tmp_path / "merged"))


def test_layers_computed_again_for_the_gradient_give_the_same_one(tiny_base: str) -> None:
    """With dropout, padding, and the bias that layers share."""
    gradients = []
    for again in (False, True):
        encoder = encoder_of(tiny_base, attention=LAYERED, positions="alibi").train()
        encoder.activation_checkpointing(again)
        (encoder(encoder.tokenize(bare(TEXTS)), seed=1) * torch.linspace(-1, 1, 32)).square().sum().backward()
        gradients.append({name: value.grad for name, value in encoder.named_parameters()})
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("positions", ["base", "alibi"])
def test_short_texts_in_bfloat16_have_the_vectors_of_float32(positions: str, family: Family) -> None:
    encoder = encoder_of(family("qwen2"), attention=LAYERED, positions=positions)
    expected = encoder.embed(bare(TEXTS))
    encoder.compute = torch.bfloat16
    np.testing.assert_allclose(encoder.embed(bare(TEXTS)), expected, atol=0.05, rtol=0)


def test_layers_of_twelve_are_a_third_each_as_in_the_brief(tokenizer: Any, tmp_path: Path) -> None:
    folder = save_base(tmp_path / "deep", tokenizer, tiny_config("llama", num_hidden_layers=12))
    pattern = encoder_of(folder, attention={"local": {}, "strided": {}}).base.config.trainer_attention
    assert pattern == {"windows": [128] * 4 + [None] * 8, "strides": [1] * 8 + [4] * 4, "alibi": False}


def test_a_layer_that_both_parts_are_rounded_up_to_is_a_local_one() -> None:
    settings = tiny_config("llama", num_hidden_layers=15)
    parts = {"local": {"layers": 0.1, "window": 8}, "strided": {"layers": 0.9, "stride": 4}}
    attention.plan(settings, ModelConfig.model_validate({"base": "x", "attention": parts}))
    assert settings.trainer_attention == {"windows": [8] * 2 + [None] * 13, "strides": [1] * 2 + [4] * 13, "alibi": False}


def refused(match: str, base: str, **config: Any) -> None:
    with pytest.raises(UserError, match=match) as caught:
        load_base(ModelConfig.model_validate({"base": base, **config}), 0)
    assert len(str(caught.value).splitlines()) == 1


def test_what_a_base_cannot_do_is_refused_in_one_sentence(family: Family, tmp_path: Path, tokenizer: Any) -> None:
    refused(
        r"positions: alibi takes the place of rotary embeddings, and the base '.*' \(bert\) has none",
        family("bert"),
        positions="alibi",
    )
    little = {"strided": {"layers": 0.1}}
    refused(
        r"model.attention.strided.layers is none of the 3 layers of the base '.*' \(llama\)\. Give",
        family("llama"),
        attention=little,
    )
    mpnet = save_base(tmp_path / "mpnet", tokenizer, tiny_config("mpnet"))
    refused(r"\(mpnet\) attends in its own way in layer 0, so that model.attention cannot be had", mpnet, attention=LAYERED)
    gemma2 = save_base(tmp_path / "gemma2", tokenizer, tiny_config("gemma2", head_dim=8, attn_logit_softcapping=None))
    capped = tiny_config("gemma2", head_dim=8, attn_logit_softcapping=20.0)
    assert load_base(ModelConfig.model_validate({"base": gemma2, "attention": LAYERED}), 0)
    capped._attn_implementation = "eager"
    refused(
        r"does not know the attention of this base \(softcap\)",
        save_base(tmp_path / "capped", tokenizer, capped),
        attention=LAYERED,
    )


def test_parts_that_are_none_or_overlap_are_refused() -> None:
    for parts, words in (
        ({}, "local and strided: give one"),
        ({"local": {"layers": 0.6}, "strided": {"layers": 0.5}}, "allowed: up to 1 together"),
    ):
        with pytest.raises(ValidationError, match=words):
            ModelConfig.model_validate({"base": "x", "attention": parts})
