"""A build as a whole: the same bytes whatever happens on the way, nothing lost, nothing done twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import datasets
import polars as pl
import pytest

import datakit
from datakit import storage
from datakit.executor.local import LocalExecutor
from datakit.filter_file import FilterFile, Rows, filter_file
from datakit.pipeline import build, plan
from datakit.progress import Quiet
from datakit.recipe import Recipe
from datakit.recipe_file import load_model
from datakit.step import Report

RECIPE = """\
name: small
seed: 3
output: {root}/datasets
cache: {root}/cache
shard_rows: 200
categories:
  people:
    define: {{task: retrieval}}
    language: en
    sources:
      - {{type: files, path: "{data}/people-*.jsonl", columns: {{query: q, positive: p, document_id: d}}, max_bad_fraction: 0.5}}
  intents:
    registry: intent
    language: en
    sources:
      - {{type: files, path: "{data}/intents.csv", columns: {{query: text, positive: label, label: label}}}}
filters:
  - {{type: length, query: [{shortest}, 64], document: [5, 512]}}
  - {{type: quality}}
dedup:
  - {{type: exact, on: pair}}
  - {{type: minhash, on: positive, threshold: 0.8}}
split: {{validation: 0.2}}
negatives:
  miners: [{{type: bm25, depth: 20}}]
  per_query: 4
mixture: {{temperature: 2.0, total: 300}}
"""

QUIET_ONLY = """\
from datakit.filters.user import polars_filter

@polars_filter
def quiet(rows):
    return rows["query"].str.to_lowercase() == rows["query"]
