"""Search over a corpus: the first dimensions of a Matryoshka model find a shortlist, all dimensions rank it.

    from trainer.search import Index, Options, build

    build("models/support/latest/model", ["handbook/**/*.md"], "handbook.index", Options())
    ids, scores = Index.open("handbook.index").search(["how do I reset it"], top=10, shortlist=200)

"Funnel retrieval" of Matryoshka Representation Learning (Kusupati et al. 2022, arXiv 2205.13147, section 4.3), in two stages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.search.index import Hits, Index
    from trainer.search.indexing import build
    from trainer.search.passages import Passage
    from trainer.search.settings import Options, Settings

__all__ = ["Hits", "Index", "Options", "Passage", "Settings", "build"]

_MODULES = {
    "Hits": "index",
    "Index": "index",
    "Options": "settings",
    "Passage": "passages",
    "Settings": "settings",
    "build": "indexing",
}


def __getattr__(name: str) -> Any:
    """Loads what is asked for, and torch with it, only then: the command line imports this package for its help alone."""
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
