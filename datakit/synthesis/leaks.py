"""Texts of a model that show its prompt: the fence around a seed, a chat template, or what it was told to do.

Documents that carry instructions are rejected before anybody is asked (injection.py). This looks at what came out all the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from datakit.schema import digest
from datakit.synthesis.injection import detect
from datakit.synthesis.parsing import folded

PROMPT_LEAK = "prompt_leak_in_answer"

# Control tokens of chat templates: ChatML, Llama 2 and 3, Gemma, Phi, Alpaca; and a role at the beginning of a line.
_TEMPLATE = re.compile(
    r"<\|[a-z0-9_]+\|>|\[/?INST\]|<</?SYS>>|</?(?:start_of_turn|end_of_turn|system|assistant)>|^#+ ?(?:Instruction|Response):"
    r"|^(?:system|assistant) ?:",
    re.IGNORECASE,
)


def nonce(seed: int, text: str) -> str:
    """What the fence lines around a text carry. It is a digest of the text itself, so that no text can hold its own."""
    return digest("fence", str(seed), text, size=6)


def leaks(text: str, fence: str, instructions: Sequence[str]) -> bool:
    """Whether a written text shows the nonce of its fence, a control token, or an instruction: one of its prompt (`instructions`,
    folded), or any other to a model."""
    if fence in text or _TEMPLATE.search(text) or detect(text) is not None:
        return True
    letters = f" {folded(text)} "
    return any(f" {instruction} " in letters for instruction in instructions)
