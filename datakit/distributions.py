"""Which distributions are installed, as pip sees them."""

from __future__ import annotations

import functools
import importlib.metadata
import re
import site
import sysconfig


@functools.cache
def installed() -> dict[str, importlib.metadata.Distribution]:
    """The distributions in the folders that pip installs into, by canonical name.

    Not those that happen to be on sys.path: Ray, for one, puts packages that it carries there, so that what is installed, and
    which version, would change with the executor.
    """
    paths = sysconfig.get_paths()
    folders = list(dict.fromkeys([paths["purelib"], paths["platlib"], *site.getsitepackages(), site.getusersitepackages()]))
    found: dict[str, importlib.metadata.Distribution] = {}
    for distribution in importlib.metadata.distributions(path=folders):
        if distribution.name:
            found.setdefault(canonical(distribution.name), distribution)
    return found


def canonical(name: str) -> str:
    """A name in the form that package indexes use."""
    return re.sub(r"[-_.]+", "-", name).lower()
