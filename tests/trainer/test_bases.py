"""Bases of every family: which token sees which, first layers, adapters, embeddings, and what is refused."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from pydantic import ValidationError
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from toys import FAMILIES, save_base, tiny_config

from datakit.errors import UserError
from trainer.base import first_token_sees_last, load_base
from trainer.config import ModelConfig
from trainer.export import export
from trainer.model import Encoder, Prompted, load_encoder

pytestmark = pytest.mark.usefixtures("no_bars")
DECODERS = [kind for kind in FAMILIES if kind != "bert"]
TEXTS = ["the red house", "a", "what is green horse the river turns black and the stone falls", "where is the grey apple"]
WAYS = ["bare", "mask", "right", "left"]


@pytest.fixture(scope="module")
def bpe() -> transformers.PreTrainedTokenizerFast:
    """Bytes and a few merges: transformers makes a tokenizer of Qwen2 anew of its merges, and loses one that is made of words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<unk>", "<|endoftext|>"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


Family = Callable[[str], str]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory, bpe: transformers.PreTrainedTokenizerFast) -> Family:
    """The folder of a tiny random base of a family: family("qwen2")."""
    root = tmp_path_factory.mktemp("families")

    def folder(kind: str) -> str:
        if not (root / kind).exists():
            save_base(root / kind, bpe, tiny_config(kind, vocab_size=320, **FAMILIES[kind]))
        return str(root / kind)

    return folder


def encoder_of(folder: str, **more: Any) -> Encoder:
    return load_encoder(ModelConfig.model_validate({"base": folder, "max_length": 40, **more}), seed=3).eval()


def bare(texts: list[str]) -> list[Prompted]:
    return [Prompted("", text) for text in texts]


def exported(encoder: Encoder, folder: Path) -> str:
    export(encoder, str(folder), {"query": "", "document": ""}, "toy", "v1", [32], {32: 0.5})
    return str(folder)


@torch.no_grad()
def hidden(base: Any, ids: torch.Tensor, way: str) -> Any:
    """Outputs [n, length, width]: without a mask, with one, or padded in a batch with a longer text."""
    if way in ("bare", "mask"):
        return base(input_ids=ids, attention_mask=torch.ones_like(ids) if way == "mask" else None).last_hidden_state
    pad = torch.ones(len(ids), 3, dtype=torch.long)
    parts = (ids, pad) if way == "right" else (pad, ids)
    mask = torch.cat([torch.ones_like(ids) if part is ids else pad * 0 for part in parts], 1)
    longer = torch.full((1, ids.shape[1] + 3), 9)
    batch = torch.cat([torch.cat(parts, 1), longer]), torch.cat([mask, torch.ones_like(longer)])
    outputs = base(input_ids=batch[0], attention_mask=batch[1]).last_hidden_state[:-1]
    return outputs[:, : ids.shape[1]] if way == "right" else outputs[:, 3:]


def sight(base: Any, way: str) -> Any:
    """[5, 5]: whether the output of a token (row) changes with another one (column)."""
    ids = torch.tensor([5, 6, 7, 8, 9]).repeat(6, 1)
    ids[1:] += torch.eye(5, dtype=torch.long) * 30
    outputs = hidden(base, ids, way)
    return ((outputs[1:] - outputs[:1]).abs().amax(2) > 1e-5).T


class Lives(NamedTuple):
    """A base at each moment of its life, its encoder, and its export."""

    encoder: Encoder
    bases: dict[str, Any]
    opened: SentenceTransformer
    again: Encoder


