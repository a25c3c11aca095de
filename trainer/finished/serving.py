"""A trained model for servers: an ONNX graph, or the folder that text-embeddings-inference (TEI) reads. Checked before use."""

from __future__ import annotations

import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from datakit import storage
from datakit.assets import locate
from datakit.errors import BuildError, MissingExtra, UserError
from trainer import attention, checkpoint
from trainer.base import first_line, first_token_sees_last, quiet
from trainer.evaluation.retrieval import load, unit
from trainer.export import trained

Format = Literal["onnx", "tei"]

# Architectures that TEI's own code (candle) runs as transformers does. What it knows of a model, it reads in config.json, and not
# config.is_causal: mistral is always causal; qwen2 is not in some versions, and all get <|endoftext|> behind every text; llama
# and others are unknown, or new. qwen3 heeds use_bidirectional_attention from 1.9 on.
TEI_ENCODERS = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "mpnet")
TEI_POOLING = {"mean": "mean_tokens", "cls": "cls_token", "lasttoken": "lasttoken"}
TOLERANCE = 1e-4
_TEXTS = [
    "What does the first token see?",
    "a",
    "A longer text, so that the batch holds padding: " + "one more word " * 20,
    "two words",
]


class Graph(nn.Module):
    """What is traced: token ids and their mask, both [batch, length], to the outputs named in `names`."""

    def __init__(self, model: Any, vectors_only: bool) -> None:
        super().__init__()
        self.base = model[0].auto_model
        self.after = nn.ModuleList(list(model)[1:])  # pooling, projection, norm
        self.vectors_only = vectors_only

    @property
    def names(self) -> list[str]:
        return ["last_hidden_state"] if self.vectors_only else ["last_hidden_state", "sentence_embedding"]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Tokens [batch, length, hidden] and vectors [batch, dimension]; with `vectors_only` [batch, 1, dimension] alone."""
        output = self.base(input_ids=input_ids, attention_mask=attention_mask)
        # A mean of layers replaces the tokens of the last one, and is then what readers pool.
        features = {"token_embeddings": output.last_hidden_state, "attention_mask": attention_mask}
        if output.hidden_states is not None:
            features["all_layer_embeddings"] = output.hidden_states
        for module in self.after:
            features = module(features)
        tokens, vectors = features["token_embeddings"], features["sentence_embedding"]
        # TEI pools what the graph gives, and knows neither projections nor all poolings: one "token", which is the vector.
        return (vectors[:, None],) if self.vectors_only else (tokens, vectors)


def serve(name: str, folder: str, kind: Format) -> list[str]:
    """Writes the model `name` to the new folder `folder` for `kind`, and says in sentences what a person must know of it.

    onnx: the sentence-transformers folder with onnx/model.onnx in place of its weights.
    tei: the weights where TEI's own code gives the same vectors, else a graph for its ONNX runtime (the CPU image).
    Either is opened again and compared, with padding and alone, at each trained dimension.
    Raises UserError, MissingExtra where ONNX is needed and not there, BuildError where vectors differ; then nothing is left.
    """
    source = locate(name)
    if not os.path.isfile(os.path.join(source, "modules.json")):
        raise UserError(f"'{name}' is no folder of sentence-transformers: it has no modules.json. Give models/NAME/latest/model.")
    checkpoint.check_new(folder)
    model = load(name).to("cpu").eval()
    if [part for part in model if getattr(part, "include_prompt", True) is False]:
        raise UserError(
            f"The pooling of '{name}' leaves the prompt's tokens out (model.pool_instruction: false). Neither a graph nor TEI "
            "knows which those are: every vector of a text with a prompt would be wrong. Serve it by sentence-transformers."
        )
    settings = model[0].auto_model.config
    if hasattr(settings, attention.PATTERN):
        # In TEI all tokens would see each other, in silence; torch's exporter cannot follow our attention.
        raise UserError(
            f"'{name}' has {attention.said(settings)} (model.attention, model.positions). Neither a graph nor TEI has that. "
            "Serve it by sentence-transformers, after `import trainer.attention`."
        )
    with checkpoint.written(folder) as scratch:
        return _onnx(model, source, scratch) if kind == "onnx" else _tei(model, source, scratch)


def _onnx(model: Any, source: str, scratch: str) -> list[str]:
    _copy(source, scratch, weights=False)
    session = _traced(Graph(model, vectors_only=False), scratch)
    # A reader that pools by itself takes the tokens, one that does not the vectors: both must be right.
    _compare(model, scratch, lambda ids, mask: session.run(["sentence_embedding"], _inputs(ids, mask))[0])
    _compare(model, scratch, lambda ids, mask: _pooled(model, session.run(["last_hidden_state"], _inputs(ids, mask))[0], mask))
    return [
        "onnx/model.onnx takes input_ids and attention_mask (int64, [batch, length]) and gives last_hidden_state, which "
        "sentence-transformers (backend='onnx') pools by itself, and sentence_embedding: pooled, projected, of length 1.",
        "Fewer dimensions: cut sentence_embedding, and divide by the length again.",
        f"The graph knows no prompts: put them before the texts. {_prompts(model)}",
    ]


def _tei(model: Any, source: str, scratch: str) -> list[str]:
    wrong = unlike_in_tei(model)
    _copy(source, scratch, weights=not wrong)
    length = {"max_seq_length": int(model.max_seq_length), "do_lower_case": bool(model[0].do_lower_case)}
    storage.write_json(os.path.join(scratch, "sentence_bert_config.json"), length)
    (pooling,) = _pooling(model)
    flags = dict.fromkeys(TEI_POOLING.values(), False) | {"cls_token" if wrong else TEI_POOLING[pooling.pooling_mode]: True}
    folder = os.path.join(scratch, "1_Pooling")
    shutil.rmtree(folder, ignore_errors=True)
    width = pooling.embedding_dimension if not wrong else model.get_embedding_dimension()
    layout = {"word_embedding_dimension": width, "include_prompt": True, **{f"pooling_mode_{key}": flags[key] for key in flags}}
    storage.write_json(os.path.join(folder, "config.json"), layout)
    config = storage.read_json(os.path.join(scratch, "config.json"))
    said = [
        f"Texts of more than {length['max_seq_length']} tokens are an error unless TEI is started with --auto-truncate.",
        f"TEI puts a prompt before a text where prompt_name asks for it, or --default-prompt-name. {_prompts(model)}",
    ]
    if not wrong:
        # What versions before transformers 5 wrote, and TEI reads.
        storage.write_json(os.path.join(scratch, "config.json"), config | _flags_for_tei(config))
        _legacy_modules(scratch)
        opened = load(scratch).to("cpu").eval()
        _compare(model, scratch, lambda ids, mask: _vectors(opened, ids, mask))
        newer = " It needs TEI 1.9 or newer: an older one would run it causally." if config["model_type"] == "qwen3" else ""
        return [f"The folder holds the weights, which TEI's own code runs, on CPUs and GPUs.{newer}", *said]
    # A name that TEI has no code for, so that it can neither fall back on code that is wrong nor change the tokens for it.
    kept = {"max_position_embeddings": max(int(config.get("max_position_embeddings", 0)), length["max_seq_length"])}
    storage.write_json(
        os.path.join(scratch, "config.json"), {"architectures": ["OnnxEmbedding"], "model_type": "onnx-embedding", **kept}
    )
    os.remove(os.path.join(scratch, "modules.json"))
    session = _traced(Graph(model, vectors_only=True), scratch)
    _compare(model, scratch, lambda ids, mask: session.run(["last_hidden_state"], _inputs(ids, mask))[0][:, 0])
    return [
        *(f"TEI's own code would be wrong: {reason}" for reason in wrong),
        "So the folder holds an ONNX graph instead, pooled, projected, of length 1: run it with TEI's CPU image in float32. "
        "Its GPU images have no ONNX runtime; for GPUs use sentence-transformers.",
        "/embed_all, which asks for each token's vector, gives the text's vector once.",
        *said,
    ]


def unlike_in_tei(model: Any) -> list[str]:
    """Why TEI's own code would give other vectors than this model, one sentence each; empty where it gives the same."""
    base, config = model[0].auto_model, model[0].auto_model.config
    kind, reasons = config.model_type, []
    if kind not in (*TEI_ENCODERS, "qwen3"):
        reasons.append(
            f"it runs the architecture '{kind}' causally, with tokens of its own, or not at all, depending on its version; this "
            f"model {'sees in both directions' if first_token_sees_last(base) else 'is causal'}."
        )
    elif not first_token_sees_last(base):
        reasons.append("this model is causal, and in batches of equally long texts TEI leaves the causal mask out on CPUs.")
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        reasons.append(f"it does not scale positions as this model does (rope_type '{rope['rope_type']}').")
    kinds = {type(part).__name__ for part in model}
    if "WeightedLayerPooling" in kinds:
        reasons.append("it pools the last layer alone, and this model a mean of its layers.")
    if kinds - {"Transformer", "WeightedLayerPooling", "Pooling", "Normalize"}:
        reasons.append("it leaves out the projection after the pooling, in some versions and backends.")
    (pooling,) = _pooling(model)
    if pooling.pooling_mode not in TEI_POOLING:
        reasons.append(f"it has no pooling '{pooling.pooling_mode}'; it has {', '.join(TEI_POOLING)}.")
    return reasons


