"""Folders for servers: their vectors are the model's, alone and padded, at each dimension; what would be wrong is refused or told."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from test_trainer_cli import run
from tokenizers import Tokenizer
from toys import save_base, tiny_config

from datakit.errors import BuildError, MissingExtra, UserError
from trainer.config import ModelConfig
from trainer.evaluation.retrieval import load, unit
from trainer.export import export
from trainer.finished.serving import Format, serve, unlike_in_tei
from trainer.model import load_encoder

PROMPTS = {"things": "Instruct: find\nQuery: ", "query": "Query: ", "document": ""}
LENGTHS = (20, 3, 1, 9, 24)
Make = Callable[..., str]

onnx = pytest.mark.skipif(
    find_spec("onnxruntime") is None or find_spec("onnxscript") is None, reason="onnxruntime and onnxscript are not installed"
)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, tokenizer: transformers.PreTrainedTokenizerFast) -> Make:
    """An exported model: make("qwen3", pooling="last"); what ends on _ is a setting of the base."""

    def made(kind: str, **more: Any) -> str:
        folder = tmp_path_factory.mktemp(kind)
        settings = {name[:-1]: more.pop(name) for name in list(more) if name.endswith("_")}
        base = save_base(folder / "base", tokenizer, tiny_config(kind, **settings))
        encoder = load_encoder(ModelConfig(base=base, layers=2, max_length=24, **more))
        export(encoder, str(folder / "model"), PROMPTS, "toy", "v", [encoder.dimension, 8], {encoder.dimension: 0.5})
        return str(folder / "model")

    return made


@pytest.fixture(scope="module")
def projected(make: Make) -> str:
    """The hardest one: a decoder that sees in both directions, its last token, a projection."""
    return make("llama", pooling="last", projection=16)


@pytest.fixture(scope="module")
def graph(projected: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graph") / "onnx"
    said = "\n".join(serve(projected, str(folder), "onnx"))
    assert PROMPTS["things"].replace("\n", "\\n") in said
    return folder


@pytest.fixture(scope="module")
def graph_for_tei(projected: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("tei") / "tei"
    return folder, "\n".join(serve(projected, str(folder), "tei"))


def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Ids and masks: alone, equally long, and of unlike lengths, with ids other than 0 where nothing is to be seen."""
    draw = torch.Generator().manual_seed(3)
    for lengths in ((1,), (5,), (4, 4, 4), LENGTHS):
        ids = torch.randint(2, 60, (len(lengths), max(lengths)), generator=draw)
        yield ids, (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


def session(folder: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(folder / "onnx" / "model.onnx"), providers=["CPUExecutionProvider"])


@torch.no_grad()
def one_by_one(
    model: SentenceTransformer, ids: torch.Tensor, mask: torch.Tensor, output: str = "sentence_embedding"
) -> list[Any]:
    """What torch gives for each row, without padding: the oracle."""
    rows = [row[seen.bool()][None] for row, seen in zip(ids, mask, strict=True)]
    return [model({"input_ids": row, "attention_mask": torch.ones_like(row)})[output][0].numpy() for row in rows]


@onnx
def test_the_graph_gives_the_models_vectors_in_every_batch_and_dimension(projected: str, graph: Path) -> None:
    model, opened = SentenceTransformer(projected, device="cpu"), session(graph)
    for ids, mask in batches():
        (found,) = opened.run(["sentence_embedding"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        expected = np.stack(one_by_one(model, ids, mask))
        assert found.shape == (len(ids), 16)
        for dimension in (16, 8, 3):
            np.testing.assert_allclose(unit(found[:, :dimension]), unit(expected[:, :dimension]), atol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


@onnx
def test_the_graph_gives_the_tokens_that_sentence_transformers_pools(projected: str, graph: Path) -> None:
    model, opened = SentenceTransformer(projected, device="cpu"), session(graph)
    for ids, mask in batches():
        (found,) = opened.run(["last_hidden_state"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        for row, expected in zip(found, one_by_one(model, ids, mask, "token_embeddings"), strict=True):
            np.testing.assert_allclose(row[: len(expected)], expected, atol=1e-4)
    names = {str(file.relative_to(graph)) for file in graph.rglob("*")}
    assert {"config.json", "modules.json", "tokenizer.json", "2_Dense/model.safetensors", "matryoshka.json"} < names
    assert "model.safetensors" not in names
    assert not list(graph.parent.glob("*.tmp"))


@onnx
@pytest.mark.parametrize("kind", ["onnx", "tei"])
def test_a_mean_of_layers_is_served(kind: Format, make: Make, tmp_path: Path) -> None:
    source = make("llama", layer_weights=[1, 0.2])
    said = "\n".join(serve(source, str(tmp_path / "served"), kind))
    assert ("a mean of its layers" in said) == (kind == "tei")
    model, opened = SentenceTransformer(source, device="cpu"), session(tmp_path / "served")
    for ids, mask in batches():
        found = opened.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        for row, expected in zip(found[0], one_by_one(model, ids, mask, "token_embeddings"), strict=True):
            if kind == "onnx":
                np.testing.assert_allclose(row[: len(expected)], expected, atol=1e-4)
        vectors = found[1] if kind == "onnx" else found[0][:, 0]
        np.testing.assert_allclose(vectors, np.stack(one_by_one(model, ids, mask)), atol=1e-4)


@onnx
@pytest.mark.parametrize("kind", ["onnx", "tei"])
def test_servers_read_in_lower_case(kind: Format, make: Make, tmp_path: Path) -> None:
    source = make("qwen3", lowercase=True)
    serve(source, str(tmp_path / "served"), kind)
    model, texts = SentenceTransformer(source, device="cpu"), ["The RED house", "A"]
    read = Tokenizer.from_file(str(tmp_path / "served" / "tokenizer.json"))
    for text in texts:
        ids = torch.tensor([read.encode(text).ids])
        assert ids.tolist() == [read.encode(text.lower()).ids]
        expected = model.encode([text, text.lower()])
        np.testing.assert_allclose(
            model({"input_ids": ids, "attention_mask": torch.ones_like(ids)})["sentence_embedding"].detach(),
            expected[:1],
            atol=1e-5,
        )
        np.testing.assert_allclose(expected[0], expected[1], atol=1e-6)


@onnx
def test_tei_gets_finished_vectors_where_its_own_code_would_be_wrong(projected: str, graph_for_tei: tuple[Path, str]) -> None:
    folder, said = graph_for_tei
    for word in ("'llama' causally", "sees in both directions", "leaves out the projection", "CPU image", "--auto-truncate"):
        assert word in said
    model, opened = SentenceTransformer(projected, device="cpu"), session(folder)
    assert [each.name for each in opened.get_inputs()] == ["input_ids", "attention_mask"]
    for ids, mask in batches():
        # As TEI's backends/ort does: this output by name, and with cls pooling its first token.
        (found,) = opened.run(["last_hidden_state"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        np.testing.assert_allclose(found[:, 0], np.stack(one_by_one(model, ids, mask)), atol=1e-4)
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    assert [name for name, value in pooling.items() if value is True] == ["include_prompt", "pooling_mode_cls_token"]
    # Neither weights nor a model_type that TEI has code of its own for, or adds tokens for.
    assert json.loads((folder / "config.json").read_text())["model_type"] not in ("llama", "qwen2")
    assert not (folder / "model.safetensors").exists()
    assert json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"] == 24
    assert json.loads((folder / "config_sentence_transformers.json").read_text())["prompts"] == PROMPTS


@pytest.mark.parametrize(
    ("kind", "pooling", "flag"),
    [("qwen3", "mean", "mean_tokens"), ("qwen3", "last", "lasttoken"), ("bert", "cls", "cls_token")],
)
def test_tei_gets_weights_in_the_layout_that_it_reads_where_its_code_is_right(
    make: Make, tmp_path: Path, kind: str, pooling: str, flag: str
) -> None:
    source = make(kind, pooling=pooling)
    said = "\n".join(serve(source, str(tmp_path / "tei"), "tei"))
    config = json.loads((tmp_path / "tei" / "config.json").read_text())
    assert config["model_type"] == kind
    if kind == "qwen3":
        assert config["use_bidirectional_attention"] is True
        assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
        assert "TEI 1.9 or newer" in said
    assert (tmp_path / "tei" / "model.safetensors").read_bytes() == Path(source, "model.safetensors").read_bytes()
    flags = json.loads((tmp_path / "tei" / "1_Pooling" / "config.json").read_text())
    assert {name: flags[f"pooling_mode_{name}"] for name in ("cls_token", "mean_tokens", "lasttoken")} == {
        name: name == flag for name in ("cls_token", "mean_tokens", "lasttoken")
    }
    assert json.loads((tmp_path / "tei" / "sentence_bert_config.json").read_text())["max_seq_length"] == 24
    types = [module["type"] for module in json.loads((tmp_path / "tei" / "modules.json").read_text())]
    assert types == [f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling", "Normalize")]
    opened, model = (SentenceTransformer(folder, device="cpu") for folder in (str(tmp_path / "tei"), source))
    texts = ["the red house", "a", "what is green " * 20]
    np.testing.assert_allclose(opened.encode(texts, prompt_name="things"), model.encode(texts, prompt_name="things"), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "more", "expected"),
    [
        ("qwen3", {}, []),
        ("bert", {}, []),
        ("mistral", {"sliding_window_": None}, ["'mistral' causally"]),
        ("qwen2", {}, ["'qwen2' causally"]),
        ("qwen3", {"bidirectional": False}, ["leaves the causal mask out"]),
        ("qwen3", {"pooling": "weighted", "projection": 8}, ["projection", "no pooling 'weightedmean'"]),
        ("qwen3", {"layer_weights": [1.0, 0.5]}, ["a mean of its layers"]),
        (
            "qwen3",
            {"rope_parameters_": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}},
            ["rope_type 'linear'"],
        ),
    ],
)
def test_what_tei_would_get_wrong_is_said(make: Make, kind: str, more: dict[str, Any], expected: list[str]) -> None:
    reasons = unlike_in_tei(load(make(kind, **more)))
    assert len(reasons) == len(expected)
    for reason, word in zip(reasons, expected, strict=True):
        assert word in reason


def test_without_the_package_it_is_named_and_nothing_is_left(
    projected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for kind in ("onnx", "tei"):
        with pytest.raises(MissingExtra, match=r"'onnxruntime'.*datakit\[onnx\]"):
            serve(projected, str(tmp_path / "out"), kind)
    assert not list(tmp_path.iterdir())


def test_other_vectors_are_an_error_and_nothing_is_left(make: Make, tmp_path: Path) -> None:
    """sentence-transformers puts texts in lower case here, as its own settings say; what servers read does not say so."""
    source = tmp_path / "model"
    shutil.copytree(make("qwen3"), source)
    settings = json.loads((source / "sentence_bert_config.json").read_text())
    (source / "sentence_bert_config.json").write_text(json.dumps({**settings, "do_lower_case": True}))
    with pytest.raises(BuildError, match="other vectors than the model: they differ by"):
        serve(str(source), str(tmp_path / "out"), "tei")
    assert [each.name for each in tmp_path.iterdir()] == ["model"]


def test_a_pooling_without_the_prompt_is_refused(make: Make, tmp_path: Path) -> None:
    source = make("qwen3", pool_instruction=False)
    for kind in ("onnx", "tei"):
        with pytest.raises(UserError, match="leaves the prompt's tokens out"):
            serve(source, str(tmp_path / "out"), kind)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "way", "expected"),
    [
        ("bert", {"attention": {"local": {"window": 2}}}, "bidirectional attention to a window of 2 tokens in 1 of them, all"),
        ("qwen3", {"positions": "alibi"}, "all tokens in 2 of them, ALiBi"),
    ],
)
def test_attention_that_servers_do_not_have_is_refused(
    kind: str, way: dict[str, Any], expected: str, make: Make, tmp_path: Path
) -> None:
    source = make(kind, **way)
    for server in ("onnx", "tei"):
        with pytest.raises(UserError, match=f"has .*{expected}.*Neither a graph nor TEI has that"):
            serve(source, str(tmp_path / "out"), server)
    assert not list(tmp_path.iterdir())


def test_mistakes_on_the_command_line_are_one_sentence(
    projected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "out")
    status, _, shown = run(monkeypatch, capsys, "export", str(tmp_path), "--format", "tei", "-o", output)
    assert (status, "is no folder of sentence-transformers" in shown) == (2, True)
    status, _, shown = run(monkeypatch, capsys, "export", projected, "--format", "tei", "-o", str(tmp_path))
    assert (status, "is there already" in shown) == (2, True)
    (tmp_path / "file").touch()
    for kind in ("onnx", "tei"):
        status, _, shown = run(monkeypatch, capsys, "export", projected, "--format", kind, "-o", str(tmp_path / "file" / "x"))
        assert (status, "a part of this path is a file" in shown) == (2, True)
    (tmp_path / "file").unlink()
    assert not list(tmp_path.iterdir())
