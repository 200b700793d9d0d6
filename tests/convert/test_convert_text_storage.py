"""Text encoders in 8 bits on the disk: what loading would make of them, verified, reported and planned."""

import json
import shutil
from dataclasses import fields, replace

import jax
import numpy as np
import pytest
from flax import nnx

from convert.__main__ import main
from convert.bundled import tiny_model_directory
from convert.sources import Sources
from convert.stream import convert
from convert.verification import verify
from qsjax.budget import PlannedModel
from qsjax.budget.stages import text_bytes
from qsjax.checkpoint import Manifest, sealed
from qsjax.errors import CheckpointError, InputError
from qsjax.text import TextEncoder

PROMPTS = ["a red circle moves left over a dark background", "a blue square"]
TEXT = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "prompt_template")


@pytest.fixture(scope="module")
def sources():
    found = Sources.find(tiny_model_directory())
    others = {each.name for each in fields(Sources)} - {*TEXT, "files"}
    return replace(found, **dict.fromkeys(others))


@pytest.fixture(scope="module")
def stored(sources, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8") / "checkpoint"
    convert(sources, folder, text_storage="int8", progress=False)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_checkpoint_holds_what_loading_would_make(stored, tiny_checkpoint, dtype):
    made = TextEncoder.load(tiny_checkpoint, storage="int8", dtype=dtype)
    for storage in (None, "int8"):
        read = TextEncoder.load(stored, storage=storage, dtype=dtype)
        for ours, expected in ((read.llama, made.llama), (read.clip, made.clip)):
            assert nnx.graphdef(ours) == nnx.graphdef(expected)
            for a, b in zip(*map(jax.tree.leaves, map(nnx.state, (ours, expected))), strict=True):
                assert a.dtype == b.dtype
                np.testing.assert_array_equal(a, b)
    jax.tree.map(np.testing.assert_array_equal, read(PROMPTS), made(PROMPTS))


def test_eight_bits_cost_little(stored, tiny_checkpoint):
    """Against bfloat16: states are off by 1.3 % (root mean square; least cosine 0.9998), pooled vectors by 1.4 %."""
    whole = TextEncoder.load(tiny_checkpoint, dtype="bfloat16")(PROMPTS)
    small = TextEncoder.load(stored, dtype="bfloat16")(PROMPTS)
    mask = np.asarray(whole.mask)
    bound = 0.02
    for name in ("text", "pooled"):
        a, b = (np.asarray(getattr(x, name), np.float64) for x in (whole, small))
        a, b = (a[mask], b[mask]) if name == "text" else (a, b)
        error = np.linalg.norm(b - a) / np.linalg.norm(a)
        cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
        assert 0 < error < bound
        assert cosine.min() > 1 - bound**2


def test_the_manifest_says_it_and_the_plan_counts_it(stored, tiny_checkpoint):
    manifest = Manifest.read(stored)
    for name in ("llama", "clip"):
        part, plain = manifest.component(name), Manifest.read(tiny_checkpoint).component(name)
        assert (part.storage, plain.storage) == ("int8", None)
        assert part.parameters == plain.parameters
        assert part.bytes < 0.6 * plain.bytes  # embeddings stay
        leaves = [spec["shape"] for _, _, spec in manifest.leaves(name) if spec["dtype"] == "int8"]
        kernels = [leaf for _, leaf, _ in manifest.leaves(name) if leaf.endswith(".kernel")]
        assert len(leaves) == len(kernels) > 0
    data = json.loads((tiny_checkpoint / "manifest.json").read_text())
    for name in ("llama", "clip"):
        data["components"][name]["storage"] = "int8"
    plain = PlannedModel.of_checkpoint(Manifest.read(tiny_checkpoint))
    model = PlannedModel.of_checkpoint(Manifest(tiny_checkpoint, sealed(data)))
    assert (plain.text_storage, model.text_storage) == (None, "int8")
    small, large = (text_bytes(m.llama, m.clip, m.text_storage) for m in (model, plain))
    assert small["text_weights"] < large["text_weights"]


def test_verification_makes_it_again_from_the_source(stored, sources, tiny_checkpoint):
    found = verify(stored, sources, progress=False)
    assert found.from_source == found.leaves
    assert verify(tiny_checkpoint, sources, progress=False).from_source > 0


def test_other_weights_are_found_out(stored, sources, tmp_path):
    folder = shutil.copytree(stored, tmp_path / "c")
    manifest = json.loads((folder / "manifest.json").read_text())
    for component in ("llama", "clip"):
        del manifest["components"][component]["storage"]
    (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))
    with pytest.raises(CheckpointError, match="is not what the source holds"):
        verify(folder, sources, progress=False)


def test_what_it_is_not_for_is_refused(sources, tmp_path):
    with pytest.raises(InputError, match="unknown text storage 'int4'"):
        convert(sources, tmp_path / "a", text_storage="int4", progress=False)
    none = replace(sources, **dict.fromkeys(TEXT), vae=tiny_model_directory() / "vae")
    with pytest.raises(InputError, match="is for text encoders, and none is to be converted"):
        convert(none, tmp_path / "b", text_storage="int8", progress=False)


def test_command_line(tiny_checkpoint, tmp_path, capsys):
    source, asked = str(tiny_model_directory()), ["--text-storage", "int8"]
    assert main([source, str(tmp_path / "out"), *asked, "--export"]) == 2
    assert "run it without --text-storage" in capsys.readouterr().err
    assert main([source, str(tiny_checkpoint), *asked, "--verify"]) == 2
    assert "its text encoders are not int8" in capsys.readouterr().err
    parts = {name: Sources.find(tiny_model_directory()).__dict__[name] for name in TEXT}
    given = [word for k, v in parts.items() for word in (f"--{k.replace('_', '-')}", str(v))]
    assert main([str(tmp_path / "c"), *given, *asked, "--verify", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {part["storage"] for part in report["components"].values()} == {"int8"}
    assert main([str(tmp_path / "c"), *given, *asked, "--verify"]) == 0
