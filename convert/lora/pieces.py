"""The matrices of one layer: whole, or split into the parts that a layer joins (queries, keys, values), each with an up and a down."""

from collections.abc import Mapping

from convert.containers import TensorInfo
from convert.lora.modules import Place
from convert.lora.names import Key


def pieces_of(
    place: Place,
    parts: Mapping[tuple[str, int | None], tuple[str, Key]],
    tensors: Mapping[str, TensorInfo],
) -> tuple[list[tuple[Place, str, tuple[str, Key]]], str]:
    """The parts of a layer, each with its up and its down; and what is wrong with them, or ""."""
    numbers = list(dict.fromkeys(number for _, number in parts))
    if not numbers:
        return [], "it has no matrices"
    split = numbers != [None]
    if split and (
        sorted(numbers, key=str) != list(range(len(numbers))) or "modulation" in place.leaf
    ):
        return [], "it is not whole, and its parts are not those of a joined layer"
    pieces, start = [], place.start
    for number in range(len(numbers)) if split else (None,):
        up, down = parts.get(("up", number)), parts.get(("down", number))
        if up is None or down is None:
            return [], f"its {'up (lora_B)' if up is None else 'down (lora_A)'} is not there"
        above, below = tensors[up[0]].shape, tensors[down[0]].shape
        rows, rank = (shape[0] if shape else 0 for shape in (above, below))
        ones = (1,) * len(place.shape[2:])
        if rank < 1 or above != (rows, rank, *ones) or below != (rank, *place.shape[1:]):
            return [], f"{list(above)} times {list(below)} does not make {list(place.shape)}"
        pieces.append((place._replace(start=start, shape=(rows, *place.shape[1:])), up[0], down))
        start += rows
    if start - place.start != place.shape[0]:
        return [], f"it has {start - place.start} rows, and the layer {place.shape[0]}"
    return pieces, ""
