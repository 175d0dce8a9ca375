"""The notebooks: each in step with its script, without outputs, and run from top to bottom in a kernel of its own."""

import os
import re
import resource
from pathlib import Path

import pytest

# The oldest environment has none.
jupytext, nbclient, nbformat = map(pytest.importorskip, ("jupytext", "nbclient", "nbformat"))

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
REPOSITORY = "ssdd-jax/ssdd_jax"
each = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
# Of two processors, which take a minute and a half for them at most if they have nothing else to do.
CPU_SECONDS = 120


def test_every_script_has_its_notebook_and_the_other_way_round():
    scripts = sorted((ROOT / "notebooks").glob("*.py"))
    assert [path.stem for path in scripts] == [path.stem for path in NOTEBOOKS]
    assert {"quickstart", "your_images", "colab_tpu", "library", "tables"} <= {path.stem for path in NOTEBOOKS}


@each
def test_a_notebook_is_in_step_with_its_script_and_has_no_outputs(notebook):
    mine, theirs = jupytext.read(notebook), jupytext.read(notebook.with_suffix(".py"))
    source = lambda read: [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in read.cells]
    assert source(mine) == source(theirs), f"jupytext --sync {notebook}"
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in mine.cells)
    # One cell of parameters; a badge that opens this notebook; one line that installs, only where the package is missing.
    assert [cell.metadata.get("tags", []) for cell in mine.cells].count(["parameters"]) == 1
    text = notebook.with_suffix(".py").read_text()
    address = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/notebooks/{notebook.name}"
    assert f"# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({address})" in text
    assert len(re.findall("install -q", text)) == 1
    assert f"git+https://github.com/{REPOSITORY}" in text
    assert "Last run with Python" in text


@pytest.mark.chaos
@each
def test_a_notebook_runs_from_a_clean_kernel(notebook, tmp_path, monkeypatch):
    # Not the user's: what it prepares and compiles, too, is new.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    for name in [
        name for name in os.environ if name == "XLA_FLAGS" or (name.startswith(("JAX_", "SSDD_JAX_")) and name != "JAX_PLATFORMS")
    ]:
        monkeypatch.delenv(name)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    (tmp_path / "notebooks").mkdir()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    client = nbclient.NotebookClient(
        nbformat.read(notebook, 4), timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path / "notebooks")}}
    )
    client.execute()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < CPU_SECONDS
