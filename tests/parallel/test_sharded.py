"""Steps on a mesh: the same latents as on one device, and no device with all of the video."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tolerances import FLOAT32_NETWORK

from qsjax.errors import InputError
from qsjax.parallel import check_heads, make_mesh

RUNS = Path(__file__).with_name("sharded_runs.py")
PLANS = ("dense", "sparse")


@pytest.fixture(scope="module")
def runs(tiny_checkpoint):
    """In a process of its own, whose CPU is eight devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, str(RUNS), str(tiny_checkpoint)],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", [*PLANS, "gathered"])
def test_several_devices_sample_what_one_does(runs, name):
    one, eight = runs[name]
    expected = np.array(one["latents"])
    np.testing.assert_allclose(eight["latents"], expected, atol=FLOAT32_NETWORK, rtol=FLOAT32_NETWORK)  # fmt: skip
    assert np.abs(expected).max() > 0.5
    assert eight["skipped"] == one["skipped"]


@pytest.mark.parametrize("name", PLANS)
def test_no_device_has_the_tokens_of_the_whole_video(runs, name):
    _, eight = runs[name]
    assert set(eight["full_size"]) == ({"dense"} if name == "dense" else {"dense", "refresh", "sparse"})  # fmt: skip
    assert not any(eight["full_size"].values())


def test_the_cache_lies_with_its_heads(runs):
    one, eight = runs["sparse"]
    layers, batch, heads, tokens, channels = one["values"]
    assert eight["values"] == [layers, batch, heads // 8, tokens, channels]


def test_the_pipeline_makes_the_same_video_on_two_devices(runs):
    assert runs["videos"]["levels_apart"] <= 1
    assert runs["videos"]["range"] > 50


def test_tiles_decoded_in_turns_are_the_same(runs):
    assert runs["tiles"] == {"apart": 0.0, "shape": [1, 3, 5, 24, 32]}


def test_what_is_refused():
    there = jax.devices()
    with pytest.raises(InputError, match=f"{len(there) + 1} devices are asked for, and there are"):
        make_mesh(len(there) + 1)
    with pytest.raises(
        InputError, match="take one of 1, 2, 3, 4, 6, 8, 12, 24, or dense attention"
    ):
        check_heads(make_mesh([there[0]] * 5), heads=24)