def _flags_for_tei(config: dict[str, Any]) -> dict[str, Any]:
    if config["model_type"] != "qwen3":
        return {"position_embedding_type": "absolute"}
    return {"rope_theta": config["rope_parameters"]["rope_theta"], "use_bidirectional_attention": True}


def _legacy_modules(scratch: str) -> None:
    """modules.json with the names that modules had before sentence-transformers 5.4, the only ones that TEI knows."""
    path = os.path.join(scratch, "modules.json")
    modules = storage.read_json(path)
    for module in modules:
        module["type"] = f"sentence_transformers.models.{module['type'].rpartition('.')[2]}"
    storage.write_json(path, modules)


def _pooling(model: Any) -> list[Any]:
    return [part for part in model if hasattr(part, "pooling_mode")]


def _prompts(model: Any) -> str:
    return f"Prompts of this model: {json.dumps(model.prompts, ensure_ascii=False)}."


def _copy(source: str, scratch: str, weights: bool) -> None:
    """The folder as it is; without `weights` none of the transformer's, and no graph of before."""
    skipped = [] if weights else ["model.safetensors*", "model-*.safetensors", "pytorch_model*"]

    def ignored(folder: str, names: list[str]) -> set[str]:
        root = os.path.samefile(folder, source)
        return set(shutil.ignore_patterns("onnx", "openvino", *skipped)(folder, names)) if root else set()

    shutil.copytree(source, scratch, ignore=ignored)
    if not os.path.isfile(os.path.join(scratch, "tokenizer.json")):
        raise UserError(f"'{source}' has no tokenizer.json, which servers read. Save it with a fast tokenizer.")


