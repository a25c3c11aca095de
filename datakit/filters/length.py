"""Texts that are too short or too long.

The bounds on documents are for positives that are documents. In tasks that pair sentences (`sides.SENTENCE_TASKS`) the bounds of
queries hold for both sides. A positive in code search may be as short as a signature: it has no lower bound. A class label
("play_music", `sides.positive_is_label`) has no bounds. Bounds that a recipe gives a single category hold as they stand.

Lengths are words (`words.WORD`), or tokens of a named tokenizer, without the special tokens that it adds.
"""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from datakit.assets import locate
from datakit.errors import UserError
from datakit.filters.sides import Array, is_code, is_sentence_pair, positive_is_label
from datakit.filters.verdicts import Verdicts
from datakit.filters.words import count_words, series
from datakit.recipe import LengthFilter
from datakit.step import Work, judged

VERSION = 1

QUERY_TOO_SHORT = "query_too_short"
QUERY_TOO_LONG = "query_too_long"
DOCUMENT_TOO_SHORT = "document_too_short"
DOCUMENT_TOO_LONG = "document_too_long"
REASONS = (QUERY_TOO_SHORT, QUERY_TOO_LONG, DOCUMENT_TOO_SHORT, DOCUMENT_TOO_LONG)

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.*", "spiece.model", "*.gguf")

# Texts that go to the tokenizer at once.
_BATCH = 1024


def work(work: Work) -> None:
    judged(work, judge)


def judge(table: pa.Table, parameters: LengthFilter) -> pa.Table:
    query = _lengths(series(table, "query"), parameters)
    document = _lengths(series(table, "positive"), parameters)
    shortest, longest = (np.full(table.num_rows, bound) for bound in parameters.query)
    pair, label = is_sentence_pair(table), positive_is_label(table)
    least = np.where(label | is_code(table), 0, np.where(pair, shortest, parameters.document[0]))
    most = np.where(label, np.iinfo(np.int64).max, np.where(pair, longest, parameters.document[1]))
    for name, bounds in parameters.categories.items():
        mine = pc.equal(table.column("category"), name).to_numpy()
        if bounds.query is not None:
            shortest[mine], longest[mine] = bounds.query
        if bounds.document is not None:
            least[mine], most[mine] = bounds.document
    verdicts = Verdicts(table.num_rows)
    verdicts.add(query < shortest, QUERY_TOO_SHORT, value=query, threshold=shortest)
    verdicts.add(query > longest, QUERY_TOO_LONG, value=query, threshold=longest)
    verdicts.add(document < least, DOCUMENT_TOO_SHORT, value=document, threshold=least)
    verdicts.add(document > most, DOCUMENT_TOO_LONG, value=document, threshold=most)
    return verdicts.table()


def _lengths(texts: pl.Series, parameters: LengthFilter) -> Array:
    if parameters.tokenizer is None:
        return count_words(texts)
    return count_tokens(texts.to_list(), load_tokenizer(parameters.tokenizer))


def count_tokens(texts: list[str], tokenizer: Any) -> Array:
    """The number of tokens of each text."""
    counts: list[int] = []
    for start in range(0, len(texts), _BATCH):
        batch = tokenizer(
            texts[start : start + _BATCH], add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False
        )
        counts.extend(len(ids) for ids in batch["input_ids"])
    return np.array(counts, dtype=np.int64)


def check(parameters: LengthFilter) -> None:
    """Refuses a folder without a tokenizer. A name of a tokenizer on the Hub is taken as it is."""
    path = locate(parameters.tokenizer or "")
    if os.path.isdir(path) and not any(any(Path(path).glob(pattern)) for pattern in _TOKENIZER_FILES):
        raise UserError(
            f"The length filter's tokenizer '{parameters.tokenizer}' is a folder with no tokenizer in it: '{path}' has none of "
            f"{', '.join(_TOKENIZER_FILES)}."
        )


@functools.lru_cache(maxsize=2)
def load_tokenizer(name: str) -> Any:
    """The tokenizer in a folder (or package:NAME/FOLDER); of the folder's GGUF file where there is one and no tokenizer.json.

    A folder that has none, or a name that cannot be found, is a UserError.
    """
    from transformers import AutoTokenizer

    path = locate(name)
    options: dict[str, Any] = {}
    if os.path.isdir(path) and not (Path(path) / "tokenizer.json").exists():
        files = sorted(file.name for file in Path(path).glob("*.gguf"))
        if files:
            options["gguf_file"] = files[0]
    elif os.path.isfile(path):
        path, options["gguf_file"] = os.path.split(path)
    # It warns about texts longer than its model takes; here nothing goes to a model.
    logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)
    try:
        return AutoTokenizer.from_pretrained(path, **options)
    except Exception as error:
        line = next(iter(str(error).strip().splitlines()), "")[:200]
        raise UserError(
            f"The tokenizer '{name}' cannot be loaded: {type(error).__name__}: {line} Give a folder with tokenizer.json or a "
            "GGUF file, or package:NAME/FOLDER for one that a package carries."
        ) from error
