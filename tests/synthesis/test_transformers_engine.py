"""The transformers engine with a tiny model that is made here."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asking import contents, rejected, rows, run_facts, step, write_documents
from stepping import run_step

from datakit.errors import UserError
from datakit.recipe import TransformersEngine
from datakit.step import Output, Step
from datakit.synthesis.engines import Answer, Conversation, Message, make
from datakit.synthesis.engines.loaded import let_go
from datakit.synthesis.engines.transformers import Enough, _inputs, generate, load
from datakit.synthesis.prompts import ending

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"


@pytest.fixture(scope="module", autouse=True)
def one_processor() -> Iterator[None]:
    """Threads that wait for each other on a busy machine take longer than all that these thin layers compute."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two thin layers with random weights, and a tokenizer of bytes with a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<end>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=4096, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def config(folder: Path, **options: Any) -> TransformersEngine:
    return TransformersEngine.model_validate(
        {"type": "transformers", "model": str(folder), "batch_size": 4, "max_tokens": 8, **options}
    )


def written(folder: Path, tmp_path: Path, documents: Path, **options: Any) -> Output:
    return run_step(asked(folder, tmp_path, documents, **options), str(tmp_path))


def asked(folder: Path, tmp_path: Path, documents: Path, seed: int = 0, **options: Any) -> Step:
    """A step with a short prompt, since each letter is a token here."""
    prompt = documents.parent / "short.jinja"
    prompt.write_text(
        "---\nname: short\nversion: 1\nforms: {a: b}\n---\n"
        "{% block system %}{{ persona.name }}{% endblock %}{% block user %}{{ passage[:30] }}{% endblock %}"
    )
    return step(tmp_path, documents, config(folder, **options), prompt=str(prompt), seed=seed)


class Kept:
    def __init__(self) -> None:
        self.batches: list[list[tuple[str, Answer]]] = []

    def may_ask(self, count: int) -> bool:
        return True

    def has_answers(self) -> bool:
        return bool(self.batches)

    def answered(self, answers: Any) -> None:
        self.batches.append(list(answers))

    def failed(self, key: str, kind: str) -> None:
        raise AssertionError("nothing fails in process")


def conversations(count: int) -> list[Conversation]:
    return [Conversation((Message("user", "word " * (number % 7 + 1) + str(number)),), 3) for number in range(count)]


def test_equal_builds_give_equal_bytes_and_every_answer_is_a_row_or_a_reason(tiny_model: Path, tmp_path: Path) -> None:
    documents = write_documents(tmp_path, 5)
    first = written(tiny_model, tmp_path / "a", documents)
    second = written(tiny_model, tmp_path / "b", documents)
    assert contents(first) == contents(second)
    requests = {row["provenance"]["request_id"] for row in [*rows(first), *rejected(first)]}
    assert len(requests) == 10 == first.report.notes["requests"]
    assert all(row["detail"] is not None and row["positive"] for row in rejected(first))
    other = run_step(asked(tiny_model, tmp_path / "c", documents, seed=1), str(tmp_path / "c"))
    assert [row["detail"] for row in rejected(other)] != [row["detail"] for row in rejected(first)]


def test_a_batch_that_is_asked_alone_gives_what_it_gave_among_others(tiny_model: Path) -> None:
    engine = make("e", config(tiny_model), "digest", 0)
    batches = engine.batches(conversations(10))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(request.number for batch in batches for request in batch) == list(range(10))
    together, alone = Kept(), Kept()
    engine.ask(batches, together)
    engine.close()
    engine.ask(batches[1:2], alone)
    engine.close()
    assert alone.batches == together.batches[1:2]
    lengths = [sum(len(message.content) for message in request.conversation.messages) for batch in batches for request in batch]
    assert lengths == sorted(lengths)


