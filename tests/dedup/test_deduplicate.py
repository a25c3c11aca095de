"""Dedup in Python: what must hold for what is selected and rejected, at the threshold and at any higher one."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import polars as pl
import pytest
from duplicated import duplicated_rows, jaccard, rank, shingle_set
from embedded import vector
from hypothesis import given, settings
from hypothesis import strategies as st

import datakit
from datakit.dedup import nearby
from datakit.errors import UserError


def frame_of(seed: int, families: int = 20) -> pl.DataFrame:
    records = duplicated_rows(seed, families)
    names = ("row_id", "content_id", "category", "query", "positive", "quality")
    frame = pl.DataFrame([{name: record[name] for name in names} for record in records])
    # Some texts occur twice, some are not there.
    again = frame.head(5).with_columns(pl.col("row_id").str.reverse(), positive=pl.lit("other"))
    nothing = frame.head(2).with_columns(pl.col("row_id") + "x", query=pl.Series([None, ""], dtype=pl.String))
    return pl.concat([frame, again, nothing])


def similarity(method: str, one: str, other: str) -> float:
    if method == "minhash":
        return jaccard(shingle_set(one), shingle_set(other))
    if method == "exact" or one == other:
        return float(one.casefold() == other.casefold())
    a, b = (vector(text).astype(np.float64) for text in (one, other))
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def deduplicated(frame: pl.DataFrame, method: Any, threshold: float, **more: Any) -> Any:
    if method == "exact":
        return datakit.deduplicate(frame, method, on="query", **more)
    if method == "semantic":
        more["vectors"] = np.array([vector(text or "none") for text in frame["query"]])
    return datakit.deduplicate(frame, method, on="query", threshold=threshold, **more)


def check(method: str, frame: pl.DataFrame, result: Any, threshold: float, within: str | None) -> dict[str, str]:
    """What must hold; returns the dropped rows and what is kept instead."""
    rows = {row["row_id"]: row for row in frame.to_dicts()}
    kept = set(result.selected["row_id"])
    lost = {}
    for row in result.rejected.to_dicts():
        other = frame.row(row["kept_row"], named=True)
        assert other["row_id"] in kept, "a dropped row names a row that is kept"
        assert other["query"] == row["kept_query"]
        assert rank(other) < rank(rows[row["row_id"]]), "the better one survives"
        assert within is None or other[within] == row[within]
        assert row["similarity"] == pytest.approx(similarity(method, row["query"], other["query"]), abs=1e-7)
        assert row["similarity"] >= threshold
        lost[row["row_id"]] = other["row_id"]
    assert kept | set(lost) == set(rows)
    assert not kept & set(lost)
    assert len(result) == len(kept)
    return lost


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["exact", "minhash", "semantic"]),
    st.sampled_from([0.7, 0.9]),
    st.sampled_from([None, "category"]),
)
def test_survivors_hold_what_they_must_in_any_order_and_at_any_higher_threshold(
    seed: int, method: Any, threshold: float, within: Any
) -> None:
    frame = frame_of(seed)
    result = deduplicated(frame, method, threshold, within=within)
    lost = check(method, frame, result, threshold, within)
    assert len(lost) >= 5
    shuffled = frame.sample(fraction=1, shuffle=True, seed=seed)
    assert check(method, shuffled, deduplicated(shuffled, method, threshold, within=within), threshold, within) == lost
    raised = result.at(1.0 if method == "exact" else threshold + 0.05)
    check(method, frame, raised, raised.threshold, within)
    if method == "semantic":
        # All pairs were compared: nothing that is selected is alike, and a raised threshold is what a new call gives.
        anew = deduplicated(frame, method, threshold + 0.05, within=within)
        assert raised.rejected.equals(anew.rejected)
        texts = [(row["query"], row["category"]) for row in result.selected.to_dicts() if row["query"]]
        for number, (one, category) in enumerate(texts):
            for other, its_category in texts[:number]:
                assert (within and category != its_category) or similarity(method, one, other) < threshold


def test_the_survivors_are_those_of_the_steps_of_a_build(tmp_path: Any) -> None:
    from duplicated import tables
    from stepping import read, rows_step, run_step

    from datakit.dedup import dedup_step
    from datakit.recipe import MinHashDedup

    records = duplicated_rows(11, 60)
    step = dedup_step(0, MinHashDedup(type="minhash", within="all"), (rows_step(tables(records, 2)),))
    built = read(run_step(step, str(tmp_path)).shards).column("row_id").to_pylist()
    names = ("row_id", "content_id", "query", "quality")
    frame = pl.DataFrame([{name: record[name] for name in names} for record in records])
    assert datakit.deduplicate(frame).selected["row_id"].to_list() == built


def test_pairs_must_be_alike_on_both_sides() -> None:
    words = " ".join(f"w{i}" for i in range(30))
    frame = pl.DataFrame({"q": [words, words + " x", words, "a"], "p": [words, words, "b c d", words]})
    assert datakit.deduplicate(frame, on=["q", "p"]).rejected.select("kept_q", "kept_p").rows() in (
        [(words, words)],
        [(words + " x", words)],
    )
    assert len(datakit.deduplicate(frame, "exact", on=["q", "p"])) == 4


def test_clusters_find_nearly_what_all_comparisons_find(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = frame_of(4, 150)
    every = deduplicated(frame, "semantic", 0.9)
    monkeypatch.setattr(nearby, "EXACT", 50)
    some = deduplicated(frame, "semantic", 0.9)
    check("semantic", frame, some, 0.9, None)
    found, wanted = set(some.pairs.rows()), set(every.pairs.rows())
    assert found <= wanted
    assert len(found) >= 0.97 * len(wanted) > 50


def test_many_equal_texts_make_no_pairs() -> None:
    result = datakit.deduplicate(["the same text as all the others"] * 5000 + ["another one"])
    assert (len(result), len(result.pairs)) == (2, 0)
    assert result.rejected["kept_row"].n_unique() == 1


def test_texts_that_are_not_there_stay() -> None:
    for method in ("exact", "minhash"):
        assert datakit.deduplicate(["", None, "", "a b", "A, b!"], method).selected["text"].to_list()[:3] == ["", None, ""]  # type: ignore[arg-type, list-item]
    assert len(datakit.deduplicate([])) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"method": "fuzzy"}, "must be one of: exact, minhash, semantic"),
        ({"threshold": 0}, "above 0"),
        ({"threshold": 1.5}, "above 0"),
        ({"method": "exact", "threshold": 0.9}, "has no threshold"),
        ({"on": "b"}, "no column 'b'; the columns are: text, number"),
        ({"on": []}, "names 0 columns"),
        ({"on": "number"}, "only texts are compared"),
        ({"within": "b"}, "no column 'b'"),
        ({"method": "semantic"}, "needs an encoder"),
        ({"method": "semantic", "vectors": np.zeros((3, 4))}, r"shape \(3, 4\), and there are 2 rows"),
    ],
)
def test_mistakes_have_a_sentence(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        datakit.deduplicate(pl.DataFrame({"text": ["a", "b"], "number": [1, 2]}), **arguments)


def test_a_lower_threshold_and_a_single_text_have_a_sentence() -> None:
    with pytest.raises(UserError, match=r"not in \[0.8, 1\]"):
        datakit.deduplicate(["a", "b"]).at(0.7)
    with pytest.raises(UserError, match="one text"):
        datakit.deduplicate("a")
    with pytest.raises(UserError, match="was given int"):
        datakit.deduplicate(3)  # type: ignore[arg-type]


def test_importing_datakit_imports_nothing_heavy() -> None:
    code = (
        "import sys, datakit; print([name for name in ('polars', 'numpy', 'pyarrow', 'numba', 'torch') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
