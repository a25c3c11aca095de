"""A build as Python opens it."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import polars as pl
import pytest
from publishing import CATEGORIES, Settings, small_build

import datakit
from datakit.errors import BuildError, UserError
from datakit.opened import Build, open_build
from datakit.schema import EXAMPLE, REJECTED


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("opened")
    small_build(str(folder), Settings(drawn=40))
    return folder / "datasets" / "small"


@pytest.fixture(scope="module")
def build(folder: Path) -> Build:
    return open_build(str(folder))


def test_a_version_the_link_and_the_folder_above_are_the_same_build(folder: Path, build: Build) -> None:
    version = folder / build.version
    for path in (version, folder / "latest", folder, str(folder) + "/", str(version) + "/"):
        opened = datakit.open(str(path))
        assert opened.version == build.version
        assert os.path.realpath(opened.path) == str(version.resolve())


def test_an_opened_link_does_not_move_when_a_newer_version_is_published(tmp_path: Path) -> None:
    small_build(str(tmp_path), Settings(drawn=40))
    opened = open_build(str(tmp_path / "datasets" / "small" / "latest"))
    rows = opened.train.collect().height
    small_build(str(tmp_path), Settings(drawn=10))
    assert opened.train.collect().height == rows
    assert open_build(str(tmp_path / "datasets" / "small")).train.collect().height < rows


def test_the_frames_are_lazy_and_have_the_columns_of_the_schema(build: Build) -> None:
    for part, names in (("train", EXAMPLE.names), ("validation", EXAMPLE.names), ("rejected", REJECTED.names)):
        frame = getattr(build, part)
        assert isinstance(frame, pl.LazyFrame)
        assert frame.collect_schema().names() == names
    assert build.not_sampled.collect_schema().names() == ["row_id", "category", "step"]
    hardest = build.train.select(pl.col("negatives").list.eval(pl.element().struct.field("difficulty")).list.max()).collect()
    assert hardest.to_series().max() == pytest.approx(0.9)


@pytest.mark.parametrize("name", ["a=1", "w[ei]rd *", "with space"])
def test_any_folder_name_will_do(build: Build, tmp_path: Path, name: str) -> None:
    shutil.copytree(build.path, tmp_path / name)
    opened = open_build(str(tmp_path / name))
    assert opened.train.collect().equals(build.train.collect())
    opened.verify()


def test_what_is_no_build_is_named(folder: Path, build: Build, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing is there.*make a build with: datakit build"):
        open_build(str(tmp_path / "no" / "where"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="it is a file"):
        open_build(str(tmp_path / "file"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty folder"):
        open_build(str(tmp_path / "empty"))
    (tmp_path / "dangling").symlink_to("gone")
    with pytest.raises(UserError, match="a link to 'gone', which is not there"):
        open_build(str(tmp_path / "dangling"))
    with pytest.raises(UserError, match=rf"holds small.*Builds near it: {re.escape(str(folder))}/latest"):
        open_build(str(folder.parent))
    with pytest.raises(UserError, match=f"Builds near it: .*{build.version}"):
        open_build(str(folder / "0123456789abcdef"))


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 99}', '{"schema": 1}', "\xff"])
def test_a_manifest_that_cannot_be_read_is_the_persons_to_mend(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"manifest\.json"):
        open_build(str(tmp_path))


def test_verify_finds_a_single_changed_bit(build: Build, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(build.path, copy)
    opened = open_build(str(copy))
    opened.verify()
    file = copy / "validation" / "validation-00001.parquet"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(BuildError, match=r"'validation/validation-00001\.parquet' was changed\. Move"):
        opened.verify()


def test_it_shows_itself_in_a_terminal_and_in_a_notebook(build: Build) -> None:
    totals = build.manifest.totals
    assert repr(build).startswith(f"Build(small {build.version}: {totals.train} train, {totals.validation} validation")
    html = build._repr_html_()
    for name in CATEGORIES:
        assert f"<th>{name}</th><td>{build.manifest.categories[name].created}</td>" in html
    assert html.count("<tr>") == len(CATEGORIES) + 2
    assert build.version in build.manifest._repr_html_()
