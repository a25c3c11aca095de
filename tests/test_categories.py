"""The registry at the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from datakit.categories import chosen, details, find, recipe_text
from datakit.errors import UserError
from datakit.recipe import Recipe
from datakit.recipe_file import load_model
from datakit.registry import load

STARTER = (Path(__file__).parent.parent / "datakit" / "starter.yaml").read_text()


def test_the_registry_has_the_breadth_that_the_readme_names() -> None:
    entries = load()
    assert len(entries) >= 120
    assert sum(1 for entry in entries.values() if entry.sources) >= 60


def test_filters_choose_what_they_say_and_no_filter_chooses_all() -> None:
    entries = load()
    assert {entry.key for entry in chosen(entries)} == set(entries)
    german = chosen(entries, language="de", public=True)
    assert german
    assert all("de" in entry.languages and entry.sources for entry in german)
    families = {entry.family for entry in chosen(entries, task="code_search")}
    assert families == {entry.family for entry in entries.values() if entry.task == "code_search"}
    assert [entry.key for entry in chosen(entries, search="DISFLUENCIES spoken")] == ["disfluent-questions"]


@pytest.mark.parametrize("given", [{"family": "medica"}, {"task": "search"}, {"language": "xx"}])
def test_a_filter_that_nothing_can_fit_names_what_there_is(given: dict[str, str]) -> None:
    name, value = next(iter(given.items()))
    with pytest.raises(UserError, match=f"No category has the {name} '{value}'. There are: "):
        chosen(load(), **given)  # type: ignore[arg-type]


def test_a_key_that_is_wrong_names_the_near_one() -> None:
    with pytest.raises(UserError, match=r"no category 'medicl-qa'\. Did you mean 'medical-qa'"):
        find(load(), "medicl-qa")


def test_a_category_is_shown_with_where_its_facts_were_read() -> None:
    entry = next(entry for entry in load().values() if entry.sources)
    shown = yaml.safe_load(details(entry).plain)
    assert shown["key"] == entry.key
    assert shown["sources"][0]["checked"] == entry.sources[0].checked
    assert shown["sources"][0]["source"]["path"] == entry.sources[0].source.path  # type: ignore[union-attr]


def test_a_key_that_is_named_twice_counts_once_and_no_key_is_refused() -> None:
    entries = load()
    once = recipe_text(STARTER, entries, ["natural-questions"])
    assert recipe_text(STARTER, entries, ["natural-questions", "natural-questions"]) == once
    with pytest.raises(UserError, match="No category is named"):
        recipe_text(STARTER, entries, [])


def test_a_recipe_of_any_categories_is_a_valid_recipe(tmp_path: Path) -> None:
    entries = load()
    path = tmp_path / "mixture.yaml"
    path.write_text(recipe_text(STARTER, entries, list(entries)))
    recipe = load_model(str(path), Recipe)
    assert set(recipe.categories) == set(entries)
    for key, category in recipe.categories.items():
        assert (category.sources == "public") == bool(entries[key].sources)
        assert (category.synthesis is None) == bool(entries[key].sources)
