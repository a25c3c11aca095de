"""Recipe -> ordered steps -> a published build."""

from __future__ import annotations

import datetime
import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from datakit import storage
from datakit.assets import Assets
from datakit.cleaning import Vectors, clean, screened, those_asking
from datakit.decontamination.decontaminate import decontaminate_step
from datakit.errors import UserError
from datakit.executor import Executor
from datakit.mixing.mix import mix_step
from datakit.mixing.planned import quota_members
from datakit.negatives.mining import mined
from datakit.normalise import normalise_step
from datakit.progress import BuildWatcher
from datakit.publish.publish import PublishedBuild, check_output, publish
from datakit.recipe import CategoryRecipe, ClusterSelect, Recipe, Synthesis
from datakit.registry import Category
from datakit.registry import load as load_registry
from datakit.schema import Evaluation
from datakit.sources.labelled import has_exemplars
from datakit.sources.origins import check_origins, origin
from datakit.sources.public import filled_in, listed
from datakit.sources.read import documents_step, read_step
from datakit.split import split_step
from datakit.step import Output, Step, run
from datakit.synthesis.engines.loaded import let_go
from datakit.synthesis.synthesise import synthesise_step


@dataclass(frozen=True)
class Plan:
    """What a recipe comes to: its steps in order (the last one gives the rows to publish), and what its categories are.

    The recipe is the one that was given, with the sources that the registry knows in the place of `public`.
    """

    recipe: Recipe
    steps: list[Step]
    entries: dict[str, Category]


def plan(recipe: Recipe, feedback: Evaluation | None = None) -> Plan:
    """The steps of a recipe. Reads models and data files only to digest them; runs nothing.

    `feedback` is an evaluation of a model, which moves the weights of the mixture.
    """
    check_output(recipe)
    assets = Assets(recipe.cache)
    registry = load_registry(recipe.registries)
    entries = {name: entry(name, category, registry) for name, category in recipe.categories.items()}
    recipe, declared = filled_in(recipe, entries)
    steps: list[Step] = []

    def add(step: Step) -> Step:
        steps.append(step)
        return step

    for name in recipe.categories:
        steps += _rows_of(recipe, name, entries[name], assets, tuple(steps), declared.get(name, ""))
    rows = add(normalise_step(tuple(steps)))
    vectors = Vectors(recipe.encoders, steps, assets)
    rows = clean(recipe, rows, steps, vectors, assets)
    rows = _decontaminated(recipe, "decontaminate", rows, steps, vectors, assets)
    sources = [(name, source) for name, category in recipe.categories.items() for source in listed(category)]
    exemplars = [(name, origin(source)) for name, source in sources if has_exemplars(source)]
    rows = add(split_step(recipe.split, recipe.seed, (rows,), exemplars))
    if recipe.negatives is not None:
        held = recipe.split.validation
        rows = mined(
            recipe.negatives, recipe, rows, steps, vectors.of, assets, those_asking(steps), validation=held, mirror=recipe.mirror
        )
        rows = screened(recipe.negatives, recipe, rows, steps, vectors.of, assets)
        rows = _decontaminated(recipe, "decontaminate-negatives", rows, steps, vectors, assets)
    members = quota_members(recipe.mixture, entries)
    add(mix_step(recipe.mixture, recipe.seed, recipe.shard_rows, (rows,), members, feedback))
    assets.save()
    return Plan(recipe, steps, entries)


def _decontaminated(recipe: Recipe, name: str, rows: Step, steps: list[Step], vectors: Vectors, assets: Assets) -> Step:
    """Adds a step that checks the rows against the evaluation sets, if the recipe names any; again where negatives were mined."""
    wanted, encoder, seen = recipe.decontamination, None, None
    if wanted is None:
        return rows
    if wanted.semantic is not None:
        encoder, seen = recipe.encoders[wanted.semantic.encoder], vectors.of(wanted.semantic.encoder, rows)
    mined = name != "decontaminate"
    found = decontaminate_step(name, wanted, (rows,), assets, mirror=recipe.mirror, encoder=encoder, vectors=seen, mined=mined)
    steps.append(found)
    return found


