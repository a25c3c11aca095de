"""A model in this process, with transformers: fixed batches, each with a seed of its own."""

from __future__ import annotations

import io
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datakit.assets import locate
from datakit.errors import UserError
from datakit.recipe import TransformersEngine
from datakit.synthesis import prompts
from datakit.synthesis.engines import Answer, Batch, Conversation, Desk
from datakit.synthesis.engines.batches import fixed_batches, seed_of
from datakit.synthesis.engines.loaded import loaded
from datakit.synthesis.parsing import without_thought

log = logging.getLogger(__name__)

_WEIGHTS = (".safetensors", ".bin", ".gguf")


@dataclass(frozen=True)
class Loaded:
    model: Any
    tokenizer: Any


class TransformersChat:
    """Batched generation. A batch is derived from all requests of a shard, padded alike, and seeded by its own digest."""

    def __init__(self, name: str, config: TransformersEngine, identity: Mapping[str, Any]) -> None:
        self.name = name
        self.config = config
        self.identity = identity
        self.loading_seconds = 0.0

    def batches(self, conversations: Sequence[Conversation]) -> list[Batch]:
        return fixed_batches(self.identity, conversations, self.config.batch_size)

    def ask(self, batches: Sequence[Batch], desk: Desk) -> None:
        for batch in batches:
            if not desk.may_ask(len(batch)):
                return
            started = time.monotonic()
            model = loaded(self.identity, lambda: load(self.name, self.config))
            self.loading_seconds += time.monotonic() - started
            answers = generate(model, self.config, [request.conversation for request in batch], seed_of(batch))
            desk.answered([(request.key, answer) for request, answer in zip(batch, answers, strict=True)])

    def close(self) -> None:
        """The model stays, for the next step (loaded.py)."""


