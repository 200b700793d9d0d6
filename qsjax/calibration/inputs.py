"""The inputs of a block for all samples, and its outputs, which are the inputs of the next."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from qsjax.calibration.blocks import Leaves, Tokens
from qsjax.calibration.boundary import Boundary
from qsjax.calibration.programs import Programs, Sample, Shared
from qsjax.calibration.variables import Learned, start_rotations


@dataclass(frozen=True)
class Inputs:
    """All samples as they enter a block.

    Attributes:
        tokens: of the float model.
        student_tokens: of the quantized model; the same object where both get float activations.
        active: conditioning, [S, D].
        conditions: conditioning of every sample's prompt at every sample's time, [S S, D]: what modulation layers get in a run,
            where one prompt sees all times.
        mask: which text tokens are there, [S, L].
        shared: rotary tables.
    """

    tokens: Boundary
    student_tokens: Boundary
    active: jax.Array
    conditions: jax.Array
    mask: jax.Array
    shared: Shared

    def sample(self, index: int, rows: np.ndarray | None, *, mixed: bool = False) -> Sample:
        """One sample; `mixed` takes the float tokens for the quantized block, too."""
        tokens = self.tokens[index]
        student_tokens = (
            tokens if mixed or self.student_tokens is self.tokens else self.student_tokens[index]
        )
        chosen = np.zeros((1, 1), np.int32) if rows is None else rows[index : index + 1]
        row = slice(index, index + 1)
        return Sample(tokens, student_tokens, self.active[row], self.mask[row], jnp.asarray(chosen))


def observe(
    programs: Programs, leaves: Leaves, inputs: Inputs, out: Boundary, seed: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Run the float block on all samples.

    Args:
        programs: of its kind.
        leaves: its weights.
        inputs: the samples.
        out: receives its output tokens.
        seed: of random attention rows.

    Returns:
        Peaks of every transform's input, [K], and the attention rows of the local term, int32 [S, R].
    """
    method, rows = programs.method, []
    peaks: dict[str, np.ndarray] = {}
    video = inputs.tokens.shapes[0][1]
    random = np.random.default_rng(seed)
    for index in range(len(inputs.tokens)):
        tokens, sample_peaks, received = programs.observe(
            leaves, inputs.sample(index, None, mixed=True), inputs.shared
        )
        out.write(index, tokens)
        peaks = {
            name: np.maximum(peaks.get(name, 0), np.asarray(peak))
            for name, peak in sample_peaks.items()
        }
        if method.rows == "salient":
            chosen = np.argsort(-np.asarray(received[0]), kind="stable")[: method.local_rows]
        elif method.rows == "random":
            chosen = random.permutation(video)[: method.local_rows]
        else:
            chosen = np.arange(method.local_rows)
        rows.append(np.sort(chosen).astype(np.int32))
    return peaks, np.stack(rows)


def advance_student(
    programs: Programs,
    leaves: Leaves,
    learned: Learned,
    inputs: Inputs,
    out: Boundary,
    kernels: Mapping[str, Array],
) -> None:
    """Run the quantized block on all samples: the inputs of the next, for methods that need them.

    `kernels` are the weights that were rounded already; without them all are rounded to nearest.
    """
    starts = start_rotations(programs.kind, programs.recipe, programs.config)
    for index in range(len(inputs.student_tokens)):
        tokens: Tokens = programs.run_quantized(
            learned, leaves, starts, inputs.sample(index, None), inputs.shared, kernels
        )
        out.write(index, tokens)
