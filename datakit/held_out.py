"""Which texts are held out for validation, as far as the seed and a text alone can say.

The split has the last word: what hangs together goes to one side. Who must know a side before the split asks here, and is right
about each text that hangs together with no other one, and that no filter changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import polars as pl

from datakit.normalise import normalised
from datakit.recipe import Model
from datakit.schema import digest, text_id


class HeldOut(Model):
    """The share of validation, and the seed that draws it."""

    share: float = 0.0
    seed: int = 0

    def draw(self, number: int) -> bool:
        """Whether the document or text with this number is for validation."""
        return int(digest("split", str(self.seed), f"{number:016x}", size=8), 16) / 2**64 < self.share

    def of(self, texts: Sequence[str]) -> list[bool]:
        """The draws of texts that `normalise` has not seen yet."""
        return [self.draw(number_of(text_id(text))) for text in normalised(pl.Series(texts, dtype=pl.String))]


def number_of(identity: str) -> int:
    """64 bits of BLAKE2b of an id. Two of a billion ids share one with a probability of 3 %; then they share a side."""
    return int.from_bytes(blake2b(identity.encode(), digest_size=8).digest(), "little")
