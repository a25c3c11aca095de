"""Public sources: what the registry knows of where a category's data are, in the place of `sources: public`."""

from __future__ import annotations

from collections.abc import Mapping

from datakit.errors import UserError
from datakit.recipe import AnySource, BeirSource, CategoryRecipe, HuggingFaceSource, Recipe
from datakit.registry import Category


def filled_in(recipe: Recipe, entries: Mapping[str, Category]) -> tuple[Recipe, dict[str, str]]:
    """The recipe with its sources in it, so that it needs no registry, and by category the entry that named them.

    Rows get the language of an entry that has one. Raises a UserError for an entry without sources.
    """
    categories, declared = dict(recipe.categories), dict[str, str]()
    for name, category in recipe.categories.items():
        if category.sources == "public":
            entry = entries[name]
            language = category.language or (entry.languages[0] if len(entry.languages) == 1 else None)
            update = {"sources": public_sources(name, category, entry), "language": language}
            categories[name] = category.model_copy(update=update)
            declared[name] = entry.key
    return recipe.model_copy(update={"categories": categories}), declared


def public_sources(name: str, category: CategoryRecipe, entry: Category) -> list[AnySource]:
    """The sources of an entry. Raises a UserError where it has none, or one that is not of the Hub."""
    what_to_do = "Give the category 'sources' of its own, or sources of documents and 'synthesis'."
    if category.define is not None:
        raise UserError(f"The category '{name}' is defined in the recipe, which names no public sources for it. {what_to_do}")
    if not entry.sources:
        why = f" ({entry.note.rstrip('.')})" if entry.note else ""
        raise UserError(
            f"The category '{name}' asks for public sources, and the registry entry '{entry.key}' has none{why}. {what_to_do}"
        )
    sources = [public.source for public in entry.sources]
    for source in sources:
        if not isinstance(source, HuggingFaceSource | BeirSource):
            raise UserError(
                f"The registry entry '{entry.key}' names a source of the type '{source.type}'. Allowed: huggingface, beir."
            )
    return sources


def listed(category: CategoryRecipe) -> list[AnySource]:
    """The sources of a category of a recipe that is filled in."""
    assert not isinstance(category.sources, str), "public sources are filled in before anything is built"
    return category.sources
