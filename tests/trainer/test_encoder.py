"""The base: bidirectional, pooled without padding, cut, and refused in plain words."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from toys import save_base, tiny_config

from datakit.errors import UserError
from trainer.base import first_token_sees_last
from trainer.config import ModelConfig
from trainer.loop import compute_type
from trainer.model import Encoder, Prompted, chunks, load_encoder

TEXTS = ["the red house", "a", "what is green horse the river turns black and the stone falls", "find blue table", ""]
KINDS = ["llama", "qwen2", "qwen3", "mistral"]


@pytest.fixture(scope="module")
def encoder(tiny_base: str) -> Encoder:
    return load_encoder(ModelConfig(base=tiny_base, max_length=24)).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_token_sees_the_last_padded_left_and_right_before_and_after_saving(
    kind: str, tmp_path: Path, tokenizer: transformers.PreTrainedTokenizerFast
) -> None:
    folder = save_base(tmp_path / "base", tokenizer, tiny_config(kind))
    loaded = load_encoder(ModelConfig(base=folder))
    loaded.base.save_pretrained(tmp_path / "saved")
    again = transformers.AutoModel.from_pretrained(tmp_path / "saved").eval()
    ids = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 7, 8, 10]])
    pad = torch.ones(2, 3, dtype=torch.long)
    for base in (loaded.base.eval(), again):
        alone = base(input_ids=ids).last_hidden_state
        right = base(input_ids=torch.cat([ids, pad], 1), attention_mask=torch.cat([pad[:, :1].repeat(1, 5), pad * 0], 1))
        left = base(input_ids=torch.cat([pad, ids], 1), attention_mask=torch.cat([pad * 0, pad[:, :1].repeat(1, 5)], 1))
        for hidden in (alone, right.last_hidden_state[:, :5], left.last_hidden_state[:, 3:]):
            assert (hidden[0, 0] - hidden[1, 0]).abs().max() > 1e-4
            torch.testing.assert_close(hidden, alone, rtol=0, atol=1e-5)


def test_a_causal_base_is_told_apart(tiny_base: str) -> None:
    causal = transformers.AutoModel.from_pretrained(tiny_base)
    assert not first_token_sees_last(causal)
    # Setting it on the attention modules alone works without padding, and not with it.
    for layer in causal.layers:
        layer.self_attn.is_causal = False
    assert not first_token_sees_last(causal)
    causal.config.is_causal = False
    assert first_token_sees_last(causal)
    assert not first_token_sees_last(load_encoder(ModelConfig(base=tiny_base, bidirectional=False)).base)


def test_a_base_that_stays_causal_is_refused(tmp_path: Path, tokenizer: transformers.PreTrainedTokenizerFast) -> None:
    config = transformers.MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=4)
    folder = save_base(tmp_path / "mamba", tokenizer, config)
    with pytest.raises(UserError, match=r"\(mamba\) stays causal"):
        load_encoder(ModelConfig(base=folder))


def bare(texts: list[str]) -> list[Prompted]:
    return [Prompted("", text) for text in texts]


def test_a_text_alone_and_in_a_batch_gives_the_same_vector_of_length_one(encoder: Encoder) -> None:
    together = encoder.embed(bare(TEXTS))
    assert together.shape == (5, 32)
    assert np.isfinite(together).all()
    np.testing.assert_allclose(np.linalg.norm(together[:4], axis=1), 1.0, atol=1e-6)
    for number, text in enumerate(TEXTS):
        np.testing.assert_allclose(encoder.embed(bare([text]))[0], together[number], atol=1e-6)
    # Order in, order out, although texts go through sorted by length.
    np.testing.assert_allclose(encoder.embed(bare(TEXTS[::-1]))[::-1], together, atol=1e-6)


def test_pooling_is_the_mean_over_the_tokens_of_the_text(encoder: Encoder) -> None:
    (tokens,) = encoder.tokenize(bare([TEXTS[0]])).ids
    with torch.no_grad():
        hidden = encoder.base(input_ids=torch.tensor([tokens])).last_hidden_state[0].double().numpy()
    mean = hidden.mean(0)
    np.testing.assert_allclose(encoder.embed(bare(TEXTS[:3]))[0], mean / np.linalg.norm(mean), atol=1e-6)


def test_texts_are_cut_to_the_length_and_never_empty(encoder: Encoder) -> None:
    long = " ".join(["red"] * 100)
    assert [len(each) for each in encoder.tokenize(bare([long, "red", ""])).ids] == [24, 1, 1]
    assert len(encoder.tokenize(bare([long]), 5).ids[0]) == 5


def test_chunks_hold_every_text_once_within_the_budget() -> None:
    lengths = [8, 1, 2, 30, 5, 8, 3, 1]
    found = chunks(lengths, 16)
    assert [number for chunk in found for number in chunk] == [1, 7, 2, 6, 4, 0, 5, 3]
    assert all(len(chunk) * max(lengths[number] for number in chunk) <= 16 or len(chunk) == 1 for chunk in found)


def test_the_first_layers_are_those_of_the_base(tiny_base: str) -> None:
    whole, cut = load_encoder(ModelConfig(base=tiny_base)), load_encoder(ModelConfig(base=tiny_base, layers=2))
    assert len(cut.base.layers) == cut.base.config.num_hidden_layers == 2
    for name, value in cut.base.state_dict().items():
        assert torch.equal(value, whole.base.state_dict()[name])


def test_embeddings_can_be_left_as_they_are(tiny_base: str) -> None:
    frozen = load_encoder(ModelConfig(base=tiny_base, embeddings="frozen"))
    assert [name for name, value in frozen.named_parameters() if not value.requires_grad] == ["base.embed_tokens.weight"]
    assert all(value.requires_grad for value in load_encoder(ModelConfig(base=tiny_base)).parameters())


def test_bases_that_cannot_be_loaded_are_refused_in_one_sentence(tiny_base: str, tmp_path: Path) -> None:
    def refused(match: str, **config: object) -> None:
        with pytest.raises(UserError, match=match) as caught:
            load_encoder(ModelConfig.model_validate({"base": tiny_base, **config}))
        assert len(str(caught.value).splitlines()) == 1

    refused("is not there", base=str(tmp_path / "nothing"))
    refused("could not be loaded", base="nobody/no-such-model")
    refused("no such package|not installed", base="package:no_such_package")
    refused("model.layers is 9; the base '.*' has 3 layers", layers=9)
    refused("holds no 'x.gguf'; it holds no .gguf file", gguf="x.gguf")
    refused("is a file", base=f"{tiny_base}/config.json")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused("holds no config.json", base=str(empty))
    without = shutil.copytree(tiny_base, tmp_path / "without")
    (without / "model.safetensors").unlink()
    refused("no weights", base=str(without))
    weights = load_file(f"{tiny_base}/model.safetensors")
    lacking = shutil.copytree(tiny_base, tmp_path / "lacking")
    save_file(
        {name: value for name, value in weights.items() if "norm" not in name}, lacking / "model.safetensors", {"format": "pt"}
    )
    refused("lack 7 tensors of the model, such as 'layers.0.input_layernorm.weight'", base=str(lacking))
    truncated = shutil.copytree(tiny_base, tmp_path / "truncated")
    (truncated / "model.safetensors").write_bytes((Path(tiny_base) / "model.safetensors").read_bytes()[:-100])
    refused("could not be loaded", base=str(truncated))


@pytest.mark.parametrize("given", ["auto", "float32", "bfloat16", "float16"])
def test_auto_is_bfloat16_where_the_processor_has_units_for_it(given: str) -> None:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    expected = given if given != "auto" else "bfloat16" if {"amx_tile", "avx512_bf16"} & set(flags.split()) else "float32"
    assert compute_type(given, torch.device("cpu")) == getattr(torch, expected)
