"""`sources: public`: what the registry declares, from a mirror or from the Hub."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import datakit
from datakit import storage
from datakit.errors import UserError
from datakit.executor.local import LocalExecutor
from datakit.pipeline import build, plan
from datakit.progress import Quiet
from datakit.recipe import Recipe, resolved
from datakit.recipe_file import load_model
from datakit.step import Step

REGISTRY = """\
tickets:
  task: question_answering
  description: Tickets and their answers.
  instruction: Given a ticket, retrieve the answer
  languages: [da]
  sources:
  - source:
      type: huggingface
      path: helpdesk/tickets
      config: pairs
      columns: {query: question, positive: answer.text}
      revision: 0123456789012345678901234567890123456789
      licence: CC-BY-4.0
    rows: 6
    checked: [the helpdesk]
  - source: {type: beir, path: helpdesk/search, revision: "1", licence: MIT}
    rows: 2
    checked: [the helpdesk]
moods:
  task: classification
  description: Moods of tickets.
  note: Nobody published any.
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))


def mirror(folder: Path, answer: str = "answer") -> Path:
    tables: dict[str, dict[str, tuple[str, list[dict[str, Any]]]]] = {
        "tickets": {"pairs": ("train", [{"question": f"q{i}", answer: {"text": f"text of a{i}"}} for i in range(6)])},
        "search": {
            "corpus": ("corpus", [{"_id": f"d{i}", "title": "", "text": f"passage {i}"} for i in range(3)]),
            "queries": ("queries", [{"_id": f"q{i}", "text": f"what is {i}"} for i in range(3)]),
            "default": ("train", [{"query-id": f"q{i}", "corpus-id": f"d{i}", "score": 1} for i in range(2)]),
        },
    }
    for name, configs in tables.items():
        readme = ["---", "configs:"]
        for config, (split, records) in configs.items():
            path = folder / "helpdesk" / name / config / f"{split}-0.parquet"
            path.parent.mkdir(parents=True)
            pq.write_table(pa.Table.from_pylist(records), path)
            readme += [f"- config_name: {config}", "  data_files:", f"  - split: {split}", f"    path: {config}/{split}-*"]
        (folder / "helpdesk" / name / "README.md").write_text("\n".join([*readme, "---"]))
    return folder


def recipe(tmp_path: Path, mirror: Path | None, category: str = "tickets: {sources: public}") -> Recipe:
    (tmp_path / "mine.yaml").write_text(REGISTRY)
    place = "" if mirror is None else f"mirror: {mirror}\n"
    file = tmp_path / "mixture.yaml"
    file.write_text(
        f"name: small\noutput: {tmp_path}/out\ncache: {tmp_path}/cache\n{place}registries: [{tmp_path}/mine.yaml]\n"
        f"split: {{validation: 0}}\ncategories:\n  {category}\n"
    )
    return load_model(str(file), Recipe)


def reads(recipe: Recipe) -> list[Step]:
    return [step for step in plan(recipe).steps if step.name.startswith("read-")]


def test_a_category_is_built_from_the_mirror(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="datakit"):
        built = build(recipe(tmp_path, mirror(tmp_path / "mirror")), LocalExecutor(1), Quiet())
    assert "over the network" not in caplog.text
    opened = datakit.open(built.path)
    rows = opened.train.collect().to_dicts()
    assert sorted((row["source"], row["query"], row["positive"], row["language"]) for row in rows) == sorted(
        [("helpdesk/tickets/pairs/train", f"q{i}", f"text of a{i}", "da") for i in range(6)]
        + [("helpdesk/search/train", f"what is {i}", f"passage {i}", "da") for i in range(2)]
    )
    entry = opened.manifest.categories["tickets"]
    assert [(source.name, source.licence) for source in entry.sources] == [
        ("helpdesk/tickets", "CC-BY-4.0"),
        ("helpdesk/search", "MIT"),
    ]
    published = (Path(built.path) / "recipe.yaml").read_text()
    assert str(tmp_path / "mirror") not in published
    assert yaml.safe_load(published)["categories"]["tickets"]["sources"][0]["path"] == "helpdesk/tickets"


