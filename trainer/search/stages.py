"""The two stages, as one faiss index: a shortlist by unit vectors of the first dimensions, reranked by all of them.

IndexRefine(IndexPreTransform(first dimensions, length 1, then flat or HNSW), flat). All products are inner products, so scores of
unit vectors are cosines; those of quantised vectors are estimates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from datakit import storage
from datakit.encoders.vectors import Array
from datakit.errors import MissingExtra, UserError
from trainer.search.settings import Options

# Links of a node of HNSW (twice as many on the lowest level): Malkov & Yashunin 2016, arXiv 1603.09320, suggest 5 to 48.
LINKS = 32
# How far around a new node its links are looked for (efConstruction). A graph takes twice as long to make as with 200, which is
# still little beside encoding, and a shortlist a fifth shorter finds as much; with the 40 of faiss more is missed.
BREADTH = 400
# Vectors that the ranges of int8 are taken from; a component outside them is clipped.
SAMPLE = 65_536

# int8: each dimension's range in 256 steps. binary: signs, and the query is not quantised. The shortlist of binary is int8:
# 64 signs tell too few passages apart.
_WIDE = {"float32": None, "int8": "QT_8bit", "binary": "QT_1bit_tqmse"}
_NARROW = {"float32": None, "int8": "QT_8bit", "binary": "QT_8bit"}


def library() -> Any:
    """faiss. Raises MissingExtra where it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise MissingExtra("trainer search", "faiss-cpu", "search") from error
    return faiss


def _flat(dimension: int, code: str | None) -> Any:
    faiss = library()
    if code is None:
        return faiss.IndexFlatIP(dimension)
    return faiss.IndexScalarQuantizer(dimension, getattr(faiss.ScalarQuantizer, code), faiss.METRIC_INNER_PRODUCT)


def _cut(near: Any, dimension: int) -> Any:
    """An index of few dimensions as one that takes vectors of all `dimension`."""
    faiss = library()
    cut = faiss.IndexPreTransform(near)
    cut.prepend_transform(faiss.NormalizationTransform(near.d))
    cut.prepend_transform(faiss.RemapDimensionsTransform(dimension, near.d, False))
    return cut


def assemble(blocks: Sequence[Array], options: Options) -> Any:
    """The faiss index of vectors that come in blocks [.., d], float32 of length 1.

    On one thread, since HNSW by several has other links each time.
    """
    faiss, dimension = library(), blocks[0].shape[1]
    code = _NARROW[options.precision]
    if options.method == "exact":
        near = _flat(options.shortlist, code)
    elif code is None:
        near = faiss.IndexHNSWFlat(options.shortlist, LINKS, faiss.METRIC_INNER_PRODUCT)
    else:
        quantiser = getattr(faiss.ScalarQuantizer, code)
        near = faiss.IndexHNSWSQ(options.shortlist, quantiser, LINKS, faiss.METRIC_INNER_PRODUCT)
    if options.method == "hnsw":
        near.hnsw.efConstruction = BREADTH
    stages = faiss.IndexRefine(_cut(near, dimension), _flat(dimension, _WIDE[options.precision]))
    every = -(-sum(map(len, blocks)) // SAMPLE)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        stages.train(np.concatenate([block[::every] for block in blocks]))
        for block in blocks:
            stages.add(np.ascontiguousarray(block))
    finally:
        faiss.omp_set_num_threads(threads)
    return stages


def write(stages: Any, path: str) -> None:
    faiss = library()
    with storage.atomic(path) as file:
        faiss.write_index(stages, faiss.PyCallbackIOWriter(file.write))


def read(path: str) -> Any:
    """The index in a file, mapped and not read: searches touch the shortlist's vectors and the rows that they rerank."""
    faiss = library()
    try:
        return faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise UserError(f"'{path}' is damaged, cut off or not there. Make the index again.") from error


def full(stages: Any) -> Any:
    """The second stage alone: all dimensions of all vectors."""
    return library().downcast_index(stages.refine_index)


def exact(stages: Any) -> Any:
    """The same two stages, the first without HNSW. It shares the vectors of `stages`, which must outlive it."""
    near = _first(stages)
    return library().IndexRefine(_cut(near.storage, stages.d), stages.refine_index) if hasattr(near, "hnsw") else stages


def parameters(stages: Any, shortlist: int) -> Any:
    """What a search for a shortlist of so many must be told: how far HNSW looks around. None where there is nothing to say."""
    faiss = library()
    if not hasattr(_first(stages), "hnsw"):
        return None
    inner = faiss.SearchParametersPreTransform(index_params=faiss.SearchParametersHNSW(efSearch=shortlist))
    return faiss.IndexRefineSearchParameters(k_factor=1, base_index_params=inner)


def _first(stages: Any) -> Any:
    faiss = library()
    return faiss.downcast_index(faiss.downcast_index(stages.base_index).index)
