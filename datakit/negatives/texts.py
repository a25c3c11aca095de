"""The embed step of candidates: vectors of the texts that stand among negatives, and that no embed step before it has seen.

Those are texts that the data had, that a model wrote, or that came from a corpus from outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from datakit import exchange, storage
from datakit.assets import Assets
from datakit.encoders import encode
from datakit.encoders.embed import SLICE, EmbedParameters, embed
from datakit.encoders.vectors import holds
from datakit.negatives.corpus import Corpora, corpora_of
from datakit.negatives.labels import OTHER_LABEL
from datakit.negatives.lists import exploded
from datakit.recipe import Encoder
from datakit.step import Output, Step, Work, part_of

VERSION = 1


def embed_candidates_step(name: str, encoder: Encoder, mined: Step, vectors: Step, assets: Assets) -> Step:
    """Embeds the candidates of `mined` that `vectors`, an embed step of the same encoder, has not seen as documents."""
    return Step(
        name=name,
        version=VERSION,
        work=work,
        parameters=EmbedParameters(encoder=encoder, slice=SLICE),
        side=(mined, vectors),
        assets={"encoder": assets.digest(encoder.model, encoder.revision)},
        packages=encode.PACKAGES,
    )


def work(work: Work) -> None:
    parameters: EmbedParameters = work.step.parameters  # type: ignore[assignment]
    mined, vectors = work.side
    corpora = corpora_of(mined.folder)
    units = [(shard, block) for shard in mined.shards for block in range(exchange.row_groups(shard))]
    work.map("texts", _Unseen(corpora, vectors), units)
    files = [work.files("texts", number, "texts.parquet") for number in range(len(units))]
    embed(work, files, parameters.encoder, parameters.slice)


@dataclass(frozen=True)
class _Unseen:
    """Writes the texts of one row group, in the columns that an embed step reads: query_id, query, positive_id, positive."""

    corpora: Corpora
    vectors: Output

    def __call__(self, unit: tuple[str, int], folder: str) -> dict[str, Any]:
        shard, block = unit
        table = exchange.read_row_group(shard, block, ["category", "negatives"])
        rows = pl.DataFrame({"row": pl.int_range(table.num_rows, eager=True), "category": table.column("category").to_pylist()})
        candidates = exploded(table).filter(pl.col("miner") != OTHER_LABEL).unique("id", keep="first", maintain_order=True)
        candidates = candidates.filter(~pl.Series(holds(self.vectors, "document", candidates.get_column("id").to_list())))
        filled = texts_of(candidates, rows, self.corpora, part_of(shard)).sort("id")
        nothing = pl.lit(None, pl.String)
        texts = filled.select(query_id=nothing, query=nothing, positive_id="id", positive="text")
        storage.write_table(storage.join(folder, "texts.parquet"), texts.to_arrow())
        return {"rows": len(texts)}


def texts_of(candidates: pl.DataFrame, rows: pl.DataFrame, corpora: Corpora, part: str) -> pl.DataFrame:
    """Candidates with the texts that the mine step left out, from the corpora. `rows` has row, category."""
    taken = candidates.join(rows.select("row", "category"), on="row", how="left", maintain_order="left")
    filled = [taken.filter(pl.col("text").is_not_null())]
    without = taken.filter(pl.col("text").is_null())
    for name in without.get_column("category").unique().sort().to_list():
        some = without.filter(pl.col("category") == name).drop("text")
        texts = corpora[(part, name)].with_texts(some.get_column("id"))
        filled.append(some.join(texts, on="id", how="left", maintain_order="left").select(taken.columns))
    return pl.concat(filled, how="vertical_relaxed")
