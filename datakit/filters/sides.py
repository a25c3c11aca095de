"""What the two texts of a row are, where a filter must not treat them as prose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Array = np.ndarray[Any, np.dtype[Any]]

CODE_TASK = "code_search"

# Tasks whose positive is a sentence as its query is, and no document.
SENTENCE_TASKS = ("paraphrase", "similarity", "nli", "bitext")


def positive_is_label(table: pa.Table) -> Array:
    """Rows of classification and clustering: the positive is the name of a class, or stands for one.

    These are the rows with a `label`, and those whose `in_batch_negatives` is false.
    """
    no_batch = pc.equal(table.column("in_batch_negatives"), False).fill_null(False)
    return _mask(pc.or_(pc.is_valid(table.column("label")), no_batch))


def is_code(table: pa.Table) -> Array:
    """Rows of code search: one side is source code or a signature, and which one it is differs between data sets."""
    return _mask(pc.equal(table.column("task"), CODE_TASK).fill_null(False))


def is_sentence_pair(table: pa.Table) -> Array:
    """Rows whose positive is of the same kind as the query."""
    return _mask(pc.is_in(table.column("task"), value_set=pa.array(SENTENCE_TASKS)))


def in_two_languages(table: pa.Table) -> Array:
    """Rows of bitext: the sides are translations of each other."""
    return _mask(pc.equal(table.column("task"), "bitext").fill_null(False))


def is_graded(table: pa.Table) -> Array:
    """Rows with a score: a pair may be a poor match on purpose."""
    return _mask(pc.is_valid(table.column("score")))


def is_written(table: pa.Table) -> Array:
    """Rows whose query a model wrote."""
    provenance = table.column("provenance").combine_chunks()
    return _mask(pc.is_valid(pc.struct_field(provenance, "model")))


def _mask(values: Any) -> Array:
    return np.asarray(values.to_numpy(zero_copy_only=False) if isinstance(values, pa.Array) else values.to_numpy(), dtype=bool)
