"""Fixed batches for models in process: what is asked together decides what is answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datakit.schema import digest
from datakit.synthesis.engines import Batch, Conversation, Request, request_key


def fixed_batches(identity: Mapping[str, Any], conversations: Sequence[Conversation], size: int) -> list[Batch]:
    """Batches of `size`, by ascending length so that little is padded. They depend on the list of conversations alone.

    A request's key covers its whole batch and its place in it.
    """

    sizes = [sum(len(message.content) for message in conversation.messages) for conversation in conversations]
    order = sorted(range(len(conversations)), key=lambda number: (sizes[number], number))
    batches: list[Batch] = []
    for start in range(0, len(order), size):
        together = order[start : start + size]
        batch = digest("batch", *(request_key(identity, conversations[number]) for number in together))
        batches.append(
            [
                Request(number, request_key(identity, conversations[number], batch=batch, place=place), conversations[number])
                for place, number in enumerate(together)
            ]
        )
    return batches


def seed_of(batch: Batch) -> int:
    """The seed of a batch, below 2^63."""
    return int(digest("seed", *(request.key for request in batch))[:15], 16)
