"""Every public source of the registry builds rows from a local mirror with the declared columns, and is refused without one."""

from __future__ import annotations

from pathlib import Path

import datasets
import mirrors
import pytest
from stepping import read, run_step

from datakit import registry
from datakit.assets import Assets
from datakit.errors import UserError
from datakit.recipe import BeirSource, HuggingFaceSource
from datakit.registry import Category
from datakit.sources.origins import origin
from datakit.sources.read import read_step
from datakit.step import Step

SOURCES = [(entry, public.source) for entry in registry.load().values() for public in entry.sources]
PUBLIC = pytest.mark.parametrize(("entry", "source"), SOURCES, ids=[f"{entry.key}:{origin(source)}" for entry, source in SOURCES])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))


def step(entry: Category, source: HuggingFaceSource | BeirSource, folder: Path) -> Step:
    assets, mirror = Assets(str(folder / "cache")), str(folder / "mirror")
    return read_step("read", entry.key, entry, source, None, 1000, assets, 0, mirror, entry.key)


def test_there_are_public_sources_to_build() -> None:
    assert len({entry.key for entry, _ in SOURCES}) >= 60


@PUBLIC
def test_a_public_source_gives_rows_from_a_mirror(
    entry: Category, source: HuggingFaceSource | BeirSource, tmp_path: Path
) -> None:
    mirrors.write(tmp_path / "mirror", source)
    output = run_step(step(entry, source, tmp_path), str(tmp_path / "cache"))
    rows = read(output.shards).to_pylist()
    assert rows, output.report.counts
    assert all(row["query"] and row["positive"] for row in rows)
    assert {row["source"] for row in rows} == {origin(source)}
    assert origin(source).startswith(source.name or source.path)
    assert len({row["row_id"] for row in rows}) == len(rows)
    assert output.report.counts.rejected == {}


@PUBLIC
def test_a_public_source_whose_column_has_another_name_is_refused_by_name(
    entry: Category, source: HuggingFaceSource | BeirSource, tmp_path: Path
) -> None:
    name = mirrors.names(source)[-1] if isinstance(source, HuggingFaceSource) else "text"
    there = mirrors.write(tmp_path / "mirror", source, renamed=name)
    with pytest.raises(UserError) as raised:
        run_step(step(entry, source, tmp_path), str(tmp_path / "cache"))
    said = str(raised.value)
    assert f"'{source.path}' has no column '{name}'" in said
    assert f"'{there}'" in said
    assert f"The registry entry '{entry.key}' declares this source" in said
