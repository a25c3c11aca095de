"""A file appears whole or not at all."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datakit import storage
from datakit.errors import BuildError, UserError


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    storage.write_bytes(str(path), b"old")
    with pytest.raises(RuntimeError), storage.atomic(str(path)) as file:
        file.write(b"new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_url_is_read_and_written_like_a_path(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/inner/a.json"
    storage.write_json(url, {"b": 1, "a": [2]})
    assert storage.read_json(f"{tmp_path}/inner/a.json") == {"a": [2], "b": 1}
    memory = "memory://datakit-test/a.bin"
    storage.write_bytes(memory, b"x")
    assert storage.exists(memory)
    assert storage.read_bytes(memory) == b"x"


def test_a_path_through_a_file_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="a part of this path is a file"):
        storage.write_bytes(str(tmp_path / "file" / "a"), b"x")


def test_a_folder_in_the_place_of_a_file_is_refused_in_a_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "rows.parquet"
    folder.mkdir()
    with pytest.raises(UserError, match=r"rows\.parquet' cannot be written: it is a folder"):
        storage.write_bytes(str(folder), b"x")
    assert os.listdir(tmp_path) == ["rows.parquet"]
    for force in (False, True):
        with pytest.raises(UserError, match=r"--output is '.*rows\.parquet', which is a folder"):
            storage.check_output(str(folder), [".parquet"], force)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="a place where nobody can make a folder")
def test_a_folder_that_cannot_be_made_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its folder is not there, and cannot be made"):
        storage.write_bytes("/proc/no-such-folder/a", b"x")
    with pytest.raises(FileNotFoundError, match="other"), storage.atomic(str(tmp_path / "a")):
        (tmp_path / "other").read_bytes()  # what is missing is not the folder


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_told_in_a_sentence_and_leaves_nothing_behind(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        with pytest.raises(BuildError, match="The disk is full"):
            storage.write_bytes(str(small / "big"), b"x" * 200_000)
        assert os.listdir(small) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.integers(1, 19))
def test_the_bytes_of_a_table_do_not_depend_on_its_chunks(values: list[int], cut: int) -> None:
    whole = pa.table({"a": pa.chunked_array([values])})
    parts = pa.table({"a": pa.chunked_array([values[:cut], values[cut:]], type=pa.int64())})
    storage.write_table("memory://chunks/a", whole)
    storage.write_table("memory://chunks/b", parts)
    assert storage.read_bytes("memory://chunks/a") == storage.read_bytes("memory://chunks/b")


def test_a_scheme_that_nobody_knows_is_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match="cannot be opened"):
        storage.exists("nosuch://a/b")
