"""From the last step's shards to a published version. A version appears whole, by one rename, or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa
import yaml

from datakit import storage
from datakit.errors import BuildError, UserError
from datakit.filters import judge
from datakit.mixing.planned import MixParameters
from datakit.opened import NOT_SAMPLED, open_build
from datakit.publish import balance, card, diversity, manifest, report
from datakit.recipe import Recipe, resolved
from datakit.registry import Category
from datakit.schema import JUDGED, REJECTED
from datakit.step import Output, Step, package_version

log = logging.getLogger(__name__)

PARTS = ("train", "validation")
FEEDBACK = "feedback.json"

# A step, its output, the seconds that it took, and whether it came from the cache.
Finished = tuple[Step, Output, float, bool]


@dataclass(frozen=True)
class PublishedBuild:
    """Where a build lies. `existed` says that the same version had been published before, and was found unchanged."""

    path: str
    version: str
    existed: bool


def check_output(recipe: Recipe) -> str:
    """The folder of this recipe's builds. Raises UserError where nothing can be published there; worth asking before a build."""
    output = os.path.expanduser(str(recipe.output))
    if "://" in output:
        raise UserError(
            f"The recipe's 'output' is '{recipe.output.raw}'. It must be a folder of this machine: "
            "build there, then copy the version's folder to where it shall go."
        )
    folder = os.path.join(output, recipe.name)
    for path in (output, folder):
        if os.path.lexists(path) and not os.path.isdir(path):
            raise UserError(f"The output path '{path}' is a file, and a folder is needed there. Move it, or change 'output'.")
    return folder


def publish(
    recipe: Recipe,
    outputs: Sequence[Finished],
    final: Output,
    entries: Mapping[str, Category],
    run: Mapping[str, Any],
) -> PublishedBuild:
    """Publishes the rows of `final` (parts "train" and "validation") and all that was rejected on the way to them.

    `outputs` are all steps in order, `entries` the registry's entries by category, `run` what run.json shall tell of this run.
    Raises BuildError where rows do not balance, none is left, a published version was changed, or the disk is full.
    """
    steps = [(step, output) for step, output, _, _ in outputs]
    balance.check_chain(steps, final)
    balance.check_something_kept(steps, _part_rows(final, "train"))
    folder = check_output(recipe)
    facts = {**run, "steps": [_timing(*finished) for finished in outputs]}
    try:
        os.makedirs(folder, exist_ok=True)
        with _only_one(folder), _temporary(folder) as temporary:
            rows = _write_rows(temporary, recipe, steps, final)
            published = resolved(recipe)
            feedback = _write_feedback(temporary, steps)
            version = _version({**rows, **feedback}, published)
            target = os.path.join(folder, version)
            existed = os.path.lexists(target)
            if existed:
                _check_same(target)
                storage.write_json(os.path.join(target, "run.json"), facts)
            else:
                _describe(temporary, version, recipe, published, steps, final, entries, rows, feedback)
                storage.write_json(os.path.join(temporary, "run.json"), facts)
                os.rename(temporary, target)
            _point_latest(folder, version)
    except OSError as error:
        raise storage.failure(error, folder) from error
    return PublishedBuild(target, version, existed)


def _part_rows(final: Output, part: str) -> int:
    names = set(final.part(part))
    return sum(rows for shard, rows in zip(final.shards, final.report.shard_rows, strict=True) if shard in names)


def _timing(step: Step, output: Output, seconds: float, cached: bool) -> dict[str, Any]:
    return {"name": step.name, "key": output.report.key, "seconds": round(seconds, 3), "cached": cached}


