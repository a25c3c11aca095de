"""A lean trainer of text-embedding models."""

from trainer.embedder import Embedder

__all__ = ["Embedder"]
