"""Near-duplicate pairs of texts in memory: what there is before survivors are chosen."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datakit.dedup.candidates import Texts, sign
from datakit.dedup.signatures import bands_for
from datakit.recipe import MinHashDedup


def near_duplicate_pairs(texts: pa.ChunkedArray | pa.Array, settings: MinHashDedup) -> pa.Table:
    """All pairs of texts at or above the threshold that MinHash finds: left and right (positions, left < right), jaccard.

    Of `settings`, `on` and `within` do not count. A higher threshold later on is a filter on `jaccard`.
    """
    chunked = texts if isinstance(texts, pa.ChunkedArray) else pa.chunked_array([texts])
    left, right, jaccard = pairs(Texts([chunked]), settings)
    return pa.table({"left": left, "right": right, "jaccard": jaccard})


def pairs(texts: Texts, settings: MinHashDedup) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """The same for texts that are compared within scopes, or by two texts that must both be alike."""
    from datakit.dedup.verify import buckets, similar_pairs

    signed = sign(texts, settings, bands_for(settings.threshold, settings.permutations))
    keys = np.stack([signed.column(name).to_numpy() for name in signed.column_names if name.startswith("band_")])
    values, bounds, read = [np.empty(0, np.uint32)], [], 0
    for number in range(len(texts.parts)):
        sets = signed.column(f"shingles_{number}").combine_chunks()
        offsets = sets.offsets.to_numpy()
        bounds += [offsets[:-1] + read, offsets[1:] + read]
        values.append(sets.values.to_numpy())
        read += len(values[-1])
    met = buckets(keys)
    left, right, jaccard = similar_pairs(
        met.of, met.members, met.starts, np.concatenate(values), np.stack(bounds, axis=1), settings.threshold
    )
    rows = signed.column("row").to_numpy()
    order = np.lexsort((right, left))
    return rows[left[order]], rows[right[order]], jaccard[order]
