"""A run: what it does, and the folder that holds all that it writes.

`run.json` (what decides the result), `config.yaml` (the whole config), `before.json` (what was measured before training), and for
each stage a folder of its name (`NAME-2` where it was repeated) with `log.jsonl` (one line a step), `checkpoints/`, `model/` (the
export) and `metrics.json`, which is written last and makes it finished. Beside them `model`, a link to the newest model that was
passed, `metrics.json`, `evaluation.json` (for `datakit build --feedback`) and `report.html`.
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
from datakit.opened import Build, open_build
from datakit.recipe import deciding
from datakit.schema import digest
from trainer import distributed
from trainer.config import Config, Stage

_OURS = ("run.json", "config.yaml", "before.json", "model", "metrics.json", "evaluation.json", "report.html", "teacher")


@dataclass(frozen=True)
class Run:
    config: Config
    build: Build  # of the command line: all stages are measured on its validation split
    builds: dict[str, Build]  # what each stage is trained on, by its name
    folder: str
    version: str
    identity: dict[str, Any]  # what decides the weights
    newest: bool  # whether `latest` beside the folder is to point to it

    def path(self, *parts: str) -> str:
        return os.path.join(self.folder, *parts)

    @property
    def title(self) -> str:
        return f"{self.config.name}/{self.version}"


def attempt_name(stage: Stage, number: int) -> str:
    """The folder of a stage's first, second, ... attempt (number from 1)."""
    return _attempt_names(stage.name, number)[-1]


def _attempt_names(name: str, count: int) -> list[str]:
    """The folders of the first `count` attempts at a stage."""
    return [name, *(f"{name}-{number}" for number in range(2, count + 1))]


def check_names(config: Config) -> None:
    """Raises UserError where two things of a run would have one name."""
    names = [
        name for stage in config.stages for name in _attempt_names(stage.name, 1 + (stage.gate.repeats if stage.gate else 0))
    ]
    if taken := sorted(name for name in {*names} if name in _OURS or names.count(name) > 1):
        raise UserError(f"Two things of the run would have the name '{taken[0]}'. Give the stage of that name another one.")


def stage_seed(config: Config, stage: Stage) -> int:
    """Stages on one build see its rows in different orders."""
    return int(digest("stage", str(config.seed), stage.name)[:15], 16)


def stage_builds(config: Config, build: Build) -> dict[str, Build]:
    """The build that each stage is trained on. Raises UserError where one is not there."""
    return {stage.name: open_build(stage.data.build) if stage.data.build else build for stage in config.stages}


def open_run(config: Config, build: Build, output: str | None) -> Run:
    """The run in `output`, or in `<config.output>/<name>/<version>`, so that another config or build has another folder.

    Writes nothing (see claim). A stage that has not begun may still be changed. Raises UserError where `output` holds something
    else.
    """
    check_names(config)
    builds = stage_builds(config, build)
    began = told(os.path.join(os.path.expanduser(output), "run.json")) if output else None
    identity = _identity(config, build, builds, began)
    version = digest(json.dumps(identity, sort_keys=True))[:16]
    identity["processes"] = distributed.world()  # told, and no reason to refuse: they change the last bits only
    folder = os.path.expanduser(output or os.path.join(config.output, config.name, version))
    found = told(os.path.join(folder, "run.json"))
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise UserError(f"The output '{folder}' is a file; a folder is needed there.")
    if found is not None:
        differences = _differences(_begun(found, folder), _begun(identity, folder))
        if differences:
            raise UserError(
                f"'{folder}' holds a run that differs in: {', '.join(differences)}. "
                "Choose another --output, or move that folder away (of a stage: its folder, those of its repeats, and those of "
                "the stages after it)."
            )
    elif os.path.isdir(folder) and os.listdir(folder):
        raise UserError(f"The output '{folder}' is not empty and holds no run. Choose another --output.")
    check_link(os.path.join(folder, "model"), "the newest model")
    return Run(config, build, builds, folder, version, identity, newest=output is None)


