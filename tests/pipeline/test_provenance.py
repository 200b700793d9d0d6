"""What a video's file says of its making: written, read back, compared, and made again bit for bit."""

import json
from dataclasses import replace

import numpy as np
import pytest

import qsjax
from pallas_kernels import Kernels
from qsjax.checkpoint import Manifest
from qsjax.cli import build_parser, main
from qsjax.cli.kernels import given_kernels
from qsjax.cli.like import take_over
from qsjax.errors import InputError
from qsjax.provenance import Provenance, read_provenance
from qsjax.sample import Settings, Skip, SparsePlan
from qsjax.untrusted.mp4 import read_comment
from qsjax.video import write_video

CAPTION = "a red circle moves left over a dark background"
SMALL = ["--frames", "5", "--height", "16", "--width", "24", "--steps", "4"]
MADE = Provenance(
    prompt='"Käse" \n 猫',
    seed=2**64 - 1,
    settings=Settings(sparse=SparsePlan(refresh_at=(0.1, 0.5)), skip=Skip(threshold=0.1)),
    recipe="mine.toml",
    model="w4a8",
    checkpoint="0" * 64,
    dtype="bfloat16",
    versions={"jax": "0.10.2", "libtpu": None},
)


def written(path, comment):
    return write_video(np.zeros((1, 2, 2, 3), np.uint8), path, comment=comment)


def test_there_and_back(tmp_path):
    assert read_provenance(written(tmp_path / "a.mp4", MADE.to_json())) == MADE
    assert read_comment(written(tmp_path / "b.mp4", "")) is None


def test_what_differs_is_said_and_identity_is_of_what_decides():
    assert MADE.differences(MADE) == []
    moved = replace(MADE, device="TPU v5e", versions={"jax": "0.11.0"}, recipe="", model="other")
    assert MADE.differences(moved) == [
        "device none, here 'TPU v5e'",
        "'jax' '0.10.2', here '0.11.0'",
    ]
    assert moved.identity == MADE.identity
    other = replace(MADE, checkpoint="1" * 64)
    (line,) = MADE.differences(other)
    assert line == f"another checkpoint ('w4a8'), sha256 {'0' * 12}, here {'1' * 12}"
    for changed in (other, replace(MADE, seed=0), replace(MADE, settings=Settings())):
        assert changed.identity != MADE.identity


def test_a_checkpoint_is_known_by_what_it_computes_with(tiny_checkpoint):
    manifest = Manifest.read(tiny_checkpoint)
    again = Manifest(tiny_checkpoint, manifest.data | {"peak_memory_bytes": 1})
    assert again.digest != manifest.digest
    assert again.content_digest == manifest.content_digest
    files = {name: spec | {"sha256": "0" * 64} for name, spec in manifest.files.items()}
    changed = Manifest(tiny_checkpoint, manifest.data | {"files": files})
    assert changed.content_digest != manifest.content_digest


def test_the_same_again(capsys, tmp_path, tiny_checkpoint):
    model = ["sample", "--model", str(tiny_checkpoint), "--json"]
    first, again = (tmp_path / f"{name}.mp4" for name in ("first", "again"))
    typed = [*SMALL, "--shift", "5", "--seed", "7"]
    assert main([*model, "--prompt", CAPTION, *typed, "--out", str(first)]) == 0
    made = read_provenance(first)
    assert (made.prompt, made.seed, made.settings.steps, made.settings.shift) == (CAPTION, 7, 4, 5)
    capsys.readouterr()
    assert main([*model, "--like", str(first), "--out", str(again)]) == 0
    assert json.loads(capsys.readouterr().out)["differences"] == []
    assert again.read_bytes() == first.read_bytes()


def test_what_is_typed_wins_over_the_video():
    options = ["frames", "height", "width", "steps", "shift", "guidance", "true_cfg", "fps"]
    guided = replace(MADE.settings, true_cfg=2.0, negative_prompt="a square", steps=9)
    made = replace(MADE, settings=guided, kernels=Kernels(matmul="xla", quantize="reference"))

    def taken(*words):
        args = build_parser("sample").parse_args(["sample", *words])
        take_over(args, made, options)
        return args

    args = taken()
    assert (args.prompt, args.seed, args.dtype, args.steps) == (
        MADE.prompt,
        2**64 - 1,
        "bfloat16",
        9,
    )
    assert (args.negative_prompt, given_kernels(args)) == (
        "a square",
        {"matmul": "xla", "quantize": "reference"},
    )
    args = taken("--prompt", CAPTION, "--seed", "0", "--true-cfg", "1", "--kernels.matmul", "auto")
    assert (args.prompt, args.seed, args.true_cfg, args.negative_prompt) == (CAPTION, 0, 1, None)
    assert given_kernels(args) == {"matmul": "auto", "quantize": "reference"}
    assert taken("--encoded-prompt", "p").prompt == ""


def test_another_checkpoint_is_said(capsys, tmp_path, tiny_checkpoint):
    pipeline = qsjax.Pipeline.from_checkpoint(tiny_checkpoint, progress=False)
    settings = pipeline.resolve(frames=5, height=16, width=24, steps=4)
    made = replace(
        pipeline.provenance(CAPTION, settings, seed=3), checkpoint="0" * 64, model="elsewhere"
    )
    video, out = written(tmp_path / "a.mp4", made.to_json()), tmp_path / "b.mp4"
    assert main(["sample", "--like", str(video), "--model", str(tiny_checkpoint), "--out", str(out)]) == 0  # fmt: skip
    assert "made with another checkpoint ('elsewhere')" in capsys.readouterr().err
    assert read_provenance(out).checkpoint == pipeline.content_digest


def test_a_negative_prompt_that_nothing_uses_is_refused(capsys, tmp_path, tiny_checkpoint):
    pipeline = qsjax.Pipeline.from_checkpoint(tiny_checkpoint, progress=False)
    with pytest.raises(InputError, match=r"`true_cfg=1` does not use it; pass `true_cfg` above 1"):
        pipeline.generate(CAPTION, negative_prompt="a blue square")
    encoded = pipeline.encode(CAPTION)
    with pytest.raises(InputError, match="does not use it"):
        next(pipeline.denoise(encoded, negative=encoded))
    words = ["--model", str(tiny_checkpoint), "--prompt", CAPTION, "--negative-prompt", "a square"]
    for out in (["--out", str(tmp_path / "a.mp4")], ["--save-prompt", str(tmp_path / "p")]):
        assert main(["sample", *words, *out]) == 2
        assert "--negative-prompt out" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
