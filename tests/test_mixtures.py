"""The recipes in mixtures/ load, and name categories that the registry has."""

from __future__ import annotations

from pathlib import Path

import pytest

from datakit import registry
from datakit.mixing.planned import quota_members
from datakit.pipeline import entry
from datakit.recipe import Recipe
from datakit.recipe_file import load_model

FOLDER = Path(__file__).parents[1] / "mixtures"
# The other files of the folder are settings of the trainer.
RECIPES = sorted(path.name for path in FOLDER.glob("*.yaml") if "\ncategories:" in path.read_text(encoding="utf-8"))
# The recipes that ask for public sources, and how many of their categories do so at least.
PUBLIC = {"pretraining.yaml": 20, "finetuning.yaml": 100, "multilingual.yaml": 30, "code.yaml": 10, "distillation.yaml": 30}


@pytest.fixture(autouse=True)
def folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("DATAKIT_DOCUMENTS", "DATAKIT_REAL_DATA"):
        monkeypatch.setenv(name, str(tmp_path))


def recipe(name: str) -> Recipe:
    return load_model(str(FOLDER / name), Recipe)


def test_the_recipes_that_are_promised_are_there() -> None:
    assert {*PUBLIC, "domain.yaml", "quickstart.yaml", "labelled-sets.yaml"} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_loads_and_the_registry_has_its_categories(name: str) -> None:
    entries = registry.load()
    for key, category in recipe(name).categories.items():
        assert category.define is not None or (category.registry or key) in entries, key


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_it_is_for(name: str) -> None:
    first, second, said, *_ = (FOLDER / name).read_text(encoding="utf-8").split("\n")
    assert first == "# yaml-language-server: $schema=mixture.schema.json"
    assert second == "#"
    assert said.startswith("# ")
    assert recipe(name).description


@pytest.mark.parametrize("name", PUBLIC)
def test_public_categories_have_public_sources(name: str) -> None:
    entries = registry.load()
    categories = recipe(name).categories
    public = [key for key, category in categories.items() if category.sources == "public"]
    assert all(entries[key].sources for key in public)
    # The largest sets stand there with their sources in full, so that a limit can be given.
    limited = [key for key, category in categories.items() if key not in public and entries[key].sources]
    for key in limited:
        assert [source.path for source in categories[key].sources] == [known.source.path for known in entries[key].sources], key
        assert all(source.limit for source in categories[key].sources), key
    assert len(public) + len(limited) >= PUBLIC[name]


def test_fine_tuning_has_every_category_with_a_public_source() -> None:
    known = {key for key, entry in registry.load().items() if entry.sources}
    assert set(recipe("finetuning.yaml").categories) == known


def test_domain_reads_documents_of_ones_own_only() -> None:
    for key, category in recipe("domain.yaml").categories.items():
        assert category.synthesis is not None, key
        assert all(source.type == "files" for source in category.sources), key


@pytest.mark.parametrize("name", RECIPES)
def test_quotas_name_kinds_that_the_recipe_has(name: str) -> None:
    loaded, known = recipe(name), registry.load()
    entries = {key: entry(key, category, known) for key, category in loaded.categories.items()}
    assert len(quota_members(loaded.mixture, entries)) == len(loaded.mixture.quotas)


def test_distillation_takes_categories_of_the_fine_tuning_stage_and_mines_as_kalm_does() -> None:
    loaded = recipe("distillation.yaml")
    assert set(loaded.categories) < set(recipe("finetuning.yaml").categories)
    assert loaded.negatives is not None
    assert loaded.negatives.per_query == 7
    assert all(miner.ranks == (50, 100) for miner in loaded.negatives.miners)
    assert 1_000_000 <= (loaded.mixture.total or 0) <= 5_000_000
    assert loaded.mixture.batch_groups == "category"
