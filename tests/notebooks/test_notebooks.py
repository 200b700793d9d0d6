"""The notebooks: each is what its text source says, holds no outputs, and names what is there.

They run in `pytest -m slow tests/end_to_end/test_whole_runs.py`.
"""

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from notebooks.cells import FOLDER, NAMES, Cell, notebook, of_notebook

ROOT = Path(__file__).resolve().parent.parent.parent
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:content|home|mnt|opt|root|tmp|usr|work|Users)\b|[A-Z]:\\")


def of_text(name):
    """Cells of the .py in jupytext's percent format, without its header."""
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    cells = []
    for part in re.split(r"^# %%", text, flags=re.M)[1:]:
        marker, _, source = part.partition("\n")
        kind = "markdown" if "[markdown]" in marker else "code"
        tags = json.loads(found[1]) if (found := re.search(r"tags=(\[.*\])", marker)) else []
        if kind == "markdown":
            source = re.sub(r"^# ?", "", source, flags=re.M)
        cells.append(Cell(kind, tags, source.strip("\n")))
    return cells


def test_every_notebook_has_a_text_source_and_a_line_in_the_readme():
    assert (
        sorted(path.stem for path in FOLDER.glob("*.py"))
        == NAMES
        == ["colab_tpu_sample", "convert_and_calibrate", "kernels_tour"]
    )
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"notebooks/{name}.ipynb" in readme for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_what_its_text_source_says(name):
    assert of_notebook(name) == of_text(name), f"run: jupytext --sync notebooks/{name}.py"


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_holds_no_outputs(name):
    code = [cell for cell in notebook(name)["cells"] if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_names_no_path_of_a_machine(name):
    found = [line for cell in of_notebook(name) for line in cell.source.splitlines()]
    assert not [line for line in found if MACHINE_PATH.search(line)]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_plain_python(name):
    for cell in of_notebook(name):
        if cell.kind == "code":
            compile(cell.source, name, "exec")  # magics are none


OURS = ("qsjax", "convert", "pallas_kernels")


def is_ours(module):
    return module.partition(".")[0] in OURS


def imported(name):
    """What a notebook takes from our packages, by its name there."""
    trees = [ast.parse(cell.source) for cell in of_notebook(name) if cell.kind == "code"]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    found = {}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and is_ours(node.module):
            module = importlib.import_module(node.module)
            found |= {one.asname or one.name: getattr(module, one.name) for one in node.names}
        if isinstance(node, ast.Import):
            ours = [one.name for one in node.names if is_ours(one.name)]
            found |= {one: importlib.import_module(one) for one in ours}
    return nodes, found


def called(node, found):
    """The function of ours that a call names, or None."""
    chain, target = [], node.func
    while isinstance(target, ast.Attribute):
        chain.append(target.attr)
        target = target.value
    if not isinstance(target, ast.Name) or target.id not in found:
        return None
    function = found[target.id]
    for attribute in reversed(chain):
        function = getattr(function, attribute)
    return function


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_names_what_is_there(name):
    """Imports, attributes of our modules, and the arguments' names of calls."""
    nodes, found = imported(name)
    calls = [(called(node, found), node) for node in nodes if isinstance(node, ast.Call)]
    calls = [(function, node) for function, node in calls if function is not None]
    assert len(calls) >= 3
    for function, node in calls:
        given = {keyword.arg for keyword in node.keywords if keyword.arg}
        parameters = inspect.signature(function).parameters
        if not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
            assert given <= set(parameters), ast.unparse(node)


def test_all_install_alike():
    installs = {
        tuple(cell.source for cell in of_notebook(name) if "install" in cell.tags) for name in NAMES
    }
    assert len(installs) == 1
    assert len(installs.pop()) == 1


IN_COLAB = """
import importlib.util, shutil, subprocess, sys, types
sys.modules["google.colab"] = types.ModuleType("google.colab")
subprocess.run = lambda command, **_: print(*command[1:])
found = importlib.util.find_spec
importlib.util.find_spec = lambda name: {libtpu} if name == "libtpu" else found(name)
shutil.which = lambda name: {gpu}
"""


@pytest.mark.parametrize(
    ("libtpu", "gpu", "extra"),
    [(True, None, "[tpu]"), (None, "nvidia-smi", "[cuda]"), (None, None, "")],
)
def test_in_colab_the_first_cell_installs_for_the_accelerator(tmp_path, libtpu, gpu, extra):
    (cell,) = [cell.source for cell in of_notebook(NAMES[0]) if "install" in cell.tags]
    start = IN_COLAB.format(libtpu=libtpu, gpu=repr(gpu))

    def run(code):
        command = [sys.executable, "-c", start + code]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert "set REPOSITORY" in run(cell).stderr
    done = run(cell.replace('REPOSITORY = ""', 'REPOSITORY = "file:///qsjax"'))
    assert done.stdout.startswith("-m pip install"), done.stderr
    assert f"qsjax{extra} @ file:///qsjax jax==0.11.2" in done.stdout
    kept = (tmp_path / "kept.txt").read_text(encoding="utf-8")
    assert kept.startswith("numpy==")
