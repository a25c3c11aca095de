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
from datakit.synthesis.engines import Answer, Batch, Conversation, Desk
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
            answers = self._generate(model, batch)
            desk.answered([(request.key, answer) for request, answer in zip(batch, answers, strict=True)])

    def close(self) -> None:
        """The model stays, for the next step (loaded.py)."""

    def _generate(self, model: Any, batch: Batch) -> list[Answer]:
        """The answers to one batch; what vLLM fails with as an error for the person."""
        try:
            return generate(model, self.config, [request.conversation for request in batch], seed_of(batch))
        except ValueError as error:
            raise UserError(
                f"engines.{self.name}: vLLM refuses a request: {_first_line(error)}. Finished answers are kept."
            ) from error
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


def generate(model: Any, config: VllmEngine, conversations: Sequence[Conversation], seed: int) -> list[Answer]:
    """The answers to one batch."""
    from vllm import SamplingParams

    sampling = [
        SamplingParams(
            temperature=config.temperature,
            top_p=config.top_p,
            max_tokens=config.max_tokens,
            seed=(seed + number) % 2**31,
            **_form(config, conversation),
        )
        for number, conversation in enumerate(conversations)
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