@pytest.fixture(scope="module")
def lives(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Lives]:
    made: dict[tuple[str, bool], Lives] = {}

    def make(kind: str, bidirectional: bool) -> Lives:
        if (kind, bidirectional) not in made:
            root = tmp_path_factory.mktemp(kind)
            encoder = encoder_of(family(kind), bidirectional=bidirectional)
            encoder.base.save_pretrained(root / "saved")
            opened = SentenceTransformer(exported(encoder, root / "model"), device="cpu")
            again = encoder_of(str(root / "model"), bidirectional=bidirectional)
            bases = {
                "loaded": encoder.base,
                "saved": transformers.AutoModel.from_pretrained(root / "saved").eval(),
                "sentence-transformers": opened[0].auto_model.eval(),
                "again": again.base,
            }
            made[kind, bidirectional] = Lives(encoder, bases, opened, again)
        return made[kind, bidirectional]

    return make


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_token_sees_every_other(kind: str, lives: Callable[[str, bool], Lives]) -> None:
    for life, base in lives(kind, True).bases.items():
        assert base.config.is_causal is False, life
        for way in WAYS:
            assert sight(base, way).all(), (life, way)


@pytest.mark.parametrize("kind", DECODERS)
def test_a_causal_base_sees_what_came_before_and_no_more(kind: str, lives: Callable[[str, bool], Lives]) -> None:
    for life, base in lives(kind, False).bases.items():
        assert first_token_sees_last(base) is False, life
        for way in WAYS:
            assert torch.equal(sight(base, way), torch.ones(5, 5).tril().bool()), (life, way)


@pytest.mark.parametrize(("kind", "bidirectional"), [*((kind, True) for kind in FAMILIES), *((kind, False) for kind in DECODERS)])
def test_a_text_has_one_vector_however_it_is_padded_and_wherever_the_base_is_opened(
    kind: str, bidirectional: bool, lives: Callable[[str, bool], Lives]
) -> None:
    encoder, bases, opened, again = lives(kind, bidirectional)
    tokens = encoder.tokenize(bare(TEXTS)).ids
    assert len({tuple(row) for row in tokens}) == len(TEXTS)
    alone = np.concatenate([encoder.embed(bare([text])) for text in TEXTS])
    assert np.abs(alone[:, None] - alone).max(2)[~np.eye(4, dtype=bool)].min() > 0.01
    found = {
        "batch": encoder.embed(bare(TEXTS)),
        "opened": opened.encode(TEXTS, batch_size=4),
        "opened alone": np.stack([opened.encode(text) for text in TEXTS]),
        "again": again.embed(bare(TEXTS)),
    }
    if kind != "bert":  # its positions are absolute
        opened.tokenizer.padding_side = "left"
        found["opened left"] = opened.encode(TEXTS, batch_size=4)
        opened.tokenizer.padding_side = "right"
        for life, base in bases.items():
            found[f"{life} left"] = np.stack(
                [np.asarray(hidden(base, torch.tensor([row]), "left")[0].double().mean(0)) for row in tokens]
            )
            found[f"{life} left"] /= np.linalg.norm(found[f"{life} left"], axis=1, keepdims=True)
    for name, vectors in found.items():
        np.testing.assert_allclose(vectors, alone, atol=1e-5, rtol=0, err_msg=name)


def refused(match: str, base: str, **config: Any) -> None:
    with pytest.raises(UserError, match=match) as caught:
        load_base(ModelConfig.model_validate({"base": base, **config}), 0)
    assert len(str(caught.value).splitlines()) == 1


ENCODERS = {
    "bert": "sees in both directions in some batches and not in others and cannot",
    "distilbert": "sees in both directions in some batches and not in others and cannot",
    "mpnet": "sees in both directions and cannot",  # without a trace of is_causal
}


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_stays_bidirectional_and_is_not_to_be_made_causal(
    kind: str, tmp_path: Path, bpe: transformers.PreTrainedTokenizerFast
) -> None:
    folder = save_base(tmp_path / kind, bpe, tiny_config(kind, vocab_size=320))
    assert first_token_sees_last(load_base(ModelConfig(base=folder), 0)[0]) is True
    refused(rf"\({kind}\) {ENCODERS[kind]} be made causal\. Leave", folder, bidirectional=False)


