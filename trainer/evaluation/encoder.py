"""Any sentence-transformers model as mteb takes one. Each text is embedded once, at full width, and cut for every dimension."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from datakit.assets import Assets, locate
from datakit.errors import MissingExtra, UserError
from trainer.evaluation.retrieval import load, unit
from trainer.evaluation.sets import Set


@dataclass(eq=False)
class CachedEncoder:
    """What mteb asks of an encoder (mteb.models.EncoderProtocol).

    Vectors are kept in memory, in float32 and at full width, by kind of text (query, document, neither), prompt and text: 1.5 KB
    a text at 384 dimensions. At full width mteb gets them as the model gives them, so that the scores are those of the model
    alone; cut to fewer dimensions they have length 1 again.
    """

    model: Any  # a SentenceTransformer
    mteb_model_meta: Any  # a ModelMeta
    sets: Mapping[str, Set] = field(default_factory=dict)  # local sets by the name of their task, for their prompts
    dimension: int | None = None
    used: dict[str, str] = field(default_factory=dict)  # the prompt of each kind of text since the last clear()
    vectors: dict[tuple[str, str | None], dict[str, np.ndarray]] = field(default_factory=dict)

    @property
    def width(self) -> int:
        return int(self.model.get_embedding_dimension())

    def prompt(self, metadata: Any, prompt_type: Any) -> str | None:
        """What stands before texts of this type in a task: the set's own, its category's, or what mteb looks for by name.

        None leaves it to the model's default prompt.
        """
        from mteb.models.abs_encoder import get_prompt_name

        kind = prompt_type.value if prompt_type else "query"
        if (declared := self.sets.get(metadata.name)) is not None:
            if (own := getattr(declared.prompts, kind)) is not None:
                return str(own)
            if kind == "query" and declared.category is not None:
                if declared.category not in self.model.prompts:
                    known = ", ".join(self.model.prompts) or "none"
                    raise UserError(
                        f"The set '{metadata.name}' asks for the category '{declared.category}', for which the model has no "
                        f"prompt. It has: {known}. Name one of these, or give 'prompts'."
                    )
                return str(self.model.prompts[declared.category])
        name = get_prompt_name(self.model.prompts, metadata, prompt_type)
        return None if name is None else self.model.prompts[name]

    def encode(
        self, inputs: Any, *, task_metadata: Any, prompt_type: Any = None, batch_size: int = 32, **more: Any
    ) -> np.ndarray:
        """Vectors [n, dimension] of mteb's batches of n texts."""
        texts = [text for batch in inputs for text in batch["text"]]
        prompt = self.prompt(task_metadata, prompt_type)
        kind = prompt_type.value if prompt_type else "text"
        self.used[kind] = prompt or ""
        known = self.vectors.setdefault((kind, prompt), {})
        if new := [text for text in dict.fromkeys(texts) if text not in known]:
            encode = {"query": self.model.encode_query, "document": self.model.encode_document}.get(kind, self.model.encode)
            found = encode(new, prompt=prompt, batch_size=batch_size, show_progress_bar=False)
            known.update(zip(new, np.asarray(found, np.float32), strict=True))
        vectors = np.stack([known[text] for text in texts])
        return vectors if self.dimension in (None, self.width) else unit(vectors[:, : self.dimension])

    def similarity(self, first: Any, second: Any) -> Any:
        """Of all vectors [n, d] with all [m, d]: [n, m], by the model's own function."""
        return self.model.similarity(first, second)

    def similarity_pairwise(self, first: Any, second: Any) -> Any:
        return self.model.similarity_pairwise(first, second)


def mteb_encoder(name: str) -> CachedEncoder:
    """The model of a folder, of package:NAME/path, or of that name on the hub: `mteb.evaluate(mteb_encoder(FOLDER), tasks)`.

    Raises UserError where it cannot be loaded.
    """
    models, model = import_mteb().models, load(name)
    weights = list(model.parameters())
    facts = {
        "name": name if "/" in name else f"local/{name}",
        "revision": Assets(os.path.join(locate(name), ".none")).digest(name),
        "n_parameters": sum(each.numel() for each in weights),
        "n_embedding_parameters": sum(each.weight.numel() for each in model.modules() if isinstance(each, nn.Embedding)),
        "memory_usage_mb": sum(each.numel() * each.element_size() for each in weights) / 2**20,
        "max_tokens": model.max_seq_length,
        "embed_dim": model.get_embedding_dimension(),
        "similarity_fn_name": models.model_meta.ScoringFunction(model.similarity_fn_name),
        "framework": ["Sentence Transformers", "PyTorch"],
        "use_instructions": any(model.prompts.values()),
    }
    return CachedEncoder(model, models.ModelMeta.create_empty(facts))


def import_mteb() -> Any:
    """The package. Raises MissingExtra without it."""
    try:
        import mteb
    except ImportError as error:
        raise MissingExtra("Evaluation by mteb's families", "mteb", "eval") from error
    return mteb
