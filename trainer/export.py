"""A trained model as a folder that sentence-transformers opens, with no code of ours."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from safetensors import SafetensorError

from datakit.errors import BuildError
from trainer import checkpoint
from trainer.model import Encoder, quiet

_CARD = """---
library_name: sentence-transformers
tags: [sentence-transformers, feature-extraction, sentence-similarity]
---
# {title}

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder", truncate_dim={smallest})  # without truncate_dim: all {dimension} dimensions
queries = model.encode_query(["how to open a file"])
documents = model.encode_document(["open(file, mode='r') opens file and returns a file object."])
model.similarity(queries, documents)
```

Trained on the build `{build}`; {layers} layers, mean pooling, unit length. Dimensions that were trained: {dimensions}.
Prompts (`prompt_name`): {prompts}. `query` and `document` are the most frequent ones of the training rows.
"""


def export(encoder: Encoder, folder: str, prompts: Mapping[str, str], title: str, build: str, dimensions: Sequence[int]) -> None:
    """Writes the model to `folder`, in place of what was there. Raises BuildError where the export gives other vectors."""
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
    card = _CARD.format(
        title=title,
        build=build,
        dimension=encoder.dimension,
        smallest=min(dimensions),
        dimensions=", ".join(map(str, dimensions)),
        layers=encoder.base.config.num_hidden_layers,
        prompts=", ".join(f"`{name}`" for name in prompts),
    )
    with open(os.path.join(scratch, "README.md"), "w", encoding="utf-8") as file:
        file.write(card)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(scratch, folder)


def _write(encoder: Encoder, folder: str, prompts: Mapping[str, str]) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    tokenizer = copy.deepcopy(encoder.tokenizer)
    # The texts are no chats; sentence-transformers would offer to read them as such.
    tokenizer.chat_template = None
    encoder.base.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    modules = [
        Transformer(folder, max_seq_length=encoder.config.max_length),
        Pooling(encoder.dimension, pooling_mode=encoder.config.pooling),
        Normalize(),
    ]
    model = SentenceTransformer(modules=modules, prompts=dict(prompts), similarity_fn_name="cosine", device=str(encoder.device))
    model.save(folder, create_model_card=False)


def _difference(encoder: Encoder, folder: str) -> float:
    """The largest difference between the vectors of the trained model and of its export."""
    from sentence_transformers import SentenceTransformer

    texts = ["What does the first token see?", "a", "A longer text, so that the batch holds padding: " + "one more word " * 20]
    opened = SentenceTransformer(folder, device=str(encoder.device))
    return float(np.abs(opened.encode(texts, show_progress_bar=False) - encoder.embed(texts)).max())
