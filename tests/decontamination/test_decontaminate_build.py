"""A whole build with evaluation sets: checked after dedup, and again after mining; told of in manifest, card and report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import datakit
from datakit.errors import DatakitError
from datakit.executor.local import LocalExecutor
from datakit.pipeline import build, plan
from datakit.progress import Quiet
from datakit.recipe import Recipe

EVALUATION = [f"which planet has exactly {number} moons around it" for number in range(40)]


def recipe(folder: Path, **more: Any) -> Recipe:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {"q": f"where does the number {n} river rise", "p": f"The river of number {n} rises in the hills of region {n % 7}."}
        for n in range(120)
    ]
    lines += [{"q": EVALUATION[n].upper(), "p": f"Planet {n}."} for n in range(10)]
    lines += [{"q": f"an odd question {n}", "p": f"They ask {EVALUATION[n]}, and nobody knows."} for n in range(10, 15)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "held-out.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in EVALUATION))
    return Recipe.model_validate(
        {
            "name": "checked",
            "output": str(folder / "datasets"),
            "cache": str(folder / "cache"),
            "categories": {
                "facts": {
                    "define": {"task": "retrieval"},
                    "sources": [
                        {"type": "files", "path": str(folder / "rows.jsonl"), "columns": {"query": "q", "positive": "p"}}
                    ],
                }
            },
            "decontamination": {"sets": [{"type": "files", "path": str(folder / "held-out.jsonl"), "columns": ["text"]}]},
            "negatives": {"miners": [{"type": "bm25", "depth": 10}], "per_query": 3},
        }
        | more
    )


def test_a_build_is_checked_twice_and_says_so(tmp_path: Path) -> None:
    wanted = recipe(tmp_path)
    names = [step.name for step in plan(wanted).steps]
    assert names.index("normalise") < names.index("decontaminate") < names.index("split")
    assert names.index("decontaminate-negatives") == names.index("mix") - 1
    executor = LocalExecutor(1)
    try:
        build(wanted, executor, Quiet())
    finally:
        executor.close()
    found = datakit.open(str(tmp_path / "datasets/checked/latest"))
    rejected = found.rejected.collect()
    assert rejected.group_by("reason").len().sort("reason").rows() == [("contaminated_exact", 10), ("contaminated_ngram", 5)]
    assert set(rejected.get_column("other_id")) == {f"held-out.jsonl:{number + 1}" for number in range(15)}
    texts = json.dumps([*found.train.collect().to_dicts(), *found.validation.collect().to_dicts()])
    assert not any(text in texts.lower() for text in EVALUATION)
    told = {step.name: step.notes for step in found.manifest.steps}
    assert told["decontaminate"]["sets"]["held-out.jsonl"]["texts_met"] == 15
    assert told["decontaminate-negatives"]["rows_hit"] == 0
    assert all(told[name]["sets"]["held-out.jsonl"]["canaries"]["rows_caught"] == 96 for name in told if name.startswith("decon"))
    card, report = (Path(found.path, name).read_text() for name in ("README.md", "report.html"))
    assert "| held-out.jsonl | 40 | 15 | 10 | 5 | 0 | 0 | 96 of 96 |" in card
    assert "held-out.jsonl (after mining)" in card
    assert 'id="evaluation-sets"' in report
    assert "held-out.jsonl (after mining)" in report
    assert "contaminated_ngram" in str(
        found.explain(rejected.filter(rejected["reason"] == "contaminated_ngram").get_column("row_id")[0])
    )


def test_without_evaluation_sets_nothing_is_checked_or_told(tmp_path: Path) -> None:
    names = [step.name for step in plan(recipe(tmp_path, decontamination=None)).steps]
    assert not [name for name in names if name.startswith("decontaminate")]


def test_an_encoder_that_the_recipe_does_not_have_is_refused(tmp_path: Path) -> None:
    sets = [{"type": "files", "path": str(tmp_path / "held-out.jsonl"), "columns": ["text"]}]
    with pytest.raises((ValueError, DatakitError), match=r"decontamination\.semantic\.encoder is 'minilm'"):
        recipe(tmp_path, decontamination={"sets": sets, "semantic": {"encoder": "minilm"}})
