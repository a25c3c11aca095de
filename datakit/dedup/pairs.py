"""Near-duplicate pairs of texts in memory: what there is before survivors are chosen."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from datakit.dedup.candidates import Texts, sign
from datakit.dedup.signatures import bands_for
from datakit.recipe import MinHashDedup


def near_duplicate_pairs(texts: pa.ChunkedArray | pa.Array, settings: MinHashDedup) -> pa.Table:
    """All pairs of texts at or above the threshold that MinHash finds: left and right (positions, left < right), jaccard.

    Of `settings`, `on` and `within` do not count. A higher threshold later on is a filter on `jaccard`.
    """
    from datakit.dedup.verify import buckets, similar_pairs

    chunked = texts if isinstance(texts, pa.ChunkedArray) else pa.chunked_array([texts])
    signed = sign(Texts([chunked]), settings, bands_for(settings.threshold, settings.permutations))
    keys = np.stack([signed.column(name).to_numpy() for name in signed.column_names if name.startswith("band_")])
    sets = signed.column("shingles_0").combine_chunks()
    offsets = sets.offsets.to_numpy()
    met = buckets(keys)
    left, right, jaccard = similar_pairs(
        met.of, met.members, met.starts, sets.values.to_numpy(), np.stack([offsets[:-1], offsets[1:]], axis=1), settings.threshold
    )
    rows = signed.column("row").to_numpy()
    order = np.lexsort((right, left))
    return pa.table({"left": rows[left[order]], "right": rows[right[order]], "jaccard": jaccard[order]})
