"""Checkpoints: whole or not there at all, checked when they are read, exact.

A checkpoint is a folder `step-NNNNNNN` with `model.safetensors` (the parameters that are trained), `optimizer.safetensors` and
`state.json` with the digests of both. It is written beside its place and renamed. Nothing in it is pickled.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from datakit import storage

log = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{7,})")
_FILES = ("model.safetensors", "optimizer.safetensors")


def save(folder: str, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, keep: int) -> None:
    """Writes the state after `step` steps, then removes all but the newest `keep`. Raises storage.failure's errors."""
    os.makedirs(folder, exist_ok=True)
    target = Path(folder) / f"step-{step:07d}"
    scratch = Path(folder) / f"step-{step:07d}.tmp"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    state = optimizer.state_dict()["state"]
    tensors = (
        {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad},
        {f"{number}.{name}": value for number, values in state.items() for name, value in values.items()},
    )
    try:
        for name, content in zip(_FILES, tensors, strict=True):
            save_file({key: value.cpu().contiguous() for key, value in content.items()}, scratch / name)
            flush(scratch / name)
        digests = {name: storage.file_digest(str(scratch / name)) for name in _FILES}
        storage.write_json(str(scratch / "state.json"), {"step": step, "threads": torch.get_num_threads(), "digests": digests})
        shutil.rmtree(target, ignore_errors=True)
        os.replace(scratch, target)
        flush(Path(folder))
    except (OSError, SafetensorError) as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise failure(error, str(target)) from error
    for _, old in steps(folder)[keep:]:
        shutil.rmtree(old)


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


def restore(folder: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Puts the newest whole checkpoint into model and optimizer, and returns its step; 0 where there is none.

    A damaged one is named in the log and the one before is taken. The weights that come out in the end are the same: the steps
    in between are done again.
    """
    for leftover in Path(folder).glob("step-*.tmp") if os.path.isdir(folder) else ():
        shutil.rmtree(leftover)
    for step, path in steps(folder):
        if (wrong := damage(path)) is not None:
            log.warning("The checkpoint '%s' is damaged (%s). It is left out, and the one before it is taken.", path, wrong)
            continue
        weights = load_file(path / _FILES[0])
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        if set(weights) != set(trained):
            log.warning("The checkpoint '%s' holds other parameters than this model has. It is left out.", path)
            continue
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(weights[name])
        values: dict[int, dict[str, Any]] = {}
        for key, value in load_file(path / _FILES[1]).items():
            number, _, name = key.partition(".")
            values.setdefault(int(number), {})[name] = value
        optimizer.load_state_dict({"state": values, "param_groups": optimizer.state_dict()["param_groups"]})
        threads = storage.read_json(str(path / "state.json"))["threads"]
        if threads != torch.get_num_threads():
            log.warning(
                "Resumed with %d threads after %d: the last bits of the weights may differ.", torch.get_num_threads(), threads
            )
        return step
    return 0


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


def flush(path: Path) -> None:
    """Makes the system write a file or a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
