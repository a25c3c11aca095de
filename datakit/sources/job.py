"""What the units of a step that reads have in common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from datakit.errors import UserError
from datakit.held_out import HeldOut
from datakit.recipe import AnySource, Model
from datakit.sources.shards import Facts, ShardWriter


class Reading(Model):
    """All that decides what is read."""

    source: AnySource
    facts: Facts
    language: str | None
    shard_rows: int
    seed: int
    held_out: HeldOut = HeldOut()  # for exemplars


@dataclass(frozen=True)
class Job:
    """A reading, and what it does not depend on: where the data set lies, and which registry entry names it ("" for none)."""

    reading: Reading
    step: str
    documents: bool = False
    path: str = ""
    declared_by: str = ""

    def writer(self, folder: str) -> ShardWriter:
        reading = self.reading
        return ShardWriter(folder, reading.facts, self.step, reading.shard_rows, reading.source.max_record_bytes, self.documents)

    @contextmanager
    def declared(self) -> Iterator[None]:
        """Says of an error in a public source where the mistake is to be mended."""
        try:
            yield
        except UserError as error:
            if not self.declared_by:
                raise
            sentence = f"The registry entry '{self.declared_by}' declares this source; give the category sources of its own."
            raise UserError(f"{error} {sentence}") from error
