"""Publishing: the same bytes every time, a whole version or none, and no row unaccounted for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import polars as pl
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from publishing import CATEGORIES, Settings, finished_steps, small_build, small_recipe
from publishing import entries as small_entries

from datakit import storage
from datakit.errors import BuildError, UserError
from datakit.negatives.relabel import Relabelling
from datakit.opened import Build, open_build
from datakit.publish.manifest import models
from datakit.publish.publish import check_output, publish
from datakit.recipe import Recipe
from datakit.step import Counts, Output, Step

SAMPLED = Settings(drawn=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("publish")


@pytest.fixture(scope="module")
def build(folder: Path) -> Build:
    return open_build(small_build(str(folder), SAMPLED).path)


def digests(path: str | Path) -> dict[str, str]:
    """Of all files of a build but run.json, the only one that tells of the run."""
    files = (file for file in Path(path).rglob("*") if file.is_file() and file.name != "run.json")
    return {str(file.relative_to(path)): storage.file_digest(str(file)) for file in sorted(files)}


def test_a_build_has_the_files_of_the_design(build: Build) -> None:
    assert sorted(name.split("/")[0] for name in os.listdir(build.path)) == [
        "README.md", "manifest.json", "not_sampled", "recipe.yaml", "rejected", "report.html", "run.json", "train", "validation",
    ]  # fmt: skip
    assert len(build.version) == 16
    assert os.path.basename(build.path) == build.version


def test_kept_rows_are_the_bytes_of_the_last_step(build: Build, folder: Path) -> None:
    final = finished_steps(str(folder), SAMPLED, CATEGORIES)[-1][1]
    for part in ("train", "validation"):
        published = [Path(file).read_bytes() for file in build.files(part)]
        assert published == [Path(shard).read_bytes() for shard in final.part(part)]
        assert published


def test_created_is_train_and_validation_and_rejected_and_not_sampled(build: Build) -> None:
    rows = {
        part: build.frame(part).select(pl.len()).collect().item() for part in ("train", "validation", "rejected", "not_sampled")
    }
    assert all(rows.values()), rows
    totals = build.manifest.totals
    assert rows == {"train": totals.train, "validation": totals.validation, "rejected": totals.rejected,
                    "not_sampled": totals.not_sampled}  # fmt: skip
    assert sum(rows.values()) == totals.created == sum(CATEGORIES.values())
    ids = pl.concat([build.frame(part).select("row_id") for part in rows]).collect()
    assert ids.n_unique() == ids.height == totals.created


def test_rejected_rows_are_whole_and_in_the_order_of_the_steps(build: Build) -> None:
    rejected = build.rejected.collect()
    steps = rejected.get_column("step").unique(maintain_order=True).to_list()
    assert steps == ["filter-0-length", "dedup-0-minhash"]
    assert rejected.get_column("query").null_count() == 0
    assert rejected.filter(reason="near_duplicate").get_column("other_id").null_count() == 0


def test_rejected_rows_are_regrouped_into_shards_and_none_is_lost(tmp_path: Path, build: Build) -> None:
    small = open_build(small_build(str(tmp_path), SAMPLED, shard_rows=10).path)
    assert len(small.files("rejected")) == -(-small.manifest.totals.rejected // 10) > 1
    assert [file.rows for name, file in small.manifest.files.items() if name.startswith("rejected/")][:-1] == [10] * (
        len(small.files("rejected")) - 1
    )
    assert small.rejected.collect().equals(build.rejected.collect())


def test_publishing_twice_changes_nothing_but_run_json(tmp_path: Path) -> None:
    first = small_build(str(tmp_path), SAMPLED)
    before = digests(first.path)
    run = Path(first.path, "run.json")
    run.write_text("{}")
    second = small_build(str(tmp_path), SAMPLED)
    assert not first.existed
    assert second.existed
    assert (second.path, second.version) == (first.path, first.version)
    assert digests(second.path) == before
    timing = json.loads(run.read_text())
    assert timing["workers"] == 1
    assert {step["cached"] for step in timing["steps"]} == {True}


def test_two_folders_and_two_caches_give_the_same_bytes(tmp_path: Path, build: Build) -> None:
    other = small_build(str(tmp_path), SAMPLED)
    assert digests(other.path) == digests(build.path)


def test_nothing_of_the_machine_or_the_moment_is_in_the_files(build: Build, folder: Path) -> None:
    for name in ("manifest.json", "README.md", "report.html", "recipe.yaml"):
        text = Path(build.path, name).read_text()
        assert str(folder) not in text, name
        assert str(Path.home()) + "/" not in text, name
        assert "seconds" not in text, name
    assert "2026-01-01" in Path(build.path, "run.json").read_text()


def test_no_secret_is_in_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_OF_A_TEST", "s3cr3t-value")
    engines = {
        "one": {"type": "openai", "model": "m", "api_key": "${KEY_OF_A_TEST}"},
        "two": {"type": "openai", "model": "m", "api_key": "l1teral-value"},
    }
    build = small_build(str(tmp_path), SAMPLED, engines=engines)
    for file in Path(build.path).rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert b"s3cr3t-value" not in data, file
            assert b"l1teral-value" not in data, file
    assert "${KEY_OF_A_TEST}" in Path(build.path, "recipe.yaml").read_text()


def test_the_recipe_that_is_published_is_a_recipe(build: Build) -> None:
    again = Recipe.model_validate(yaml.safe_load(Path(build.path, "recipe.yaml").read_text()))
    assert list(again.categories) == list(CATEGORIES)
    assert again.name == build.name


def test_a_changed_recipe_is_another_version_even_with_the_same_rows(tmp_path: Path, build: Build) -> None:
    other = small_build(str(tmp_path), SAMPLED, seed=99)
    assert other.version != build.version
    assert open_build(other.path).train.collect().equals(build.train.collect())


def test_latest_is_a_relative_link_to_the_newest(tmp_path: Path) -> None:
    first = small_build(str(tmp_path), SAMPLED)
    link = tmp_path / "datasets" / "small" / "latest"
    assert os.readlink(link) == first.version
    second = small_build(str(tmp_path), Settings(drawn=30))
    assert os.readlink(link) == second.version != first.version
    assert sorted(os.listdir(link.parent)) == sorted([first.version, second.version, "latest"])


def test_a_version_that_was_changed_is_refused_and_named(tmp_path: Path) -> None:
    build = small_build(str(tmp_path), SAMPLED)
    file = Path(build.path, "train", "train-00000.parquet")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(BuildError, match=r"train/train-00000\.parquet' was changed"):
        small_build(str(tmp_path), SAMPLED)
    file.unlink()
    with pytest.raises(BuildError, match=r"train/train-00000\.parquet' is missing"):
        small_build(str(tmp_path), SAMPLED)
    Path(build.path, "manifest.json").write_text("{")
    with pytest.raises(BuildError, match="no whole build"):
        small_build(str(tmp_path), SAMPLED)


def test_an_edited_card_is_left_alone(tmp_path: Path) -> None:
    build = small_build(str(tmp_path), SAMPLED)
    Path(build.path, "README.md").write_text("# Mine")
    assert small_build(str(tmp_path), SAMPLED).existed
    assert Path(build.path, "README.md").read_text() == "# Mine"


KILLED = """
import os, sys
sys.path.insert(0, sys.argv[1])
from publishing import Settings, small_build
left = [int(sys.argv[3])]
for name in ("replace", "rename"):
    def counted(*arguments, real=getattr(os, name), **options):
        if left[0] == 0:
            os.kill(os.getpid(), 9)
        left[0] -= 1
        return real(*arguments, **options)
    setattr(os, name, counted)
