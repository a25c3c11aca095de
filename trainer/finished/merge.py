"""Several models of one architecture as one: the mean of their weights (soup), or a point on the arc between two (SLERP)."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from datakit import storage
from datakit.assets import Assets, locate
from datakit.errors import UserError
from datakit.opened import Build
from datakit.schema import digest
from trainer import attention, checkpoint
from trainer.evaluation.retrieval import Result, evaluate_encoder, load_task
from trainer.export import TRAINED, parsed, trained

Method = Literal["soup", "slerp"]
# Where |cosine| is above it, as in mergekit, the line takes the arc's place.
PARALLEL = 0.9995
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.pkl", "*.h5", "*.onnx", "onnx", "openvino", "README.md")
_CARD = """---
library_name: sentence-transformers
tags: [sentence-transformers, feature-extraction, sentence-similarity, merge]
---
# {title}

Merged by `trainer merge --method {method}`, tensor by tensor in float64.{linear} All but the weights is as in the first model.

| model | weight | digest |
|---|---|---|
{models}
"""


@dataclass
class Merged:
    """`scores`: nDCG@10 by dimension, widest first, of each input and of the merge, where there was a build."""

    tensors: int = 0
    linear: int = 0  # of them, those that SLERP merged linearly
    scores: dict[str, dict[int, Result]] = field(default_factory=dict)


def soup(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted mean, in float64 (Wortsman et al. 2022, arXiv 2203.05482)."""
    return torch.stack([tensor.double() * weight for tensor, weight in zip(tensors, weights, strict=True)]).sum(0) / sum(weights)


def slerp(one: Tensor, other: Tensor, share: float) -> tuple[Tensor, bool]:
    """The point a part `share` of the way from one tensor to another, in float64; and whether it is on the line, not on the arc.

    (sin((1 - t) theta) one + sin(t theta) other) / sin(theta), theta the angle between the flattened tensors (Shoemake 1985); not
    brought to length 1, as in mergekit. The line where they are nearly parallel, or one of them is 0.
    """
    one, other = one.double(), other.double()
    norms = one.norm() * other.norm()
    cosine = (one * other).sum() / norms
    if not norms > 0 or cosine.abs() > PARALLEL:
        return (1 - share) * one + share * other, True
    theta = cosine.arccos()
    return (((1 - share) * theta).sin() * one + (share * theta).sin() * other) / theta.sin(), False


def merge(
    models: Sequence[str], output: str, method: Method = "soup", weights: Sequence[float] = (), build: Build | None = None
) -> Merged:
    """Writes the merge of exported models, or of checkpoints of runs, to the folder `output`: whole, or not at all.

    `weights` are alike where there are none. SLERP goes from the first model by the part that the second weight is of both.
    Raises UserError for what is no model, and for models that differ, naming the first tensor; for SLERP of more than two, as the
    result would depend on their order.
    """
    weights, merged = checked(len(models), method, weights), Merged()
    with checkpoint.written(output) as scratch, tempfile.TemporaryDirectory(prefix="trainer-merge-") as exports:
        folders = [exported(name, os.path.join(exports, str(number))) for number, name in enumerate(models)]
        sources = [tensors_of(folder) for folder in folders]
        for number in range(1, len(models)):
            compare([models[0], models[number]], [folders[0], folders[number]], [sources[0], sources[number]])

        def combined(key: str) -> Tensor:
            tensors = [source[key] for source in sources]
            if not tensors[0].is_floating_point():
                return tensors[0]
            share = weights[1] / sum(weights)
            result, linear = slerp(tensors[0], tensors[1], share) if method == "slerp" else (soup(tensors, weights), False)
            merged.tensors, merged.linear = merged.tensors + 1, merged.linear + linear
            return result.to(tensors[0].dtype)

        write(folders[0], scratch, combined)
        dimensions = sorted(set.intersection(*(set(trained(folder)) for folder in folders)), reverse=True)
        if os.path.isfile(os.path.join(scratch, TRAINED)):
            storage.write_json(os.path.join(scratch, TRAINED), {"dimensions": dimensions})
        digests = [Assets(os.path.join(folder, ".none")).digest(folder) for folder in folders]
        table = [f"| `{name}` | {weight:g} | {each} |" for name, weight, each in zip(models, weights, digests, strict=True)]
        linear = f" {merged.linear} of {merged.tensors} tensors were nearly parallel: linearly." if method == "slerp" else ""
        title = os.path.basename(os.path.normpath(output))
        card = _CARD.format(title=title, method=method, linear=linear, models="\n".join(table))
        storage.write_bytes(os.path.join(scratch, "README.md"), card.encode())
        if build is not None:
            task = load_task(build)
            for name, folder in zip([*models, f"{method}: {output}"], [*folders, scratch], strict=True):
                merged.scores[name] = evaluate_encoder(task, folder, dimensions)
    return merged


def checked(count: int, method: Method, weights: Sequence[float]) -> Sequence[float]:
    if count < 2 or (method == "slerp" and count > 2):
        wanted = "two models, as the order of more would matter: see soup" if method == "slerp" else "two models or more"
        raise UserError(f"{method} merges {wanted}; found {count}.")
    # What is no number (nan) is above nothing and below nothing.
    if weights and not (len(weights) == count and all(each >= 0 for each in weights) and 0 < sum(weights) < math.inf):
        raise UserError(
            f"The weights are {list(weights)}; give --weight once for each of {count} models: finite, from 0, and not all 0."
        )
    return weights or [1.0] * count