def test_the_key_follows_the_data_and_not_where_the_mirror_lies(tmp_path: Path) -> None:
    first = mirror(tmp_path / "mirror")
    second = tmp_path / "elsewhere" / "copies"
    shutil.copytree(first, second)
    hidden = second / "helpdesk" / "tickets" / ".cache" / "huggingface"
    hidden.mkdir(parents=True)
    (hidden / "download.metadata").write_text("1732450000.0")
    keys = [[step.key for step in reads(recipe(tmp_path, place))] for place in (first, second)]
    assert keys[0] == keys[1]
    pq.write_table(pa.table({"question": ["other"], "answer": ["text"]}), second / "helpdesk/tickets/pairs/train-0.parquet")
    changed = [step.key for step in reads(recipe(tmp_path, second))]
    assert changed[0] != keys[0][0]
    assert changed[1] == keys[0][1]


def test_what_the_mirror_does_not_have_is_asked_of_the_hub_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = mirror(tmp_path / "mirror")
    shutil.rmtree(place / "helpdesk" / "search")
    with caplog.at_level(logging.INFO, logger="datakit"):
        reads(recipe(tmp_path, place))
        reads(recipe(tmp_path, None))
    said = [record.getMessage() for record in caplog.records if "network" in record.getMessage()]
    assert said == [
        "'helpdesk/search' is read from the Hub, over the network: it is not in the mirror.",
        "'helpdesk/tickets' is read from the Hub, over the network: the recipe names no mirror.",
        "'helpdesk/search' is read from the Hub, over the network: the recipe names no mirror.",
    ]
    with pytest.raises(UserError, match=r"'helpdesk/tickets', a name on the Hub .* The registry entry 'tickets' declares"):
        build(recipe(tmp_path, None), LocalExecutor(1), Quiet())


def test_a_changed_column_is_refused_by_name(tmp_path: Path) -> None:
    place = mirror(tmp_path / "mirror", answer="reply")
    with pytest.raises(UserError) as raised:
        build(recipe(tmp_path, place), LocalExecutor(1), Quiet())
    assert str(raised.value) == (
        "'helpdesk/tickets' has no column 'answer.text'; its columns are: 'question', 'reply'. "
        "The registry entry 'tickets' declares this source; give the category sources of its own."
    )


@pytest.mark.parametrize(
    ("category", "said"),
    [
        (
            "moods: {sources: public}",
            r"'moods' asks for public sources, and the registry entry 'moods' has none \(Nobody published",
        ),
        ("mine: {sources: public, define: {task: nli}}", r"'mine' is defined in the recipe, which names no public sources"),
        ("ticket: {sources: public}", r"'ticket' is not in the registry under 'ticket'. Did you mean tickets"),
    ],
)
def test_a_category_without_public_sources_is_refused(tmp_path: Path, category: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        plan(recipe(tmp_path, None, category))


def test_sources_of_the_recipe_itself_look_into_the_mirror_too(tmp_path: Path) -> None:
    place = mirror(tmp_path / "mirror")
    category = (
        "tickets: {language: da, sources: [{type: huggingface, path: helpdesk/tickets, config: pairs, licence: CC-BY-4.0, "
        "revision: '0123456789012345678901234567890123456789', columns: {query: question, positive: answer.text}}]}"
    )
    own, public = reads(recipe(tmp_path, place, category)), reads(recipe(tmp_path, place))
    assert own[0].key != public[0].key  # the name of the step tells how many sources there are
    assert own[0].parameters == public[0].parameters
    assert own[0].assets == public[0].assets


def test_a_published_recipe_builds_the_same_without_the_registry(tmp_path: Path) -> None:
    place = mirror(tmp_path / "mirror")
    first = plan(recipe(tmp_path, place))
    written = resolved(first.recipe) | {"registries": [], "cache": f"{tmp_path}/cache", "mirror": str(place)}
    written["categories"]["tickets"]["define"] = {
        "task": "question_answering",
        "instruction": "Given a ticket, retrieve the answer",
    }
    storage.write_bytes(str(tmp_path / "again.yaml"), yaml.safe_dump(written, sort_keys=False).encode())
    second = plan(load_model(str(tmp_path / "again.yaml"), Recipe))
    assert [step.key for step in second.steps] == [step.key for step in first.steps]