def test_a_model_stays_loaded_for_the_next_step_and_goes_for_another_one(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    let_go()
    documents = write_documents(tmp_path, 1)
    loadings = []
    with caplog.at_level("INFO", logger="datakit.synthesis.engines.transformers"):
        for name, options in (("a", {}), ("b", {}), ("c", {"max_tokens": 9})):
            written(tiny_model, tmp_path / name, documents, **options)
            told = [record.getMessage() for record in caplog.records if record.name == Enough.__module__]
            loadings.append(sum("loaded" in message for message in told))
    assert loadings == [1, 1, 2]


def test_a_key_covers_the_batch_the_model_and_the_seed(tiny_model: Path) -> None:
    def keys(count: int = 4, digest: str = "d", seed: int = 0, **options: Any) -> list[str]:
        engine = make("e", config(tiny_model, **options), digest, seed)
        return [request.key for batch in engine.batches(conversations(count)) for request in batch]

    assert keys() == keys()
    assert len(set(keys())) == 4
    for other in (keys(count=3), keys(digest="e"), keys(seed=1), keys(temperature=0.1), keys(top_k=3), keys(dtype="bfloat16"),
                  keys(chat_template_kwargs={"enable_thinking": False})):  # fmt: skip
        assert not set(other) & set(keys())
    # A batch that is full does not change with what comes after it.
    assert keys(count=8)[:1] == keys(count=8)[:1]


def test_temperature_zero_is_greedy(tiny_model: Path) -> None:
    engine = make("e", config(tiny_model, temperature=0), "d", 0)
    other = make("e", config(tiny_model, temperature=0), "d", 1)
    first, second = Kept(), Kept()
    engine.ask(engine.batches(conversations(4)), first)
    other.ask(other.batches(conversations(4)), second)
    assert [answer for _, answer in first.batches[0]] == [answer for _, answer in second.batches[0]]


def test_a_beginning_that_is_shared_changes_no_answer(tiny_model: Path) -> None:
    """Four conversations of two beginnings, against each of them alone, where nothing is shared and nothing padded."""
    engine = TransformersEngine.model_validate(config(tiny_model, temperature=0, max_tokens=24).model_dump())
    loaded = load("e", engine)
    asked = [
        Conversation((Message("system", "be " + "very " * (number % 2) + "kind"), Message("user", "tell " * (number + 1))), 3)
        for number in range(4)
    ]
    inputs = _inputs(loaded, asked, {})
    assert "past_key_values" in inputs
    assert "past_key_values" not in _inputs(loaded, asked[:1], {})
    assert generate(loaded, engine, asked, 0) == [generate(loaded, engine, [alone], 0)[0] for alone in asked]


def test_a_chat_template_is_told_what_the_recipe_says(tiny_model: Path) -> None:
    plain = load("e", config(tiny_model))
    template = plain.tokenizer.chat_template
    plain.tokenizer.chat_template = "{% if tone is defined %}{{ tone }} {% endif %}" + template
    asked = [Conversation((Message("system", "be kind"), Message("user", f"tell {number}")), 3) for number in range(4)]
    for told, beginning in (({}, "<system> be"), ({"tone": "calm"}, "calm <system> be")):
        inputs = _inputs(plain, asked, config(tiny_model, chat_template_kwargs=told).chat_template_kwargs)
        assert "past_key_values" in inputs, "what the conversations share is found under the same template"
        assert plain.tokenizer.decode(inputs["input_ids"][0]).startswith(beginning)
    (answer,) = generate(plain, config(tiny_model, chat_template_kwargs={"tone": "calm"}), asked[:1], 0)
    assert answer.prompt_tokens == generate(plain, config(tiny_model), asked[:1], 0)[0].prompt_tokens + len("calm ")


def test_tokens_and_ends_are_counted(tiny_model: Path) -> None:
    engine = make("e", config(tiny_model, max_tokens=16), "d", 0)
    kept = Kept()
    engine.ask(engine.batches(conversations(4)), kept)
    for _, answer in kept.batches[0]:
        assert answer.prompt_tokens > 20
        assert 1 <= answer.completion_tokens <= 16
        assert answer.finish_reason == ("length" if answer.completion_tokens == 16 else "stop")


def test_an_answer_ends_after_the_last_line_that_was_asked_for(tiny_model: Path) -> None:
    import torch

    tokenizer = load("e", config(tiny_model)).tokenizer
    text = "Here are 3:\n1. a\n2. b\n3. c\nAnd now for something"
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    enough = Enough(tokenizer, 5, [ending(Conversation((), count)) for count in (3, 2)])
    ends = []
    for length in range(1, len(tokens) + 1):
        row = [0] * 5 + tokens[:length]
        if bool(enough(torch.tensor([row, row]), None)[0]):
            ends.append(length)
    assert text[: ends[0]] == "Here are 3:\n1. a\n2. b\n3. c\n"
    assert text[: enough.lengths[1] - 0] == "Here are 3:\n1. a\n2. b\n"
    thinking = tokenizer("<think>\nOne or two?\n</think>\na label\n", add_special_tokens=False)["input_ids"]
    enough = Enough(tokenizer, 5, [ending(Conversation((), 1, ("label",)))])
    done = [bool(enough(torch.tensor([[0] * 5 + thinking[:length]]), None)[0]) for length in range(1, len(thinking) + 1)]
    assert done.index(True) == len(thinking) - 1, "a thought is no answer"


def test_a_build_killed_between_batches_asks_only_what_was_not_answered(tiny_model: Path, tmp_path: Path) -> None:
    documents = write_documents(tmp_path, 9)
    whole = written(tiny_model, tmp_path / "whole", documents)
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "sys.path[:0] = sys.argv[4:]\n"
        "from datakit.synthesis.desk import StepDesk\n"
        "from test_transformers_engine import written\n"
        "keep, count = StepDesk.answered, [0]\n"
        "def answered(self, answers):\n"
        "    keep(self, answers)\n"
        "    count[0] += 1\n"
        "    if count[0] == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "StepDesk.answered = answered\n"
        "written(*map(Path, sys.argv[1:4]))\n"
    )
    tests = Path(__file__).parent
    cache = tmp_path / "killed"
    arguments = [str(tiny_model), str(cache), str(documents), str(tests), str(tests.parent)]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([sys.executable, "-c", program, *arguments], check=False, timeout=120, env=environment)
    assert done.returncode == -signal.SIGKILL
    resumed = written(tiny_model, cache, documents)
    assert contents(resumed) == contents(whole)
    assert run_facts(resumed)["from_cache"] == 12
    assert run_facts(resumed)["sent"] == 6


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("model.safetensors", "has no weights"),
        ("tokenizer", "has no tokenizer"),
        ("chat_template", "has no chat template"),
        ("config.json", "cannot be loaded"),
    ],
)
def test_a_folder_that_lacks_a_part_is_named(tiny_model: Path, tmp_path: Path, missing: str, said: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_model.iterdir():
        if not file.name.startswith(missing):
            shutil.copy(file, folder)
    with pytest.raises(UserError, match=rf"engines.e: the .*{said}"):
        load("e", config(folder))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load("e", config(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"has no 'x.gguf' \(it has: no GGUF file\)"):
        load("e", config(tmp_path, gguf="x.gguf"))
