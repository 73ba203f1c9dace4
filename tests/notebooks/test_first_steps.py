"""The first notebook runs from its first to its last cell, in a temporary folder, and is stored without outputs."""

import json
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

SECONDS_PER_CELL = 300


@pytest.fixture
def notebook(project_dir: Path) -> nbformat.NotebookNode:
    """Return the notebook as it is stored."""
    return nbformat.read(project_dir / "docs" / "notebooks" / "first_steps.ipynb", as_version=4)


@pytest.mark.slow
def test_no_cell_fails(notebook: nbformat.NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = tmp_path / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))  # found before a kernel that the user installed
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel shows its pictures in the notebook
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # tests run side by side
    client = NotebookClient(
        notebook, timeout=SECONDS_PER_CELL, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()  # raises CellExecutionError with the cell's traceback

    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert not [out for cell in code for out in cell.outputs if out.output_type == "error"]
    pictures = [out for cell in code for out in cell.outputs if "image/png" in out.get("data", {})]
    assert len(pictures) == 2  # the learning curve and the overlay
    (run,) = temporary.glob("*/runs/first_steps/3d_fullres/fold_0/seed_0")
    assert json.loads((run / "run.json").read_text())["state"] == "finished"
    assert {path.name for path in tmp_path.iterdir()} == {"jupyter", "temporary"}  # nothing is written beside it


def test_it_is_stored_without_outputs_and_paths(notebook: nbformat.NotebookNode) -> None:
    nbformat.validate(notebook)
    for before, cell in zip(notebook.cells, notebook.cells[1:], strict=False):
        assert cell.cell_type != "code" or before.cell_type == "markdown", "a sentence stands before each cell"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None
            assert "/home/" not in cell.source
