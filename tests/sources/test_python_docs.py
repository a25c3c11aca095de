"""Documentation that every Python carries, read without importing anything."""

from __future__ import annotations

import ast
import pydoc_data.topics
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from reading import documents, output, rejected, rows, step

from datakit.errors import UserError
from datakit.recipe import PythonDocsSource
from datakit.sources import docstrings, readme, topics
from datakit.sources.docstrings import Documented
from datakit.sources.paragraphs import beginning


def source(part: str, **options: Any) -> PythonDocsSource:
    return PythonDocsSource.model_validate({"type": "python-docs", "part": part, **options})


def pairs(tmp_path: Path, part: str, **options: Any) -> list[dict[str, Any]]:
    return rows(output(source(part, **options), tmp_path / "cache"))


MODULE = '''"""Module."""
import os

raise RuntimeError("this module must not run")


@decorator(1)
def greet(name: str, *, loud=False) -> str:
    """Return a greeting for
    somebody named :class:`str`.

    More about it.
    """
    # A comment stays.
    text = "Hello"

    return text + name


class Box:
    """Holds things that are put into it."""

    size = 1

    def __init__(self, things, /, size: int = 3):
        """Makes a box."""
        self.things = things

    @property
    def first(self) -> object:
        """The thing that was put in first."""
        return self.things[0]

    @staticmethod
    def of(*things):
        """A box of some things."""
        return Box(things)

    async def wait(self, seconds, *rest, **options):
        """Waits until the box is full."""
        pass

    def _hidden(self):
        """Not public."""
        return 1


def only_words():
    """There is nothing else in here."""


def one_line(): """Shares a line."""; return 1


def undocumented():
    return 2
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that cannot be imported, with private modules, tests, and one that is no Python."""
    root = tmp_path / "site/sampled_package"
    contents = {
        "__init__.py": "", "open.py": MODULE, "_private.py": MODULE, "tests/test_open.py": MODULE, "test_open.py": MODULE,
        "inner/_deep/code.py": MODULE, "inner/latin.py": '# -*- coding: latin-1 -*-\ndef f():\n    """Ein Gru\xdf an alle."""\n    return 1\n',
        "inner/broken.py": "def (:\n",
    }  # fmt: skip
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.encode("latin-1"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return root


def test_docstrings_and_sources_are_found_by_parsing_alone(package: Path) -> None:
    found = [item for item in docstrings.documented("sampled_package", 0) if isinstance(item, Documented)]
    assert {item.name for item in found} == {
        "sampled_package.open.greet", "sampled_package.open.Box", "sampled_package.open.Box.first",
        "sampled_package.open.Box.of", "sampled_package.open.Box.wait", "sampled_package.inner.latin.f",
    }  # fmt: skip
    by_name = {item.name.removeprefix("sampled_package."): item for item in found}
    greet = by_name["open.greet"]
    assert greet.summary == "Return a greeting for somebody named `str`."
    assert greet.source == (
        "@decorator(1)\ndef greet(name: str, *, loud=False) -> str:\n    # A comment stays.\n"
        '    text = "Hello"\n\n    return text + name'
    )
    assert by_name["inner.latin.f"].docstring == "Ein Gruß an alle."
    assert {name: item.signature for name, item in by_name.items()} == {
        "open.greet": "sampled_package.open.greet(name: str, *, loud=False) -> str",
        "open.Box": "class sampled_package.open.Box(things, /, size: int=3)",
        "open.Box.first": "sampled_package.open.Box.first -> object",
        "open.Box.of": "sampled_package.open.Box.of(*things)",
        "open.Box.wait": "sampled_package.open.Box.wait(seconds, *rest, **options)",
        "inner.latin.f": "sampled_package.inner.latin.f()",
    }
    assert "sampled_package" not in sys.modules


def test_a_module_that_is_no_python_is_a_rejection(package: Path, tmp_path: Path) -> None:
    result = output(source("docstrings", packages=["sampled_package"], max_bad_fraction=0.5), tmp_path / "cache")
    (item,) = rejected(result)
    assert item["reason"] == "invalid_python"
    assert "sampled_package.inner.broken cannot be parsed" in item["detail"]
    assert len(rows(result)) == 6


def test_an_inner_package_is_read_without_importing_its_parent(package: Path) -> None:
    found = [item.name for item in docstrings.documented("sampled_package.inner.latin", 0) if isinstance(item, Documented)]
    assert found == ["sampled_package.inner.latin.f"]
    assert "sampled_package" not in sys.modules


def test_a_package_that_is_not_installed_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'no_such_package' is not installed"):
        step(source("docstrings", packages=["no_such_package"]), tmp_path)
    with pytest.raises(UserError, match="'no-such-package' is not installed"):
        step(source("packages", packages=["no-such-package"]), tmp_path)


def test_parts_share_the_document_of_a_function(package: Path, tmp_path: Path) -> None:
    sources, signatures = (
        {row["document_id"] for row in pairs(tmp_path, part, packages=["sampled_package"], max_bad_fraction=1)}
        for part in ("docstrings", "signatures")
    )
    assert sources == signatures
    assert len(sources) == 6


def test_the_standard_library_gives_sensible_pairs_and_is_not_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from datakit.recipe import PythonDocsSource as P; from datakit.sources import python_docs as p\n"
        "before = set(sys.modules)\n"
        "for part in ('docstrings', 'signatures'):\n"
        "    records = list(p.records(P(type='python-docs', part=part, packages=['stdlib', 'numpy'], limit=40), 3))\n"
        "    assert len(records) == 40\n"
        "print(sorted(set(sys.modules) - before))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not [name for name in ast.literal_eval(printed) if name.split(".")[0] in ("numpy", "sqlite3", "email", "tkinter")]
    found = pairs(tmp_path, "docstrings", packages=["stdlib", "numpy"], limit=300)
    assert len(found) == 300
    assert {row["language"] for row in found} == {"en"}
    for row in found:
        tree = ast.parse(row["positive"])  # the source without its docstring is Python still
        assert len(tree.body) == 1
        assert ast.get_docstring(tree.body[0]) is None  # type: ignore[arg-type]
        assert row["query"]
        assert "\n" not in row["query"]
    signatures = pairs(tmp_path, "signatures", packages=["stdlib"], limit=100)
    assert all(row["query"].startswith("class ") or "." in row["query"].split("(")[0] for row in signatures)
    assert sum(10 <= len(row["positive"].split()) <= 512 for row in signatures) > 60


def test_packages_take_turns_and_the_order_is_drawn_from_the_seed(tmp_path: Path) -> None:
    def names(seed: int) -> list[str]:
        chosen = source("signatures", packages=["json", "email", "stdlib"], limit=30)
        found = rows(output(chosen, tmp_path / "cache", seed=seed))
        return [row["query"].removeprefix("class ") for row in found]

    first = names(1)
    assert [name.split(".")[0] for name in first[:2]] == ["json", "email"]
    assert sum(name.startswith("email.") for name in first) >= 10
    assert names(1) == first != names(2)


def test_topics_give_titles_and_sections(tmp_path: Path) -> None:
    found = pairs(tmp_path, "topics")
    by_title = {row["query"]: row["positive"] for row in found}
    assert len(found) > 200
    assert len({row["positive"] for row in found}) == len(found), "a text that stands in several topics is given once"
    assert by_title["The while statement"].startswith('The "while" statement is used for repeated execution') or (
        "while_stmt" in by_title["The while statement"]
    )
    assert by_title["String Methods: str.capitalize()"].startswith("Return a copy of the string with its first character")
    assert not [text for text in by_title.values() if "\n****" in text]
    assert sum(10 <= len(row["positive"].split()) <= 512 for row in found) > 0.9 * len(found)


def test_topics_as_documents_hold_the_whole_reference_once(tmp_path: Path) -> None:
    found = documents(output(source("topics", documents=True), tmp_path / "cache", documents=True))
    words = Counter(word for item in found for word in item["text"].split())
    original = [word for text in pydoc_data.topics.topics.values() for word in text.split() if word.strip('*=-~^"')]
    assert {word.replace('"', "") for word in original} <= {word.replace('"', "") for word in words}
    assert words.total() < 0.9 * len(original), "topics that stand in longer ones are not repeated"
    long = [line for item in found for line in item["text"].split("\n") if len(line.split()) > 10]
    assert max(Counter(long).values()) <= 3
    assert all(item["title"] for item in found)


def test_a_definition_is_a_section_of_its_own() -> None:
    topic = (
        "Things\n******\n\nIntro.\n\nthing.make(a[, b])\n\n   Makes it.\n\n   More.\n\n   thing.inner()\n\n      Inside.\n\n"
        "Outro.\n\n\nSub\n===\n\nText.\n"
    )
    assert [(item.title, item.above, item.text) for item in topics.sections(topic)] == [
        ("Things", "", "Intro.\n\n\nOutro.".replace("\n\n\n", "\n\n")),
        ("thing.make(a[, b])", "Things", "Makes it.\n\nMore."),
        ("thing.inner()", "Things", "Inside."),
        ("Sub", "Things", "Text."),
    ]


def test_descriptions_of_installed_packages(tmp_path: Path) -> None:
    found = pairs(tmp_path, "packages", packages=["PyYAML", "pytest", "numpy"])
    assert [row["query"] for row in found] == [
        "Fundamental package for array computing in Python", "pytest: simple powerful testing with Python",
        "YAML parser and emitter for Python",
    ]  # fmt: skip
    for row in found:
        assert 10 <= len(row["positive"].split()) <= 400
        assert "img.shields.io" not in row["positive"]
        assert "](" not in row["positive"]
    texts = documents(output(source("packages", documents=True, packages=["numpy"]), tmp_path / "cache", documents=True))
    assert [item["title"] for item in texts] == ["numpy: Fundamental package for array computing in Python"]


def test_a_readme_in_markdown_becomes_plain_text() -> None:
    text = (
        "<!-- hidden -->\n# Title #\n\n[![CI](https://x/badge.svg)](https://x) ![logo](a.png)\n<p align='center'>Shown</p>\n\n"
        'A [link](http://x "t") and **bold** and [ref][1], <https://x>.\n\n[1]: http://x\n\n- Site: https://x\n\n'
        "```python\nprint(1 < 2)\n    indented\n```\n\n| a | b |\n|---|---|\n"
    )
    assert readme.plain(text, "text/markdown") == (
        "Title\n\n Shown\n\nA link and bold and ref, .\n\nprint(1 < 2)\n    indented\n\n| a | b |"
    )


def test_a_readme_in_rst_becomes_plain_text() -> None:
    text = (
        "Title\n=====\n\n.. image:: x.png\n   :alt: X\n\n|build|\n\n.. |build| image:: y.png\n    :target: z\n\n"
        "See `the docs <http://x>`_ and :mod:`json` and ``code``.\n\n.. _ref: http://x\n\n.. code-block:: python\n\n    x = 1\n"
    )
    assert readme.plain(text, "text/x-rst") == "Title\n\nSee the docs and `json` and `code`.\n\n    x = 1"


def test_a_beginning_ends_at_a_paragraph() -> None:
    assert beginning("one two\n\nthree four\n\nfive", 4) == "one two\n\nthree four"
    assert beginning("one two three\n\nfour", 2) == "one two three"