@contextmanager
def _only_one(folder: str) -> Iterator[None]:
    """One build at a time publishes here. The folder itself is the lock, which goes with the process, however that ends."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@contextmanager
def _temporary(folder: str) -> Iterator[str]:
    """A fresh folder that is gone at the end, unless it was renamed. What a killed build left is removed first."""
    for name in os.listdir(folder):
        left = os.path.join(folder, name)
        if name.startswith(".tmp-"):
            os.unlink(left) if os.path.islink(left) else shutil.rmtree(left, ignore_errors=True)
    path = os.path.join(folder, f".tmp-{uuid.uuid4().hex[:12]}")
    os.mkdir(path)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _write_rows(folder: str, recipe: Recipe, steps: Sequence[tuple[Step, Output]], final: Output) -> dict[str, manifest.File]:
    """Writes the parts. Returns their files, by name."""
    files: dict[str, manifest.File] = {}
    for part in PARTS:
        files |= _copy_part(folder, part, final)
    files |= _write_tables(folder, "rejected", _rejected(steps), REJECTED, recipe.shard_rows)
    files |= _write_tables(folder, "not_sampled", _not_sampled(steps), NOT_SAMPLED, recipe.shard_rows)
    if any(isinstance(step.parameters, judge.Judging) for step, _ in steps):
        said = (table for step, output in steps for table in judge.scores(step, output))
        files |= _write_tables(folder, "judged", said, JUDGED, recipe.shard_rows)
    return files


def _write_feedback(folder: str, steps: Sequence[tuple[Step, Output]]) -> dict[str, manifest.File]:
    """Writes the evaluation that moved the weights, if there was one: without it nobody could make the same bytes again."""
    for step, _ in steps:
        if isinstance(step.parameters, MixParameters) and step.parameters.feedback is not None:
            said = step.parameters.feedback.model_dump(mode="json", by_alias=True)
            text = (json.dumps(said, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
            storage.write_bytes(os.path.join(folder, FEEDBACK), text)
            return {FEEDBACK: manifest.File(digest=storage.bytes_digest(text))}
    return {}


def _describe(
    folder: str,
    version: str,
    recipe: Recipe,
    published: dict[str, Any],
    steps: Sequence[tuple[Step, Output]],
    final: Output,
    entries: Mapping[str, Category],
    rows: Mapping[str, manifest.File],
    feedback: Mapping[str, manifest.File],
) -> None:
    """Writes what goes with the rows: recipe, manifest, card and report. Checks the balance of the whole build."""
    text = yaml.safe_dump(published, sort_keys=False, allow_unicode=True, width=120).encode("utf-8")
    storage.write_bytes(os.path.join(folder, "recipe.yaml"), text)
    step_entries = manifest.step_entries(steps)
    counted = {part: _category_rows(folder, part, rows) for part in PARTS}
    categories = manifest.categories(recipe, entries, step_entries, counted, _languages(folder, rows))
    totals = manifest.totals(categories)
    balance.check_files(final, counted, rows, categories, totals)
    varied = diversity.measure([os.path.join(folder, name) for name in rows if name.startswith("train/")], recipe, steps)
    diversity.tell(varied)
    made = manifest.Manifest(
        datakit=package_version("datakit"),
        name=recipe.name,
        version=version,
        description=recipe.description,
        recipe=published,
        steps=step_entries,
        files=dict(sorted({**rows, **feedback, "recipe.yaml": manifest.File(digest=storage.bytes_digest(text))}.items())),
        packages=manifest.packages([step for step, _ in steps]),
        models=manifest.models(recipe, [step for step, _ in steps]),
        spent=manifest.spent(step_entries),
        categories=categories,
        corpus=manifest.corpus(recipe),
        totals=totals,
        diversity=varied,
    )
    storage.write_json(os.path.join(folder, "manifest.json"), made.model_dump(mode="json"))
    build = open_build(folder)  # as everybody reads it
    storage.write_bytes(os.path.join(folder, "README.md"), card.render(build).encode("utf-8", "replace"))
    storage.write_bytes(os.path.join(folder, "report.html"), report.render(build).encode("utf-8", "replace"))


def _version(files: Mapping[str, manifest.File], published: Mapping[str, Any]) -> str:
    """16 hex digits that stand for the bytes of train, validation, rejected and feedback, and for the resolved recipe."""
    digests = {name: file.digest for name, file in files.items() if not name.startswith("not_sampled/")}
    identity = {"files": digests, "recipe": published}
    return storage.bytes_digest(json.dumps(identity, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass"))[:16]


def _copy_part(folder: str, part: str, final: Output) -> dict[str, manifest.File]:
    """Copies the shards of a part. They are copied, not linked: an edit of the data set must not reach the cache."""
    rows_of = dict(zip(final.shards, final.report.shard_rows, strict=True))
    files: dict[str, manifest.File] = {}
    for shard in final.part(part):
        if rows_of[shard]:
            name = f"{part}/{part}-{len(files):05d}.parquet"
            files[name] = manifest.File(digest=_copy(shard, os.path.join(folder, name)), rows=rows_of[shard])
    return files


def _copy(source: str, target: str) -> str:
    """Copies a file's bytes and returns their digest."""
    fs, inner = storage.filesystem(source)
    state = hashlib.blake2b(digest_size=16)
    with fs.open(inner, "rb") as reader, storage.atomic(target) as writer:
        while block := reader.read(1 << 20):
            state.update(block)
            writer.write(block)
    return state.hexdigest()