def exported(name: str, scratch: str) -> str:
    """The folder of an exported model; for a checkpoint, STAGE/checkpoints/step-N, one that is written to `scratch`.

    What was not trained, and all that is no weight, comes from STAGE/model, so that the stage must be finished.
    """
    folder = Path(locate(name))
    if (folder / "modules.json").is_file():
        return str(folder)
    if not (folder / "state.json").is_file():
        raise UserError(f"'{name}' is no exported model (modules.json) and no checkpoint of a run (state.json).")
    export = folder.absolute().parents[1] / "model"
    wrong = checkpoint.damage(folder) or (None if export.is_dir() else f"its stage is not finished: '{export}' is not there")
    if wrong:
        raise UserError(f"The checkpoint '{name}' cannot be merged: {wrong}.")
    held = tensors_of(str(export))
    dense = next((key for key in held if key.endswith("_Dense/linear.weight")), "")
    found = _tensors(folder / "model.safetensors")
    changed = {dense if key == "projection.weight" else key.removeprefix("base."): value for key, value in found.items()}
    if strange := sorted(changed.keys() - held.keys()):
        raise UserError(
            f"The checkpoint '{name}' holds '{strange[0]}', which its export lacks, as with LoRA. Merge exported models."
        )
    write(str(export), scratch, lambda key: changed.get(key, held[key]))
    return scratch


def tensors_of(folder: str) -> dict[str, Tensor]:
    """The tensors of all modules of a model, mapped, as `FOLDER INSIDE/NAME`; those of the transformer have no folder."""
    files = sorted(Path(folder).rglob("*.safetensors"))
    if not files:
        raise UserError(f"The model '{folder}' has no weights in safetensors. Save it again with sentence-transformers.")
    return {_key(folder, file, name): tensor for file in files for name, tensor in sorted(_tensors(file).items())}


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"The weights '{file}' cannot be read: {error}.") from error
    return tensors


def write(like: str, folder: str, tensor: Callable[[str], Tensor]) -> None:
    """A copy of the model `like`, with the tensors that a function gives for their keys (tensors_of), shard by shard."""
    shutil.copytree(like, folder, ignore=shutil.ignore_patterns(*_WEIGHTS))
    for file in sorted(Path(like).rglob("*.safetensors")):
        values = {name: tensor(_key(like, file, name)).contiguous() for name in sorted(load_file(file))}
        save_file(values, path := Path(folder) / file.relative_to(like), metadata={"format": "pt"})
        checkpoint.flush(path)


def compare(names: Sequence[str], folders: Sequence[str], sources: Sequence[dict[str, Tensor]]) -> None:
    """Raises UserError where two models are not of one architecture, or make vectors in another way."""
    shapes = [{key: list(tensor.shape) for key, tensor in source.items()} for source in sources]
    for key in sorted(shapes[0].keys() | shapes[1].keys()):
        one, other = (str(each.get(key, "absent")) for each in shapes)
        if one != other:
            raise UserError(f"The models differ, first in the tensor '{key}': {one} in '{names[0]}', {other} in '{names[1]}'.")
    ways = [
        {
            "modules": [each["type"].rpartition(".")[2] for each in _modules(folder)],
            "layer weights": {key: value.tolist() for key, value in tensors.items() if key.endswith("/layer_weights")},
            "pooling": [_json(folder, f"{each['path']}/config.json") for each in _modules(folder)[1:]],
            "is_causal": _json(folder, "config.json").get("is_causal"),
            "lower case": _json(folder, "sentence_bert_config.json").get("do_lower_case", False),
            "tokenizer.json": _tokenizer(folder),
            "attention by layer": _json(folder, "config.json").get(attention.PATTERN),
        }
        for folder, tensors in zip(folders, sources, strict=True)
    ]
    for what, way in ways[0].items():
        if way != ways[1][what]:
            raise UserError(f"The models differ in {what}: {way} in '{names[0]}', {ways[1][what]} in '{names[1]}'.")


def _key(folder: str, file: Path, name: str) -> str:
    return str(file.parent.relative_to(folder) / name)


def _json(folder: str, name: str) -> dict[str, Any]:
    """An object in a model's folder; empty where the file is not there."""
    path = os.path.join(folder, name)
    found = parsed(path) if os.path.isfile(path) else {}
    if not isinstance(found, dict):
        raise UserError(f"'{path}' holds {str(found)[:80]}; a JSON object is needed.")
    return found


def _modules(folder: str) -> list[dict[str, str]]:
    path = os.path.join(folder, "modules.json")
    found: Any = parsed(path)
    named = isinstance(found, list) and all(isinstance(each, dict) for each in found)
    if not named or not all(isinstance(each.get(key), str) for each in found for key in ("type", "path")):
        raise UserError(f"'{path}' holds {str(found)[:80]}; a list of modules is needed, each with 'type' and 'path'.")
    return list(found)


def _tokenizer(folder: str) -> str | None:
    """A digest of how texts become tokens, whatever the length of those that were read last."""
    path = os.path.join(folder, "tokenizer.json")
    if not os.path.isfile(path):
        return None
    try:
        tokenizer = Tokenizer.from_file(path)
    except Exception as error:  # that of tokenizers is Exception itself
        raise UserError(f"The tokenizer '{path}' cannot be read: {error}.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return digest(tokenizer.to_str())
