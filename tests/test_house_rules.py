"""Rules that hold for the whole tree: layers, light imports, public names, the README's commands."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_rooms_import_downwards_only():
    run = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def imported(statements: str, among: set[str]) -> set[str]:
    """Which of these modules a fresh interpreter has loaded after some statements."""
    code = f"import sys; {statements}; print(*({among!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_importing_qsjax_brings_nothing_heavy():
    heavy = {"jax", "pallas_kernels", "torch", "diffusers", "transformers", "orbax", "flax"}
    assert not imported("import qsjax, convert", heavy)


def test_kernels_need_only_jax():
    """Their operations are named like the folders they live in; the names must be the operations, in any order."""
    statements = (
        "import pallas_kernels.quantized_matmul.packing, pallas_kernels.block_sparse_attention.xla;"
        "from pallas_kernels import block_sparse_attention, quantized_matmul;"
        "assert callable(block_sparse_attention) and callable(quantized_matmul)"
    )
    others = {"qsjax", "torch", "transformers", "orbax", "flax", "optax", "jax"}
    assert imported(statements, others) == {"jax"}


def test_sampling_imports_nothing_that_it_does_not_need():
    """Orbax writes checkpoints, and takes half a second to import."""
    statements = "import qsjax.pipeline, convert.stream, qsjax.cli.demo, qsjax.cli.sample"
    others = {"torch", "diffusers", "transformers", "orbax.checkpoint", "matplotlib"}
    assert not imported(statements, others)


def test_every_public_name_is_there():
    import qsjax

    for name in qsjax.__all__:
        assert getattr(qsjax, name) is not None
        assert name == "__version__" or f"`{name}`" in qsjax.__doc__
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        qsjax.nonsense  # noqa: B018


def test_readme_names_the_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text.split("```sh\n", 1)[1].split("```", 1)[0].splitlines()
    assert block == ["pip install . && qsjax demo", "pip install '.[test]' && pytest"]


def test_architecture_lists_the_packages_in_the_order_of_their_contract():
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = contract["tool"]["importlinter"]["contracts"][0]["layers"]
    rank = {name: n for n, row in enumerate(layers) for name in re.findall(r"[\w.]+", row)}
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.split("| package |", 1)[1].split("\n\n", 1)[0]
    rows = [re.findall(r"`([\w.]+)`", line.split("|")[1]) for line in table.splitlines()[2:]]
    listed = [name for row in rows for name in row]
    assert sorted(listed) == sorted(rank), "docs/architecture.md has a row for each package"
    assert [rank[name] for name in listed] == sorted(rank.values())
