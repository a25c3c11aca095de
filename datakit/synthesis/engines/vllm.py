"""vLLM in this process: `LLM.chat` over fixed batches."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from datakit.assets import locate
from datakit.errors import BuildError, MissingExtra, UserError
from datakit.recipe import VllmEngine
from datakit.synthesis import prompts
from datakit.synthesis.engines import REFUSED, Answer, Batch, Conversation, Desk, Request
from datakit.synthesis.engines.batches import fixed_batches, seed_of
from datakit.synthesis.engines.loaded import loaded

log = logging.getLogger(__name__)


class VllmChat:
    """Batches of `LLM.chat`. vLLM schedules the requests of a batch itself; each samples with a seed of its own.

    Its kernels may round differently from one machine to the next, so answers are reproducible on equal hardware only.
    """

    def __init__(self, name: str, config: VllmEngine, identity: Mapping[str, Any]) -> None:
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
            answers = self._answers(model, batch, desk)
            desk.answered([(request.key, answer) for request, answer in zip(batch, answers, strict=True)])

    def close(self) -> None:
        """The model stays, for the next step (loaded.py)."""

    def _answers(self, model: Any, batch: Batch, desk: Desk) -> list[Answer]:
        """The answers to one batch. A prompt that vLLM refuses, such as one that is too long, is answered with REFUSED.

        vLLM refuses the whole batch for it, so that the others are asked without it. Where all are refused and nothing was ever
        answered, that says nothing of the prompts: a UserError.
        """
        seed, places = seed_of(batch), range(len(batch))
        try:
            return self._generate(model, self.config, batch, places, seed)
        except ValueError as error:
            # One token shows whether a prompt is taken.
            short = self.config.model_copy(update={"max_tokens": 1})
            refusals = {place: words for place in places if (words := self._refusal(model, short, batch[place], seed))}
            if not refusals or (len(refusals) == len(batch) and not desk.has_answers()):
                raise UserError(
                    f"engines.{self.name}: vLLM refuses a request: {_first_line(error)}. Finished answers are kept."
                ) from error
        log.warning(
            "%s: vLLM refuses %d of %d prompts of a batch (%s). Work goes on without them.",
            self.name, len(refusals), len(batch), next(iter(refusals.values())),
        )  # fmt: skip
        answers = {place: Answer(words, REFUSED, 0, 0) for place, words in refusals.items()}
        if others := [place for place in places if place not in refusals]:
            written = self._generate(model, self.config, [batch[place] for place in others], others, seed)
            answers |= zip(others, written, strict=True)
        return [answers[place] for place in places]

    def _refusal(self, model: Any, config: VllmEngine, request: Request, seed: int) -> str | None:
        """Why vLLM does not take a prompt; None where it does."""
        try:
            self._generate(model, config, [request], [0], seed)
        except ValueError as error:
            return _first_line(error)
        return None

    def _generate(self, model: Any, config: VllmEngine, batch: Batch, places: Sequence[int], seed: int) -> list[Answer]:
        """The answers to some requests, at `places` of their batch. A ValueError is vLLM's, for one that it does not take; what
        else it fails with is an error for the person."""
        try:
            return generate(model, config, [request.conversation for request in batch], [seed + place for place in places])
        except ValueError:
            raise
        except Exception as error:
            raise BuildError(
                f"engines.{self.name}: vLLM stopped: {type(error).__name__}: {_first_line(error)}. Its own log above says more. "
                "Finished answers are kept: run the same command again."
            ) from error


def load(name: str, config: VllmEngine) -> Any:
    """The vllm.LLM that the recipe names; without the package a MissingExtra, and a UserError for what vLLM refuses."""
    try:
        import vllm
    except ImportError as error:
        raise MissingExtra("The engine 'vllm'", "vllm", "vllm") from error
    folder = locate(config.model)
    if not os.path.isdir(folder) and (os.path.exists(folder) or folder.startswith(("/", "."))):
        what = "is a file" if os.path.exists(folder) else "does not exist"
        raise UserError(f"engines.{name}: 'model' should be a folder with a model, and '{folder}' {what}.")
    from vllm.platforms import current_platform

    try:
        model = vllm.LLM(
            **{
                "model": folder,
                "revision": config.revision,
                "dtype": config.dtype,
                "max_model_len": config.max_model_len,
                "enable_prefix_caching": True,
                "seed": 0,
                # A prompt that is read in parts sets the generator of its request back, which generators on CPUs refuse (0.32).
                **({"enable_chunked_prefill": False} if current_platform.is_cpu() else {}),
                **config.options,
            }
        )
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        raise UserError(
            f"engines.{name}: vLLM cannot load the model '{config.model.raw}': {type(error).__name__}: {_first_line(error)}. Its "
            "own log above says more; check the folder, 'dtype', 'max_model_len' and 'options'."
        ) from error
    log.info("engines.%s: loaded '%s' with vLLM.", name, config.model.raw)
    return model


def generate(model: Any, config: VllmEngine, conversations: Sequence[Conversation], seeds: Sequence[int]) -> list[Answer]:
    """The answers to some conversations, each sampled with its own seed."""
    from vllm import SamplingParams

    sampling = [
        SamplingParams(
            temperature=config.temperature,
            top_p=config.top_p,
            max_tokens=config.max_tokens,
            seed=seed % 2**31,
            **_form(config, conversation),
        )
        for conversation, seed in zip(conversations, seeds, strict=True)
    ]
    outputs = model.chat(
        [conversation.as_dicts() for conversation in conversations],
        sampling,
        use_tqdm=False,
        chat_template_kwargs=config.chat_template_kwargs or None,
    )
    answers = []
    for output in outputs:
        completion = output.outputs[0]
        reason = "length" if completion.finish_reason == "length" else "stop"
        answers.append(Answer(completion.text, reason, len(output.prompt_token_ids or ()), len(completion.token_ids)))
    return answers


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:300].rstrip(".")


def _form(config: VllmEngine, conversation: Conversation) -> dict[str, Any]:
    """What holds an answer to its form."""
    if config.structured == "lines":
        if conversation.fields:
            return {}
        # A line more than was asked for: small models would go on and on.
        return {"stop": [f"\n{conversation.queries + 1}."]}
    from vllm.sampling_params import StructuredOutputsParams

    return {"structured_outputs": StructuredOutputsParams(json=prompts.schema(conversation))}