"""

NAMES = ["Ada", "Grace", "Alan", "Edsger", "Barbara", "Donald", "Frances", "Ken", "Radia", "Tony"]
PLACES = ["London", "Paris", "Vienna", "Oslo", "Lisbon", "Kyoto", "Quito", "Cairo", "Delhi", "Lima"]
THINGS = ["compilers", "networks", "proofs", "kernels", "graphs", "circuits", "parsers", "queues", "tables", "clocks"]


def write_data(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(5)
    for number in range(3):
        lines = []
        for i in range(240):
            name, place, thing = draw.choice(NAMES), draw.choice(PLACES), draw.choice(THINGS)
            key = f"{name} {number}-{i // 2}"
            text = f"{key} of {place} wrote about {thing} and taught {draw.choice(THINGS)} to students from {draw.choice(PLACES)}"
            lines.append(json.dumps({"q": f"what did {key} write about in {place}", "p": text, "d": key}))
        lines += [
            lines[0],
            lines[1],
            '{"q": "broken',
            json.dumps({"q": "", "p": "no question"}),
            json.dumps({"q": "too", "p": "short"}),
        ]
        (folder / f"people-{number}.jsonl").write_text("\n".join(lines) + "\n")
    intents = [
        f"please {verb} the {thing} in {place},{verb}"
        for verb in ("play", "stop", "find")
        for thing in THINGS
        for place in PLACES
    ]
    (folder / "intents.csv").write_text("text,label\n" + "\n".join(intents) + "\n")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def recipe_file(root: Path, data: Path, shortest: int = 3) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    file = root / "mixture.yaml"
    # A relative path, so that recipes in different folders are the same recipe.
    link = root / "data"
    if not link.exists():
        link.symlink_to(data)
    file.write_text(RECIPE.format(root=root, data="${SMALL_DATA}", shortest=shortest))
    return file


@pytest.fixture(autouse=True)
def small_data(monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    monkeypatch.setenv("SMALL_DATA", str(data))


def published(path: str | Path) -> dict[str, str]:
    folder = Path(path)
    return {
        str(file.relative_to(folder)): storage.file_digest(str(file))
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "run.json"
    }


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "datakit.cli", *arguments]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """An undisturbed build, with one worker."""
    root = tmp_path_factory.mktemp("whole")
    os.environ["SMALL_DATA"] = str(data)
    recipe = load_model(str(recipe_file(root, data)), Recipe)
    return Path(build(recipe, LocalExecutor(1), Quiet()).path)


def test_the_number_of_workers_does_not_change_a_byte(tmp_path: Path, data: Path, whole: Path) -> None:
    executor = LocalExecutor(2)
    try:
        other = build(load_model(str(recipe_file(tmp_path, data)), Recipe), executor, Quiet())
    finally:
        executor.close()
    assert published(other.path) == published(whole)
    assert Path(other.path).name == whole.name


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[str]:
    """The address of a Ray cluster of two nodes with one processor each."""
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster.address
    cluster.shutdown()


def test_two_nodes_of_a_ray_cluster_give_the_same_bytes(tmp_path: Path, data: Path, whole: Path, two_nodes: str) -> None:
    file = recipe_file(tmp_path, data)
    done = subprocess.run(
        command("build", str(file), "--executor", "ray", "--address", two_nodes), check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert published((tmp_path / "datasets" / "small" / "latest").resolve()) == published(whole)


def test_a_filter_of_the_users_own_runs_on_ray(tmp_path: Path, two_nodes: str) -> None:
    from datakit.executor.ray import RayExecutor

    (tmp_path / "mine.py").write_text(QUIET_ONLY)
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"query": each, "positive": "x"}) + "\n" for each in ("WHY", "why", "HOW"))
    )
    wanted = FilterFile.model_validate({"filters": [{"type": "user", "function": f"{tmp_path}/mine.py:quiet"}]})
    executor = RayExecutor(1, two_nodes)
    try:
        rows = Rows(files=[str(tmp_path / "rows.jsonl")])
        filtered = filter_file(rows, wanted, str(tmp_path / "out"), str(tmp_path / "cache"), executor, Quiet())
    finally:
        executor.close()
    assert (filtered.rows_in, filtered.kept) == (3, 1)
    assert pl.read_parquet(tmp_path / "out/rejected.parquet")["reason"].to_list() == ["quiet", "quiet"]


def test_kill_at_any_moment_and_restart_gives_the_same_bytes(tmp_path: Path, data: Path, whole: Path) -> None:
    file = recipe_file(tmp_path, data)
    draw = random.Random(int(os.environ.get("DATAKIT_KILL_SEED", "11")))
    started = time.monotonic()
    killed = 0
    for _ in range(3):
        process = subprocess.Popen(
            command("build", str(file), "--workers", "2"), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        try:
            process.wait(timeout=draw.uniform(1.0, 4.0))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
    done = subprocess.run(command("build", str(file), "--workers", "2"), check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert killed >= 1, f"no build lived long enough to be killed ({time.monotonic() - started:.1f} s)"
    latest = (tmp_path / "datasets" / "small" / "latest").resolve()
    assert published(latest) == published(whole)
    left = [path.name for path in latest.parent.iterdir()]
    assert sorted(left) == sorted([latest.name, "latest"]), "a killed build left something half-written beside the builds"


class Noted(Quiet):
    def __init__(self) -> None:
        self.ran: list[str] = []
        self.cached: list[str] = []

    def end(self, report: Report, seconds: float, cached: bool) -> None:
        (self.cached if cached else self.ran).append(report.name)


def test_a_changed_threshold_reruns_its_filter_and_what_follows_and_nothing_before(tmp_path: Path, data: Path) -> None:
    first, second, again = Noted(), Noted(), Noted()
    build(load_model(str(recipe_file(tmp_path, data)), Recipe), LocalExecutor(1), first)
    assert first.cached == []
    build(load_model(str(recipe_file(tmp_path, data, shortest=4)), Recipe), LocalExecutor(1), second)
    at = first.ran.index("filter-length")
    assert second.cached == first.ran[:at]
    assert second.ran == first.ran[at:]
    build(load_model(str(recipe_file(tmp_path, data)), Recipe), LocalExecutor(1), again)
    assert again.ran == []


def test_no_row_is_lost_over_the_whole_build(whole: Path) -> None:
    manifest = json.loads((whole / "manifest.json").read_text())
    created = sum(step["counts"]["created"] for step in manifest["steps"])
    rejected = sum(sum(step["counts"]["rejected"].values()) for step in manifest["steps"])
    opened = datakit.open(str(whole))
    kept = opened.train.select(pl.len()).collect().item() + opened.validation.select(pl.len()).collect().item()
    assert opened.rejected.select(pl.len()).collect().item() == rejected > 0
    not_sampled = opened.not_sampled.select(pl.len()).collect().item()
    assert not_sampled > 0
    assert created == kept + rejected + not_sampled
    assert created == 3 * 245 + 300


def test_nothing_stands_on_both_sides_of_the_split(whole: Path) -> None:
    opened = datakit.open(str(whole))
    retrieval = [frame.filter(pl.col("category") == "people").collect() for frame in (opened.train, opened.validation)]
    assert all(len(frame) for frame in retrieval)
    for column in ("document_id", "query_id", "positive_id"):
        assert not set(retrieval[0][column]) & set(retrieval[1][column]), column


def test_negatives_come_from_the_same_side_of_the_split_and_are_no_positives_of_the_query(whole: Path) -> None:
    opened = datakit.open(str(whole))
    for frame in (opened.train.collect(), opened.validation.collect()):
        positives = frame.group_by("query_id").agg(pl.col("positive_id").unique())
        known = dict(zip(positives["query_id"], positives["positive_id"], strict=True))
        for category, rows in frame.group_by("category"):
            if category == ("people",):
                continue
            assert rows["negatives"].list.len().min() > 0  # type: ignore[operator]
        for row in frame.iter_rows(named=True):
            assert not {negative["id"] for negative in row["negatives"]} & set(known[row["query_id"]])


def test_datasets_and_polars_open_a_build_as_it_is(whole: Path) -> None:
    loaded = datasets.load_dataset(str(whole))
    assert set(loaded) == {"train", "validation"}
    assert loaded["train"].num_rows == pl.scan_parquet(whole / "train" / "*.parquet").select(pl.len()).collect().item() == 300
    assert datasets.load_dataset(str(whole), "rejected")["train" if False else "rejected"].num_rows > 0


def test_every_dropped_row_can_say_why(whole: Path) -> None:
    opened = datakit.open(str(whole))
    for reason in ("invalid_json", "empty_field", "query_too_short", "exact_duplicate"):
        row = opened.rejected.filter(pl.col("reason") == reason).head(1).collect().to_dicts()
        assert row, reason
        assert reason in str(opened.explain(row[0]["row_id"]))


def test_a_plan_runs_nothing(tmp_path: Path, data: Path) -> None:
    planned = plan(load_model(str(recipe_file(tmp_path, data)), Recipe))
    assert [step.name for step in planned.steps][:3] == ["read-people", "read-intents", "normalise"]
    assert not (tmp_path / "cache" / "steps").exists()
    assert len({step.key for step in planned.steps}) == len({step.name for step in planned.steps}) == len(planned.steps)
