"""Exemplars and the split: no text of a row that is held out stands in a row to train on."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from duplicated import changed, sentence, tables
from duplicated import row as pair
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from stepping import read, rows_step, run_step

from datakit.pipeline import plan
from datakit.recipe import Recipe, Split
from datakit.schema import text_id
from datakit.split import split_step
from datakit.step import Output

# An example takes half a second and more: the smallest one that fails would take minutes to find.
WITHOUT_SHRINKING = (Phase.explicit, Phase.generate)
LABELS = {"documents": "exemplars", "type": "labels", "text": "text"}


def recipe(root: Path, validation: float, dedup: bool = True, seed: int = 0) -> Recipe:
    """The same texts in two categories, by intent and by topic; and in a third one, with names of intents."""
    define = {"task": "classification", "in_batch_negatives": False}
    shapes = {
        "intents": LABELS | {"label": "intent"},
        "topics": LABELS | {"label": "topic", "negatives": 3},
        "names": LABELS | {"label": "intent", "documents": "names"},
    }
    return Recipe.model_validate(
        {
            "name": "exemplars",
            "seed": seed,
            "output": str(root / "out"),
            "cache": str(root / "cache"),
            "shard_rows": 50,
            "categories": {
                name: {
                    "define": define,
                    "language": "en",
                    "sources": [{"type": "files", "name": "same", "path": str(root / "*.jsonl"), "reshape": [shape]}],
                }
                for name, shape in shapes.items()
            },
            "dedup": [{"type": "minhash", "on": "query", "threshold": 0.8}] if dedup else [],
            "split": {"validation": validation, "max_group_fraction": 1.0},
        }
    )


def write(root: Path, seed: int, classes: int, each: int, alike: float) -> None:
    """Texts of some intents, of two topics; `alike` is the share that is another text but for a word, or but for blanks."""
    draw = random.Random(seed)
    made: list[list[str]] = []
    records: list[dict[str, str]] = []
    for number in range(classes * each):
        words = sentence(draw, 20)
        if made and draw.random() < alike:
            words = changed(draw, draw.choice(made), draw.randrange(2))
        made.append(words)
        text = draw.choice(["{}", "  {}", "{}\u00a0"]).format(" ".join(words))
        records.append({"text": text, "intent": f"intent {number % classes}", "topic": f"topic {number % 2}"})
    for part in range(2):
        (root / f"{part}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records[part::2]))


def split(recipe: Recipe, workers: int = 1) -> Output:
    (step,) = (step for step in plan(recipe).steps if step.name == "split")
    return run_step(step, recipe.cache, workers)


def rows(output: Output, part: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read(output.part(part)).to_pylist()
    return found


def texts(found: list[dict[str, Any]]) -> set[str]:
    """What the rows say, but for names of classes."""
    said = {row["query"] for row in found}
    for row in found:
        if row["category"] != "names":
            said |= {row["positive"], *(negative["text"] for negative in row["negatives"] or [])}
    return said


@settings(max_examples=6, deadline=None, phases=WITHOUT_SHRINKING, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 10**6), st.integers(1, 4), st.integers(2, 15), st.sampled_from([0.0, 0.3, 0.9]), st.sampled_from([0.1, 0.5]),
    st.booleans(),
)  # fmt: skip
def test_no_text_is_on_both_sides(
    tmp_path_factory: pytest.TempPathFactory, seed: int, classes: int, each: int, alike: float, share: float, dedup: bool
) -> None:
    root = tmp_path_factory.mktemp("exemplars")
    write(root, seed, classes, each, alike)
    output = split(recipe(root, share, dedup, seed))
    assert not texts(rows(output, "train")) & texts(rows(output, "validation"))
    counts = output.report.counts
    assert set(counts.rejected) <= {"positive_on_other_side"}
    rejected = read(output.rejected).to_pylist()
    assert len(rejected) == sum(counts.rejected.values()), "and the step itself has checked that no row is lost"
    assert all(row["category"] != "names" for row in rejected)


def test_most_rows_stay_and_both_sides_come_about_as_asked(tmp_path: Path) -> None:
    write(tmp_path, seed=1, classes=3, each=200, alike=0.1)
    output = split(recipe(tmp_path, 0.2, dedup=False))
    kept = {part: Counter(row["category"] for row in rows(output, part)) for part in ("train", "validation")}
    for category in ("intents", "topics"):
        total = sum(kept[part][category] for part in kept)
        assert total > 0.95 * 600
        assert 0.15 < kept["validation"][category] / total < 0.25
    assert kept["train"]["names"] + kept["validation"]["names"] == 600
    for part in kept:
        found = [row for row in rows(output, part) if row["category"] == "intents"]
        assert sum(len(row["negatives"] or []) for row in found) > 6 * len(found), "of 7"
        assert all(row["positive"] != row["query"] for row in found)


def test_three_classes_of_twelve_texts(tmp_path: Path) -> None:
    write(tmp_path, seed=2, classes=3, each=12, alike=0.0)
    output = split(recipe(tmp_path, 0.3))
    train, validation = (rows(output, part) for part in ("train", "validation"))
    assert train
    assert {row["category"] for row in validation} == {"intents", "topics", "names"}
    assert not texts(train) & texts(validation)
    assert not output.report.counts.rejected, "nothing hangs together, so each text is where it was thought to be"


def test_without_validation_a_class_is_one_ring(tmp_path: Path) -> None:
    write(tmp_path, seed=3, classes=2, each=10, alike=0.0)
    found = [row for row in rows(split(recipe(tmp_path, 0.0)), "train") if row["category"] == "intents"]
    after = {row["query"]: row["positive"] for row in found}
    for label in ("intent 0", "intent 1"):
        start = place = next(row["query"] for row in found if row["label"] == label)
        ring = {place := after[place] for _ in range(10)}
        assert len(ring) == 10
        assert place == start


def test_workers_change_no_byte(tmp_path: Path) -> None:
    found = []
    for workers in (1, 2):
        root = tmp_path / str(workers)
        root.mkdir()
        write(root, seed=4, classes=3, each=40, alike=0.3)
        output = split(recipe(root, 0.3), workers)
        paths = [*output.part("train"), *output.part("validation"), *output.rejected]
        found.append([Path(path).read_bytes() for path in paths])
    assert found[0] == found[1]


def test_many_rows_of_exemplars_that_are_rejected_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As where something has changed the texts after they were paired."""
    draw = random.Random(5)
    words = [" ".join(sentence(draw, 12)) for _ in range(60)]
    records = []
    for number in range(60):
        texts = [words[(number + each) % 60] for each in (2, 3, 4)]
        negatives = [{"id": text_id(text), "text": text, "miner": "m", "score": None, "difficulty": None} for text in texts]
        after = words[(number + 1) % 60]
        records.append(pair(words[number], after, number=number, source="s", in_batch_negatives=False, negatives=negatives))
    step = split_step(Split(validation=0.5), 0, (rows_step(tables(records, 1)),), [("a", "s")])
    with caplog.at_level("WARNING"):
        output = run_step(step, str(tmp_path))
    rejected = output.report.counts.rejected["positive_on_other_side"]
    assert rejected > 10
    assert f"split: {rejected} of 60 rows of exemplars are rejected" in caplog.text
    assert output.report.notes["exemplars"] == {"rows": 60, "apart": rejected}
    kept = [*rows(output, "train"), *rows(output, "validation")]
    lost = sum(3 - len(each["negatives"] or []) for each in kept)
    assert output.report.notes["negatives_on_other_side"] == lost > 0, "a rejected row has all of them"