def _rejected(steps: Sequence[tuple[Step, Output]]) -> Iterator[pa.Table]:
    for _, output in steps:
        for path in output.rejected:
            yield storage.read_table(path).select(REJECTED.names).cast(REJECTED)


def _not_sampled(steps: Sequence[tuple[Step, Output]]) -> Iterator[pa.Table]:
    for step, output in steps:
        for path in output.not_sampled:
            table = storage.read_table(path, ["row_id", "category"])
            yield table.append_column("step", pa.array([step.name] * table.num_rows, pa.string())).cast(NOT_SAMPLED)


def _write_tables(
    folder: str, part: str, tables: Iterator[pa.Table], schema: pa.Schema, shard_rows: int
) -> dict[str, manifest.File]:
    """Writes the rows of many tables as files of `shard_rows` rows; one file without rows where there are none.

    The empty file lets other tools open a part of every build without asking first whether it is there.
    """
    files: dict[str, manifest.File] = {}
    for table in _regrouped(tables, schema, shard_rows):
        name = f"{part}/{part}-{len(files):05d}.parquet"
        storage.write_table(os.path.join(folder, name), table)
        files[name] = manifest.File(digest=storage.file_digest(os.path.join(folder, name)), rows=table.num_rows)
    return files


def _regrouped(tables: Iterator[pa.Table], schema: pa.Schema, shard_rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of `shard_rows` rows (the last one shorter); at least one table, be it without rows."""
    waiting, rows, given = list[pa.Table](), 0, False
    for table in tables:
        waiting.append(table)
        rows += table.num_rows
        while rows >= shard_rows:
            whole = pa.concat_tables(waiting)
            yield whole.slice(0, shard_rows)
            given = True
            waiting, rows = [whole.slice(shard_rows)], rows - shard_rows
    if rows or not given:
        yield pa.concat_tables(waiting) if waiting else schema.empty_table()


def _category_rows(folder: str, part: str, files: Mapping[str, manifest.File]) -> dict[str, int]:
    """Rows by category in the published files of a part."""
    counts: Counter[str] = Counter()
    for name in files:
        if name.startswith(f"{part}/"):
            frame = pl.read_parquet(os.path.join(folder, name), columns=["category"], hive_partitioning=False)
            counts.update(dict(frame.group_by("category").len().iter_rows()))
    return dict(counts)


def _languages(folder: str, files: Mapping[str, manifest.File]) -> dict[str, list[str]]:
    """The languages of each category's published rows, the most frequent first."""
    counts: Counter[tuple[str, str]] = Counter()
    for name in files:
        if name.startswith(tuple(f"{part}/" for part in PARTS)):
            columns = ["category", "language", "positive_language"]
            frame = pl.read_parquet(os.path.join(folder, name), columns=columns, hive_partitioning=False)
            for column in columns[1:]:
                found = frame.drop_nulls(column).group_by("category", column).len()
                counts.update({(category, language): rows for category, language, rows in found.iter_rows()})
    result: dict[str, list[str]] = {}
    for (category, language), _ in sorted(counts.items(), key=lambda item: (item[0][0], -item[1], item[0][1])):
        result.setdefault(category, []).append(language)
    return result


def _check_same(target: str) -> None:
    """The version that is there already is whole and unchanged."""
    try:
        open_build(target).verify()
    except UserError as error:
        raise BuildError(f"'{target}' is there, and is no whole build. Move it away and build again. ({error})") from error
    log.info("'%s' was published before; its files are unchanged.", target)


def _point_latest(folder: str, version: str) -> None:
    """Points the link `latest` at the version; whoever reads it sees the old one or the new one, never none."""
    link = os.path.join(folder, "latest")
    if os.path.lexists(link) and not os.path.islink(link):
        raise UserError(f"'{link}' is no link, so it was not pointed at the new version '{version}'. Move it away.")
    fresh = os.path.join(folder, f".tmp-latest-{uuid.uuid4().hex[:12]}")
    os.symlink(version, fresh)
    os.replace(fresh, link)
