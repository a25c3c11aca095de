"""The registry, as a person looks at it: a table of categories, one category, and a recipe made of some."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence

import yaml
from rich.console import Group
from rich.table import Table
from rich.text import Text

from datakit.errors import UserError
from datakit.registry import Category


def chosen(
    entries: Mapping[str, Category],
    *,
    family: str | None = None,
    task: str | None = None,
    language: str | None = None,
    public: bool | None = None,
    search: str | None = None,
) -> list[Category]:
    """The entries that fit all that is given, by family and key.

    Raises a UserError for a family, task or language that no entry has.
    """
    _check("family", family, (entry.family for entry in entries.values()))
    _check("task", task, (entry.task for entry in entries.values()))
    _check("language", language, (code for entry in entries.values() for code in entry.languages))
    words = (search or "").casefold().split()

    def fits(entry: Category) -> bool:
        text = f"{entry.key} {entry.family} {entry.description} {entry.instruction}".casefold()
        return (
            (family is None or entry.family == family)
            and (task is None or entry.task == task)
            and (language is None or language in entry.languages)
            and (public is None or bool(entry.sources) == public)
            and all(word in text for word in words)
        )

    return sorted(filter(fits, entries.values()), key=lambda entry: (entry.family, entry.key))


def _check(what: str, given: str | None, known: Iterable[str]) -> None:
    names = sorted(set(known))
    if given is not None and given not in names:
        raise UserError(f"No category has the {what} '{given}'. There are: {', '.join(names)}.")


def table(entries: Sequence[Category]) -> Group:
    """One line for each category, and a line that counts them."""
    lines = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("category", "family", "task", "languages", "public rows"):
        lines.add_column(heading, justify="right" if heading == "public rows" else "left", overflow="fold")
    for entry in entries:
        shown = entry.languages if len(entry.languages) <= 4 else [*entry.languages[:3], f"+{len(entry.languages) - 3}"]
        rows = sum(source.rows for source in entry.sources)
        lines.add_row(entry.key, entry.family, entry.task, " ".join(shown), f"{rows:,}" if rows else "synthesis only")
    public = sum(1 for entry in entries if entry.sources)
    return Group(lines, Text(f"{len(entries)} categories, {public} of them with public sources"))


def details(entry: Category) -> Text:
    """All that the registry knows of one category, as YAML."""
    fields = entry.model_dump(mode="json", exclude_defaults=True)
    head = {"key": fields.pop("key"), "family": fields.pop("family")}
    return Text(yaml.safe_dump({**head, **fields}, sort_keys=False, allow_unicode=True, width=110).rstrip())


def find(entries: Mapping[str, Category], key: str) -> Category:
    """The entry of a key. Raises a UserError that names near ones."""
    if key not in entries:
        near = difflib.get_close_matches(key, entries, n=3)
        guess = f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
        raise UserError(f"The registry has no category '{key}'.{guess} `datakit categories` lists them.")
    return entries[key]


def _asked_about(entry: Category) -> str:
    return "queries of your users" if entry.writing.prompt == "documents" else "your documents"


def recipe_text(starter: str, entries: Mapping[str, Category], keys: Sequence[str]) -> str:
    """The starter recipe with these categories in the place of its own.

    A category with public sources is built from them; one without is written from documents by the engine `llm`, which is there
    to be filled in. A key that stands there twice counts once. Raises a UserError for no key at all, and for one that is unknown.
    """
    if not keys:
        raise UserError(
            "No category is named. Give keys of the registry, with commas between them; `datakit categories` lists them."
        )
    before, _, rest = starter.partition("categories:\n")
    _, _, after = rest.partition("\nencoders:\n")
    lines = ["categories:"]
    written = False
    for key in dict.fromkeys(keys):
        entry = find(entries, key)
        lines.append(f"  {key}: # {entry.description}")
        if entry.sources:
            lines.append("    sources: public")
        else:
            written = True
            if entry.writing.prompt == "brainstorm":
                lines.append("    sources: [] # nothing is read: the model thinks of tasks first")
            else:
                lines += [
                    "    sources:",
                    f"      - {{type: files, path: documents/*.txt, columns: {{document: text}}}} # {_asked_about(entry)}",
                ]
            lines.append("    synthesis: {engine: llm, documents: 1000, personas_per_document: 2}")
    lines.append("")
    if written:
        lines += [
            "engines:",
            "  llm:",
            "    type: openai # any server that speaks OpenAI's chat API",
            "    base_url: http://127.0.0.1:8000/v1",
            "    model: my-model",
            "",
        ]
    languages = sorted({code for key in keys for code in entries[key].languages})
    after = after.replace("allowed: [en]", f"allowed: {json.dumps(languages)}")
    return f"{before}{chr(10).join(lines)}\nencoders:\n{after}"
