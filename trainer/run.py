"""A run: what it does, and the folder that holds all that it writes.

`run.json` (what decides the result), `config.yaml` (the whole config), `log.jsonl` (one line a step), `checkpoints/`,
`before.json`, `model/` (the export), `evaluation.json` (for `datakit build --feedback`), and `metrics.json`, which is written
last and makes the run finished.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from datakit import storage
from datakit.assets import Assets, locate
from datakit.errors import UserError
from datakit.opened import Build
from datakit.recipe import deciding
from datakit.schema import digest
from trainer.config import Config


@dataclass(frozen=True)
class Run:
    config: Config
    build: Build
    folder: str
    version: str

    def path(self, *parts: str) -> str:
        return os.path.join(self.folder, *parts)

    @property
    def title(self) -> str:
        return f"{self.config.name}/{self.version}"


def open_run(config: Config, build: Build, output: str | None) -> Run:
    """The run's folder: `output`, or `<config.output>/<name>/<version>`, so that another config or build has another folder.

    Raises UserError where `output` holds something else.
    """
    identity = {"config": deciding(config), "build": build.version, "base": _base_digest(config)}
    identity = json.loads(json.dumps(identity))
    version = digest(json.dumps(identity, sort_keys=True))[:16]
    folder = os.path.expanduser(output or os.path.join(config.output, config.name, version))
    marker = os.path.join(folder, "run.json")
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise UserError(f"The output '{folder}' is a file; a folder is needed there.")
    if os.path.isfile(marker):
        found = storage.read_json(marker)
        if found != identity:
            raise UserError(
                f"'{folder}' holds a run that differs in: {', '.join(_differences(found, identity))}. "
                "Choose another --output, or move that folder away."
            )
    elif os.path.isdir(folder) and os.listdir(folder):
        raise UserError(f"The output '{folder}' is not empty and holds no run. Choose another --output.")
    else:
        resolved = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        # run.json first: a folder without it is somebody else's.
        storage.write_json(marker, identity)
        storage.write_bytes(os.path.join(folder, "config.yaml"), resolved.encode())
    if output is None:
        _point(os.path.join(os.path.dirname(folder), "latest"), version)
    return Run(config, build, folder, version)


def _base_digest(config: Config) -> str:
    path = locate(config.model.base)
    file = os.path.join(path, config.model.gguf) if config.model.gguf else path
    return Assets(os.path.join(path, ".none")).digest(file, config.model.revision)


def _differences(found: Any, wanted: Any, place: str = "") -> list[str]:
    """The dotted names of what differs."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        names = sorted(set(found) | set(wanted))
        return [each for name in names for each in _differences(found.get(name), wanted.get(name), f"{place}.{name}".strip("."))]
    return [] if found == wanted else [place.removeprefix("config.")]


def _point(link: str, target: str) -> None:
    """Makes `link` a symlink to `target` in one go."""
    if os.path.islink(link) and os.readlink(link) == target:
        return
    scratch = f"{link}.{os.getpid()}.tmp"
    os.symlink(target, scratch)
    os.replace(scratch, link)


class Journal:
    """log.jsonl: one line for each step, each step once, also after a restart."""

    def __init__(self, path: str, done: int) -> None:
        """Lines of steps after `done` are dropped: these steps are done again."""
        kept = []
        if os.path.isfile(path):
            for line in Path(path).read_text(encoding="utf-8").splitlines():
                # The last line of a run that was killed may be cut.
                with suppress(ValueError, KeyError, TypeError):
                    if json.loads(line)["step"] <= done:
                        kept.append(line + "\n")
        storage.write_bytes(path, "".join(kept).encode())
        self._path = path

    def write(self, step: int, values: dict[str, float]) -> None:
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **{name: float(f"{value:.6g}") for name, value in values.items()}}) + "\n")
        except OSError as error:
            raise storage.failure(error, self._path) from error
