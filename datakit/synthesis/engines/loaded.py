"""The model that this process has loaded. It stays for the steps after it: a recipe of many categories asks it in many steps."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

_loaded: dict[str, Any] = {}


def loaded(identity: Mapping[str, Any], load: Callable[[], Any]) -> Any:
    """What `load` gives; what it gave before, where the identity is that of the model that is loaded. There is one at a time."""
    key = json.dumps(identity, sort_keys=True)
    if key not in _loaded:
        let_go()
        _loaded[key] = load()
    return _loaded[key]


def let_go() -> None:
    """Frees the model, so that there is room for what comes next."""
    _loaded.clear()
