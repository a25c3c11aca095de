"""The notebook runs, on a build made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from publishing import Settings, small_build

nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")

NOTEBOOK = Path(__file__).parents[1] / "mixtures" / "inspect.ipynb"


def test_the_notebook_is_committed_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def parametrised(path: str) -> Any:
    """The notebook with another build in its first cell."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    parameters = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(parameters) == 1
    assert parameters[0].source.startswith('BUILD = "')
    parameters[0].source = f"BUILD = {path!r}"
    return notebook


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    build = small_build(str(tmp_path), Settings(drawn=40))
    notebook = parametrised(build.path)
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute(cwd=str(tmp_path))
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"][1:]
    shown = ["".join(output.get("data", {}).get("text/plain", "") for output in cell.outputs) for cell in cells]
    assert all(shown), "every cell shows something"
    assert build.version in shown[0]
    assert "bakery" in shown[1]
    assert "difficulty" in shown[5]


def test_the_notebook_copes_with_a_build_without_rejected_or_validation_rows(tmp_path: Path) -> None:
    build = small_build(str(tmp_path), Settings(min_words=0, duplicates=False, validation_every=0))
    names: dict[str, object] = {}
    for cell in parametrised(build.path).cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
    assert "negative" in names
