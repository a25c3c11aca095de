"""Checkpoints: whole or not there at all, checked when they are read, exact.

A checkpoint is a folder `step-NNNNNNN` with `model.safetensors` (the parameters that are trained), `optimizer.safetensors` and
`state.json` (the rest of what the next step needs, and the digests of both). It is written beside its place and renamed. Nothing
in it is pickled.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from datakit import storage
from datakit.errors import BuildError, UserError
from trainer import distributed

log = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{7,})")
_FILES = ("model.safetensors", "optimizer.safetensors")


def save(
    folder: str,
    step: int,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    state: Mapping[str, Any],
    keep: int,
    best: int | None,
) -> None:
    """Writes what there is after `step` steps. `state` is any JSON.

    Then removes the checkpoints before it, all but the newest `keep` and the one of step `best`. Raises storage.failure's errors.
    """
    # Whole, whatever divides it among processes: one tensor at a time, as all of them need not fit a device.
    contents = [
        {key: distributed.whole(value.detach()) for key, value in content.items()}
        for content in (trained(model), _packed(optimizers))
    ]
    if distributed.rank() > 0:
        return
    os.makedirs(folder, exist_ok=True)
    target = place(folder, step)
    scratch = target.with_suffix(".tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        for name, content in zip(_FILES, contents, strict=True):
            save_file(content, scratch / name)
            flush(scratch / name)
        digests = {name: storage.file_digest(str(scratch / name)) for name in _FILES}
        machine = {"threads": torch.get_num_threads(), "processes": distributed.world()}
        rest = {"step": step, **machine, "digests": digests, "state": state}
        storage.write_json(str(scratch / "state.json"), rest)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(scratch, target)
        flush(Path(folder))
    except (OSError, SafetensorError) as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise failure(error, str(target)) from error
    # Those after it are damaged, or this step would not be done again: they are no reason to remove a whole one.
    for number, old in [(number, path) for number, path in steps(folder) if number <= step][keep:]:
        if number != best:
            shutil.rmtree(old)


def place(folder: str, step: int) -> Path:
    return Path(folder) / f"step-{step:07d}"


@contextmanager
def written(output: str) -> Iterator[str]:
    """The path of a folder to make, which is renamed to `output` at the end: so that this is whole, or not there at all.

    Raises check_new's errors, and those of `failure`.
    """
    check_new(output)
    # What a kill left there is removed: so it has a name that no folder of a person has.
    scratch = f"{os.path.normpath(output)}.trainer.tmp"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        yield scratch
        os.replace(scratch, os.path.normpath(output))
    except (OSError, SafetensorError) as error:
        raise failure(error, output) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_new(output: str) -> None:
    """Raises UserError where a folder is there already, or what it would be in cannot be made: before there is work to lose."""
    if os.path.lexists(os.path.normpath(output)):
        raise UserError(f"The output '{output}' is there already. Choose another --output, or move it away.")
    try:
        os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)
    except OSError as error:
        raise failure(error, output) from error


def failure(error: Exception, path: str) -> Exception:
    """The sentence for an error while weights were written; safetensors reports a full disk in its own words."""
    if not isinstance(error, OSError):
        error = OSError(errno.ENOSPC if "No space" in str(error) else errno.EIO, str(error), path)
    return storage.failure(error, path)


def steps(folder: str) -> list[tuple[int, Path]]:
    """The checkpoints in a folder, newest first."""
    if not os.path.isdir(folder):
        return []
    found = [(int(match.group(1)), entry) for entry in Path(folder).iterdir() if (match := _NAME.fullmatch(entry.name))]
    return sorted(found, reverse=True)


def restore(
    folder: str,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    lacking: Callable[[int], str | None] = lambda step: None,
) -> tuple[int, dict[str, Any]]:
    """Puts the newest whole checkpoint into model and optimizers, and returns its step and state; (0, {}) where there is none.

    A damaged one is named in the log and the one before is taken, and so where `lacking` says of a step what else its checkpoint
    needs that is not there. The weights that come out in the end are the same: the steps in between are done again.
    """
    for leftover in Path(folder).glob("step-*.tmp") if os.path.isdir(folder) else ():
        shutil.rmtree(leftover)
    for step, path in steps(folder):
        if (wrong := damage(path) or lacking(step)) is not None:
            log.warning("The checkpoint '%s' is damaged (%s). It is left out, and the one before it is taken.", path, wrong)
            continue
        if not _put(load_file(path / _FILES[0]), model):
            log.warning("The checkpoint '%s' holds other parameters than this model has. It is left out.", path)
            continue
        _unpack(load_file(path / _FILES[1]), optimizers)
        rest = storage.read_json(str(path / "state.json"))
        if (threads := rest["threads"]) != torch.get_num_threads():
            log.warning(
                "Resumed with %d threads after %d: the last bits of the weights may differ.", torch.get_num_threads(), threads
            )
        if (processes := rest["processes"]) != distributed.world():
            log.warning(
                "Resumed with %d processes after %d: the last bits of the weights may differ, and what is dropped out where the "
                "model has dropout.", distributed.world(), processes,
            )  # fmt: skip
        return step, rest["state"]
    return 0, {}


def load_weights(path: Path, model: nn.Module) -> None:
    """Puts the weights of one checkpoint into a model. Raises BuildError where they are damaged, or another model's."""
    wrong = damage(path)
    if wrong is None and not _put(load_file(path / _FILES[0]), model):
        wrong = "it holds other parameters than this model has"
    if wrong is not None:
        raise BuildError(
            f"The checkpoint '{path}', which is needed to go on, is damaged ({wrong}). Move '{path.parents[1]}' away: "
            "the same command then trains that stage again."
        )


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that some stage trains: also those that are frozen in this one, as another may have changed them."""
    frozen = getattr(model, "frozen", ())
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad or name in frozen}


@torch.no_grad()
def _put(weights: Mapping[str, Tensor], model: nn.Module) -> bool:
    """Copies weights into the trained parameters; False, and nothing changed, where they are not the same ones."""
    parameters = trained(model)
    if {name: value.shape for name, value in weights.items()} != {name: value.shape for name, value in parameters.items()}:
        return False
    for name, parameter in parameters.items():
        parameter.copy_(distributed.part(weights[name], parameter))
    return True


def _packed(optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The state of optimizers as tensors with names. SparseAdam counts its steps in a plain number, AdamW in a float tensor."""
    return {
        f"{which}.{number}.{name}": torch.as_tensor(value)
        for which, optimizer in enumerate(optimizers)
        for number, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def _unpack(tensors: Mapping[str, Tensor], optimizers: Sequence[torch.optim.Optimizer]) -> None:
    states: list[dict[int, dict[str, Any]]] = [{} for _ in optimizers]
    parameters = [[each for group in optimizer.param_groups for each in group["params"]] for optimizer in optimizers]
    for key, value in tensors.items():
        which, number, name = key.split(".", 2)
        plain = value.item() if value.ndim == 0 and value.dtype == torch.int64 else value
        divided = distributed.part(plain, parameters[int(which)][int(number)]) if isinstance(plain, Tensor) else plain
        states[int(which)].setdefault(int(number), {})[name] = divided
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        digests = storage.read_json(str(path / "state.json"))["digests"]
        for name in _FILES:
            if storage.file_digest(str(path / name)) != digests[name]:
                return f"the digest of {name} differs"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def seal(path: str, told: Mapping[str, Any]) -> None:
    """Writes the digest of a file beside it, with what there is to tell of it: from then on it is whole (see sealed)."""
    storage.write_json(f"{path}.json", {"digest": storage.file_digest(path), "told": dict(told)})


def sealed(path: str) -> dict[str, Any] | None:
    """What was told of a file when it was sealed; None where it is not there as it was then."""
    try:
        kept = storage.read_json(f"{path}.json")
        told: dict[str, Any] = kept["told"]
        return told if storage.file_digest(path) == kept["digest"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def flush(path: Path) -> None:
    """Makes the system write a file or a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
