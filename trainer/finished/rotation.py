"""The first dimensions of a finished model made to say more: a rotation of its vectors, learned from their similarities alone.

Whole vectors stay as alike as they were. Any sentence-transformers model may be given, one that knew no Matryoshka among them.
Related: Matryoshka-Adaptor (Yoon et al. 2024, arXiv 2407.20243), whose two layers change whole vectors too.
"""

from __future__ import annotations

import heapq
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, normalize
from torch.nn.utils.parametrizations import orthogonal

from datakit import storage
from datakit.assets import locate
from datakit.errors import BuildError, UserError
from datakit.opened import Build
from datakit.schema import digest
from trainer import checkpoint, heads
from trainer.base import quiet
from trainer.data import part_files, usable_blocks
from trainer.evaluation.retrieval import Result, embed_queries, embed_task, evaluate_vectors, load, load_task, unit
from trainer.export import TRAINED, keep_lower_case, trained

log = logging.getLogger(__name__)

STEPS, BATCH, RATE, TEMPERATURE = 200, 1_024, 1e-2, 0.05
_CARD = """---
library_name: sentence-transformers
tags: [sentence-transformers, feature-extraction, sentence-similarity]
---
# {title}

`{model}`, rotated by `trainer rotate` with texts of the build `{build}`. Whole vectors are as alike as before; the first
{dimensions} dimensions hold more of it.

| dimensions | nDCG@10 on the validation split, before | rotated |
|---|---|---|
{scores}
"""


def rotate(
    model: str, build: Build, output: str, dimensions: Sequence[int], rows: int = 10_000, seed: int = 0
) -> dict[str, dict[int, Result]]:
    """Writes a model with a rotation at its end to the folder `output`, whole or not at all.

    Returns what it and the model as it was reach on the validation split, by name and dimension, widest first. It is learned for
    these dimensions, or for those that the model was trained at, on the texts of at most so many training rows. Raises UserError
    where there is no such model or dimension, or the model has heads; BuildError where what was written gives other vectors.
    """
    checkpoint.check_new(output)
    whole, folder = load(model), locate(model)
    width = int(whole.get_embedding_dimension())
    dimensions = sorted(set(dimensions or (each for each in trained(folder) if each != width)), reverse=True)
    if not dimensions or not 1 <= dimensions[-1] <= dimensions[0] < width:
        raise UserError(
            f"The dimensions are {dimensions}; give --dimension, once or more, from 1 to {width - 1}, as '{model}' has {width}."
        )
    if heads.load(folder):
        raise UserError(f"'{model}' has heads, which read its vectors as they are. Rotate a model without heads.")
    task = load_task(build)
    queries, documents = embed_task(whole, task)
    matrix = learned(embedded(whole, build, rows), dimensions, seed)
    widths = [width, *dimensions]
    turns = {"before": np.eye(width), "rotated": matrix}
    found = {name: evaluate_vectors(task, queries @ each, documents @ each, widths) for name, each in turns.items()}
    with checkpoint.written(output) as scratch:
        with quiet():
            appended(whole, matrix).save(scratch, create_model_card=False)
        if getattr(whole[0], "do_lower_case", False):
            keep_lower_case(scratch)
        scores = [f"| {each} | {found['before'][each].score:.3f} | {found['rotated'][each].score:.3f} |" for each in widths]
        card = _CARD.format(
            title=os.path.basename(os.path.normpath(output)), model=model, build=build.version,
            dimensions=", ".join(map(str, dimensions)), scores="\n".join(scores),
        )  # fmt: skip
        storage.write_bytes(os.path.join(scratch, "README.md"), card.encode())
        storage.write_json(os.path.join(scratch, TRAINED), {"dimensions": widths})
        written = load(scratch).encode_document([text for text, _ in task.documents[:16]], show_progress_bar=False)
        difference = float(np.abs(unit(written) - unit(documents[:16] @ matrix)).max())
        if not difference <= 1e-3:
            raise BuildError(f"The rotated model gives other vectors when it is opened (difference {difference:.1e}).")
    return found


