"""Runs of a small random transformer on eight devices of one CPU, and the same on one: prints JSON.

Started by the tests: `sharded_runs.py PLAN,... [CHECKPOINT]`, or `sharded_runs.py tuning`.
"""

import gc
import json
import re
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qsjax import Pipeline
from qsjax.calibration import METHODS, Trajectories
from qsjax.calibration.tuning import tune
from qsjax.dit import DiT, DiTConfig
from qsjax.parallel import make_mesh, replicated, weight_placement, weight_specs
from qsjax.params import map_parameters
from qsjax.quant import Recipe, arrange, with_quantized_layers
from qsjax.residual import Residual
from qsjax.sample import (
    SamplingPlan,
    Skip,
    SparsePlan,
    denoise,
    denoise_step,
    empty_cache,
    executed_kinds,
    initial_noise,
    prepare,
    schedule,
    sharded_cache,
    sharded_prepare,
    sharded_step,
)
from qsjax.sample.loop import step_at
from qsjax.sparse import Sparsity
from qsjax.text import EncodedPrompt
from qsjax.vae import Tiling, load_vae

CONFIG = DiTConfig(
    in_channels=4, out_channels=4, hidden_size=64, num_heads=8, num_double_blocks=1, num_single_blocks=1,
    num_refiner_blocks=1, mlp_ratio=2.0, patch_size=(1, 2, 2), rope_axes_dim=(4, 2, 2), rope_theta=256.0,
    text_dim=8, pooled_dim=6, guidance_embeds=True,
)  # fmt: skip
DEEP = replace(CONFIG, num_double_blocks=2, num_single_blocks=2)
"""Where a layer is not the whole stack."""
SHAPE = (1, 4, 3, 16, 12)
TOKENS, TEXT = 3 * 8 * 6, 5
KEYS = (TOKENS, TOKENS + TEXT, TOKENS + 8)
"""Of the video; with text; and in whole blocks of four."""
SVG = Sparsity(mask="svg", density=0.3, block=4, profiled_rows=24)
SPARSE = SparsePlan(sparsity=SVG, residual=Residual(store="float32", rank=2), interval=3)
"""Stored in floats: an int8 cache rounds a value halfway between two integers to either, as partial sums fall."""
PLANS = {
    "dense": SamplingPlan(steps=3, shift=3.0),
    "integers": SamplingPlan(steps=2, shift=3.0),
    "sparse": SamplingPlan(
        steps=6, shift=3.0, true_cfg=2.0, skip=Skip(threshold=0.6), sparse=SPARSE
    ),
    "adaptive": SamplingPlan(steps=4, shift=3.0, sparse=replace(SPARSE, drift=1e-3)),
}
WAYS = {"dense": ((1, False), (8, True), (3, True)), "integers": ((8, False), (8, True)), "sparse": ((1, False), (8, False)), "adaptive": ((1, False), (8, False))}  # fmt: skip
"""Devices, and whether they share the weights. Three do not divide eight heads and gather the tokens. Integers are rounded to otherwise among other partial sums, and compared on as many."""


