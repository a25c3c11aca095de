"""Sources whose rows are made by several units: the number of workers changes no byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from reading import shaped, step

from datakit import storage
from datakit.executor.local import LocalExecutor
from datakit.progress import QUIET
from datakit.recipe import AnySource, BeirSource, ParallelSource
from datakit.step import Output, run


def write(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def sources(folder: Path) -> dict[str, AnySource]:
    for part in range(3):
        records = [
            {"key": f"k{i % 40}", "text": f"text {i} of {part}", "label": f"class {i % 7}", "gold": i % 3} for i in range(150)
        ]
        write(folder / f"part-{part}.jsonl", records)
    write(folder / "beir" / "corpus.jsonl", [{"_id": f"d{i}", "text": f"document {i}"} for i in range(100)])
    write(folder / "beir" / "queries.jsonl", [{"_id": f"q{i}", "text": f"query {i}"} for i in range(50)])
    (folder / "beir" / "qrels").mkdir()
    judged = "".join(f"q{i % 52}\td{i}\t{i % 2}\n" for i in range(100))
    (folder / "beir" / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    (folder / "de.txt").write_text("eins\n\ndrei\n")
    (folder / "da.txt").write_text("en\nto\ntre\n")
    path = folder / "part-*.jsonl"
    return {
        "group": shaped(path, {"type": "group", "by": "key", "text": "text"}),
        "nli": shaped(
            path, {"type": "nli", "premise": "key", "hypothesis": "text", "label": "gold", "entailment": 0, "contradiction": 2}
        ),
        "names": shaped(path, {"type": "labels"}),
        "exemplars": shaped(path, {"type": "labels", "documents": "exemplars"}, where={"gold": [0, 1]}),
        "beir": BeirSource.model_validate({"type": "beir", "path": str(folder / "beir"), "max_bad_fraction": 1}),
        "parallel": ParallelSource.model_validate(
            {"type": "parallel", "paths": [str(folder / "de.txt"), str(folder / "da.txt")], "languages": ["de", "da"]}
        ),
    }


def test_one_worker_and_two_make_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datakit.sources.read.UNIT_BYTES", 1000)
    monkeypatch.setattr("datakit.sources.buckets.UNIT_CHARACTERS", 500)
    given, made = sources(tmp_path / "data"), list[dict[str, Output]]()
    for workers in (1, 2):
        executor, cache = LocalExecutor(workers), str(tmp_path / str(workers))
        try:
            made.append(
                {name: run(step(source, Path(cache), shard_rows=50), cache, executor, QUIET)[0] for name, source in given.items()}
            )
        finally:
            executor.close()
    one, two = made
    for name, output in one.items():
        assert output.report == two[name].report, name
        assert output.report.counts.out > 0, name
        for kind in ("shards", "rejected", "not_sampled"):
            files = [[storage.file_digest(path) for path in getattr(found, kind)] for found in (output, two[name])]
            assert files[0] == files[1], (name, kind)
    assert all(len(list(Path(one[name].folder, "rows").iterdir())) > 3 for name in ("group", "nli", "exemplars", "beir"))
