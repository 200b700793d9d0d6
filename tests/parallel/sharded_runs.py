"""Runs of a small random transformer on eight devices of one CPU, and the same on one: prints JSON. Started by the tests."""

import json
import re
import sys
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qsjax import Pipeline
from qsjax.dit import DiT, DiTConfig
from qsjax.parallel import make_mesh, replicated
from qsjax.residual import Residual
from qsjax.sample import (
    Plan,
    Skip,
    SparsePlan,
    empty_cache,
    initial_noise,
    prepare,
    schedule,
    sharded_cache,
    sharded_step,
    step_of_kind,
)
from qsjax.sparse import Sparsity
from qsjax.text import EncodedPrompt
from qsjax.vae import Tiling, load_vae

CONFIG = DiTConfig(
    in_channels=4, out_channels=4, hidden_size=64, num_heads=8, num_double_blocks=1, num_single_blocks=1,
    num_refiner_blocks=1, mlp_ratio=2.0, patch_size=(1, 2, 2), rope_axes_dim=(4, 2, 2), rope_theta=256.0,
    text_dim=8, pooled_dim=6, guidance_embeds=True,
)  # fmt: skip
SHAPE = (1, 4, 3, 16, 12)
TOKENS, TEXT = 3 * 8 * 6, 5
SVG = Sparsity(mask="svg", density=0.3, block=4, profiled_rows=24)
SPARSE = SparsePlan(sparsity=SVG, residual=Residual(store="int8", rank=2), interval=2, dense_steps=2)  # fmt: skip
PLANS = {
    "dense": Plan(steps=3, shift=3.0),
    "gathered": Plan(steps=2, shift=3.0),  # on three devices, which do not divide eight heads
    "sparse": Plan(steps=6, shift=3.0, true_cfg=2.0, skip=Skip(threshold=0.6), sparse=SPARSE),
}


def model() -> DiT:
    """Of random weights."""
    graph, abstract = nnx.split(nnx.eval_shape(lambda: DiT(CONFIG, rngs=nnx.Rngs(0))))
    random = np.random.default_rng(0)

    def value(leaf):
        return jnp.asarray(0.2 * random.standard_normal(leaf.shape), leaf.dtype)

    return nnx.merge(graph, jax.tree.map(value, abstract))


def prompt(seed: int) -> EncodedPrompt:
    """Random states, the last of which is padding."""
    random = np.random.default_rng(seed)
    return EncodedPrompt(
        text=jnp.asarray(random.standard_normal((1, TEXT, 8)), jnp.float32),
        mask=jnp.arange(TEXT)[None] < TEXT - 1,
        pooled=jnp.asarray(random.standard_normal((1, 6)), jnp.float32),
    )


def full_size(compiled: str) -> list[str]:
    """Arrays in a device's program that hold the tokens of the whole video at the model's width, or at the width of all heads."""
    shapes = {match.group() for match in re.finditer(r"\w+\[[\d,]+\]", compiled)}

    def too_large(shape: str) -> bool:
        sizes = [int(size) for size in shape[shape.index("[") + 1 : -1].split(",")]
        tokens = [size for size in sizes if size in (TOKENS, TOKENS + TEXT)]
        # Scores have tokens twice: a chunk of 256 queries is all of a video this small.
        return len(tokens) == 1 and np.prod(sizes) >= TOKENS * CONFIG.hidden_size

    return sorted(filter(too_large, shapes))


def run(plan: Plan, dit: DiT, devices: int) -> dict:
    """Latents behind the last step; on several devices also what its programs hold, and how the cache lies."""
    negative = prompt(2) if plan.uses_negative else None
    known = jax.jit(partial(prepare, plan))(dit, prompt(1), negative)
    numbers, x = schedule(plan), initial_noise(7, SHAPE)
    found = {}
    if devices == 1:
        cache = empty_cache(plan, dit, SHAPE, known) if plan.remembers else None
        steps = {kind: jax.jit(partial(step_of_kind, plan, kind)) for kind in set(plan.kinds)}
    else:
        mesh = make_mesh(devices)
        dit, known, numbers, x = replicated(mesh, (dit, known, numbers, x))
        cache = sharded_cache(plan, mesh, dit, SHAPE, known) if plan.remembers else None
        steps = {kind: jax.jit(sharded_step(plan, kind, mesh, cache)) for kind in set(plan.kinds)}
    for index, kind in enumerate(plan.kinds):
        now = jax.tree.map(lambda leaf, index=index: leaf[index], numbers)
        given = (dit, (x, cache), now, known)
        if devices > 1 and kind not in found:
            steps[kind] = steps[kind].lower(*given).compile()
            found[kind] = full_size(steps[kind].as_text())
        x, cache = steps[kind](*given)
    return {
        "latents": np.asarray(x).ravel().tolist(),
        "full_size": found,
        "skipped": None if plan.skip is None else int(cache[0].skipped.count),
        "values": None if plan.sparse is None else list(cache[0].slot.layer.cached.values.sharding.shard_shape(cache[0].slot.layer.cached.values.shape)),
    }  # fmt: skip


def videos(checkpoint: str) -> dict:
    """The bundled model, which has two heads, by the pipeline on one device and on two."""
    sparse = SparsePlan(sparsity=replace(SVG, block=8), residual=Residual(store="int8"), interval=2)
    size = {"frames": 5, "height": 32, "width": 32, "steps": 3, "sparse": sparse}
    options = {"progress": False, "staged": True, "modulation": "released"}
    made = [
        Pipeline.from_checkpoint(checkpoint, devices=devices, **options)("a red circle", **size)
        for devices in (1, 2)
    ]
    return {"levels_apart": int(np.abs(made[0].astype(int) - made[1]).max()), "range": int(np.ptp(made[0]))}  # fmt: skip


def tiles(checkpoint: str) -> dict:
    """Decoded in six tiles, on one device and on four in turns."""
    vae = load_vae(checkpoint, dtype=jnp.float32)
    tiling, ratio = (
        Tiling(frames=None, frame_stride=None, pixels=16, pixel_stride=8),
        vae.config.spatial_compression_ratio,
    )
    shape = (1, vae.config.latent_channels, 2, 24 // ratio, 32 // ratio)
    z = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    one, four = (
        np.concatenate(list(vae.decode_pieces(z, tiling, devices=some)), axis=2)
        for some in ((), jax.devices()[:4])
    )
    return {"apart": float(np.abs(one - four).max()), "shape": list(one.shape)}


if __name__ == "__main__":
    dit = model()
    report = {
        name: [run(PLANS[name], dit, devices) for devices in (1, 3 if name == "gathered" else 8)]
        for name in PLANS
    }
    json.dump(report | {"videos": videos(sys.argv[1]), "tiles": tiles(sys.argv[1])}, sys.stdout)