def model(recipe: str = "bf16", config: DiTConfig = DEEP) -> DiT:
    """Of random weights."""

    def build() -> DiT:
        return with_quantized_layers(DiT(config, rngs=nnx.Rngs(0)), Recipe.load(recipe))

    graph, state = nnx.split(nnx.eval_shape(build))
    random = np.random.default_rng(0)

    def value(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        if leaf.dtype == jnp.int8:
            return jnp.asarray(random.integers(-128, 128, leaf.shape), jnp.int8)
        if path[-1] in ("scale", "smoothing", "clip") and recipe != "bf16":
            spread = 0.02 if path[-1] == "scale" else 1.0
            return jnp.asarray(spread * random.uniform(0.5, 1, leaf.shape), leaf.dtype)
        return jnp.asarray(0.2 * random.standard_normal(leaf.shape), leaf.dtype)

    flat = [
        (path, variable.replace(value(path, variable.get_value())))
        for path, variable in nnx.to_flat_state(state)
    ]
    return nnx.merge(graph, nnx.from_flat_state(flat))


def prompt(seed: int, length: int = TEXT) -> EncodedPrompt:
    """Random states, the last of which is padding."""
    random = np.random.default_rng(seed)
    return EncodedPrompt(
        text=jnp.asarray(random.standard_normal((1, length, 8)), jnp.float32),
        mask=jnp.arange(length)[None] < length - 1,
        pooled=jnp.asarray(random.standard_normal((1, 6)), jnp.float32),
    )


def full_size(compiled: str) -> list[str]:
    """Arrays in a device's program that hold the tokens of the whole video at the model's width, or at the width of all heads."""
    shapes = {match.group() for match in re.finditer(r"\w+\[[\d,]+\]", compiled)}

    def too_large(shape: str) -> bool:
        sizes = [int(size) for size in shape[shape.index("[") + 1 : -1].split(",")]
        tokens = [size for size in sizes if size in KEYS]
        if not tokens or np.prod(sizes) < TOKENS * CONFIG.hidden_size:
            return False
        # Scores have tokens twice, perhaps queries by blocks: a chunk of 256 queries is all of a video this small.
        return np.prod(sizes) // tokens[0] not in KEYS

    return sorted(filter(too_large, shapes))


def whole_stacks(dit: DiT, compiled: str) -> list[str]:
    """Matrices that are cut, of all layers, in a device's program, which may have one layer's only."""
    leaves = jax.tree.leaves((dit.double_blocks, dit.single_blocks))
    cut = [leaf for leaf in leaves if any(leaf.sharding.spec)]
    kinds = {"int8": "s8", "float32": "f32"}
    shapes = {f"{kinds[str(leaf.dtype)]}{list(leaf.shape)}".replace(" ", "") for leaf in cut}
    return sorted(shape for shape in shapes if shape in compiled)


def spread(dit: DiT, mesh: Any, cut: bool) -> DiT:
    """The model's arrays where `qsjax.dit.load_dit` would put them."""
    place = weight_placement(mesh, cut)
    return map_parameters(lambda name, leaf: jax.device_put(leaf, place(name, leaf.shape)), dit)


def run(plan: SamplingPlan, dit: DiT, devices: int, cut: bool) -> dict:
    """Latents after the last step; on several devices also what its programs hold, and how cache and weights lie."""
    negative = prompt(2, TEXT + 2) if plan.uses_negative else None  # its cache has its own length
    numbers, x = schedule(plan), initial_noise(7, SHAPE)
    found, stacks = {}, {}
    if devices == 1:
        known = jax.jit(partial(prepare, plan))(dit, prompt(1), negative)
        cache = empty_cache(plan, dit, SHAPE, known) if plan.remembers else None
        steps = {kind: jax.jit(partial(denoise_step, plan, kind)) for kind in set(plan.kinds)}
    else:
        mesh = make_mesh(devices)
        numbers, x, words = replicated(mesh, (numbers, x, (prompt(1), negative)))
        dit = spread(dit, mesh, cut)
        weights = weight_specs(dit)
        leaves = partial(jax.tree.leaves, is_leaf=lambda leaf: isinstance(leaf, jax.P))
        assert not cut or leaves(weights) == leaves(weight_specs(dit, devices))
        known = jax.jit(sharded_prepare(plan, mesh, weights))(dit, *words)
        cache = sharded_cache(plan, mesh, dit, SHAPE, known) if plan.remembers else None
        steps = {kind: jax.jit(sharded_step(plan, kind, mesh, cache, weights)) for kind in set(plan.kinds)}  # fmt: skip
    if devices > 1:
        given = (dit, x, cache, step_at(numbers, 0), known)
        for kind, step in steps.items():
            steps[kind] = step.lower(*given).compile()
            program = steps[kind].as_text()
            found[kind], stacks[kind] = full_size(program), whole_stacks(dit, program)
    for result in denoise(plan, steps, dit, x, cache, known, numbers=numbers):
        x, cache = result.latents, result.cache
    return {
        "latents": np.asarray(x).ravel().tolist(),
        "full_size": found,
        "whole_stacks": stacks,
        "share": share(dit),
        "kinds": executed_kinds(plan, cache),
        "drift": None if cache is None or cache[0].adaptive is None else np.asarray(cache[0].adaptive.drift).tolist(),
        "skipped": None if plan.skip is None else int(cache[0].skipped.count),
        "values": None if plan.sparse is None else list(cache[0].slot.layer.cached.values.sharding.shard_shape(cache[0].slot.layer.cached.values.shape)),
    }  # fmt: skip


def share(dit: DiT) -> float:
    """Of the blocks' bytes, what a device has."""
    leaves = jax.tree.leaves((dit.double_blocks, dit.single_blocks))
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves) / sum(leaf.nbytes for leaf in leaves)  # fmt: skip