def _traced(graph: Graph, scratch: str) -> Any:
    """Writes onnx/model.onnx for any batch and length, and opens it on the CPU."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  what torch exports with
    except ImportError as error:
        raise MissingExtra("An ONNX graph", error.name or "onnxruntime", "onnx") from error
    path = os.path.join(scratch, "onnx", "model.onnx")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    ids = torch.arange(2, 16).reshape(2, 7) % graph.base.config.vocab_size
    mask = torch.ones_like(ids)
    mask[1, 3:] = 0  # so that the trace is that of a batch with padding
    axes = {0: "batch", 1: "length"}
    try:
        with torch.no_grad(), quiet(), _no_warnings():
            program = torch.onnx.export(
                graph, (ids, mask), dynamo=True, input_names=["input_ids", "attention_mask"], output_names=graph.names,
                dynamic_shapes={"input_ids": axes, "attention_mask": axes}, verbose=False,
            )  # fmt: skip
            assert program is not None  # it is None of the exporter before dynamo
            program.save(path)
            return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except OSError:
        raise
    except Exception as error:  # the exporter and the runtime raise all kinds
        kind = graph.base.config.model_type
        raise BuildError(f"The architecture '{kind}' could not be written as ONNX: {first_line(error)}") from error


@contextmanager
def _no_warnings() -> Iterator[None]:
    """The exporter warns of packages that it does not need."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(logging.NOTSET)


def _inputs(ids: Tensor, mask: Tensor) -> dict[str, np.ndarray]:
    return {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}


@torch.no_grad()
def _pooled(model: Any, tokens: np.ndarray, mask: Tensor) -> np.ndarray:
    features = {"token_embeddings": torch.from_numpy(tokens), "attention_mask": mask}
    for module in list(model)[1:]:
        features = module(features)
    return np.asarray(features["sentence_embedding"].numpy())


@torch.no_grad()
def _vectors(model: Any, ids: Tensor, mask: Tensor) -> np.ndarray:
    return np.asarray(model({"input_ids": ids, "attention_mask": mask})["sentence_embedding"].numpy())


def _compare(model: Any, scratch: str, served: Callable[[Tensor, Tensor], np.ndarray]) -> None:
    """Asks `served` for vectors [n, dimension] of ids and masks as servers make them: from tokenizer.json, padded with 0."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(os.path.join(scratch, "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(int(model.max_seq_length))
    prompts = ["", *dict.fromkeys(prompt for prompt in model.prompts.values() if prompt)][:3]
    for prompt in prompts:
        rows = [tokenizer.encode(prompt + text).ids for text in _TEXTS]
        expected = model.encode(_TEXTS, prompt=prompt or None, show_progress_bar=False)
        batches: list[tuple[Sequence[int], Tensor, Tensor]] = [(range(len(rows)), *_padded(rows))]
        batches += [([place], *_padded([row])) for place, row in enumerate(rows)]
        for places, ids, mask in batches:
            found = served(ids, mask)
            for dimension in [expected.shape[1], *trained(scratch)]:
                ours, theirs = unit(expected[list(places), :dimension]), unit(found[:, :dimension])
                difference = float(np.abs(ours - theirs).max()) if ours.shape == theirs.shape else float("nan")
                if not difference <= TOLERANCE:
                    raise BuildError(
                        f"What a server would read gives other vectors than the model: they differ by {difference:.1e} "
                        f"at {dimension} dimensions (allowed: {TOLERANCE:.0e}), in a batch of {len(ours)} with {ids.shape[1]} "
                        "tokens. Nothing is written."
                    )


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(row) for row in rows])
    ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()
