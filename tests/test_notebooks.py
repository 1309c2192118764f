"""Every notebook runs from top to bottom on the digits, and is kept without outputs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
QUICK, LONG = NOTEBOOKS[:2], [pytest.param(path, marks=pytest.mark.slow) for path in NOTEBOOKS[2:]]


def test_there_are_four() -> None:
    names = ["01_data", "02_train_and_read_a_run", "03_compare_runs", "04_errors_and_confidence"]
    assert [path.stem for path in NOTEBOOKS] == names


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
            assert "def " not in cell.source
            assert "class " not in cell.source


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", [*QUICK, *LONG], ids=lambda path: path.stem)
def test_it_runs_from_top_to_bottom(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("src", "conf"):  # so that its logs go into the test's own folder
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(path, as_version=4)
    (tmp_path / "notebooks").mkdir()
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path / "notebooks")}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert "".join(output.get("text", "") for output in outputs).count("error: ") == 0
    assert any("image/png" in output.get("data", {}) for output in outputs)