def _rows_of(recipe: Recipe, name: str, entry: Category, assets: Assets, before: Sequence[Step], declared_by: str) -> list[Step]:
    """The steps that make the rows of one category, before they come together. `before` are those of the categories before it."""
    category = recipe.categories[name]
    sources = listed(category)
    check_origins(name, sources)
    steps: list[Step] = []
    if category.synthesis is not None and not sources:
        # Nothing is read: tasks are thought of first.
        return [_synthesised(recipe, name, name, entry, category.synthesis, None, assets, before)]
    for number, source in enumerate(sources):
        label = f"{name}-{number}" if len(sources) > 1 else name
        given = (name, entry, source, category.language, recipe.shard_rows, assets, recipe.seed, recipe.mirror, declared_by)
        if category.synthesis is None:
            steps.append(read_step(f"read-{label}", *given, split=recipe.split))
            continue
        documents = documents_step(f"documents-{label}", *given)
        steps.append(documents)
        steps.append(_synthesised(recipe, label, name, entry, category.synthesis, documents, assets, (*before, *steps)))
    return steps


def _synthesised(
    recipe: Recipe,
    label: str,
    name: str,
    entry: Category,
    synthesis: Synthesis,
    documents: Step | None,
    assets: Assets,
    before: Sequence[Step],
) -> Step:
    return synthesise_step(
        f"synthesise-{label}",
        name,
        entry,
        synthesis,
        recipe.engines[synthesis.engine],
        synthesis.engine,
        recipe.budget,
        recipe.seed,
        documents,
        assets,
        recipe.shard_rows,
        those_asking(before),
        recipe.categories[name].language,
        recipe.encoders[synthesis.select.encoder] if isinstance(synthesis.select, ClusterSelect) else None,
    )


def entry(name: str, category: CategoryRecipe, registry: Mapping[str, Category]) -> Category:
    """What a category is: as the recipe defines it, else as the registry does."""
    if category.define is not None:
        return Category(key=name, family="recipe", description="", **category.define.model_dump())
    key = category.registry or name
    if key not in registry:
        near = difflib.get_close_matches(key, registry, n=3)
        guess = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UserError(
            f"The category '{name}' is not in the registry under '{key}'.{guess} Give it 'define: {{task: ...}}', or 'registry:' "
            "with a key that `datakit categories` lists."
        )
    return registry[key]


def build(recipe: Recipe, executor: Executor, watcher: BuildWatcher, feedback: Evaluation | None = None) -> PublishedBuild:
    """Runs the steps of a recipe that are not in the cache, in order, and publishes what came of them.

    A build that is stopped at any moment goes on from there when it is called again, and gives the same bytes.
    """
    started = datetime.datetime.now(datetime.UTC)
    planned = plan(recipe, feedback)
    done: list[tuple[Step, Output, float, bool]] = []
    for number, step in enumerate(planned.steps, start=1):
        watcher.begin(step.name, number, len(planned.steps))
        if step.inputs and not those_asking((step,)):
            # Steps that read stand between those that write. After them the room is for other models.
            let_go()
        output, seconds, cached = run(step, recipe.cache, executor, watcher)
        watcher.end(output.report, seconds, cached)
        done.append((step, output, seconds, cached))
    facts = {
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "executor": type(executor).__name__,
        "workers": executor.workers,
        "processors": os.cpu_count(),
        "python": sys.version.split()[0],
        "engines": {step.name: engine_facts(output) for step, output, _, _ in done if engine_facts(output)},
    }
    return publish(planned.recipe, done, done[-1][1], planned.entries, facts)


def engine_facts(output: Output) -> dict[str, object]:
    """What a step noted of its last run that is not part of its result: failed attempts, answers from the cache."""
    path = storage.join(output.folder, "run.json")
    facts: dict[str, object] = storage.read_json(path) if storage.exists(path) else {}
    return facts
