"""Functions compiled by numba, and kept on disk between runs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar, cast

import numba

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """`function`, compiled to machine code at its first call; the code is cached beside the source, or in the user's cache.

    numba follows no changes across files: a compiled function may call compiled functions of its own module only.
    """
    try:
        return cast(F, numba.njit(function, cache=True, nogil=True))
    except RuntimeError:
        log.info("No folder for compiled code can be written, so %s is compiled anew in each process.", function.__name__)
        return cast(F, numba.njit(function, nogil=True))
