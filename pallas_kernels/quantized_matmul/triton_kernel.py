"""The jax-triton kernel itself, for 4 bits; importing this needs Triton.

It does what Pallas cannot express: one instruction unpacks the lower (or upper) nibbles of four bytes, which Triton by itself
shifts byte by byte.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check  # Triton reads the source, and a type checker's wrapper would hide it.
def matmul(
    x,
    w,
    w_scale,
    x_scale,
    bias,
    gate,
    residual,
    out,
    M: tl.constexpr,
    N: tl.constexpr,
    PANEL: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
    ROWS_TOGETHER: tl.constexpr,
    BIAS: tl.constexpr,
    GELU: tl.constexpr,
    GATE: tl.constexpr,
    RESIDUAL: tl.constexpr,
):
    """One tile of `residual + gate * gelu(x_scale w_scale (x w) + bias)`.

    Args:
        x: int8 [groups, M, 2 PANEL].
        w: int8 [N, PANEL], two values in each byte, 2 PANEL / 2 rows apart.
        w_scale, bias: [N].
        x_scale: [groups, M].
        gate: [groups, N].
        residual, out: [groups, M, N].
        M, N: sizes of a group's result.
        PANEL: K / 2.
        TILE_M, TILE_N, TILE_K: of a program; TILE_K bytes of a weight column in a step.
        ROWS_TOGETHER: row tiles that run side by side over all columns.
        BIAS, GELU, GATE, RESIDUAL: whether to apply each of them.
    """
    across: tl.constexpr = (N + TILE_N - 1) // TILE_N
    down: tl.constexpr = (M + TILE_M - 1) // TILE_M
    program, group = tl.program_id(0), tl.program_id(1)
    band = program // (ROWS_TOGETHER * across)
    within = program % (ROWS_TOGETHER * across)
    height = min(down - band * ROWS_TOGETHER, ROWS_TOGETHER)
    # The offset of the tile needs 64 bits; offsets within the tile do not.
    first_row = (band * ROWS_TOGETHER + within % height) * TILE_M
    first_column = (within // height) * TILE_N
    first_token = (group * M + first_row).to(tl.int64)
    rows, columns = tl.arange(0, TILE_M), tl.arange(0, TILE_N)
    places = tl.arange(0, TILE_K)
    inside_rows, inside_columns = first_row + rows < M, first_column + columns < N
    x_tile = x + first_token * (2 * PANEL) + (rows[:, None] * (2 * PANEL) + places[None])
    w_tile = w + first_column.to(tl.int64) * PANEL + (columns[:, None] * PANEL + places[None])
    total = tl.zeros((TILE_M, TILE_N), tl.int32)
    for start in range(0, PANEL, TILE_K):
        packed = tl.load(w_tile + start, mask=inside_columns[:, None], other=0)
        # 16 times the values, with their signs; the scale makes up for the factor.
        lower, upper = tl.inline_asm_elementwise(
            "shl.b32 $0, $2, 4; and.b32 $0, $0, 0xF0F0F0F0; and.b32 $1, $2, 0xF0F0F0F0;",
            "=r,=r,r",
            [packed],
            dtype=(tl.int8, tl.int8),
            is_pure=True,
            pack=4,
        )
        first = tl.load(x_tile + start, mask=inside_rows[:, None], other=0)
        second = tl.load(x_tile + PANEL + start, mask=inside_rows[:, None], other=0)
        total = tl.dot(first, tl.trans(lower), total, out_dtype=tl.int32)
        total = tl.dot(second, tl.trans(upper), total, out_dtype=tl.int32)
    y = total.to(tl.float32)
    y = y * tl.load(x_scale + first_token + rows, mask=inside_rows, other=0.0)[:, None]
    y = y * tl.load(w_scale + first_column + columns, mask=inside_columns, other=0.0)[None]
    if BIAS:
        y += tl.load(bias + first_column + columns, mask=inside_columns, other=0.0).to(tl.float32)[
            None
        ]
    if GELU:
        # 0.5 (1 + tanh(z)) is the logistic function of 2 z.
        y = y * tl.sigmoid(1.5957691216057308 * (y + 0.044715 * y * y * y))
    if GATE:
        factor = tl.load(gate + group * N + first_column + columns, mask=inside_columns, other=0.0)
        y = y * factor.to(tl.float32)[None]
    corner = first_token * N + first_column
    cells = rows[:, None] * N + columns[None]
    inside = inside_rows[:, None] & inside_columns[None]
    if RESIDUAL:
        y += tl.load(residual + corner + cells, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + corner + cells, y.to(out.dtype.element_ty), mask=inside)