def load(name: str, config: TransformersEngine) -> Loaded:
    """The model and its tokenizer. A folder without one of them, or without a chat template, is a UserError."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    # datakit shows its own progress; a bar for the weights would stand in its way.
    transformers_logging.disable_progress_bar()
    folder = locate(config.model)
    _check_folder(name, config, folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options: dict[str, Any] = {"gguf_file": config.gguf} if config.gguf else {}
    try:
        # The bar of the GGUF reader heeds no switch.
        with redirect_stderr(io.StringIO()):
            tokenizer = AutoTokenizer.from_pretrained(folder, revision=config.revision, **options)
            model = AutoModelForCausalLM.from_pretrained(
                folder, revision=config.revision, dtype=getattr(torch, config.dtype), **options
            )
    except Exception as error:
        line = next(iter(str(error).strip().splitlines()), "")[:300].rstrip(".")
        raise UserError(
            f"engines.{name}: the model '{config.model.raw}' cannot be loaded: {type(error).__name__}: {line}. Give a folder "
            "with weights and a tokenizer, 'gguf' for a GGUF file in it, or package:NAME for one that a package carries."
        ) from error
    if not tokenizer.chat_template:
        raise UserError(
            f"engines.{name}: the model '{config.model.raw}' has no chat template, so that it cannot be asked anything. "
            "Choose a model that was tuned to follow instructions."
        )
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    log.info("engines.%s: loaded '%s' as %s on %s.", name, config.model.raw, config.dtype, device)
    return Loaded(model.to(device).eval(), tokenizer)


def _check_folder(name: str, config: TransformersEngine, folder: str) -> None:
    """A sentence for what transformers would fail on with a page, or would try to find on a hub."""
    if not os.path.isdir(folder):
        if os.path.exists(folder) or folder.startswith(("/", ".")):
            what = "is a file" if os.path.exists(folder) else "does not exist"
            raise UserError(f"engines.{name}: 'model' should be a folder with a model, and '{folder}' {what}.")
        return
    files = [file.name for file in Path(folder).iterdir() if file.is_file()]
    if config.gguf is not None:
        if config.gguf not in files:
            there = ", ".join(sorted(file for file in files if file.endswith(".gguf"))) or "no GGUF file"
            raise UserError(f"engines.{name}: the folder '{config.model.raw}' has no '{config.gguf}' (it has: {there}).")
        return
    if not any(file.endswith(_WEIGHTS) for file in files):
        raise UserError(
            f"engines.{name}: the folder '{config.model.raw}' has no weights: no file there ends in {', '.join(_WEIGHTS)}. "
            "Copy the whole model there, or name another folder."
        )
    if not any(file.startswith(("tokenizer", "vocab", "spiece")) for file in files):
        if ggufs := sorted(file for file in files if file.endswith(".gguf")):
            raise UserError(f"engines.{name}: the folder '{config.model.raw}' holds a GGUF file. Add: gguf: {ggufs[0]}")
        raise UserError(
            f"engines.{name}: the folder '{config.model.raw}' has no tokenizer. Copy tokenizer.json and "
            "tokenizer_config.json there."
        )


def generate(loaded: Loaded, config: TransformersEngine, conversations: Sequence[Conversation], seed: int) -> list[Answer]:
    """The answers to one batch. Equal batches and seeds give equal answers on one machine."""
    import torch
    from transformers import StoppingCriteriaList

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    tokenizer, model = loaded.tokenizer, loaded.model
    inputs = _inputs(loaded, conversations, config.chat_template_kwargs)
    width = inputs["input_ids"].shape[1]
    sampling: dict[str, Any] = {"do_sample": False}
    if config.temperature > 0:
        sampling = {"do_sample": True, "temperature": config.temperature, "top_p": config.top_p, "top_k": config.top_k}
    enough = Enough(tokenizer, width, [prompts.ending(conversation) for conversation in conversations])
    torch.manual_seed(seed)
    with torch.inference_mode():
        output = model.generate(
            **inputs,
            **sampling,
            max_new_tokens=config.max_tokens,
            repetition_penalty=config.repetition_penalty,
            pad_token_id=tokenizer.pad_token_id,
            stopping_criteria=StoppingCriteriaList([enough]),
        )
    ends = _ends(model, tokenizer)
    answers = []
    for number, tokens in enumerate(output[:, width:].tolist()):
        length = next((place + 1 for place, token in enumerate(tokens) if token in ends), len(tokens))
        stopped = length < len(tokens) or tokens[-1] in ends or enough.done[number]
        length = enough.lengths[number] or length
        text = tokenizer.decode(tokens[:length], skip_special_tokens=True)
        prompt_tokens = int(inputs["attention_mask"][number].sum())
        answers.append(Answer(text, "stop" if stopped else "length", prompt_tokens, length))
    return answers


def _inputs(loaded: Loaded, conversations: Sequence[Conversation], told: Mapping[str, Any]) -> dict[str, Any]:
    """What `generate` takes for a batch. What comes before the last message is read once for all conversations that share it.

    The cache of the shared beginnings is spread over the rows, and the last messages come after it, both padded on the left. The
    chat template is told `told`.
    """
    import torch

    tokenizer, model = loaded.tokenizer, loaded.model
    wholes = [
        tokenizer.apply_chat_template(each.as_dicts(), tokenize=False, add_generation_prompt=True, **told)
        for each in conversations
    ]
    beginnings = [_beginning(tokenizer, each, whole, told) for each, whole in zip(conversations, wholes, strict=True)]
    distinct = list(dict.fromkeys(beginnings))

    def tokens(texts: Sequence[str]) -> Any:
        # The template writes the special tokens.
        return tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)

    if "" in distinct or 2 * len(distinct) > len(beginnings):
        return dict(tokens(wholes))
    rows = torch.tensor([distinct.index(beginning) for beginning in beginnings], device=model.device)
    shared = tokens(distinct)
    own = tokens([whole[len(beginning) :] for whole, beginning in zip(wholes, beginnings, strict=True)])
    with torch.inference_mode():
        places = (shared["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        cache = model(**shared, position_ids=places, use_cache=True, logits_to_keep=1).past_key_values
    cache.reorder_cache(rows)
    return {
        "input_ids": torch.cat([shared["input_ids"][rows], own["input_ids"]], dim=1),
        "attention_mask": torch.cat([shared["attention_mask"][rows], own["attention_mask"]], dim=1),
        "past_key_values": cache,
    }


def _beginning(tokenizer: Any, conversation: Conversation, whole: str, told: Mapping[str, Any]) -> str:
    """A conversation without its last message, as its template begins; "" where that is no beginning that can be cut off."""
    messages = conversation.as_dicts()[:-1]
    if not messages:
        return ""
    beginning: str = tokenizer.apply_chat_template(messages, tokenize=False, **told)
    return beginning if whole.startswith(beginning) and _stands_alone(tokenizer, whole, len(beginning)) else ""


def _stands_alone(tokenizer: Any, text: str, place: int) -> bool:
    """Whether the tokens of a text are those of its two parts."""
    ids = tokenizer([text, text[:place], text[place:]], add_special_tokens=False)["input_ids"]
    return bool(ids[0] == ids[1] + ids[2])


def _ends(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end an answer, and the one that fills the rest of its row."""
    ends = model.generation_config.eos_token_id
    return {tokenizer.pad_token_id, *(ends if isinstance(ends, list) else [ends])}


class Enough:
    """Ends an answer when its pattern is found, after the last line that was asked for: small models would go on and on."""

    def __init__(self, tokenizer: Any, width: int, endings: Sequence[re.Pattern[str]]) -> None:
        self.tokenizer = tokenizer
        self.width = width
        self.endings = endings
        self.done = [False] * len(endings)
        # Tokens of each answer that was ended here; 0 for the others.
        self.lengths = [0] * len(endings)
        self._breaks: dict[int, bool] = {}

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        import torch

        for number, token in enumerate(input_ids[:, -1].tolist()):
            if self.done[number] or not self._has_line_break(token):
                continue
            said = self.tokenizer.decode(input_ids[number, self.width :], skip_special_tokens=True)
            if self.endings[number].search(without_thought(said)):
                self.done[number] = True
                self.lengths[number] = input_ids.shape[1] - self.width
        return torch.tensor(self.done, device=input_ids.device)

    def _has_line_break(self, token: int) -> bool:
        if token not in self._breaks:
            self._breaks[token] = "\n" in self.tokenizer.decode([token])
        return self._breaks[token]