def told(marker: str) -> dict[str, Any] | None:
    """The identity in a run.json; None where there is none, or another program's (a build has one too)."""
    try:
        found = storage.read_json(marker)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return found if isinstance(found, dict) and {"stages", "order of stages"} <= found.keys() else None


def claimed(run: Run) -> bool:
    """Whether the folder says already that it is for this run, as it is now."""
    return told(run.path("run.json")) == run.identity


@distributed.main_first()
def claim(run: Run) -> None:
    """Writes down what the folder is for. Nothing is written before what can be checked is checked: a mistake leaves no trace."""
    if not claimed(run):
        resolved = yaml.safe_dump(run.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        # run.json first: a folder without it is somebody else's.
        storage.write_json(run.path("run.json"), run.identity)
        storage.write_bytes(run.path("config.yaml"), resolved.encode())
    if run.newest:
        point(os.path.join(os.path.dirname(run.folder), "latest"), run.version)


def _identity(config: Config, build: Build, builds: dict[str, Build], began: dict[str, Any] | None) -> dict[str, Any]:
    """What decides the weights, as JSON. `began` is that of the run as it began."""
    whole, before = deciding(config), {} if began is None else began["stages"]
    stages = {each["name"]: {**each, "build": builds[each["name"]].version} for each in whole.pop("stages")}
    for stage in config.stages:
        if stage.loss.distillation is not None:
            name = stage.loss.distillation.teacher
            # A stage that is done needs it no more, and may outlive its files; teacher.load tells where another one needs it.
            known = None if os.path.exists(locate(name)) else before.get(stage.name, {}).get("files of the teacher")
            stages[stage.name]["files of the teacher"] = known or _digest(name)
        if stage.consolidation is not None and stage.consolidation.build is not None:
            stages[stage.name]["build of consolidation"] = open_build(stage.consolidation.build).version
    # All dimensions and objectives are measured before and after each stage.
    dimensions = sorted({each for stage in config.stages for each in stage.loss.dimensions})
    base = locate(config.model.base)
    file = os.path.join(base, config.model.gguf) if config.model.gguf else base
    identity = {
        "objectives": {name: [each.tasks, each.categories] for name, each in config.objectives.items()},
        "config": whole, "build": build.version, "base": _digest(file, config.model.revision), "dimensions": dimensions,
        "order of stages": list(stages), "stages": stages,
    }  # fmt: skip
    found: dict[str, Any] = json.loads(json.dumps(identity))
    return found


def _begun(identity: dict[str, Any], folder: str) -> dict[str, Any]:
    """An identity without the stages that have not begun in a folder, and without the number of processes.

    A stage whose folder was moved away has begun where a repeat of it was left, or a later stage, which began with its weights.
    """
    stages, order = identity["stages"], identity["order of stages"]
    begun = [
        any(
            os.path.isdir(os.path.join(folder, each))
            for each in _attempt_names(name, 1 + (stages[name].get("gate") or {}).get("repeats", 0))
        )
        for name in order
    ]
    order = [name for place, name in enumerate(order) if any(begun[place:])]
    changed = {"order of stages": order, "stages": {name: stages[name] for name in order}, "processes": None}
    return identity | changed


def _digest(name: str, revision: str | None = None) -> str:
    path = locate(name)
    return Assets(os.path.join(path, ".none")).digest(path, revision)


def _differences(found: Any, wanted: Any, place: str = "") -> list[str]:
    """The dotted names of what differs."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        names = sorted(set(found) | set(wanted))
        return [each for name in names for each in _differences(found.get(name), wanted.get(name), f"{place}.{name}".strip("."))]
    return [] if found == wanted else [place.removeprefix("config.")]


def check_link(link: str, target: str) -> None:
    """Raises UserError where a link to `target`, in words, cannot be made, as a folder is there."""
    if os.path.isdir(link) and not os.path.islink(link):
        raise UserError(f"'{link}' is a folder, and a link to {target} is to stand there. Move it away.")


def point(link: str, target: str) -> None:
    """Makes `link` a symlink to `target` in one go."""
    if os.path.islink(link) and os.readlink(link) == target:
        return
    check_link(link, f"'{target}'")
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
