"""Every notebook runs from top to bottom on the digits, and is kept with what it showed then."""

from __future__ import annotations

import json
import re
from itertools import groupby
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FORMS = ["text/plain", "text/html", "image/png"]


def test_there_are_four() -> None:
    names = ["01_data", "02_train_and_read_a_run", "03_compare_runs", "04_errors_and_confidence"]
    assert [path.stem for path in NOTEBOOKS] == names


def shapes(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """Of each code cell the kinds of what it gave: what was printed, results by their richest form."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    kinds = [[each.get("name") or max(each["data"], key=FORMS.index) for each in cell.outputs] for cell in cells]
    return [[kind for kind, _ in groupby(found)] for found in kinds]  # a stream comes in any number of pieces


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_whole_small_and_without_traces_of_a_machine(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(word in cell.source for cell in cells for word in ("def ", "class "))
    assert path.stat().st_size < 400_000
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work|Users)/|Error|Warning", json.dumps(shown(notebook)))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_it_imports_is_there(path: Path) -> None:
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    for line in re.findall(r"^(?:from|import) .+", "\n".join(cells), re.MULTILINE):
        exec(line, {})


def shown(notebook: nbformat.NotebookNode) -> list[str]:
    """The text that the outputs have."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output.get("text", "") or output["data"].get("text/plain", "") for output in outputs]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_top_to_bottom_to_what_it_is_kept_with(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("src", "conf"):  # so that its logs go into the test's own folder
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(path, as_version=4)
    kept = shapes(notebook)
    (tmp_path / "notebooks").mkdir()
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path / "notebooks")}}).execute()
    assert shapes(notebook) == kept
    assert "error: " not in "".join(shown(notebook))
    assert any("image/png" in kinds for kinds in kept)
