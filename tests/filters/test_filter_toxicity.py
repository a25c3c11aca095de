"""The toxicity filter and its two engines."""

from __future__ import annotations

import csv
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from filter_rows import row, table
from stepping import read, rows_step, run_step

from datakit.assets import Assets
from datakit.errors import UserError
from datakit.filters import filter_step, toxicity, toxicity_detoxify, toxicity_embedded
from datakit.recipe import ToxicityFilter

INSULT = "you are a stupid idiot"
VOCABULARY = ["you", "are", "a", "stupid", "idiot", "how", "does", "the", "heart", "pump", "blood"]


def test_the_larger_score_of_query_and_positive_decides() -> None:
    rows = table(row(), row(INSULT), row("What is it?", f"Oh, {INSULT}!"))
    found = toxicity.judge_embedded(rows, ToxicityFilter(type="toxicity")).to_pylist()
    assert [(each["row"], each["reason"], each["detail"]) for each in found] == [
        (1, toxicity.TOXIC, "toxicity, query"),
        (2, toxicity.TOXIC, "toxicity, positive"),
    ]
    assert all(0.8 == each["threshold"] < each["value"] <= 1 for each in found)


def test_the_embedded_scores_are_those_of_the_model_they_were_taken_from() -> None:
    texts = ["What causes glaucoma?", "", "Kill the subprocess", "KILL the   subprocess!", INSULT, "zzqx"]
    # alt-profanity-check 1.9.1's own vectorizer, and the mean of its five calibrated folds in log-odds.
    expected = [0.003027, 0.036349, 0.947238, 0.947238, 1.0, 0.036349]
    np.testing.assert_allclose(toxicity_embedded.score(pl.Series(texts)), expected, atol=2e-5)


def test_blocks_do_not_change_embedded_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = pl.Series([f"{INSULT} " * (n % 3) + f"number {n} of the list" for n in range(50)])
    whole = toxicity_embedded.score(texts)
    monkeypatch.setattr(toxicity_embedded, "_BLOCK", 7)
    np.testing.assert_array_equal(toxicity_embedded.score(texts), whole)


def test_embedded_engine_beats_a_word_list_on_real_comments(real_data: Path) -> None:
    from sklearn.metrics import roc_auc_score

    with open(real_data / "filters/toxicity/toxicity_en.csv", encoding="utf-8-sig") as file:
        comments = list(csv.DictReader(file))
    toxic = [comment["is_toxic"] == "Toxic" for comment in comments]
    scores = toxicity_embedded.score(pl.Series([comment["text"] for comment in comments]))
    # Counting the words of better-profanity's list has an AUC of 0.68.
    assert roc_auc_score(toxic, scores) > 0.83
    assert (scores[~np.array(toxic)] > 0.8).mean() < 0.03


KINDS = ["original", "unbiased", "multilingual"]
LABELS = {
    "original": ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"],
    "unbiased": ["toxicity", "severe_toxicity", "obscene", "identity_attack", "insult", "threat", "sexual_explicit"],
}
LABELS["multilingual"] = LABELS["unbiased"]
# Outputs of the released models: those of the second and third challenge were trained beside nine identities.
OUTPUTS = {"original": 6, "unbiased": 16, "multilingual": 16}


def bert(folder: Path) -> tuple[Any, dict[str, str]]:
    from transformers import BertConfig, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *VOCABULARY]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(vocab_size=len(words), max_position_embeddings=24)
    return config, {
        "model_type": "bert-base-uncased",
        "model_name": "BertForSequenceClassification",
        "tokenizer_name": "BertTokenizer",
    }


def roberta(folder: Path) -> tuple[Any, dict[str, str]]:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaTokenizer

    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator([" ".join(VOCABULARY)], vocab_size=300, special_tokens=special, show_progress=False)
    trained.save_model(str(folder))
    RobertaTokenizer.from_pretrained(folder).save_pretrained(folder)
    config = RobertaConfig(vocab_size=trained.get_vocab_size(), max_position_embeddings=26, pad_token_id=1)
    return config, {
        "model_type": "roberta-base",
        "model_name": "RobertaForSequenceClassification",
        "tokenizer_name": "RobertaTokenizer",
    }