def test_a_base_that_takes_no_notice_of_is_causal_is_refused(tmp_path: Path, bpe: transformers.PreTrainedTokenizerFast) -> None:
    config = transformers.GPTNeoConfig(
        vocab_size=320, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global"], 2]], max_position_embeddings=64
    )
    folder = save_base(tmp_path / "gpt_neo", bpe, config)
    refused(r"\(gpt_neo\) stays causal: its first token", folder)
    assert first_token_sees_last(load_base(ModelConfig(base=folder, bidirectional=False), 0)[0]) is False


CASES: dict[str, Callable[[Any], bool]] = {
    "no mask": lambda mask: mask is None,
    "a mask that hides nothing": lambda mask: mask is not None and bool(mask.all()),
    "padding": lambda mask: mask is not None and not mask.all(),
}


@pytest.mark.parametrize("case", CASES)
def test_a_base_that_differs_in_one_case_is_refused_either_way(
    case: str, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = transformers.LlamaModel.forward

    def differs(self: Any, input_ids: Any, attention_mask: Any = None, **more: Any) -> Any:
        is_causal = self.config.is_causal ^ CASES[case](attention_mask)
        return forward(self, input_ids=input_ids, attention_mask=attention_mask, is_causal=is_causal, **more)

    monkeypatch.setattr(transformers.LlamaModel, "forward", differs)
    refused(r"\(llama\) stays causal in some batches and not in others: its first", family("llama"))
    refused(r"\(llama\) sees in both directions in some batches and not in others and", family("llama"), bidirectional=False)


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_first_layers_give_what_they_give_in_the_whole_base(kind: str, family: Family) -> None:
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    whole = encoder_of(family(kind)).base
    with torch.no_grad():
        states = whole(input_ids=ids, output_hidden_states=True).hidden_states
        for layers in (1, 2, 3):
            cut = encoder_of(family(kind), layers=layers).base
            assert len(cut.encoder.layer if kind == "bert" else cut.layers) == cut.config.num_hidden_layers == layers
            # The last state has been through the norm already.
            expected = states[layers] if kind == "bert" or layers == 3 else whole.norm(states[layers])
            torch.testing.assert_close(cut(input_ids=ids).last_hidden_state, expected, rtol=0, atol=1e-5)
    refused(r"model.layers is 4; the base '.*' has 3 layers", family(kind), layers=4)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_mean_of_layers_is_that_of_what_each_layer_gives(kind: str, family: Family) -> None:
    """Against forward hooks; the last layer's states go through the norm of the base."""
    weights = [2.0, 0.0, 0.5]
    encoder, states = encoder_of(family(kind), layer_weights=weights).eval(), []
    assert encoder.layers is not None
    for layer in encoder.layers:
        layer.register_forward_hook(
            lambda module, inputs, output: states.append(output[0] if isinstance(output, tuple) else output)
        )
    found = encoder.embed([Prompted("", text) for text in TEXTS[:1]])[0]
    states = [each if each.ndim == 2 else each[0] for each in states]
    if kind != "bert":
        states[-1] = encoder.base.norm(states[-1])
    mean = sum(weight * state.mean(0) for weight, state in zip(weights, states, strict=True)).detach().numpy()
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean), atol=1e-5)
    (last,) = encoder_of(family(kind)).eval().embed([Prompted("", TEXTS[0])])
    (alone,) = encoder_of(family(kind), layer_weights=[0, 0, 3]).eval().embed([Prompted("", TEXTS[0])])
    np.testing.assert_allclose(alone, last, atol=1e-6)
    assert np.abs(found - last).max() > 1e-3
    refused(r"layer_weights has 3 weights; .* has 2 layers \(model.layers\). Give", family(kind), layers=2, layer_weights=weights)
    refused(r"layer_weights has 2 weights; the base '.*' has 3 layers. Give one for each", family(kind), layer_weights=[1, 1])


@pytest.mark.parametrize("weights", [[0, 0, 0], [1, -1, 1], [1, float("inf")], []])
def test_weights_of_layers_are_not_negative_and_not_all_0(weights: list[float]) -> None:
    with pytest.raises(ValidationError, match=r"not all of them 0|greater than or equal to 0|finite"):
        ModelConfig(base="x", layer_weights=weights)


