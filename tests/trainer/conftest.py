"""A tiny random base with its own tokenizer, and small builds, for the tests of the trainer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from toys import ACTS, COLOURS, THINGS, MakeBuild, save_base, tiny_config, toy_rows
from transformers.utils import logging

from datakit import storage
from datakit.opened import Build, open_build
from datakit.publish.manifest import File, Manifest, Spent, Totals
from datakit.schema import EXAMPLE, rows, text_id

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def no_bars() -> Iterator[None]:
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture(scope="session")
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    words = [*COLOURS, *THINGS, *ACTS, "the", "a", "what", "where", "is", "Instruct", "Query", "Document", ":", "find"]
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(words, trainers.WordLevelTrainer(special_tokens=["<unk>", "<end>"], show_progress=False))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory, tokenizer: transformers.PreTrainedTokenizerFast) -> str:
    """A Llama of three layers and 32 dimensions, with dropout."""
    return save_base(tmp_path_factory.mktemp("base"), tokenizer, tiny_config("llama", attention_dropout=0.1))


@pytest.fixture
def make_build(tmp_path: Path) -> MakeBuild:
    """Publishes rows as a build: make_build(train=[...], validation=[...], schema=EXAMPLE)."""

    def make(
        train: Sequence[dict[str, Any]], validation: Sequence[dict[str, Any]], schema: pa.Schema = EXAMPLE, name: str = "build"
    ) -> Build:
        folder, files = str(tmp_path / name), {}
        for part, records in (("train", train), ("validation", validation)):
            for number in range(0, len(records), 40):
                file = f"{part}/{number // 40:05d}.parquet"
                table = rows(records[number : number + 40])
                storage.write_table(
                    f"{folder}/{file}", table.select(schema.names).cast(schema).replace_schema_metadata(schema.metadata)
                )
                files[file] = File(digest=storage.file_digest(f"{folder}/{file}"), rows=table.num_rows)
        version = text_id(str([train, validation]))[:12]
        manifest = Manifest(
            datakit="0", name="toy", version=version, recipe={}, steps=[], files=files, packages={}, models={}, spent=Spent(),
            categories={}, totals=Totals(train=len(train), validation=len(validation)),
        )  # fmt: skip
        storage.write_json(f"{folder}/manifest.json", manifest.model_dump(mode="json", by_alias=True))
        return open_build(folder)

    return make


@pytest.fixture
def toy_build(make_build: MakeBuild) -> Build:
    """Two categories of 64 and 25 rows to train on, 39 to measure on."""
    other = toy_rows("others", 3)
    return make_build([*toy_rows(), *other[:25]], other[25:])
