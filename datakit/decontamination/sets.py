"""Evaluation sets: where they lie, and their texts with the names by which a reason tells of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datakit.assets import Assets
from datakit.errors import UserError
from datakit.recipe import (
    AnyEvaluation,
    BeirSource,
    Columns,
    EvaluationBeir,
    EvaluationFiles,
    EvaluationHuggingFace,
    EvaluationMteb,
    FilesSource,
    HuggingFaceSource,
    Path,
)
from datakit.sources import beir, files, huggingface
from datakit.sources.files import DataFile
from datakit.sources.lines import Numbered
from datakit.sources.origins import origin, place
from datakit.sources.paths import Record, look_up
from datakit.sources.records import Unreadable, getter, rendered

Plain = EvaluationFiles | EvaluationBeir | EvaluationHuggingFace

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """One thing to read. `path` is where a data set lies, `files` are those of files and of a BEIR folder.

    `before` goes before the names of a data set's configurations, as in "de-queries".
    """

    source: Plain
    path: str = ""
    files: tuple[DataFile, ...] = ()
    before: str = ""


@dataclass(frozen=True)
class Found:
    """An evaluation set, found but not read: its parts, and the digests and packages that decide its texts."""

    name: str
    parts: tuple[Part, ...]
    digests: Mapping[str, str] = field(default_factory=dict)
    packages: tuple[str, ...] = ()


def find(wanted: Sequence[AnyEvaluation], mirror: str | None, assets: Assets) -> list[Found]:
    """The evaluation sets of a recipe, in its order. Raises a UserError where one is not there, or two have one name."""
    found = [_found(each, mirror, assets) for each in wanted]
    names = [each.name for each in found]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"Two evaluation sets of 'decontamination' are called '{name}'. Give each a 'name' of its own.")
    return found


def _found(wanted: AnyEvaluation, mirror: str | None, assets: Assets) -> Found:
    if isinstance(wanted, EvaluationMteb):
        from datakit.decontamination import tasks

        parts = tuple(_part(source, mirror, before) for source, before in tasks.parts(wanted))
        return Found(wanted.name or wanted.task, parts, _digests(parts, assets), ("datasets", "mteb"))
    part = _part(wanted, mirror)
    packages = () if part.files else ("datasets",)
    return Found(wanted.name or _name(wanted), (part,), _digests((part,), assets), packages)


def _name(wanted: Plain) -> str:
    if isinstance(wanted, EvaluationFiles):
        return origin(_as_files(wanted))
    return origin(_as_hub(wanted, None, wanted.split)).removesuffix(f"/{wanted.split}")


def _part(source: Plain, mirror: str | None, before: str = "") -> Part:
    if isinstance(source, EvaluationFiles):
        return Part(source, files=tuple(files.find(_as_files(source))))
    path = place(_as_hub(source, None, source.split), mirror)
    found = list[DataFile]()
    if isinstance(source, EvaluationBeir):
        found = beir.find(BeirSource(type="beir", path=source.path, split=source.split), path)
    return Part(source, path, tuple(found), before)


def _digests(parts: Sequence[Part], assets: Assets) -> dict[str, str]:
    digests = {}
    for part in parts:
        for file in part.files:
            digests[file.name] = _digest(file.path, assets)
        if not part.files and not isinstance(part.source, EvaluationFiles):
            digests[str(part.source.path.raw)] = _digest(part.path, assets, part.source.revision)
    return digests


def _digest(path: str, assets: Assets, revision: str | None = None) -> str:
    try:
        return assets.digest(path, revision)
    except OSError as error:
        raise UserError(f"The evaluation set '{path}' cannot be read: {error.strerror or error}.") from error


def texts(found: Found) -> Iterator[tuple[str, str]]:
    """The texts of a set, each with the id of its record; null and empty ones are left out.

    Raises a UserError for a record that cannot be read: what it says could not be kept out of the training rows.
    """
    for part in found.parts:
        if isinstance(part.source, EvaluationBeir):
            yield from _beir(part, part.source, found.name)
        else:
            yield from _columns(part, part.source, found.name)


def _columns(part: Part, source: EvaluationFiles | EvaluationHuggingFace, name: str) -> Iterator[tuple[str, str]]:
    own_id = source.id if isinstance(source, EvaluationFiles) else None
    wanted = list(dict.fromkeys([*source.columns, *([own_id] if own_id else [])]))
    where = "/".join(each for each in (getattr(source, "config", None), getattr(source, "split", None)) if each)
    read: list[tuple[str, Iterator[Numbered]]]
    if isinstance(source, EvaluationFiles):
        read = [(file.name, files.records(file, _as_files(source), wanted)) for file in part.files]
    else:
        read = [(where, huggingface.records(_as_hub(source, source.config, source.split), wanted, part.path))]
    for label, records in read:
        prefix = f"{label}:" if len(read) > 1 or isinstance(source, EvaluationHuggingFace) else ""
        for number, record in records:
            known = _readable(record, f"{name}: {label}:{number}")
            given = getter(own_id)(known) if own_id else None
            for column in source.columns:
                end = f":{column}" if len(source.columns) > 1 else ""
                for text in _texts(look_up(known, column), f"{name}: {label}:{number}, column '{column}'"):
                    yield f"{given or f'{prefix}{number}'}{end}", text


def _texts(value: Any, where: str) -> Iterator[str]:
    """The text of a value, or those of a list."""
    if isinstance(value, list):
        for item in value:
            yield from _texts(item, where)
        return
    try:
        text = rendered(value)
    except Unreadable as error:
        raise UserError(f"A record of the evaluation set {where} has no text: {error.reason}, {error.found}.") from error
    if text and not text.isspace():
        yield text


def _readable(record: Record | Unreadable, where: str) -> Record:
    if isinstance(record, Unreadable):
        raise UserError(
            f"A record of the evaluation set {where} cannot be read ({record.reason}: {record.found}). Mend the set: what cannot "
            "be read cannot be kept out of the training rows."
        )
    return record


def _beir(part: Part, source: EvaluationBeir, name: str) -> Iterator[tuple[str, str]]:
    """The queries that the split judges, and the documents that it judges relevant."""
    queries, documents = set[str](), set[str]()
    for number, record in _side(part, source, beir.JUDGEMENTS):
        known = _readable(record, f"{name}: judgements:{number}")
        query, document, score = (getter(column)(known) for column in beir.JUDGED.used())
        if query is None or document is None:
            raise UserError(f"The judgement {number} of the evaluation set '{name}' lacks an id.")
        queries.add(query)
        try:
            relevant = float(score or 0) > 0
        except ValueError as error:
            raise UserError(f"The judgement {number} of the evaluation set '{name}' has the score '{score}'.") from error
        if relevant:
            documents.add(document)
    sides = {"queries": [(beir.QUERIES, queries)], "documents": [(beir.CORPUS, documents)]}
    for side, judged in sides["queries"] + sides["documents"] if source.texts == "both" else sides[source.texts]:
        missing = set(judged)
        for number, record in _side(part, source, side):
            known = _readable(record, f"{name}: {side}:{number}")
            own_id = next((getter(each)(known) for each in beir.IDS if each in known), None)
            if own_id is None or own_id not in judged:
                continue
            missing.discard(own_id)
            text = "\n".join(each for each in (getter("title")(known), getter("text")(known)) if each)
            if text:
                yield own_id if source.texts != "both" else f"{side}:{own_id}", text
        if missing:
            log.warning("%s: %d judged ids are not among the %s, as '%s'.", name, len(missing), side, min(missing))


def _side(part: Part, source: EvaluationBeir, side: str) -> Iterator[Numbered]:
    judged = side == beir.JUDGEMENTS
    if part.files:
        file = dict(zip((beir.CORPUS, beir.QUERIES, beir.JUDGEMENTS), part.files, strict=True))[side]
        plain = FilesSource(type="files", path=Path(file.path), quotes=False, columns=Columns(document="text"))
        return files.records(file, plain, beir.JUDGED.used() if judged else [beir.IDS[0], "text"])
    judgements = f"{part.before}qrels" if part.before else source.judgements
    config = judgements if judged else f"{part.before}{side}"
    opened = _as_hub(source, config, source.split)
    if judged:
        return huggingface.records(opened, beir.JUDGED.used(), part.path)
    there = huggingface.splits(opened, part.path)
    split = there[0] if len(there) == 1 else next((each for each in (source.split, side) if each in there), None)
    if split is None:
        raise UserError(
            f"The configuration '{config}' of '{source.path}' has the splits {', '.join(there)}, not '{source.split}'."
        )
    opened = opened.model_copy(update={"split": split})
    columns = huggingface.columns(opened, part.path)
    wanted = [next((each for each in beir.IDS if each in columns), beir.IDS[0]), "text"]
    return huggingface.records(opened, [*wanted, *(["title"] if "title" in columns else [])], part.path)


def _as_files(source: EvaluationFiles) -> FilesSource:
    return FilesSource(
        type="files",
        path=source.path,
        format=source.format,
        header=source.header,
        delimiter=source.delimiter,
        quotes=source.quotes,
        columns=Columns(document=source.columns[0]),
    )


def _as_hub(source: EvaluationBeir | EvaluationHuggingFace, config: str | None, split: str) -> HuggingFaceSource:
    return HuggingFaceSource(
        type="huggingface",
        path=source.path,
        config=config,
        split=split,
        revision=source.revision,
        columns=Columns(document="text"),
    )
