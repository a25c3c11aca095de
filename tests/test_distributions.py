"""What is installed does not change with what stands on sys.path."""

from __future__ import annotations

from pathlib import Path

import pytest

from datakit.distributions import installed
from datakit.step import package_version


def test_a_package_that_another_one_carries_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ray does, with a psutil of its own."""
    numpy = package_version("numpy")
    for name, version in (("numpy", "0.0.1"), ("carried", "1.0")):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    installed.cache_clear()
    assert package_version("numpy") == numpy != "0.0.1"
    assert package_version("carried") == "absent"


def test_names_are_taken_in_any_spelling() -> None:
    assert package_version("Sentence_Transformers") == package_version("sentence-transformers") != "absent"