def laid_out(backend: str, dit: DiT) -> dict:
    """Packed weights that are cut and arranged for a backend, beside those arranged on one device."""
    mesh = make_mesh(8)
    cut = arrange(spread(dit, mesh, True), backend, weight_placement(mesh, True))
    planned, one = weight_specs(cut, 8), arrange(nnx.clone(dit), backend)
    leaves = partial(jax.tree.leaves, is_leaf=lambda leaf: isinstance(leaf, jax.P))
    return {
        "dtype": str(cut.single_blocks.linear1.packed.dtype),
        "equal": all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (cut, one)), strict=True)),
        "as_planned": leaves(weight_specs(cut)) == leaves(planned),
        "share": share(cut),
    }  # fmt: skip


def videos(checkpoint: str) -> dict:
    """The bundled model, which has two heads, by the pipeline on one device and on two; the prompt is encoded once.

    Sparse, and where two devices share the weights: test_hosts.py.
    """
    size = {"frames": 5, "height": 32, "width": 32, "steps": 3}
    options = {"progress": False, "staged": True, "modulation": "released"}
    pipelines = [
        Pipeline.from_checkpoint(checkpoint, devices=devices, **options) for devices in (1, 2)
    ]
    text = pipelines[1].encode("a red circle")
    one, two = [pipeline(text, **size).astype(int) for pipeline in pipelines]
    return {"levels_apart": int(np.abs(one - two).max()), "range": int(np.ptp(one))}


def tiles(checkpoint: str) -> dict:
    """Decoded in six tiles, the last one narrower, on one device and on two in turns."""
    vae = load_vae(checkpoint, dtype=jnp.float32)
    tiling, ratio = (
        Tiling(frames=None, frame_stride=None, pixels=16, pixel_stride=8),
        vae.config.spatial_compression_ratio,
    )
    shape = (1, vae.config.latent_channels, 2, 8 // ratio, 48 // ratio)
    z = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    one, two = (
        np.concatenate(list(vae.decode_pieces(z, tiling, devices=some)), axis=2)
        for some in ((), jax.devices()[:2])
    )
    return {"apart": float(np.abs(one - two).max()), "shape": list(one.shape)}


def tuning() -> dict:
    """Losses of three steps of tuning end to end, on one device and on two, which take one moment each."""
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    runs = Trajectories(
        latents=[normal(3, *SHAPE[1:]) for _ in range(2)],
        timestep=np.array([800.0, 300.0], np.float32),
        delta=np.array([-0.5, -0.3], np.float32),
        text=normal(2, TEXT, 8),
        mask=np.arange(TEXT)[None] < np.array([[4], [5]]),
        pooled=normal(2, 6),
        guidance=6000.0,
    )
    method = replace(METHODS["gptq"], tune_steps=3, tune_learning_rate=1e-4)
    dit = model("w4a8", CONFIG)
    curves = [tune(dit, runs, method, mesh=make_mesh(devices))[1] for devices in (1, 2)]
    return dict(zip(("one", "two"), curves, strict=True))


if __name__ == "__main__":
    gc.set_threshold(50_000, 20, 50)  # as in conftest.py
    plans, *checkpoints = sys.argv[1:]
    models = {
        "dense": model,
        "integers": partial(model, "w4a8"),
        "sparse": partial(model, config=CONFIG),
        "adaptive": partial(model, config=CONFIG),
    }
    report: dict[str, Any] = {}
    if plans == "tuning":
        report, plans = {"tuning": tuning()}, ""
    for name in filter(None, plans.split(",")):
        dit = models[name]()
        report[name] = [run(PLANS[name], dit, *way) for way in WAYS[name]]
        if name == "integers":
            report["layouts"] = [laid_out(backend, dit) for backend in ("tpu", "gpu")]
    for checkpoint in checkpoints:
        report |= {"videos": videos(checkpoint), "tiles": tiles(checkpoint)}
    json.dump(report, sys.stdout)
