"""Making an index: passages, then their vectors in blocks, then faiss. A run that was killed goes on at the block it was at."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import track

from datakit import storage
from datakit.assets import PACKAGE, Assets, locate
from datakit.encoders import encode
from datakit.encoders.vectors import Array, load_array, save_array
from datakit.errors import UserError
from datakit.recipe import Encoder, FilesSource
from datakit.sources import files
from trainer.export import trained
from trainer.search import passages, stages
from trainer.search.settings import PASSAGES, SETTINGS, VECTORS, Job, Options, Settings, job

log = logging.getLogger(__name__)
T = TypeVar("T")


def encoder(model: str) -> Encoder:
    """A sentence-transformers model with its own prompts, reading as many tokens as it can."""
    return Encoder.model_validate({"model": model, "max_length": 1 << 15})


def build(model: str, paths: Sequence[str], output: str, options: Options, console: Console | None = None) -> Settings:
    """Makes the folder `output` an index of the files that `paths` (names and globs) match.

    It holds vectors.faiss, passages.parquet and settings.json, and appears whole, in place of an index that was there. The same
    call goes on where one was killed; equal inputs give equal bytes on one machine. A bar on `console` where it is a terminal.
    Raises UserError for what a person can mend, MissingExtra without faiss.
    """
    faiss, output = stages.library(), os.path.realpath(output)
    _check_output(output)
    source = FilesSource.model_validate(
        {
            "type": "files", "path": list(paths), "format": options.format, "columns": {"document": options.column},
            "max_record_bytes": 1 << 30,
        }
    )  # fmt: skip
    found = files.find(source)
    if not model.startswith(PACKAGE) and os.path.isdir(folder := locate(model)):
        model = os.path.realpath(folder)  # not models/NAME/latest, which is another model after the next training
    wanted = job(options, model, Assets(output).digest(model), found, faiss.__version__)
    if (there := _settings(output)) is not None and there.job == wanted and _whole(output):
        log.info("'%s' is this index already.", output)
        return there
    _check_dimensions(wanted, int(encode.load(encoder(model)).get_embedding_dimension()))
    scratch = os.path.join(os.path.dirname(output), f".{os.path.basename(output)}.partial")
    if not _claim(scratch, wanted).finished:
        if not os.path.exists(cut := os.path.join(scratch, PASSAGES)):
            told = _told(found, "reading files", 1_000, console)
            passages.write(cut, passages.read(told, source, options.column, options.words))
        _finish(scratch, wanted, _encode(scratch, wanted, console))
    # Blocks, and what a kill left of files that were being written.
    for name in {*os.listdir(scratch)} - {SETTINGS, VECTORS, PASSAGES}:
        path = os.path.join(scratch, name)
        shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
    shutil.rmtree(output, ignore_errors=True)
    os.replace(scratch, output)
    done = _settings(output)
    assert done is not None
    return done


def _check_output(output: str) -> None:
    if taken := next((each for each in (Path(output), *Path(output).parents) if each.is_file()), None):
        raise UserError(f"'{taken}' is a file, and an index is a folder. Give another --output.")
    if os.path.isdir(output) and os.listdir(output) and _settings(output) is None:
        raise UserError(f"'{output}' is a folder with something else in it. Give --output a folder that is not there yet.")


def _settings(folder: str) -> Settings | None:
    """The settings in a folder; None where there are none, or others than ours."""
    try:
        return Settings.model_validate(storage.read_json(os.path.join(folder, SETTINGS)))
    except (FileNotFoundError, ValueError):
        return None


def _whole(folder: str) -> bool:
    """Whether vectors and passages of an index can be opened: one that is damaged is made again."""
    try:
        stages.read(os.path.join(folder, VECTORS))
        passages.opened(os.path.join(folder, PASSAGES))
    except UserError as error:
        log.info("%s", error)
        return False
    return True


def _claim(scratch: str, wanted: Job) -> Settings:
    """Makes `scratch` the folder of this job, empty unless a run of the same job was stopped there."""
    there = _settings(scratch)
    if there is not None and there.job == wanted:
        log.info("Going on where the run before was stopped.")
        return there
    if there is not None:
        log.info("An unfinished index of other files, of another model or with other options is thrown away.")
    shutil.rmtree(scratch, ignore_errors=True)
    return _write_settings(scratch, Settings(job=wanted))


def _write_settings(folder: str, settings: Settings) -> Settings:
    storage.write_json(os.path.join(folder, SETTINGS), settings.model_dump(mode="json"))
    return settings


def _check_dimensions(wanted: Job, width: int) -> None:
    shortlist = wanted.options.shortlist
    if shortlist > width:
        raise UserError(f"--shortlist is {shortlist}; allowed: 1 to {width}, the dimensions of the model '{wanted.model}'.")
    if shortlist not in (trained(locate(wanted.model)) or [width]):
        log.warning(
            "Nothing says that the model was trained for its first %d dimensions: the shortlist may miss what is relevant. "
            "`trainer search query --compare` tells what it misses.",
            shortlist,
        )


def _encode(scratch: str, wanted: Job, console: Console | None) -> list[Array]:
    """The vectors of all passages, in blocks [BLOCK, d] that are mapped from their files."""
    texts = pq.ParquetFile(os.path.join(scratch, PASSAGES))
    if not texts.num_row_groups:
        raise UserError(f"There is nothing to index: no text in the files that were named ({wanted.files}).")
    log.info("%d passages in %d files", texts.metadata.num_rows, wanted.files)
    names = [os.path.join(scratch, "blocks", f"{number:06d}.npy") for number in range(texts.num_row_groups)]
    left = [number for number, name in enumerate(names) if not os.path.exists(name)]
    for number in _told(left, f"encoding blocks of {passages.BLOCK} passages", 10, console):
        block = texts.read_row_group(number, columns=["text"]).column("text").to_pylist()
        save_array(names[number], encode.encode(encoder(wanted.model), "document", block))
    return [load_array(name) for name in names]


def _finish(scratch: str, wanted: Job, blocks: Sequence[Array]) -> None:
    log.info("building the index (%s, %s)", wanted.options.precision, wanted.options.method)
    stages.write(stages.assemble(blocks, wanted.options), os.path.join(scratch, VECTORS))
    _write_settings(scratch, Settings(job=wanted, dimensions=blocks[0].shape[1], passages=sum(map(len, blocks))))


def _told(items: Sequence[T], what: str, every: int, console: Console | None) -> Iterator[T]:
    """The items: with a bar on a terminal, elsewhere with a log line after every so many."""
    if console is not None and console.is_terminal:
        yield from track(items, what, console=console, transient=True)
        return
    for number, item in enumerate(items, start=1):
        yield item
        if number % every == 0 or number == len(items):
            log.info("%s: %d of %d", what, number, len(items))
