"""Rules that hold for the whole tree: layers, light imports, public names, the README's commands."""

import subprocess
import sys
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
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        qsjax.nonsense  # noqa: B018


def test_readme_names_the_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text.split("```sh\n", 1)[1].split("```", 1)[0].splitlines()
    assert block == ["pip install . && qsjax demo", "pip install '.[test]' && pytest"]
