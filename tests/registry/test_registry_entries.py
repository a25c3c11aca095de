"""Every entry of the registry is whole, and files of one's own are read as those of datakit are."""

from __future__ import annotations

import logging
import re
from importlib import resources
from pathlib import Path

import pytest

from datakit import registry
from datakit.errors import UserError
from datakit.recipe import BeirSource, HuggingFaceSource
from datakit.registry import Category
from datakit.sources.origins import check_origins
from datakit.synthesis.prompts import BUNDLED

ENTRIES = list(registry.load().values())
FILES = sorted(str(file) for file in resources.files(registry).iterdir() if file.name.endswith(".yaml"))
OWN = """\
own-tickets:
  task: question_answering
  description: Tickets of our help desk.
  instruction: Given a ticket, retrieve the answer
medical-qa:
  task: retrieval
  description: Ours.
  languages: [no]
"""


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.key)
def test_an_entry_is_whole(entry: Category) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", entry.key)
    assert entry.description
    assert entry.instruction
    assert entry.languages
    assert entry.writing.style
    assert entry.writing.positive
    assert entry.writing.prompt in BUNDLED
    assert entry.sources or entry.note, "an entry without sources says why"
    for public in entry.sources:
        assert isinstance(public.source, HuggingFaceSource | BeirSource)
        assert public.source.licence
        assert all(public.checked)
    check_origins(entry.key, [public.source for public in entry.sources])


def test_classes_that_a_model_chooses_are_not_called_texts_of_the_same_class() -> None:
    labelled = {entry.key: entry for entry in ENTRIES if entry.writing.prompt == "labels"}
    told = {name: entry.writing.instruction or entry.instruction for name, entry in labelled.items()}
    assert [name for name, text in told.items() if re.search(r"\b(same|equally)\b", text)] == []
    assert [name for name, entry in labelled.items() if "unclear" in entry.writing.labels] == []


def test_the_registry_is_as_large_as_is_said() -> None:
    assert len(ENTRIES) >= 120


@pytest.mark.parametrize("file", FILES, ids=lambda file: Path(file).stem)
def test_a_file_reads_the_same_with_lines_and_without(file: str) -> None:
    """The slow reader refuses keys that stand there twice; the registry is loaded with the fast one."""
    entries = registry.read_file(file)
    assert {key: dict(entry) for key, entry in entries.items()} == {
        entry.key: {name: value for name, value in dict(entry).items() if name not in ("key", "family")}
        for entry in ENTRIES
        if entry.family == Path(file).stem
    }


def test_a_registry_of_ones_own_goes_before_that_of_datakit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, second = tmp_path / "mine.yaml", tmp_path / "more.yaml"
    file.write_text(OWN)
    second.write_text("own-tickets: {task: nli, description: Others}\n")
    with caplog.at_level(logging.INFO, logger="datakit"):
        entries = registry.load([str(file), str(second)])
    assert (entries["own-tickets"].task, entries["own-tickets"].family) == ("question_answering", "mine")
    assert (entries["medical-qa"].description, entries["medical-qa"].languages) == ("Ours.", ["no"])
    assert len(entries) == len(ENTRIES) + 1
    assert [record.getMessage() for record in caplog.records] == [
        f"the category 'own-tickets' is that of the registry 'mine', not that of {second}",
        "the category 'medical-qa' is that of the registry 'mine', not that of datakit",
    ]
    assert registry.load()["medical-qa"].family == "medical"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a:\n  task: retrieval\n  descripton: x\n", r"mine.yaml:3: a.descripton: unknown key 'descripton'. Did you mean 'descr"),
        ("a:\n  task: retrival\n  description: x\n", r"mine.yaml:2: a.task: found 'retrival'"),
        ("a:\n  task: retrieval\n", r"mine.yaml:1: a: the key 'description' is missing"),
        ("a: {task: nli, description: x}\na: {task: nli, description: x}\n", r"mine.yaml:2: a: the name 'a' stands here twice"),
        ("- a\n", r"mine.yaml:1: found a list; the file must be a mapping"),
        (
            "a:\n  task: nli\n  description: x\n  sources:\n  - source: {type: huggingface, path: x/y, columns: {query: a}}\n"
            "    rows: 1\n    checked: [x]\n",
            r"mine.yaml:5: a.sources.0.source.columns: columns need 'query' and 'positive'",
        ),
    ],
)  # fmt: skip
def test_a_mistake_in_a_registry_names_file_line_and_key(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=said):
        registry.load([str(file)])


def test_a_registry_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        registry.load([str(tmp_path / "none.yaml")])
