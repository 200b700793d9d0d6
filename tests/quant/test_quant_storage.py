"""From float weights to stored leaves: ranges of columns are exact, kernels and biases may come apart."""

import jax.numpy as jnp
import numpy as np
import pytest
from quant_models import CONFIG, WIDTH, distance

from pallas_kernels import PackedWeight, unpack
from qsjax.quant import SITES, Precision, Rotation, Transform, storage
from qsjax.quant.quantizer import quantize_weight
from qsjax.quant.sites import channels, merged_kernel
from qsjax.quant.storage import bias_leaves, input_leaves, kernel_leaves, linear_leaves, site_leaves

MLP = CONFIG.mlp_size
FORMS = {
    "W4": Precision(weights=4, activations=8),
    "W6": Precision(weights=6, activations=6),
    "W8 in groups": Precision(weights=8, group=16),
}


def integers(leaves, precision, rows):
    planes = tuple(jnp.asarray(leaves[name]) for name in ("packed", "low_bits") if name in leaves)
    return unpack(PackedWeight(planes, precision.container, "bytes", rows))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_leaves_are_the_quantizers(form, dtype):
    precision = FORMS[form]
    kernel = np.random.default_rng(0).standard_normal((WIDTH, 40)).astype(dtype)
    clip = jnp.linspace(0.5, 1, 40)
    leaves = linear_leaves(kernel, precision, clip=clip)
    expected, scale = quantize_weight(
        jnp.asarray(kernel), precision.weights, clip, group=precision.group
    )
    np.testing.assert_array_equal(integers(leaves, precision, WIDTH), expected)
    np.testing.assert_array_equal(leaves["scale"], scale)
    assert all(isinstance(leaf, np.ndarray) for leaf in leaves.values())


@pytest.mark.parametrize("form", FORMS)
def test_ranges_of_columns_give_the_same_bits(form, monkeypatch):
    kernel = np.random.default_rng(0).standard_normal((WIDTH, 40)).astype(np.float32)
    clip = jnp.linspace(0.5, 1, 40)
    whole = linear_leaves(kernel, FORMS[form], clip=clip)
    monkeypatch.setattr(storage, "RANGE_BYTES", 4 * WIDTH * 7)
    parts = linear_leaves(kernel, FORMS[form], clip=clip)
    assert whole.keys() == parts.keys()
    for name, leaf in whole.items():
        np.testing.assert_array_equal(parts[name], leaf)


def transforms(kind):
    random = np.random.default_rng(1)
    made = {}
    for site in SITES[kind]:
        rotation = Rotation(np.linalg.qr(random.standard_normal((16, 16)))[0].astype(np.float32))
        smoothing = random.uniform(0.5, 2, channels(site, WIDTH, MLP)).astype(np.float32)
        made.setdefault(site.transform, Transform(jnp.asarray(smoothing), rotation))
    return made


@pytest.mark.parametrize(("kind", "number"), [("single_blocks", 0), ("single_blocks", 2)])  # fmt: skip
def test_sites_in_ranges(kind, number, monkeypatch):
    """V's columns are merged, whole heads at a time, whatever a range is; sums may round differently, by a step here and there."""
    site, given, precision = SITES[kind][number], transforms(kind), FORMS["W4"]
    rows = WIDTH + MLP if site.linear == "linear2" else WIDTH
    columns = {"img.qkv": 3 * WIDTH, "linear1": 3 * WIDTH + MLP}.get(site.linear, WIDTH)
    kernel = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
    monkeypatch.setattr(storage, "RANGE_BYTES", 4 * rows * 90)
    leaves = kernel_leaves(site, kernel, given, precision, WIDTH)
    merged = merged_kernel(site, jnp.asarray(kernel), given, WIDTH)
    expected, scale = quantize_weight(merged, 4)
    assert distance(leaves["scale"], scale) < 1e-6
    found = np.asarray(integers(leaves, precision, merged.shape[0]), np.int32)
    assert (found != np.asarray(expected)).mean() < 1e-3
    assert np.abs(found - np.asarray(expected, np.int32)).max() <= 1


@pytest.mark.parametrize("kind", SITES)
def test_a_site_is_its_kernel_its_bias_and_its_input(kind):
    given, precision = transforms(kind), FORMS["W4"]
    for site in SITES[kind]:
        rows = WIDTH + MLP if site.linear == "linear2" else channels(site, WIDTH, MLP)
        columns = 3 * WIDTH + (MLP if kind == "single_blocks" else 0)
        random = np.random.default_rng(0)
        kernel = jnp.asarray(random.standard_normal((rows, columns)), jnp.float32)
        bias = jnp.asarray(random.standard_normal(columns), jnp.float32)
        clip = jnp.asarray(0.9)
        whole = site_leaves(site, kernel, bias, given, precision, WIDTH, activation_clip=clip)
        parts = {
            **kernel_leaves(site, np.asarray(kernel), given, precision, WIDTH),
            **bias_leaves(site, np.asarray(bias), given, WIDTH),
            **input_leaves(site, given[site.transform], clip),
        }
        assert ("bias" in whole) == (site.layer != "linear2.mlp")
        assert ("rotation" in whole) == (site.source != "attention")
        assert ("smoothing" in whole) == (site.source == "gelu")
        assert whole["clip"].shape == (1,)
        for name, leaf in whole.items():
            np.testing.assert_array_equal(parts[name], leaf)
        assert whole.keys() == parts.keys()