def xlm_roberta(folder: Path) -> tuple[Any, dict[str, str]]:
    from tokenizers import SentencePieceUnigramTokenizer
    from transformers import XLMRobertaConfig, XLMRobertaTokenizer

    trained = SentencePieceUnigramTokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(
        [" ".join(VOCABULARY)] * 3, vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    pieces = json.loads(trained.to_str())["model"]["vocab"]
    XLMRobertaTokenizer(vocab=[(piece, score) for piece, score in pieces]).save_pretrained(folder)
    config = XLMRobertaConfig(vocab_size=len(pieces) + 1, max_position_embeddings=26, pad_token_id=1)
    names = {"model_name": "XLMRobertaForSequenceClassification", "tokenizer_name": "XLMRobertaTokenizer"}
    return config, {"model_type": "xlm-roberta-base", **names}


def make_checkpoint(kind: str, tmp_path: Path) -> dict[str, Any]:
    """A small model in the format of Detoxify's releases, with the configuration and tokenizer of its base."""
    pytest.importorskip("detoxify", reason="the extra 'toxicity' is not installed")
    import torch
    import transformers

    folder = tmp_path / "base"
    folder.mkdir()
    config, names = {"original": bert, "unbiased": roberta, "multilingual": xlm_roberta}[kind](folder)
    config.update(
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "initializer_range": 1.0}
    )
    config.save_pretrained(folder)
    torch.manual_seed(0)
    config.num_labels = OUTPUTS[kind]
    model = getattr(transformers, names["model_name"])(config).eval()
    content = {
        "state_dict": model.state_dict(),
        "config": {"arch": {"args": {**names, "num_classes": OUTPUTS[kind]}}, "dataset": {"args": {"classes": LABELS[kind]}}},
    }
    path = tmp_path / "toxic.ckpt"
    torch.save(content, path)
    return {"path": path, "folder": folder, "model": model, "content": content}


@pytest.fixture
def checkpoint(tmp_path: Path) -> dict[str, Any]:
    return make_checkpoint("original", tmp_path)


