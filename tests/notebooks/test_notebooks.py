"""The notebooks run from top to bottom, and hold no outputs but tables, pictures and a few lines."""

import json

import pytest

from tests.helpers import REPOSITORY


NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_leaves_nothing_behind(path, monkeypatch):
    for module in ("nbformat", "nbclient", "ipykernel", "matplotlib"):
        pytest.importorskip(module, reason=f"needs {module}: pip install 'baichuan-hf[notebook]'")
    import nbclient
    import nbformat

    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    before = sorted(path.parent.iterdir())
    notebook = nbformat.read(path, as_version=4)
    # Raises with the cell and its traceback when one fails.
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    assert sorted(path.parent.iterdir()) == before


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_saved_outputs_are_small(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error"
            data = output.get("data", {"text/plain": output.get("text", [])})
            assert {"text/html", "image/png"} & data.keys() or len(data["text/plain"]) <= 5, "".join(cell["source"])
    assert path.stat().st_size < 600_000
