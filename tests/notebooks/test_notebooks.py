"""The notebooks: each is what its text source says, holds no outputs, and names what is there.

They run in `pytest -m slow tests/end_to_end/test_whole_runs.py`.
"""

import ast
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from notebooks.cells import FOLDER, NAMES, Cell, notebook, of_notebook

import qsjax
from qsjax.address import ADDRESS
from qsjax.checkpoint import Manifest
from qsjax.copying import copy_checkpoint, copy_programs

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


def run_install(
    folder,
    *,
    colab=True,
    libtpu=False,
    gpu=False,
    field="",
    upload=False,
    restarts=False,
    absent=False,
    **variables,
):
    """The first cell in a process of its own: pip is not called, its command is printed."""
    (cell,) = [cell.source for cell in of_notebook(NAMES[0]) if "install" in cell.tags]
    for name, given in (("QSJAX", repr(field)), ("UPLOAD_A_WHEEL", repr(upload))):
        cell, count = re.subn(f"^{name} = \\S+ ", f"{name} = {given} ", cell, flags=re.M)
        assert count == 1
    code = COLAB.format(colab=colab, libtpu=libtpu or None, gpu=repr("nvidia-smi" if gpu else None), restarts=restarts, absent=absent)  # fmt: skip
    environment = {"PATH": "", "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-P", "-c", code + cell]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)  # fmt: skip
    return done.stdout, done.stderr


COLAB = """
import importlib.metadata, importlib.util, shutil, subprocess, sys, types
if {colab}:
    google = sys.modules["google.colab"] = types.ModuleType("google.colab")
    sys.modules["google"] = types.ModuleType("google")
    sent = {{"qsjax-9-py3-none-any (1).whl": b"wheel"}}
    google.files = types.SimpleNamespace(upload=lambda: sent)
if {restarts}:
    sys.modules["jax"] = types.ModuleType("jax")
    sys.modules["jax"].__version__ = "0.7.2"
    sys.modules["numpy"] = types.ModuleType("numpy")
    sys.modules["numpy"].__version__ = "2.1.3"
    shell = types.SimpleNamespace(kernel=types.SimpleNamespace(do_shutdown=lambda again: print("RESTART", again)))
    sys.modules["IPython"] = types.SimpleNamespace(get_ipython=lambda: shell)
versions = {{"numpy": "2.1.3", "torch": "2.9", "jax": "0.7.2"}}
def version(name):
    if name not in versions:
        raise importlib.metadata.PackageNotFoundError(name)
    return versions[name]
importlib.metadata.version = version
def pip(command, **_):
    print(*command[1:])
    versions.update(qsjax="9", jax="0.11.2")
    return types.SimpleNamespace(returncode=int("bad" in command[-3]), stdout="", stderr="no such thing")
subprocess.run = pip
found = importlib.util.find_spec
known = {{"libtpu": {libtpu}}} | ({{"qsjax": None}} if {absent} else {{}})
importlib.util.find_spec = lambda name: known[name] if name in known else found(name)
shutil.which = lambda name: {gpu}
"""


@pytest.mark.parametrize(
    ("chip", "extra", "said"),
    [({"libtpu": True}, "[tpu]", "a TPU"), ({"gpu": True}, "[cuda]", "a GPU"), ({}, "", "no accelerator")],
)  # fmt: skip
def test_in_colab_the_first_cell_installs_for_the_accelerator(tmp_path, chip, extra, said):
    out, _ = run_install(tmp_path, **chip, QSJAX_ADDRESS="https://host/owner/qsjax")
    assert f"-m pip install -q -c kept.txt qsjax{extra} @ git+https://host/owner/qsjax jax==0.11.2 diffusers" in out  # fmt: skip
    assert f"numpy==2.1.3, torch==2.9, jax 0.7.2; {said}" in out
    assert "installed qsjax 9, jax 0.11.2" in out
    assert (tmp_path / "kept.txt").read_text(encoding="utf-8") == "numpy==2.1.3\ntorch==2.9"


