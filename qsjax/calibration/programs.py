"""The compiled functions of calibration, once for each kind of block: observe, step, compare layers, run quantized.

Two programs of each sort serve sixty blocks: everything that differs between blocks is an argument.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from qsjax.calibration.attention import attention, pooled_attention, row_distance, saliency
from qsjax.calibration.blocks import (
    Leaves,
    Rows,
    Tokens,
    fake_block,
    fake_layer,
    float_block,
    float_queries_and_keys,
    frame_divergence,
    modulation_rows,
    run_block,
    squared_error,
    watched_inputs,
)
from qsjax.calibration.methods import Method
from qsjax.calibration.variables import (
    Learned,
    Starts,
    current_transforms,
    optimizer,
    smoothing_peaks,
)
from qsjax.dit import DiTConfig
from qsjax.dit.blocks import Context
from qsjax.quant import SITES, Recipe
from qsjax.quant.fake import Deferred, FakeLinear
from qsjax.quant.quantizer import fake_weight
from qsjax.quant.sites import modulations

_PROBED_ROWS = 64
"""Evenly spaced attention rows by which the attention shift is reported, whatever is trained."""


class Shared(NamedTuple):
    """What all blocks and samples of one size share: rotary tables."""

    cos: Array
    sin: Array


class Sample(NamedTuple):
    """One sample before one block.

    Attributes:
        tokens: of the float model.
        student_tokens: what the quantized block gets: the same, or the tokens of the quantized model.
        active: conditioning of the modulation, [1, D].
        mask: which text tokens are there, [1, L].
        rows: attention rows of the local term, int32 [1, R].
        target: the float block's output on `tokens`, for steps and measurements.
    """

    tokens: Tokens
    student_tokens: Tokens
    active: Array
    mask: Array
    rows: Array
    target: Tokens | None = None


class Figures(NamedTuple):
    """Terms of the loss: block output, pooled attention, attention rows; and the shift of evenly spaced rows.

    A training step leaves out, as 0, what its loss has no use for.
    """

    output: Array | float
    pooled: Array | float
    rows: Array | float
    shift: Array | float


@dataclass(frozen=True)
class Programs:
    """Jitted functions for one kind of block; equal settings share what they compiled.

    Attributes:
        kind: "double_blocks" or "single_blocks".
        recipe: the effective one.
        method: losses and learning rates.
        config: sizes.
        steps: of training a block, for the learning rate.
        frames: of a sample's latents, for similarities between them.
    """

    kind: str
    recipe: Recipe
    method: Method
    config: DiTConfig
    steps: int
    frames: int = 1

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimizer of the learned variables."""
        return optimizer(self.method, self.steps)

    @partial(jax.jit, static_argnums=0)
    def observe(
        self, leaves: Leaves, sample: Sample, shared: Shared
    ) -> tuple[Tokens, dict[str, Array], Array]:
        """The float block: its output, the peaks of every transform's input, and the saliency of its tokens, [1, L]."""
        rows, context = self._rows(leaves, sample.active), _context(sample, shared)
        out, (q, k), inputs = watched_inputs(
            self.kind, leaves, self.config, sample.tokens, rows, context
        )
        peaks = smoothing_peaks(self.kind, inputs, self._valid(sample, context))
        return out, peaks, saliency(q, k, context.kv_valid)

    @partial(jax.jit, static_argnums=0)
    def step(
        self,
        learned: Learned,
        state: PyTree[Array],
        leaves: Leaves,
        starts: Starts,
        sample: Sample,
        shared: Shared,
        scales: Array,
    ) -> tuple[Learned, PyTree[Array], Figures]:
        """One update; `scales` multiply the three terms of the loss. The figures are those before the update."""
        gradients, figures = jax.grad(self._loss, has_aux=True)(
            learned, leaves, starts, sample, shared, scales
        )
        with jax.numpy_dtype_promotion("standard"):  # optax's AdamW mixes dtypes
            updates, state = self.optimizer.update(gradients, state, learned)
        return cast(Learned, optax.apply_updates(learned, updates)), state, figures

    @partial(jax.jit, static_argnums=0)
    def measure(
        self,
        learned: Learned,
        leaves: Leaves,
        starts: Starts,
        sample: Sample,
        shared: Shared,
        kernels: Mapping[str, Array],
    ) -> Figures:
        """All terms, without an update."""
        return self._compare(learned, leaves, starts, sample, shared, kernels)[0]

    @partial(jax.jit, static_argnums=0)
    def run_quantized(
        self,
        learned: Learned,
        leaves: Leaves,
        starts: Starts,
        sample: Sample,
        shared: Shared,
        kernels: Mapping[str, Array] | None = None,
    ) -> Tokens:
        """The output of the fake-quantized block on `sample.student_tokens`; `kernels` are those that were rounded already."""
        kernels = kernels or {}
        block = fake_block(
            self.kind, leaves, learned, starts, self.recipe, self.config, kernels=kernels
        )
        rows = self._rows(leaves, sample.active, quantized=True, kernels=kernels)
        return run_block(block, sample.student_tokens, rows, _context(sample, shared))[0]

    @partial(jax.jit, static_argnums=(0, 1))
    def grams(
        self,
        layers: tuple[str, ...],
        learned: Learned,
        leaves: Leaves,
        starts: Starts,
        sample: Sample,
        shared: Shared,
        kernels: Mapping[str, Array],
    ) -> dict[str, Array]:
        """Layer -> X^T X of its input in the quantized block on `sample.student_tokens`, [K, K], padded text left out."""
        context, found = _context(sample, shared), {}
        valid = self._valid(sample, context)

        def note(name: str, layer: FakeLinear, x: Array | Deferred) -> None:
            found[name] = layer.gram(x, valid[name])

        block = fake_block(
            self.kind, leaves, learned, starts, self.recipe, self.config,
            kernels=kernels, watch={name: partial(note, name) for name in layers},
        )  # fmt: skip
        rows = self._rows(leaves, sample.active, quantized=True, kernels=kernels)
        run_block(block, sample.student_tokens, rows, context)
        return found

    @partial(jax.jit, static_argnums=0)
    def compare_layers(
        self,
        learned: Learned,
        leaves: Leaves,
        starts: Starts,
        sample: Sample,
        shared: Shared,
        kernels: Mapping[str, Array],
    ) -> dict[str, tuple[Array, Array]]:
        """Layer -> (signal, noise): sums of squares of its output on the float block's input, and of its error."""
        context, rows = _context(sample, shared), self._rows(leaves, sample.active)
        _, _, inputs = watched_inputs(self.kind, leaves, self.config, sample.tokens, rows, context)
        valid, transforms, sums = (
            self._valid(sample, context),
            current_transforms(learned, starts),
            {},
        )
        layer = partial(
            fake_layer,
            self.kind,
            leaves=leaves,
            learned=learned,
            transforms=transforms,
            recipe=self.recipe,
            config=self.config,
            alone=True,
        )
        for site in SITES[self.kind]:
            x, keep = inputs[site.layer], valid[site.layer][:, :, None].astype(jnp.float32)
            exact = layer(site=site, quantized=False)(x)
            quantized = layer(site=site, kernel=kernels.get(site.layer))(x)
            noise = (exact.astype(jnp.float32) - quantized.astype(jnp.float32)) * keep
            signal = exact.astype(jnp.float32) * keep
            sums[site.layer] = (jnp.square(signal).sum(), jnp.square(noise).sum())
        return sums

    def _loss(
        self,
        learned: Learned,
        leaves: Leaves,
        starts: Starts,
        sample: Sample,
        shared: Shared,
        scales: Array,
    ) -> tuple[Array, Figures]:
        """L_quant + lambda_g L_global + lambda_l L_local (QuantSparse, equation 8), each times its scale."""
        method = self.method
        figures, out = self._compare(learned, leaves, starts, sample, shared, training=True)
        loss = scales[0] * figures.output
        if method.global_weight:
            loss = loss + method.global_weight * scales[1] * figures.pooled
        if method.local_weight:
            loss = loss + method.local_weight * scales[2] * figures.rows
        if method.frame_weight and sample.target is not None:
            divergence = frame_divergence(out.img, sample.target.img, self.frames)
            loss = loss + method.frame_weight * divergence
        return loss, figures

    def _compare(
        self,
        learned: Learned,
        leaves: Leaves,
        starts: Starts,
        sample: Sample,
        shared: Shared,
        kernels: Mapping[str, Array] = MappingProxyType({}),
        *,
        training: bool = False,
    ) -> tuple[Figures, Tokens]:
        """The terms, and the output of the quantized block. Of the float block only queries and keys are computed, and not
        those in a training step without attention terms."""
        if sample.target is None:
            raise ValueError("the sample has no target; ask for it with the rows that are compared")
        context, method, kind = _context(sample, shared), self.method, self.kind
        video, valid = sample.tokens.img.shape[1], context.kv_valid
        block = fake_block(kind, leaves, learned, starts, self.recipe, self.config, kernels=kernels)
        rows = self._rows(leaves, sample.active, quantized=True, kernels=kernels)
        out, student = run_block(block, sample.student_tokens, rows, context)
        zero = jnp.zeros((), jnp.float32)
        figures = Figures(squared_error(out, sample.target, sample.mask), zero, zero, zero)
        if training and not (method.global_weight or method.local_weight):
            return figures, out
        float_rows = self._rows(leaves, sample.active)
        teacher = jax.lax.stop_gradient(
            float_queries_and_keys(kind, leaves, self.config, sample.tokens, float_rows, context)
        )
        if method.global_weight or not training:
            pooled = [
                pooled_attention(*heads, valid, video, method.window)
                for heads in (teacher, student)
            ]
            figures = figures._replace(pooled=jnp.square(pooled[0] - pooled[1]).mean())
        if method.local_weight or not training:
            figures = figures._replace(rows=row_distance(teacher, student, valid, sample.rows))
        if not training:
            count = min(_PROBED_ROWS, video)
            probed = jnp.arange(count, dtype=jnp.int32)[None] * (video // count)
            figures = figures._replace(shift=row_distance(teacher, student, valid, probed))
        return figures, out

    def _rows(
        self,
        leaves: Leaves,
        active: Array,
        *,
        quantized: bool = False,
        kernels: Mapping[str, Array] = MappingProxyType({}),
    ) -> Rows:
        """Modulation vectors; those of the quantized model come from its own modulation weights, rounded to nearest where
        they are not among `kernels`."""
        if quantized:
            leaves = dict(leaves)
            for name in modulations(self.kind):
                if name in kernels:
                    like = leaves[f"{name}.kernel"].dtype
                    leaves[f"{name}.kernel"] = kernels[name].astype(like)
                else:
                    bits = self.recipe.precision(f"{self.kind}.{name}")
                    kernel = f"{name}.kernel"
                    leaves[kernel] = fake_weight(
                        leaves[kernel].astype(jnp.float32), bits.weights, group=bits.group
                    ).astype(leaves[kernel].dtype)
        return modulation_rows(float_block(self.kind, leaves, self.config), active)

    def _valid(self, sample: Sample, context: Context) -> dict[str, Array]:
        video = sample.tokens.img.shape[1]
        streams = {"img": context.kv_valid[:, :video], "txt": context.kv_valid[:, video:]}
        return {
            site.layer: streams.get(site.layer.split(".")[0], context.kv_valid)
            for site in SITES[self.kind]
        }


def _context(sample: Sample, shared: Shared) -> Context:
    video = jnp.ones(sample.tokens.img.shape[:2], bool)
    return Context(shared.cos, shared.sin, jnp.concatenate([video, sample.mask], axis=1), attention)
