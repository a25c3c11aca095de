"""Fixtures that all tests share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

# No test may reach for a hub, nor wait for one that does not answer.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

if "PYTEST_XDIST_WORKER" in os.environ:
    # There is a worker for each processor: threads of their own would only wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; tests that use it are skipped without it."""
    folder = os.environ.get("DATAKIT_REAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("DATAKIT_REAL_DATA names no folder: the real data sets are not here")
    return Path(folder)
