"""Every notebook runs from its first cell to its last, in its small form.

Each reads KSA_SMALL=1 for fewer seeds, epochs and images. The outputs in the repository
are those of the full form; what is run here is a copy.
"""

import pathlib
import re
import sys

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
kernelspec = pytest.importorskip("ipykernel.kernelspec")

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
FIGURES = {
    "01_quickstart": 2,
    "02_flow_and_recoloring": 6,
    "03_training": 2,
    "04_audit": 3,
}
"""How many figures a notebook shows at least."""
COLAB = "https://colab.research.google.com"
REPOSITORY = "keras-structadv/keras_structadv"

each_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def cells_of(notebook, kind):
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def outputs_of(notebook):
    return [output for cell in cells_of(notebook, "code") for output in cell.outputs]


def count_figures(notebook):
    return sum("image/png" in output.get("data", {}) for output in outputs_of(notebook))


def test_there_are_notebooks():
    assert set(FIGURES) == {path.stem for path in PATHS}


@each_notebook
def test_opens_in_colab_and_installs_itself(path):
    notebook = read(path)
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    place = f"{COLAB}/github/{REPOSITORY}/blob/main/notebooks/{path.name}"
    assert f"({COLAB}/assets/colab-badge.svg)]({place})" in first.source
    install = cells_of(notebook, "code")[0].source
    assert re.search(
        r'^if importlib\.util\.find_spec\("\w+"\) is None:$', install, re.M
    )
    assert re.search(
        r"^    %pip install -q .*\[(notebooks|experiments)\]", install, re.M
    )
    assert f"https://github.com/{REPOSITORY}" in install


@each_notebook
def test_is_committed_as_it_ran(path):
    notebook = read(path)
    cells = [cell for cell in cells_of(notebook, "code") if cell.source.strip()]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [
        (output.output_type, output.get("name")) for output in outputs_of(notebook)
    ]
    assert not {("error", None), ("stream", "stderr")} & set(kinds)
    assert count_figures(notebook) >= FIGURES[path.stem]
    assert path.stat().st_size < 1_500_000


@each_notebook
def test_reads_the_size_in_one_cell(path):
    sources = [cell.source for cell in cells_of(read(path), "code")]
    assert sum("KSA_SMALL" in source for source in sources) == 1


@pytest.mark.rare
@each_notebook
def test_runs(path, tmp_path, monkeypatch):
    # A kernel of this very Python, which comes before those that Jupyter finds.
    kernelspec.write_kernel_spec(tmp_path / "jupyter" / "kernels" / "python3")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))  # for what is not installed
    monkeypatch.setenv("KSA_SMALL", "1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # nothing is there to be installed
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel sets its own
    work = tmp_path / "work"
    work.mkdir()
    notebook = read(path)
    for cell in cells_of(notebook, "code"):
        cell.outputs = []
    python = nbformat.v4.new_code_cell("import sys\nprint(sys.executable)")
    notebook.cells.append(python)
    client = nbclient.NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(work)}},
    )
    client.execute()  # raises the error of a cell
    assert python.outputs[0].text.strip() == sys.executable
    assert not cells_of(notebook, "code")[0].outputs  # the package is there already
    assert count_figures(notebook) >= FIGURES[path.stem]