def test_it_takes_the_best_road_that_is_there(tmp_path):
    """What the field or the variable says, a wheel, a checkout, and else a wheel from the browser."""

    def taken(**options):
        out, error = run_install(tmp_path, **options)
        return re.search(r"qsjax @ (\S+)", out)[1], out + error

    source, out = taken()
    assert source == (tmp_path / "qsjax-9-py3-none-any.whl").as_uri()
    assert "choose a wheel" in out
    assert (tmp_path / "qsjax-9-py3-none-any.whl").read_bytes() == b"wheel"
    (tmp_path / "qsjax-9-py3-none-any.whl").unlink()
    (tmp_path / "qsjax" / "pallas_kernels").mkdir(parents=True)
    (tmp_path / "qsjax" / "pyproject.toml").touch()
    assert taken()[0] == (tmp_path / "qsjax").as_uri()
    drive = tmp_path / "drive" / "MyDrive" / "qsjax"
    drive.mkdir(parents=True)
    (drive / "qsjax-8-py3-none-any.whl").touch()
    assert taken()[0] == (drive / "qsjax-8-py3-none-any.whl").as_uri()
    assert taken(QSJAX_ADDRESS="qsjax")[0] == (tmp_path / "qsjax").as_uri()
    address = "git+https://host/owner/qsjax@v1"
    assert taken(field=address, QSJAX_ADDRESS="https://other/qsjax")[0] == address
    assert taken(field=address, upload=True)[0].endswith("qsjax-9-py3-none-any.whl")


def test_what_goes_wrong_is_one_sentence(tmp_path):
    _, error = run_install(tmp_path, field="absent")
    assert error.endswith("absent (this cell's field): is neither an address nor a file here; correct it\n")  # fmt: skip
    out, error = run_install(tmp_path, field="https://host/bad")
    assert "no such thing" in out
    assert "pip could not install qsjax from https://host/bad (this cell's field); what it says is above" in error  # fmt: skip


def test_it_restarts_only_if_jax_was_in_use(tmp_path):
    out, error = run_install(tmp_path, restarts=True, QSJAX_ADDRESS="https://host/owner/qsjax")
    assert "jax 0.7.2 is in use already" in out
    assert "the session restarts, for jax 0.7.2 was in use; then run all cells again\nRESTART True" in out  # fmt: skip
    assert not error


def test_outside_colab_it_only_looks(tmp_path):
    out, error = run_install(tmp_path, colab=False)
    assert re.fullmatch(r"qsjax \S+__init__\.py is here, with jax 0\.7\.2\n", out), error
    _, error = run_install(tmp_path, colab=False, absent=True)
    assert "qsjax is not installed: `pip install .` in a checkout of it" in error


def test_it_knows_the_projects_address():
    (cell,) = [cell.source for cell in of_notebook(NAMES[0]) if "install" in cell.tags]
    assert f'\nADDRESS = "{f"git+{ADDRESS}" if ADDRESS else ""}"  #' in cell


def test_what_is_kept_is_there_the_next_day(tmp_path, monkeypatch, tiny_checkpoint, capsys):
    """The cell with the switch, run on two machines that share a drive."""
    (cell,) = [cell.source for cell in of_notebook(NAMES[0]) if "KEEP_ON_DRIVE = " in cell.source]
    monkeypatch.setenv("QSJAX_KEPT", str(tmp_path / "drive"))
    program = f"jit_step-{'0f' * 32}-cache"

    def day(number):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        programs = folder / "programs" / "kind"
        scope = {"Path": Path, "os": os, "sys": sys, "qsjax": qsjax, "keep_programs": lambda: programs}  # fmt: skip
        scope |= {"copy_checkpoint": copy_checkpoint, "copy_programs": copy_programs}
        exec(compile(cell, "cell", "exec"), scope)
        return scope, programs

    scope, programs = day(1)
    scope["take"]("made")
    shutil.copytree(tiny_checkpoint, "made")
    programs.mkdir(parents=True)
    (programs / program).write_bytes(b"program")
    scope["keep"]("made")
    scope, programs = day(2)
    assert "1 compiled programs were taken" in capsys.readouterr().out
    assert (programs / program).read_bytes() == b"program"
    scope["take"]("made")
    assert Manifest.read("made").digest == Manifest.read(tiny_checkpoint).digest
    scope["keep"]("made")
    shutil.rmtree(tmp_path / "drive" / "made")
    (tmp_path / "drive" / "made").touch()
    scope["keep"]("made")  # said, and nothing ends
    assert "is there already and not a copy of made" in capsys.readouterr().out


def test_of_the_hub_one_copy_is_on_the_disk():
    """Nothing else in the notebooks converts a model of the hub."""
    text = {name: "\n".join(cell.source for cell in of_notebook(name)) for name in NAMES}
    for name, source in text.items():
        for line in source.splitlines():
            assert "--delete-source" in line or "convert hf://" not in line, name
    assert '"delete_source": of_hub' in text["colab_tpu_sample"]
