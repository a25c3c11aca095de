"""Reading and writing files, here or behind any fsspec URL. A file appears whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from datakit.errors import BuildError, UserError

ROW_GROUP_ROWS = 16_384


def join(*parts: str) -> str:
    """Joins path parts with '/', for local paths and URLs alike."""
    return "/".join([parts[0].rstrip("/") or "/", *(part.strip("/") for part in parts[1:])])


def filesystem(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec file system of a path or URL, and the path inside it."""
    try:
        return fsspec.core.url_to_fs(path)  # type: ignore[no-any-return]
    except (ImportError, ValueError) as error:
        raise UserError(f"'{path}' cannot be opened: {error}.") from error


def exists(path: str) -> bool:
    fs, inner = filesystem(path)
    return bool(fs.exists(inner))


@contextmanager
def atomic(path: str) -> Iterator[IO[bytes]]:
    """Opens `path` for writing. The file is there, whole, when the block ends well; else it is as it was before.

    Locally: a temporary file beside it, flushed to disk, then renamed. Object stores put an object in one go when it is closed.
    """
    fs, inner = filesystem(path)
    local = isinstance(fs, LocalFileSystem)
    target = f"{inner}.{uuid.uuid4().hex[:12]}.tmp" if local else inner
    try:
        fs.makedirs(os.path.dirname(inner), exist_ok=True)
        if local:
            with open(target, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(target, inner)
        else:
            with fs.transaction, fs.open(target, "wb") as file:
                yield file
    except BaseException as error:
        if local:
            with suppress(FileNotFoundError, NotADirectoryError):
                os.remove(target)
        if isinstance(error, OSError):
            raise failure(error, path) from error
        raise


def failure(error: OSError, path: str) -> Exception:
    """The sentence for an operating-system error while `path` was written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BuildError(
            f"The disk is full: '{path}' could not be written. Finished work is kept; make room and run the same command again."
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return UserError(f"'{path}' cannot be written: a part of this path is a file, and a folder is needed there.")
    if error.errno == errno.EISDIR:
        return UserError(f"'{path}' cannot be written: it is a folder, and a file is to stand there. Move it away.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"'{path}' cannot be written: permission denied. Choose a folder that you may write to.")
    # Where the folder is there, something else is missing, and that error says what.
    if error.errno == errno.ENOENT and not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        return UserError(f"'{path}' cannot be written: its folder is not there, and cannot be made. Choose another folder.")
    return error


def check_output(path: str, endings: Sequence[str], force: bool) -> None:
    """Refuses, before any work is done, a name with another ending, a folder, and a file that is there already unless `force`."""
    if not path.endswith(tuple(endings)):
        raise UserError(f"--output is '{path}'. Allowed: a name that ends in {' or '.join(endings)}.")
    fs, inner = filesystem(path)
    if fs.isdir(inner):
        raise UserError(f"--output is '{path}', which is a folder. Give the name of a file.")
    if exists(path) and not force:
        raise UserError(f"'{path}' is there already. Give another name, or --force to write over it.")


def read_bytes(path: str) -> bytes:
    fs, inner = filesystem(path)
    with fs.open(inner, "rb") as file:
        return bytes(file.read())


def write_bytes(path: str, data: bytes) -> None:
    with atomic(path) as file:
        file.write(data)


def read_json(path: str) -> Any:
    return json.loads(read_bytes(path))


def write_json(path: str, value: Any) -> None:
    """Writes canonical JSON: sorted keys, so that equal values are equal bytes."""
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def read_table(path: str, columns: list[str] | None = None) -> pa.Table:
    fs, inner = filesystem(path)
    if isinstance(fs, LocalFileSystem):
        return pq.read_table(inner, columns=columns, partitioning=None, memory_map=False)
    with fs.open(inner, "rb") as file:
        return pq.read_table(file, columns=columns)


def write_table(path: str, table: pa.Table) -> None:
    """Writes zstd Parquet. The bytes depend on the values alone, not on how the table was put together."""
    with atomic(path) as file:
        pq.write_table(table.combine_chunks(), file, compression="zstd", row_group_size=ROW_GROUP_ROWS)


def file_digest(path: str) -> str:
    """Hex BLAKE2b (128 bit) of a file's bytes."""
    fs, inner = filesystem(path)
    state = hashlib.blake2b(digest_size=16)
    with fs.open(inner, "rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def bytes_digest(data: bytes) -> str:
    """Hex BLAKE2b (128 bit) of some bytes."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()
