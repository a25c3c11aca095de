"""Toys for the tests of the trainer: a tiny random base, rows about coloured things, a config."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml

from datakit.opened import Build
from datakit.schema import text_id
from trainer.cli import main
from trainer.config import Config, Stage

COLOURS = ["red", "green", "blue", "white", "black", "brown", "grey", "pink"]
THINGS = ["house", "horse", "table", "river", "stone", "apple", "window", "shirt"]
ACTS = ["burns", "falls", "grows", "sings", "turns", "opens"]

# Bases that are tried, and what is not as in tiny_config.
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {}, "qwen3": {"head_dim": 8}, "llama": {}, "mistral": {"sliding_window": 6}, "phi3": {}, "gemma": {"head_dim": 8},
    "bert": {},
}  # fmt: skip

MakeBuild = Callable[..., Build]


def tiny_config(kind: str, **more: Any) -> Any:
    settings = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 1,
        # Larger than usual, so that tokens have something to say to each other in a model that was never trained.
        "initializer_range": 0.2,
    }  # fmt: skip
    return transformers.AutoConfig.for_model(kind, **{**settings, **more})


def save_base(folder: Path, tokenizer: transformers.PreTrainedTokenizerFast, config: Any) -> str:
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def row(query: str, positive: str, *, category: str = "things", negatives: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    """A row with the ids that its texts ask for."""
    return {
        "row_id": text_id(f"{category}/{query}/{positive}"), "content_id": text_id(f"{query}/{positive}"), "query_id": text_id(query),
        "positive_id": text_id(positive), "document_id": text_id(positive), "category": category, "batch_group": category,
        "query": query, "positive": positive, "in_batch_negatives": True,
        "negatives": [{"id": text_id(text), "text": text, "miner": "bm25", "score": 1.0, "difficulty": 0.5} for text in negatives],
        **more,
    }  # fmt: skip


def toy_rows(category: str = "things", start: int = 0) -> list[dict[str, Any]]:
    """64 rows: a colour and a thing, asked for in one order and found in the other, with a document of another colour."""
    return [
        row(
            f"what is {colour} {thing}",
            f"the {thing} {ACTS[(one + start) % 6]} {colour}",
            category=category,
            negatives=[
                f"the {thing} {ACTS[(one + start) % 6]} {COLOURS[(two + 1) % 8]}",
                f"a {THINGS[(one + 3) % 8]} is {colour}",
            ],
        )
        for one, thing in enumerate(THINGS)
        for two, colour in enumerate(COLOURS)
    ]


STAGE: dict[str, Any] = {
    "name": "one",
    "data": {"batch_size": 16, "negatives": 1},
    "loss": {"dimensions": [32, 8]},
    "optimizer": {"learning_rate": 2e-3},
    "training": {"steps": 12},
}


def toy_config(base: str, stages: Sequence[dict[str, Any]] = ({},), **more: Any) -> Config:
    """A run of stages that each change STAGE; what else is named changes all stages where it is a part of one, else the run."""
    value: dict[str, Any] = {
        "name": "toy",
        "seed": 5,
        "model": {"base": base, "max_length": 24},
        "checkpoint": {"every": 4},
        "evaluation": {"bm25": False},
    }
    shared = {name: more.pop(name) for name in list(more) if name in Stage.model_fields and name != "name"}
    return Config.model_validate(merged(value, more) | {"stages": [merged(merged(STAGE, shared), stage) for stage in stages]})


def merged(value: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """`value` with what `more` changes in it, one level down."""
    changed = {name: {**(value.get(name) or {}), **part} if isinstance(part, dict) else part for name, part in more.items()}
    return value | changed


def write_config(path: Path, config: Config) -> str:
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    return os.fspath(path)


def command_line(arguments: list[str]) -> None:
    """`trainer ARGUMENTS` in this process, on one thread: the number of threads decides the last bits."""
    torch.set_num_threads(1)
    sys.argv = ["trainer", *arguments]
    main()


def toy_recipe(folder: Path, rows: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """A recipe, as in its file, of some toy rows by category, with mined negatives and a fifth of the rows to measure on."""
    folder.mkdir(parents=True, exist_ok=True)
    categories: dict[str, Any] = {}
    for category in dict.fromkeys(each["category"] for each in rows):
        lines = [json.dumps({"q": each["query"], "p": each["positive"]}) for each in rows if each["category"] == category]
        (folder / f"{category}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        source = {"type": "files", "path": str(folder / f"{category}.jsonl"), "columns": {"query": "q", "positive": "p"}}
        categories[category] = {"define": {"task": "retrieval"}, "language": "en", "sources": [source]}
    return {
        "name": "toys", "seed": 3, "output": str(folder / "datasets"), "cache": str(folder / "cache"), "categories": categories,
        "split": {"validation": 0.3, "near_duplicate_threshold": 1.0}, "negatives": {"miners": [{"type": "bm25"}], "per_query": 2},
        **more,
    }  # fmt: skip
