"""What README.md says of the registry is what the registry has."""

from __future__ import annotations

import re
from pathlib import Path

from datakit import registry


def test_readme_counts_categories_families_and_public_sets_as_the_registry_does() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    found = re.search(r"knows (\d+) categories in (\d+) families.*?(\d+) of them also name public data sets", readme, re.DOTALL)
    assert found is not None
    entries = registry.load().values()
    public = [entry for entry in entries if entry.sources]
    assert [int(number) for number in found.groups()] == [len(entries), len({entry.family for entry in entries}), len(public)]
