"""What earlier runs tell of an engine's speed, of the rows that come of a request, and of the bytes of a row."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datakit import storage
from datakit.errors import DatakitError
from datakit.opened import Build, open_build
from datakit.publish.publish import check_output
from datakit.recipe import AnyEngine, Recipe
from datakit.step import Report
from datakit.synthesis import request_cache
from datakit.synthesis.engines import speed_digest
from datakit.synthesis.request_cache import RequestCache


@dataclass(frozen=True)
class Measured:
    """The finished steps of one kind that asked an engine, as they are in a cache.

    `rate` is in requests a second while the engine was asked, over the `sent` requests that were timed (`at_once` at a time);
    None where all answers came from the cache. Tokens and `rows` are means of one of `requests`; rows are those before filters.
    """

    requests: int
    prompt_tokens: float
    completion_tokens: float
    rows: float
    sent: int
    rate: float | None
    at_once: tuple[int, ...]


@dataclass(frozen=True)
class Yield:
    """Rows that an earlier build kept (or would have kept, had the mixture had room) of one request, after all filters."""

    build: str
    requests: int
    rows: float


@dataclass(frozen=True)
class Sizes:
    """Bytes on disk for each published row of an earlier build, and those of one answer in the request cache.

    `published` are train and validation, `rejected` the rejected rows beside them, `steps` the outputs of all its steps in the
    cache; None where some of these were cleared away.
    """

    build: str
    rows: int
    published: float
    rejected: float
    steps: float | None
    answer: float | None


def measured(cache: str, engine: AnyEngine, steps: str = "synthesise-*") -> Measured | None:
    """What the cache tells of an engine that is as fast as this one; None where it never finished a step of those names."""
    wanted = speed_digest(engine)
    requests = prompt = completion = rows = sent = 0
    seconds = 0.0
    at_once: set[int] = set()
    fs, inner = storage.filesystem(storage.join(cache, "steps"))
    for path in sorted(fs.glob(f"{inner}/{steps}/run.json")):
        folder = os.path.dirname(str(path))
        if not fs.exists(f"{folder}/step.json"):
            continue
        facts = storage.read_json(fs.unstrip_protocol(path))
        if facts.get("engine") != wanted:
            continue
        report = Report.model_validate(storage.read_json(fs.unstrip_protocol(f"{folder}/step.json")))
        requests += int(report.notes.get("requests", 0))
        prompt += int(report.notes.get("prompt_tokens", 0))
        completion += int(report.notes.get("completion_tokens", 0))
        rows += report.counts.out
        if facts["sent"]:
            sent, seconds = sent + facts["sent"], seconds + facts["asking_seconds"]
            at_once.add(facts["at_once"])
    if not requests:
        return None
    rate = sent / seconds if seconds > 0 else None
    return Measured(requests, prompt / requests, completion / requests, rows / requests, sent, rate, tuple(sorted(at_once)))


def latest(recipe: Recipe) -> Build | None:
    """The newest published build of this recipe's name."""
    path = os.path.join(check_output(recipe), "latest")
    try:
        return open_build(path) if os.path.isdir(path) else None
    except DatakitError:
        # A build of another version of datakit tells nothing, and stands in nobody's way.
        return None


def yields(build: Build, engines: Mapping[str, AnyEngine]) -> dict[str, Yield]:
    """What a build kept of a request, by the name of the engine in `engines`; only where it is the same model."""
    manifest = build.manifest
    requests: dict[str, int] = {}
    rows: dict[str, int] = {}
    for step in manifest.steps:
        for category in step.categories:
            name = _engine_of(manifest.recipe, category, engines)
            if name is None or not step.name.startswith("synthesise-"):
                continue
            requests[name] = requests.get(name, 0) + int(step.notes.get("requests", 0))
    for category, entry in manifest.categories.items():
        name = _engine_of(manifest.recipe, category, engines)
        if name is not None:
            rows[name] = rows.get(name, 0) + entry.kept + entry.not_sampled
    return {name: Yield(manifest.version, number, rows.get(name, 0) / number) for name, number in requests.items() if number}


def _engine_of(built: Mapping[str, Any], category: str, engines: Mapping[str, AnyEngine]) -> str | None:
    """The engine that wrote a category of a build, where `engines` has the same model under that name."""
    synthesis = (built["categories"].get(category) or {}).get("synthesis") or {}
    name = str(synthesis.get("engine"))
    if name not in engines or name not in built["engines"]:
        return None
    then, now = built["engines"][name], engines[name].model_dump(mode="json")
    return name if all(then.get(field) == now[field] for field in ("type", "model", "revision")) else None


def sizes(build: Build, cache: str) -> Sizes | None:
    """What the rows of a build take on disk; None where it has none."""
    rows = build.manifest.totals.kept
    if not rows:
        return None

    def bytes_of(*parts: str) -> int:
        return sum(os.path.getsize(path) for part in parts for path in build.files(part))

    folders = [storage.join(cache, "steps", f"{step.name}-{step.key}") for step in build.manifest.steps]
    steps = None
    if all(storage.exists(folder) for folder in folders):
        fs, _ = storage.filesystem(cache)
        steps = sum(fs.du(storage.filesystem(folder)[1]) for folder in folders) / rows
    answer = None
    if request_cache.is_there(cache):
        answers = RequestCache(cache)
        answer = answers.bytes_of_an_answer()
        answers.close()
    return Sizes(
        build=build.version,
        rows=rows,
        published=bytes_of("train", "validation") / rows,
        rejected=bytes_of("rejected") / rows,
        steps=steps,
        answer=answer,
    )
