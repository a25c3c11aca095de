"""Labels on disk: one line for each, on the disk before anybody is told that it is kept. The last line of a pair counts."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datakit.errors import UserError

GRADES = ("not relevant", "partly relevant", "relevant")
NAME = r"[\w.-]+"

log = logging.getLogger(__name__)


def pairs_of(folder: str) -> list[dict[str, Any]]:
    """The pairs of a set, in the order in which they are labelled: pair, query_id, document_id, category, instruction, query,
    document."""
    return records(folder, "annotations.jsonl")


def records(folder: str, name: str) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in Path(folder, name).read_bytes().splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(
            f"'{folder}' is no evaluation set: its {name} cannot be read ({error}). `datakit evalset` makes one."
        ) from error


def file_of(folder: str, annotator: str) -> Path:
    if not re.fullmatch(NAME, annotator):
        raise UserError(f"--annotator is '{annotator}'. Allowed: letters, digits, '.', '_' and '-'; it names a file.")
    return Path(folder, f"labels-{annotator}.jsonl")


def annotators(folder: str) -> dict[str, Path]:
    """The files of labels by the name of who gave them."""
    found = sorted(Path(folder).glob("labels-*.jsonl"))
    return {path.name.removeprefix("labels-").removesuffix(".jsonl"): path for path in found}


def read(path: Path, known: set[str]) -> dict[str, int]:
    """The grade of each labelled pair. A last line without an end was never confirmed to anybody, and does not count."""
    grades: dict[str, int | None] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            said = json.loads(line)
            pair, grade = said["pair"], said["label"]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}:{number} is no label ({line[:80]!r}). Mend the line, or take it out.") from error
        if pair not in known:
            raise UserError(f"{path}:{number} labels the pair '{pair}', which this set does not have. Is it of another set?")
        if grade is not None and (type(grade) is not int or not 0 <= grade < len(GRADES)):
            raise UserError(f"{path}:{number} has the label {grade!r}. Allowed: 0, 1, 2, and null for a label taken back.")
        grades[pair] = grade
    return {pair: grade for pair, grade in grades.items() if grade is not None}


class Labels:
    """An annotator's labels, and the file that each new one is added to."""

    def __init__(self, file: int, grades: dict[str, int]) -> None:
        self._file, self.grades = file, grades

    def put(self, pair: str, grade: int | None) -> None:
        """Writes a label, or takes one back (None). When it returns, the label is on the disk; when it raises, nothing is."""
        line = (json.dumps({"pair": pair, "label": grade}) + "\n").encode()
        before = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, before)
            raise
        if grade is None:
            self.grades.pop(pair, None)
        else:
            self.grades[pair] = grade


@contextmanager
def opened(path: Path, known: set[str]) -> Iterator[Labels]:
    """Opens labels to go on with. Raises a UserError while another process has them open."""
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"'{path}' is open in another `datakit annotate`. End that one, or give another name.") from error
        written = path.read_bytes()
        whole = written.rfind(b"\n") + 1
        if whole < len(written):
            log.warning("%s: the last line was not written to its end, and is taken out: %r", path, written[whole:])
            os.ftruncate(file, whole)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        yield Labels(file, read(path, known))
    finally:
        os.close(file)
