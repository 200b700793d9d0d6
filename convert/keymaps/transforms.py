"""The few ways in which a PyTorch tensor and a leaf differ, each with its exact inverse."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Transform(NamedTuple):
    """A named, invertible rearrangement of one tensor; no arithmetic, so every dtype survives bit for bit.

    Attributes:
        shape: PyTorch shape -> leaf shape.
        forward: PyTorch tensor -> leaf.
        backward: leaf and PyTorch shape -> PyTorch tensor.
    """

    shape: Callable[[Shape], Shape]
    forward: Callable[[np.ndarray], np.ndarray]
    backward: Callable[[np.ndarray, Shape], np.ndarray]


def _swap_halves(array: np.ndarray) -> np.ndarray:
    half = array.shape[0] // 2
    return np.concatenate([array[half:], array[:half]])


def _patch_shape(shape: Shape) -> Shape:
    return (int(np.prod(shape[1:])), shape[0])


TRANSFORMS: Mapping[str, Transform] = {
    "copy": Transform(lambda shape: shape, lambda array: array, lambda leaf, shape: leaf),
    # nn.Linear [out, in] <-> nnx.Linear [in, out]
    "linear": Transform(
        lambda shape: shape[::-1], lambda array: array.T, lambda leaf, shape: leaf.T
    ),
    # A convolution whose kernel is its stride is a matrix product over patches: [D, C, pt, ph, pw] <-> [C*pt*ph*pw, D]
    "patch": Transform(
        _patch_shape,
        lambda array: array.reshape(array.shape[0], -1).T,
        lambda leaf, shape: leaf.T.reshape(shape),
    ),
    # nn.Conv3d [O, I, kT, kH, kW] <-> [kT, kH, kW, I, O]
    "conv3d": Transform(
        lambda shape: (*shape[2:], shape[1], shape[0]),
        lambda array: array.transpose(2, 3, 4, 1, 0),
        lambda leaf, shape: leaf.transpose(4, 3, 0, 1, 2),
    ),
    # diffusers' last modulation has scale before shift, everybody else's shift before scale.
    "swap": Transform(lambda shape: shape, _swap_halves, lambda leaf, shape: _swap_halves(leaf)),
    "swap_linear": Transform(
        lambda shape: shape[::-1],
        lambda array: _swap_halves(array).T,
        lambda leaf, shape: _swap_halves(leaf.T),
    ),
}