@pytest.mark.parametrize("kind", FAMILIES)
def test_lower_case_is_read_alike_before_and_after_export(kind: str, family: Family, tmp_path: Path) -> None:
    """Against texts that were lowered before. Prompts are lowered too, and special tokens stay what they are."""
    mixed = ["The RED House", "A", "What is green <|endoftext|> Horse"]
    lower = [text.lower() for text in mixed]
    plain = encoder_of(family(kind))
    encoder = encoder_of(family(kind), lowercase=True)
    assert encoder.tokenize(bare(mixed)).ids == plain.tokenize(bare(lower)).ids != plain.tokenize(bare(mixed)).ids
    assert encoder.tokenize([Prompted("Query: ", "A")]).ids == plain.tokenize([Prompted("query: ", "a")]).ids
    assert encoder.tokenizer.eos_token_id in encoder.tokenize(bare(mixed)).ids[2]
    folder = exported(encoder, tmp_path / "model")
    opened = SentenceTransformer(folder, device="cpu")
    np.testing.assert_allclose(opened.encode(mixed), plain.embed(bare(lower)), atol=1e-5)
    served = Tokenizer.from_file(f"{folder}/tokenizer.json")
    assert [served.encode(text).ids for text in mixed] == encoder.tokenize(bare(mixed)).ids
    again = encoder_of(folder, lowercase=True)
    np.testing.assert_allclose(again.embed(bare(mixed)), encoder.embed(bare(mixed)), atol=1e-5)


def test_lower_case_needs_a_tokenizer_that_can_be_told(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = transformers.ByT5Tokenizer()
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: slow)
    refused("model.lowercase: the base '.*' has no fast tokenizer", family("llama"), lowercase=True)


def test_folders_files_and_tokenizers_that_are_none_are_refused_in_one_sentence(
    family: Family, tmp_path: Path, bpe: transformers.PreTrainedTokenizerFast
) -> None:
    refused("'no/such/folder' is not there", "no/such/folder")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "tiny.gguf").write_bytes(b"GGUF")
    refused("holds no config.json.* Add model.gguf: tiny.gguf", f"{tmp_path}/weights")
    refused("is a file. Give its folder, and for a GGUF file its name as model.gguf", f"{tmp_path}/weights/tiny.gguf")
    refused("holds no 'other.gguf'; it holds tiny.gguf", f"{tmp_path}/weights", gguf="other.gguf")
    refused("could not be loaded", f"{tmp_path}/weights", gguf="tiny.gguf")
    t5 = transformers.T5Config(vocab_size=320, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
    refused("could not be loaded", save_base(tmp_path / "t5", bpe, t5))  # it has a decoder that asks for more
    for file, old, new in (
        ("tokenizer.json", '"BPE"', '"Other"'), ("config.json", '"vocab_size": 320', '"vocab_size": "many"'),
        ("config.json", '"num_attention_heads": 4', '"num_attention_heads": 5'),
    ):  # fmt: skip
        broken = shutil.copytree(family("llama"), tmp_path / "broken", dirs_exist_ok=True) / file
        assert old in broken.read_text()
        broken.write_text(broken.read_text().replace(old, new))
        refused("could not be loaded", str(broken.parent))
    endless = shutil.copytree(family("llama"), tmp_path / "endless")
    tokenizer = transformers.AutoTokenizer.from_pretrained(endless)
    tokenizer.eos_token = tokenizer.pad_token = None
    tokenizer.save_pretrained(endless)
    refused("has no token for padding, end or unknown", str(endless))


def adapted(folder: str, **lora: Any) -> Encoder:
    pytest.importorskip("peft", reason="the extra 'lora' is not installed")
    return encoder_of(folder, lora={"rank": 4, **lora})


def step(encoder: Encoder) -> None:
    """Moves what is trained, far enough to be seen in a vector."""
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.5)
    for seed in (1, 2):
        optimizer.zero_grad()
        (encoder(encoder.tokenize(bare(TEXTS)), seed) * torch.linspace(-1, 1, 32)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", FAMILIES)
def test_only_adapters_move_and_the_merged_export_gives_their_vectors(kind: str, family: Family, tmp_path: Path) -> None:
    encoder = adapted(family(kind))
    trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert trained == {name for name in encoder.state_dict() if "lora_" in name}
    assert trained
    before, first = copy.deepcopy(encoder.state_dict()), encoder.embed(bare(TEXTS))
    np.testing.assert_allclose(first, encoder_of(family(kind)).embed(bare(TEXTS)), atol=1e-6)  # adapters begin at 0
    step(encoder)
    assert {name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])} == trained
    vectors = encoder.embed(bare(TEXTS))
    assert np.abs(vectors - first).max() > 0.01

    opened = SentenceTransformer(exported(encoder, tmp_path / "model"), device="cpu")
    np.testing.assert_allclose(opened.encode(TEXTS), vectors, atol=1e-5, rtol=0)
    assert opened[0].auto_model.state_dict().keys() == encoder_of(family(kind)).base.state_dict().keys()
    assert first_token_sees_last(opened[0].auto_model) is True
    # The encoder goes on with its adapters apart.
    assert {name for name, parameter in encoder.named_parameters() if parameter.requires_grad} == trained
    np.testing.assert_array_equal(encoder.embed(bare(TEXTS)), vectors)


