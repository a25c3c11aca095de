"""The steps that mine, with those that they need: texts from outside, what a language model writes, vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from datakit.assets import Assets
from datakit.encoders.embed import embed_step
from datakit.negatives.adversarial import adversarial_step
from datakit.negatives.mine import mine_step
from datakit.negatives.outside import outside_step
from datakit.recipe import (
    AdversarialMiner,
    AnyEngine,
    Budget,
    DenseMiner,
    Encoder,
    Negatives,
    OtherClusterMiner,
    OutsideCorpus,
)
from datakit.registry import Category
from datakit.sources.read import documents_step
from datakit.step import Step
from datakit.synthesis.desk import asking


class Wanted(Protocol):
    """What a recipe says of encoders and engines."""

    @property
    def encoders(self) -> Mapping[str, Encoder]: ...
    @property
    def engines(self) -> Mapping[str, AnyEngine]: ...
    @property
    def budget(self) -> Budget: ...
    @property
    def seed(self) -> int: ...
    @property
    def shard_rows(self) -> int: ...


def mined(
    negatives: Negatives,
    wanted: Wanted,
    rows: Step,
    steps: list[Step],
    vectors: Callable[[str, Step], Step],
    assets: Assets,
    earlier: Sequence[Step],
    *,
    validation: float,
    mirror: str | None = None,
) -> Step:
    """Adds the steps that fill the negatives of `rows` to `steps`; returns the last one, the mine step.

    `vectors` gives the embed step of an encoder, by its name, for some rows. `earlier` are the steps that ask a language model
    before. `validation` is the share of texts from outside that is for validation.
    """
    outside = None
    if isinstance(negatives.corpus, OutsideCorpus):
        outside = _outside(negatives.corpus, wanted, steps, assets, mirror)
    writes = None
    for miner in negatives.miners:
        if isinstance(miner, AdversarialMiner):
            engine = wanted.engines[miner.engine]
            asks = asking(miner.engine, engine, wanted.budget, wanted.seed, earlier, assets)
            writes = adversarial_step(miner, asks, (rows,))
            steps.append(writes)
    seen: dict[str, list[Step]] = {}
    for miner in negatives.miners:
        if isinstance(miner, DenseMiner | OtherClusterMiner) and miner.encoder not in seen:
            seen[miner.encoder] = [vectors(miner.encoder, rows)]
            if outside is not None:
                encoder = wanted.encoders[miner.encoder]
                more = embed_step(f"embed-{miner.encoder}-corpus", encoder, (outside,), assets)
                steps.append(more)
                seen[miner.encoder].append(more)
    steps.append(mine_step(negatives, (rows,), seen, outside, writes, validation))
    return steps[-1]


def _outside(corpus: OutsideCorpus, wanted: Wanted, steps: list[Step], assets: Assets, mirror: str | None) -> Step:
    """The steps that read texts from outside; the last one brings them together."""
    nothing = Category(key="corpus", family="recipe", task="retrieval", description="Texts that negatives may be.")
    documents = []
    for number, source in enumerate(corpus.sources):
        name = f"corpus-{number}" if len(corpus.sources) > 1 else "corpus"
        step = documents_step(name, "corpus", nothing, source, None, wanted.shard_rows, assets, wanted.seed, mirror)
        documents.append(step)
        steps.append(step)
    steps.append(outside_step("corpus-texts", tuple(documents)))
    return steps[-1]
