"""A step whose source changed says so: its VERSION is raised, or the change is recorded as one that leaves the output alone.

A cache must never give what older code made. `tests/step_sources.json` holds, for each module with a VERSION, that version and
a digest of its source with all of datakit that it imports (comments and docstrings do not count). After a change: raise VERSION
if the output may differ, then record with `python tests/test_step_sources.py`.
"""

from __future__ import annotations

import ast
import functools
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RECORD = Path(__file__).parent / "step_sources.json"
# Carries rows and says nothing about what is in them; the Parquet layout and the schema are checked by other tests.
INFRASTRUCTURE = {
    "datakit",
    "datakit.assets",
    "datakit.errors",
    "datakit.executor",
    "datakit.progress",
    "datakit.recipe",
    "datakit.registry",
    "datakit.step",
    "datakit.storage",
}


def file_of(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@functools.cache
def imports(module: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in found if name.startswith("datakit") and file_of(name)}


def closure(module: str) -> list[str]:
    seen: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name in seen or name in INFRASTRUCTURE:
            continue
        seen.add(name)
        todo += imports(name)
    return sorted(seen)


def tree_of(module: str) -> ast.Module:
    file = file_of(module)
    assert file is not None
    return ast.parse(file.read_text())


@functools.cache
def without_docstrings(module: str) -> str:
    tree = tree_of(module)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            node.body = body[1:] or [ast.Pass()]  # type: ignore[attr-defined]
    # Not ast.dump: it differs between versions of Python.
    return ast.unparse(tree)


def source_digest(module: str) -> str:
    from datakit.schema import digest

    return digest(*(f"{name}\n{without_docstrings(name)}" for name in closure(module)))


@functools.cache
def versions() -> dict[str, int]:
    found = {}
    for file in sorted((ROOT / "datakit").rglob("*.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["VERSION"]:
                module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
                found[module] = ast.literal_eval(node.value)
    return found


def test_there_are_steps_to_watch() -> None:
    assert len(versions()) >= 8


@pytest.mark.parametrize("module", sorted(versions()))
def test_a_step_whose_source_changed_says_so(module: str) -> None:
    recorded = json.loads(RECORD.read_text()).get(module)
    assert recorded is not None, f"{module} is new: record it with `python tests/test_step_sources.py`"
    assert source_digest(module) == recorded["digest"], (
        f"The source of {module}, or of what it imports, has changed. If its output may differ, raise its VERSION "
        f"(now {versions()[module]}, recorded {recorded['version']}). Then record: python tests/test_step_sources.py"
    )
    assert versions()[module] == recorded["version"]


if __name__ == "__main__":
    RECORD.write_text(
        json.dumps({name: {"version": version, "digest": source_digest(name)} for name, version in versions().items()}, indent=2)
        + "\n"
    )
