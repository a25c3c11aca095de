"""Gradients of a whole batch, with or without its activations in memory (Gao et al. 2021, arXiv 2101.06983)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trainer.losses import Statistics
from trainer.model import Encoder, Tokens

Objective = Callable[[Tensor], tuple[Tensor, Statistics]]


def backward(encoder: Encoder, tokens: Tokens, seed: int, objective: Objective, cached: bool) -> Statistics:
    """Adds the gradients of objective(vectors [len(tokens), dimension]) -> (loss, statistics) to the encoder's parameters.

    With `cached`, the vectors are computed without activations; the loss gives the gradient of each vector; and each chunk of
    texts is computed once more, and carries its part back. The last chunk keeps its activations in place of being computed
    twice. Memory is then that of one chunk. Dropout is a function of seed and chunk, so that both passes drop the same, and both
    ways give the same gradients.
    """
    if not cached:
        loss, statistics = objective(encoder(tokens, seed))
        torch.autograd.backward(loss)
        return statistics
    chunks = encoder.chunks(tokens)
    with torch.no_grad():
        computed = [encoder.chunk_vectors(tokens, chunk, seed) for chunk in chunks[:-1]]
    kept = encoder.chunk_vectors(tokens, chunks[-1], seed)
    vectors = encoder.ordered([*computed, kept.detach()], chunks, len(tokens)).requires_grad_()
    loss, statistics = objective(vectors)
    torch.autograd.backward(loss)  # for the parameters of a head too
    assert vectors.grad is not None, "a loss of the vectors"
    gradient = torch.nn.functional.pad(vectors.grad, (0, 0, 0, 1))  # number -1 stands for a text that does not count
    embedding = encoder.embedding_parameter
    for number, chunk in reversed(list(enumerate(chunks))):
        again = kept if number == len(chunks) - 1 else encoder.chunk_vectors(tokens, chunk, seed)
        torch.autograd.backward(again, gradient[chunk])
        if embedding.grad is not None and embedding.grad.is_sparse:
            # Sums the rows that chunks share; else the gradient grows with the batch.
            embedding.grad = embedding.grad.coalesce()
    return statistics
