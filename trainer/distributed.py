"""Several processes for one run, started by torchrun: data parallel by all-reduce, or with divided weights (FSDP2).

All processes do the same things in the same order. Each makes the same batch, computes the vectors of its share of the batch's
texts, gets those of the others, and computes the loss of the whole batch. The gradient of a vector goes back in the process that
computed it, and the gradients of the parameters are summed: they are those of one process with the same batch, with no factor for
the number of processes. Process 0 writes the files. Where there is one process only, nothing here does anything.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from datakit.errors import BuildError, UserError

if TYPE_CHECKING:
    from trainer.model import Encoder

# Process 0 may read all texts with a teacher while the others wait. Where a process ends, torchrun ends the others at once.
LONGEST_WAIT = timedelta(days=7)
# Gradients are summed so many elements at a time: 128 MB of float32.
BUCKET_ELEMENTS = 2**25


def hush(*consoles: Console) -> None:
    """Silences all processes but the first of those that torchrun started, warnings included; what ends them is still told."""
    if dist.is_torchelastic_launched() and os.environ["RANK"] != "0":
        logging.disable(logging.WARNING)
        for console in consoles:
            console.quiet = True


@contextmanager
def joined() -> Iterator[None]:
    """Joins the processes that torchrun started, over NCCL with one GPU each, or over gloo on CPUs. Nothing without torchrun.

    Raises UserError where there are too few GPUs, and BuildError where another process has ended.
    """
    if not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        yield
        return
    backend, count = "gloo", torch.cuda.device_count()
    if count:
        if int(os.environ["LOCAL_WORLD_SIZE"]) > count:
            raise UserError(
                f"torchrun started {os.environ['LOCAL_WORLD_SIZE']} processes on a machine with {count} GPUs, and each needs "
                f"its own. Give torchrun --nproc-per-node {count}."
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend, timeout=LONGEST_WAIT)
        yield
        dist.destroy_process_group()
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise BuildError("Another process of this run has ended, which says why. The same command goes on.") from error
        raise


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def wait() -> None:
    """Until all processes are here."""
    agreed(0.0)


def agreed(value: float) -> float:
    """The value of process 0. What decides how a run goes on must not differ in its last bits."""
    found = torch.tensor(value, dtype=torch.float64)  # of the CPU, so that a long wait occupies no GPU
    if world() > 1:
        # A broadcast waits for no receiver.
        dist.all_reduce(found if rank() == 0 else found.zero_())
    return found.item()


@contextmanager
def main_first() -> Iterator[None]:
    """Process 0 does this alone; the others then find what it has written. Also a decorator."""
    if rank() > 0:
        wait()
    yield
    if rank() == 0:
        wait()


def spread(encoder: Encoder, parallel: Literal["ddp", "fsdp"]) -> None:
    """From here on the encoder computes its share of the texts, and all processes must call it together.

    With `fsdp`, parameters, gradients and the optimizer's state are divided among the processes, by layer (FSDP2; Zhao et al.
    2023, arXiv 2304.11277). It has no sparse gradients, and Config allows none with it.
    """
    if world() == 1:
        return
    encoder.share = rank(), world()
    if parallel == "ddp":
        return
    encoder.base.get_input_embeddings().sparse = False
    for module in [*(encoder.layers or []), encoder.base]:
        # Also the root: between two calls all parameters are divided, wherever they are asked for.
        divided: Any = fully_shard(module, reshard_after_forward=True)
        # Summed, not averaged.
        divided.set_gradient_divide_factor(1.0)
        divided.set_force_sum_reduction_for_comms(True)


def gathered(vectors: Tensor, numbers: Tensor, count: int) -> Tensor:
    """All vectors [count, d] of a batch out of each process's own [n, d]. `numbers` [n] says which they are; -1 counts not."""
    return _Gathered.apply(vectors, numbers, count)  # type: ignore[no-any-return, no-untyped-call]


class _Gathered(torch.autograd.Function):
    """Back go the gradients of the own vectors alone: every process has those of the whole loss."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, numbers: Tensor, count: int) -> Tensor:
        ctx.numbers = numbers
        found = vectors.new_zeros(count + 1, vectors.shape[1])
        found[numbers] = vectors
        found = found[:count].clone()
        dist.all_reduce(found)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return nn.functional.pad(gradient, (0, 0, 0, 1))[ctx.numbers], None, None


@torch.no_grad()
def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sums the gradients of all processes, but those that FSDP has summed already. All processes have the same ones."""
    if world() == 1:
        return
    waiting: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is None or isinstance(parameter.grad, DTensor):
            continue
        if parameter.grad.is_sparse:
            parameter.grad = _sparse_sum(parameter.grad.coalesce())
            continue
        if waiting and (
            sum(map(Tensor.numel, waiting)) + parameter.grad.numel() > BUCKET_ELEMENTS or waiting[0].dtype != parameter.grad.dtype
        ):
            _sum(waiting)
            waiting = []
        waiting.append(parameter.grad)
    if waiting:
        _sum(waiting)


def _sum(gradients: list[Tensor]) -> None:
    together = torch.cat([each.reshape(-1) for each in gradients])
    dist.all_reduce(together)
    for each, found in zip(gradients, torch.split(together, [each.numel() for each in gradients]), strict=True):
        each.copy_(found.view_as(each))


def _sparse_sum(gradient: Tensor) -> Tensor:
    """The sum of coalesced sparse gradients [n, d]: of the rows that any process has."""
    own = gradient.indices()[0]
    touched = torch.zeros(gradient.shape[0], dtype=torch.int32, device=gradient.device)
    touched[own] = 1
    dist.all_reduce(touched)
    rows = touched.nonzero()[:, 0]
    values = gradient.values().new_zeros(len(rows), gradient.shape[1])
    values[torch.searchsorted(rows, own)] = gradient.values()
    dist.all_reduce(values)
    return torch.sparse_coo_tensor(rows[None], values, gradient.shape, is_coalesced=True, check_invariants=False)


def total_norm(gradients: list[Tensor]) -> float:
    """The norm of all gradients together, those of FSDP over all processes."""
    whole = [each for each in gradients if not isinstance(each, DTensor)]
    norm = nn.utils.get_total_norm(whole)
    if parts := [each.to_local() for each in gradients if isinstance(each, DTensor)]:
        square = nn.utils.get_total_norm(parts).square()
        dist.all_reduce(square)
        norm = (norm.square().to(square.device) + square).sqrt()
    return norm.item()


def whole(value: Tensor) -> Tensor:
    """A tensor, put together where FSDP has divided it, in the memory of process 0. All must ask; the others get an empty one."""
    value = together(value)
    return value.cpu().contiguous() if rank() == 0 else torch.empty(0)


@torch.no_grad()
def together(value: Tensor) -> Tensor:
    """A tensor as it was before FSDP divided it by its first dimension. DTensor.full_tensor crashed now and then with gloo."""
    if not isinstance(value, DTensor):
        return value
    own, rows = value.to_local(), value.shape[0]
    height = -(-rows // world())
    parts = [own.new_empty(height, *own.shape[1:]) for _ in range(world())]
    dist.all_gather(parts, nn.functional.pad(own, (0, 0) * (own.ndim - 1) + (0, height - len(own))))
    return torch.cat(parts)[:rows]


def part(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, divided as `like` is. No process waits for another."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