print(small_build(sys.argv[2], Settings(drawn=40)).version)
"""


@pytest.mark.parametrize("writes", [3, 13, 14])
def test_kill_between_writes_leaves_no_half_version(tmp_path: Path, build: Build, writes: int) -> None:
    """The 13 files are renamed into place first, then the version, then the link."""
    finished_steps(str(tmp_path), SAMPLED, CATEGORIES)  # in the cache, so that only publishing is left
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parents[1]), str(tmp_path), str(writes)]
    killed = subprocess.run(command, check=False, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    place = tmp_path / "datasets" / "small"
    for name in os.listdir(place):
        if not name.startswith("."):
            open_build(str(place / name)).verify()
    again = small_build(str(tmp_path), SAMPLED)
    assert digests(again.path) == digests(build.path)
    assert sorted(os.listdir(place)) == sorted([build.version, "latest"])


def test_an_output_that_is_a_file_is_the_persons_mistake(tmp_path: Path) -> None:
    (tmp_path / "datasets").write_text("")
    with pytest.raises(UserError, match="is a file"):
        small_build(str(tmp_path), SAMPLED)
    (tmp_path / "datasets").unlink()
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "small").write_text("")
    with pytest.raises(UserError, match="is a file"):
        small_build(str(tmp_path), SAMPLED)


def test_an_output_on_another_machine_is_refused() -> None:
    with pytest.raises(UserError, match="folder of this machine"):
        check_output(small_recipe("s3://bucket/datasets", CATEGORIES, SAMPLED))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_a_sentence_and_leaves_nothing_behind(tmp_path: Path) -> None:
    finished_steps(str(tmp_path), SAMPLED, CATEGORIES)
    small = tmp_path / "datasets"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=False, capture_output=True
    ).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        with pytest.raises(BuildError, match="The disk is full"):
            small_build(str(tmp_path), SAMPLED)
        assert os.listdir(small / "small") == []
        subprocess.run(["mount", "-o", "remount,size=20M", str(small)], check=True)
        small_build(str(tmp_path), SAMPLED)
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_build_without_a_row_says_which_step_rejected_most(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="'filter-0-length' rejected most of them: 175, 175 of these as query_too_short"):
        small_build(str(tmp_path), Settings(min_words=500))
    assert not (tmp_path / "datasets").exists()


def test_rows_that_appear_or_disappear_stop_the_build(tmp_path: Path) -> None:
    recipe = small_recipe(str(tmp_path / "datasets"), CATEGORIES, SAMPLED)
    done = finished_steps(str(tmp_path), SAMPLED, CATEGORIES)

    def published(outputs: list) -> None:  # type: ignore[type-arg]
        publish(recipe, outputs, outputs[-1][1], small_entries(CATEGORIES), {})

    with pytest.raises(BuildError, match="takes rows of 'filter-0-length', which is no step before it"):
        published([item for item in done if item[0].name != "filter-0-length"])
    with pytest.raises(BuildError, match="go to 0 steps"):
        published(done[:-2] + done[-1:] + done[-2:-1])
    step, output, seconds, cached = done[-1]
    for counts in ({"rows_in": 1}, {"created": 3}, {"not_sampled": 0}):
        report = output.report.model_copy(update={"counts": output.report.counts.model_copy(update=counts)})
        with pytest.raises(BuildError, match=r"does not balance|took in"):
            published([*done[:-1], (step, replace(output, report=report), seconds, cached)])
    # A report that balances in itself, and not with its files.
    name, found = next(iter(output.report.categories.items()))
    moved = found.model_copy(update={"out": found.out - 1, "not_sampled": found.not_sampled + 1})
    whole = output.report.counts.model_copy(
        update={"out": output.report.counts.out - 1, "not_sampled": output.report.counts.not_sampled + 1}
    )
    report = output.report.model_copy(update={"counts": whole, "categories": {**output.report.categories, name: moved}})
    with pytest.raises(BuildError, match="the last step counted"):
        published([*done[:-1], (step, Output(output.folder, report), seconds, cached)])
    assert not any((tmp_path / "datasets").rglob("manifest.json"))


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    shortest=st.integers(0, 14),
    drawn=st.integers(1, 30),
    every=st.integers(0, 4),
)
def test_any_build_accounts_for_every_row(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], shortest: int, drawn: int, every: int
) -> None:
    folder = tmp_path_factory.mktemp("any")
    categories = {f"kind-{number}": size for number, size in enumerate(sizes)}
    chosen = Settings(min_words=shortest, drawn=drawn, validation_every=every)
    try:
        build = open_build(small_build(str(folder), chosen, categories).path)
    except BuildError as error:
        assert "No row was left to train on" in str(error)  # noqa: PT017 - either is a right outcome
        return
    for name, entry in build.manifest.categories.items():
        found = {part: build.frame(part).filter(category=name).collect().height for part in ("train", "validation")}
        rejected = build.rejected.filter(category=name).collect().get_column("reason").value_counts()
        assert entry.created == categories[name]
        assert found == {"train": entry.train, "validation": entry.validation}
        assert dict(rejected.iter_rows()) == entry.rejected
        assert build.not_sampled.filter(category=name).collect().height == entry.not_sampled
        assert entry.balanced()


def test_datasets_opens_a_build_and_its_rejected_rows(tmp_path: Path, build: Build) -> None:
    loaded = datasets.load_dataset(build.path, cache_dir=str(tmp_path))
    assert {part: len(rows) for part, rows in loaded.items()} == {
        "train": build.manifest.totals.train,
        "validation": build.manifest.totals.validation,
    }
    assert loaded["train"]["row_id"][:] == build.train.collect().get_column("row_id").to_list()
    rejected = datasets.load_dataset(build.path, "rejected", cache_dir=str(tmp_path))["rejected"]
    assert len(rejected) == build.manifest.totals.rejected
    assert set(rejected["reason"][:]) == {"near_duplicate", "query_too_short"}


def test_a_build_without_validation_or_rejected_rows_opens_too(tmp_path: Path) -> None:
    build = small_build(str(tmp_path), Settings(min_words=0, duplicates=False, validation_every=0))
    assert set(datasets.load_dataset(build.path, cache_dir=str(tmp_path / "hf"))) == {"train"}
    assert datasets.get_dataset_config_names(build.path) == ["default"]
    assert not Path(build.path, "validation").exists()
    opened = open_build(build.path)
    assert opened.validation.collect().height == opened.rejected.collect().height == opened.not_sampled.collect().height == 0
    assert opened.validation.collect_schema() == opened.train.collect_schema()
    assert pl.scan_parquet(f"{build.path}/rejected/*.parquet").collect_schema().names()[-1] == "detail"


def test_polars_scans_a_build_as_it_is(build: Build) -> None:
    frame = pl.scan_parquet(f"{build.path}/train/*.parquet")
    assert frame.collect().equals(build.train.collect())


def test_the_manifest_names_a_cross_encoder_that_relabels(tmp_path: Path) -> None:
    screen = {"encoder": "small", "relabel": {"type": "cross_encoder", "model": "package:reader", "revision": "r1"}}
    recipe = small_recipe(str(tmp_path), CATEGORIES, Settings(), negatives={"miners": [{"type": "bm25"}], "screen": screen})
    assert recipe.negatives is not None
    assert recipe.negatives.screen is not None
    parameters = Relabelling(screen=recipe.negatives.screen, per_query=8)
    relabel = Step("relabel", 1, lambda work: None, parameters, assets={"cross-encoder": "d1"})
    found = models(recipe, [relabel])["negatives.screen.relabel.model"]
    assert (found.model, found.revision, found.digest) == ("package:reader", "r1", "d1")


def test_the_manifest_says_what_the_build_is_made_of(build: Build) -> None:
    manifest = json.loads(Path(build.path, "manifest.json").read_text())
    assert manifest["schema"] == 1
    assert manifest["version"] == build.version
    assert manifest["spent"] == {
        "requests": 175, "prompt_tokens": 17500, "completion_tokens": 1750, "money": {"USD": 0.03},
    }  # fmt: skip
    assert manifest["models"]["encoders.small"]["model"] == "package:smol"
    assert len(manifest["models"]["encoders.small"]["digest"]) == 32
    assert {"python", "pyarrow"} <= set(manifest["packages"])
    assert manifest["categories"]["bakery"]["sources"] == [{"name": "bakery.jsonl", "licence": "CC-BY-4.0"}]
    assert manifest["categories"]["bakery"]["languages"] == ["en"]
    assert [step["name"] for step in manifest["steps"]][-2:] == ["split", "mix"]
    for name, file in manifest["files"].items():
        assert storage.file_digest(os.path.join(build.path, name)) == file["digest"]
    assert Counts(**manifest["steps"][-1]["counts"]).balanced()
