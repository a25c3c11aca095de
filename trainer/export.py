"""A trained model as a folder that sentence-transformers opens, with no code of ours but for attention by layer."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from datakit import storage
from datakit.errors import BuildError, UserError
from trainer import attention, checkpoint, heads
from trainer.model import Encoder, Prompted, prefix, quiet

TRAINED = "matryoshka.json"
_POOLING = {"mean": "mean", "last": "lasttoken", "cls": "cls", "weighted": "weightedmean"}
_NEEDED = "import trainer.attention  # layers differ in what they see: transformers refuses to open the folder without this\n"
_CARD = """---
library_name: sentence-transformers
tags: [sentence-transformers, feature-extraction, sentence-similarity]
---
# {title}

```python
{needed}from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder", truncate_dim={smallest})  # without truncate_dim: all {dimension} dimensions
queries = model.encode_query(["how to open a file"])
documents = model.encode_document(["open(file, mode='r') opens file and returns a file object."])
model.similarity(queries, documents)
```

Trained on the build `{build}`; {layers} layers, {attention}, {pooling} pooling{pooled}, unit length{case}.
Dimensions that were trained: {dimensions}.
Prompts (`prompt_name`): {prompts}. `query` and `document` are the most frequent ones of the training rows.

{metrics}
"""


def export(
    encoder: Encoder,
    folder: str,
    prompts: Mapping[str, str],
    title: str,
    build: str,
    dimensions: Sequence[int],
    scores: Mapping[int, float],
) -> None:
    """Writes the model to `folder`, in place of what was there. `scores` is nDCG@10 by dimension, for the card.

    Raises BuildError where the export gives other vectors.
    """
    scratch = f"{folder}.tmp"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        with quiet():
            _write(encoder, scratch, prompts)
            difference = _difference(encoder, scratch)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise checkpoint.failure(error, folder) from error
    if not difference <= (1e-4 if encoder.compute == torch.float32 else 3e-2):
        raise BuildError(f"The export '{scratch}' gives other vectors than the trained model (difference {difference:.1e}).")
    table = [
        "| dimensions | nDCG@10 on the validation split |",
        "|---|---|",
        *(f"| {each} | {scores[each]:.3f} |" for each in scores),
    ]
    weights = encoder.config.layer_weights
    card = _CARD.format(
        title=title,
        build=build,
        dimension=encoder.dimension,
        smallest=min(dimensions),
        dimensions=", ".join(map(str, dimensions)),
        layers=encoder.base.config.num_hidden_layers,
        needed=_NEEDED if hasattr(encoder.base.config, attention.PATTERN) else "",
        attention=attention.said(encoder.base.config),
        pooling=encoder.config.pooling,
        pooled=""
        if weights is None
        else f" of a mean of the layers with the weights {', '.join(f'{each:g}' for each in weights)}",
        case="; texts are read in lower case" if encoder.config.lowercase else "",
        prompts=", ".join(f"`{name}`" for name in prompts),
        metrics="\n".join(table),
    )
    storage.write_bytes(os.path.join(scratch, "README.md"), card.encode())
    storage.write_json(os.path.join(scratch, TRAINED), {"dimensions": sorted(dimensions, reverse=True)})
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(scratch, folder)


def _write(encoder: Encoder, folder: str, prompts: Mapping[str, str]) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer, WeightedLayerPooling

    tokenizer = copy.deepcopy(encoder.tokenizer)
    # The texts are no chats; sentence-transformers would offer to read them as such.
    tokenizer.chat_template = None
    # Merging changes the weights, and the encoder may go on training.
    base = copy.deepcopy(encoder.base).merge_and_unload() if encoder.config.lora else encoder.base
    base.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    width = int(encoder.base.config.hidden_size)
    pooling = Pooling(width, pooling_mode=_POOLING[encoder.config.pooling], include_prompt=encoder.config.pool_instruction)
    lower = encoder.config.lowercase
    modules = [Transformer(folder, max_seq_length=encoder.config.max_length, do_lower_case=lower)]
    if (weights := encoder.config.layer_weights) is not None:
        values = torch.nn.Parameter(torch.tensor(weights))
        modules.append(WeightedLayerPooling(width, num_hidden_layers=len(weights), layer_start=1, layer_weights=values))
    modules.append(pooling)
    if hasattr(base.config, attention.PATTERN):
        modules[0].auto_model.config.attn_implementation = attention.NAME  # forgotten when it was opened
    if encoder.projection is not None:
        weight = encoder.projection.weight.detach().cpu()
        modules.append(Dense(width, encoder.dimension, bias=False, activation_function=torch.nn.Identity(), init_weight=weight))
    modules.append(Normalize())
    model = SentenceTransformer(modules=modules, prompts=dict(prompts), similarity_fn_name="cosine", device=str(encoder.device))
    model.save(folder, create_model_card=False)
    if lower:
        keep_lower_case(folder)
    heads.save(encoder, folder)


def keep_lower_case(folder: str) -> None:
    """Writes down that texts are read in lower case, which sentence-transformers forgets when it saves a model.

    tokenizer.json may say it, but some classes of tokenizers, as that of Qwen2, do not heed it when they are opened.
    """
    settings = os.path.join(folder, "sentence_bert_config.json")
    storage.write_json(settings, {**storage.read_json(settings), "do_lower_case": True})


def trained(folder: str) -> list[int]:
    """The dimensions that a model was trained at, as its folder says; none where it says nothing. Raises UserError for damage."""
    path = os.path.join(folder, TRAINED)
    if not os.path.isfile(path):
        return []
    found = parsed(path)
    dimensions = found.get("dimensions") if isinstance(found, dict) else None
    if not isinstance(dimensions, list) or not all(type(each) is int and each > 0 for each in dimensions):
        raise UserError(f"'{path}' holds {str(found)[:80]}; allowed: an object with 'dimensions', whole numbers from 1 on.")
    return dimensions


def parsed(path: str) -> Any:
    """What the JSON of a model's folder says. Raises UserError where it is none."""
    try:
        return storage.read_json(path)
    except ValueError as error:
        raise UserError(f"'{path}' is no JSON: {error}.") from error


def _difference(encoder: Encoder, folder: str) -> float:
    """The largest difference between the vectors of the trained model and of its export, with an instruction and without."""
    from sentence_transformers import SentenceTransformer

    texts = ["What does the first token see?", "a", "A longer text, so that the batch holds padding: " + "one more word " * 20]
    opened = SentenceTransformer(folder, device=str(encoder.device))
    largest = 0.0
    for prompt in ("", prefix(encoder.config.query_prefix, "find")):
        ours = encoder.embed([Prompted(prompt, text) for text in texts])
        theirs = opened.encode(texts, prompt=prompt or None, show_progress_bar=False)
        largest = max(largest, float(np.abs(theirs - ours).max()))
    return largest