def test_adapters_stand_where_they_are_asked_for_and_nowhere_else(family: Family) -> None:
    encoder = adapted(family("llama"), targets=["q_proj", "layers.1.mlp.up_proj"])
    places = {name.split(".lora_")[0].split("model.")[-1] for name in encoder.state_dict() if "lora_" in name}
    assert places == {*(f"layers.{layer}.self_attn.q_proj" for layer in range(3)), "layers.1.mlp.up_proj"}
    refused("targets does not fit the base '.*': it has no layer named 'query'", family("llama"), lora={"targets": ["query"]})
    refused("it has no layer named 'k_prj'", family("llama"), lora={"targets": ["q_proj", "k_prj"]})
    refused("does not fit the base '.*': Target module LlamaRMSNorm", family("llama"), lora={"targets": ["norm"]})


@pytest.mark.parametrize("kind", FAMILIES)
def test_embeddings_are_frozen_sparse_or_trained_and_all_else_is_trained_alike(kind: str, family: Family) -> None:
    found: dict[str, dict[str, torch.Tensor | None]] = {}
    for embeddings in ("trained", "sparse", "frozen"):
        encoder = encoder_of(family(kind), embeddings=embeddings)
        tokens = encoder.tokenize(bare(TEXTS))
        for texts in (slice(0, 3), slice(1, 4)):  # two chunks of a batch, added up
            part = type(tokens)(tokens.ids[texts], tokens.skipped[texts])
            (encoder(part, 1) * torch.linspace(-1, 1, 32)).square().sum().backward()
        table = encoder.embedding_parameter
        assert table.requires_grad == (embeddings != "frozen")
        assert (table.grad is not None and table.grad.is_sparse) == (embeddings == "sparse")
        found[embeddings] = {name: value.grad for name, value in encoder.named_parameters() if not name.startswith("base.pooler")}
    (table_name,) = (name for name, gradient in found["frozen"].items() if gradient is None)
    dense = found["trained"][table_name]
    assert dense is not None
    seen = {token for row in tokens.ids for token in row}
    assert set(dense.abs().sum(1).nonzero()[:, 0].tolist()) == seen
    for embeddings in ("sparse", "frozen"):
        for name, expected in found["trained"].items():
            gradient = found[embeddings][name]
            assert expected is not None
            if name != table_name or embeddings == "sparse":
                assert gradient is not None, name
                assert expected.norm() > 0, name
                torch.testing.assert_close(gradient.to_dense(), expected, rtol=1e-4, atol=1e-6, msg=name)
