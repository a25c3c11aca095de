"""Relabelling asks a language model as synthesis does: its tests use the same server."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "synthesis"))