def embedded(model: Any, build: Build, rows: int) -> np.ndarray:
    """Vectors [n, d] of the different queries and positives of so many training rows, those of the lowest digests."""
    picked = heapq.nsmallest(rows, texts(build), key=lambda row: (digest("rotate", *row), row))
    if not picked:
        raise UserError(f"The build '{build.path}' has no row in 'train' with a query and a positive.")
    asked = list(dict.fromkeys((query, category) for category, query, _ in picked))
    found = list(dict.fromkeys(positive for *_, positive in picked))
    log.info("Embedding %d queries and %d documents of %d training rows", len(asked), len(found), len(picked))
    queries = embed_queries(model, [query for query, _ in asked], [category for _, category in asked])
    return np.concatenate([queries, model.encode_document(found, show_progress_bar=False)])


def texts(build: Build) -> Iterator[tuple[str, str, str]]:
    """Category, query and positive of each training row."""
    for block in usable_blocks(part_files(build, "train"), graded=True):
        yield from zip(*(block.column(name).to_pylist() for name in ("category", "query", "positive")), strict=True)


def learned(vectors: np.ndarray, dimensions: Sequence[int], seed: int) -> np.ndarray:
    """An orthogonal matrix [d, d]: what vectors [n, d] are multiplied by, so that their first dimensions tell the most.

    From the principal axes on, which are the best for squared errors of inner products (Eckart & Young 1936), by Adam on
    `divergence`, in batches of texts by chance.
    """
    whole = torch.from_numpy(unit(vectors)).to("cuda" if torch.cuda.is_available() else "cpu")
    width = whole.shape[1]
    if len(whole) < 2 * width:
        log.warning("%d texts are few to learn a rotation of %d dimensions from; others may fit it less.", len(whole), width)
    turn = nn.Linear(width, width, bias=False, device=whole.device)
    orthogonal(turn, orthogonal_map="cayley")
    turn.weight = torch.linalg.eigh(whole.T @ whole).eigenvectors.flip(1).T
    optimizer = torch.optim.Adam(turn.parameters(), RATE)
    generator = torch.Generator().manual_seed(seed)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        batch = whole[torch.randperm(len(whole), generator=generator)[:BATCH]]
        loss = divergence(batch, turn(batch), dimensions)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return np.asarray(turn.weight.detach().T.cpu().numpy())


def divergence(whole: Tensor, turned: Tensor, dimensions: Sequence[int]) -> Tensor:
    """How little of n vectors [n, d] of norm 1 is in the first dimensions of `turned`: the mean over these, in nats.

    KL(P || Q) over which of the others a text is like, P by the cosines of whole vectors, Q by those of the first dimensions: the
    relations of trainer.losses with the model as its own teacher.
    """

    def relations(vectors: Tensor) -> Tensor:
        return (vectors @ vectors.T / TEMPERATURE).fill_diagonal_(-1e30).log_softmax(1)

    told = relations(whole)
    parts = [
        kl_div(relations(normalize(turned[:, :dimension], dim=1)), told, reduction="batchmean", log_target=True)
        for dimension in dimensions
    ]
    return torch.stack(parts).mean()


def appended(model: Any, matrix: np.ndarray) -> Any:
    """A sentence-transformers model with its vectors multiplied by a matrix [d, d], before what brings them to norm 1."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize

    width = len(matrix)
    weight = torch.from_numpy(matrix).T.contiguous()
    modules = list(model)
    last = len(modules) - isinstance(modules[-1], Normalize)
    modules.insert(last, Dense(width, width, bias=False, activation_function=nn.Identity(), init_weight=weight))
    return SentenceTransformer(
        modules=modules, prompts=model.prompts, default_prompt_name=model.default_prompt_name,
        similarity_fn_name=model.similarity_fn_name, device=str(model.device),
    )  # fmt: skip