def detoxify(checkpoint: dict[str, Any], **fields: Any) -> ToxicityFilter:
    return ToxicityFilter.model_validate(
        {
            "type": "toxicity", "engine": "detoxify", "checkpoint": str(checkpoint["path"]), "config": str(checkpoint["folder"]),
            "batch_size": 4, **fields,
        }
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _no_model_of_another_test() -> None:
    toxicity_detoxify.load.cache_clear()


@pytest.mark.parametrize("kind", KINDS)
def test_detoxify_scores_are_those_of_the_checkpoint_for_every_label(kind: str, tmp_path: Path) -> None:
    import torch

    checkpoint = make_checkpoint(kind, tmp_path)
    texts = [INSULT, "how does the heart pump", "", "stupid " * 60, "a", "unknown words"]
    labels = [toxicity_detoxify.NAMES.get(label, label) for label in LABELS[kind]]
    scores = toxicity_detoxify.score(texts, detoxify(checkpoint), labels)
    detector = toxicity_detoxify.load(str(checkpoint["path"]), str(checkpoint["folder"]))
    for text, found in zip(texts, scores, strict=True):
        inputs = detector.tokenizer(text, return_tensors="pt", truncation=True)
        with torch.no_grad():
            expected = torch.sigmoid(checkpoint["model"](**inputs).logits)[0, : len(labels)]
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    assert len({round(score, 3) for score in scores[:, 0]}) > 2
    np.testing.assert_array_equal(toxicity_detoxify.score(texts, detoxify(checkpoint)), scores[:, :1])
    assert type(detector).__module__ == "detoxify.detoxify"


def test_a_detoxify_step_splits_at_the_threshold_and_resumes_to_the_same_bytes(
    checkpoint: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toxicity, "_SLICE", 4)
    queries = [" ".join(VOCABULARY[n % 11] for n in range(start, start + 1 + start % 7)) for start in range(30)]
    scores = toxicity_detoxify.score([f"{query} blood" for query in queries], detoxify(checkpoint))[:, 0]
    threshold = float(np.median(scores))
    rows = [table(*(row(f"{query} blood", f"{query} blood") for query in part)) for part in (queries[:13], queries[13:])]
    step = filter_step(0, detoxify(checkpoint, threshold=threshold), (rows_step(rows),), None, None, Assets(str(tmp_path)))
    output = run_step(step, str(tmp_path / "cache"))
    rejected = read(output.rejected)
    assert output.report.counts.rejected == {toxicity.TOXIC: int((scores > threshold + 1e-6).sum())}
    assert all(value > threshold for value in rejected.column("value").to_pylist())
    expected = {path.relative_to(output.folder): path.read_bytes() for path in Path(output.folder).rglob("*") if path.is_file()}
    (Path(output.folder) / "step.json").unlink()
    for unit in ("scores/00001", "scores/00004", "rows/00000"):
        (Path(output.folder) / unit / "unit.json").unlink()
    run_step(step, str(tmp_path / "cache"))
    assert {
        path.relative_to(output.folder): path.read_bytes() for path in Path(output.folder).rglob("*") if path.is_file()
    } == expected


def test_each_label_has_its_threshold_and_the_furthest_above_is_told() -> None:
    filter = ToxicityFilter(type="toxicity", thresholds={"toxic": 0.8, "insult": 0.5})
    assert toxicity.thresholds(filter) == {"insult": 0.5, "toxicity": 0.8}
    # (row, side, label): labels are insult, toxicity.
    scores = np.array(
        [[[0.5, 0.8], [0.1, 0.1]], [[0.2, 0.85], [0.9, 0.1]], [[0.55, 0.95], [0.1, 0.1]], [[0.1, 0.1], [0.51, 0.5]]]
    )
    found = toxicity.judge(scores, filter).to_pylist()
    assert [(each["row"], each["detail"], each["value"], each["threshold"]) for each in found] == [
        (1, "insult, positive", 0.9, 0.5),
        (2, "toxicity, query", 0.95, 0.8),
        (3, "insult, positive", 0.51, 0.5),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_thresholds_by_label_reject_what_a_plain_comparison_does(kind: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(kind, tmp_path)
    texts = [f"{first} {second} blood" for first in VOCABULARY[:6] for second in VOCABULARY[5:]]
    names = ["toxicity", "threat"]
    scores = toxicity_detoxify.score(texts, detoxify(checkpoint), names)
    bounds = np.quantile(scores, 0.8, axis=0)
    filter = detoxify(checkpoint, thresholds=dict(zip(names, bounds.tolist(), strict=True)))
    step = filter_step(0, filter, (rows_step([table(*(row(text, text) for text in texts))]),), None, None, Assets(str(tmp_path)))
    output = run_step(step, str(tmp_path / "cache"))
    expected = int((scores > bounds).any(axis=1).sum())
    assert 0 < expected < len(texts)
    assert abs(output.report.counts.rejected[toxicity.TOXIC] - expected) <= 1
    assert {detail.split(",")[0] for detail in read(output.rejected).column("detail").to_pylist()} <= set(names)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_that_a_model_does_not_score_are_refused_by_name_before_anything_runs(kind: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(kind, tmp_path)
    unknown = "sexual_explicit" if kind == "original" else "identity_hatred"
    with pytest.raises(UserError, match=rf"name '{unknown}', which the checkpoint .* toxicity, severe_toxicity, obscene"):
        filter_step(0, detoxify(checkpoint, thresholds={unknown: 0.5}), (), None, None, Assets(str(tmp_path)))
    with pytest.raises(UserError, match=r"name 'insult', which the embedded engine does not score. Its labels: toxicity"):
        filter_step(0, ToxicityFilter(type="toxicity", thresholds={"insult": 0.5}), (), None, None, Assets(str(tmp_path)))


class Payload:
    """What an evil checkpoint holds: reading it without care makes a folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


def test_a_checkpoint_that_holds_code_is_refused_and_its_code_does_not_run(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    import torch

    target = tmp_path / "was-run"
    pickle.loads(pickle.dumps(Payload(str(target))))
    assert target.exists()
    target.rmdir()
    torch.save({**checkpoint["content"], "extra": Payload(str(target))}, checkpoint["path"])
    with pytest.raises(UserError, match="could run code"):
        toxicity_detoxify.score([INSULT], detoxify(checkpoint))
    assert not target.exists()


def test_what_is_no_checkpoint_is_one_sentence(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    import torch

    torch.save({"state_dict": {}}, checkpoint["path"])
    with pytest.raises(UserError, match="no checkpoint of Detoxify"):
        toxicity_detoxify.score([INSULT], detoxify(checkpoint))
    other = {**checkpoint["content"]["config"], "dataset": {"args": {"classes": ["rude"]}}}
    torch.save({**checkpoint["content"], "config": other}, checkpoint["path"])
    with pytest.raises(UserError, match="no class 'toxicity'"):
        toxicity_detoxify.score([INSULT], detoxify(checkpoint))
    checkpoint["path"].write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="checkpoint"):
        toxicity_detoxify.score([INSULT], detoxify(checkpoint))
    missing = {**checkpoint, "path": tmp_path / "absent.ckpt"}
    with pytest.raises(UserError, match="is no file"):
        filter_step(0, detoxify(missing), (), None, None, Assets(str(tmp_path)))
    bare = {**checkpoint, "folder": tmp_path}
    with pytest.raises(UserError, match=r"no config\.json"):
        filter_step(0, detoxify(bare), (), None, None, Assets(str(tmp_path)))
