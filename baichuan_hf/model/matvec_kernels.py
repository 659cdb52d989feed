"""Triton kernels for one token's products with weights of 8 and 4 bits: what torchao leaves to torch.compile and to
tinygemm, which read such weights at half the bandwidth of a GPU.

What a thread multiplies it loads in one form, so that nothing goes through shared memory: a word of four bytes with
four inputs, or a word of eight nibbles with a number of each of eight planes, of which plane i holds what nibble i is
multiplied with.

Shape legend: N outputs, K inputs, G inputs that share a scale.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .kernels import interprets


try:  # transformers asks readers of remote code for whatever is imported outside of a `try`
    import triton
    import triton.language as tl
except ImportError:
    raise


# The interpreter, which runs kernels on a CPU, has no PTX.
INTERPRETED = tl.constexpr(interprets())


@triton.jit
def _as(pointer, KIND: tl.constexpr):
    """To the same numbers as words of another kind, for which torch.compile needs no view."""
    return pointer.to(tl.pointer_type(KIND), bitcast=True)


@triton.jit
def _load(pointer, inside, EVEN: tl.constexpr):
    return tl.load(pointer) if EVEN else tl.load(pointer, mask=inside, other=0)


@triton.jit
def _load_once(pointer, inside, EVEN: tl.constexpr):
    """What no other program needs, and shall not drive out of the cache what all do."""
    if EVEN:
        return tl.load(pointer, eviction_policy="evict_first")
    else:
        return tl.load(pointer, mask=inside, other=0, eviction_policy="evict_first")


@triton.jit
def _low(pair):
    """The first bfloat16 of a 32-bit word, in float32."""
    return (pair << 16).to(tl.float32, bitcast=True)


@triton.jit
def _high(pair):
    return (pair & -65536).to(tl.float32, bitcast=True)


@triton.jit
def _four(words):
    """The four bfloat16 of 64-bit words, in float32."""
    low, high = words.to(tl.int32), (words >> 32).to(tl.int32)
    return _low(low), _high(low), _low(high), _high(high)


# One instruction makes a float32 of a byte, where a conversion takes four times as long: put between other bytes it is
# 2^23 + itself, in the lowest bits, or 128 + itself, sixteen bits higher, where it must be less than 16.
WHOLE = tl.constexpr(
    "prmt.b32 $0, $4, 0x4B000000, 0x7540; prmt.b32 $1, $4, 0x4B000000, 0x7541;"
    "prmt.b32 $2, $4, 0x4B000000, 0x7542; prmt.b32 $3, $4, 0x4B000000, 0x7543;"
)
HALF = tl.constexpr(
    "prmt.b32 $0, $4, 0x43000000, 0x7044; prmt.b32 $1, $4, 0x43000000, 0x7144;"
    "prmt.b32 $2, $4, 0x43000000, 0x7244; prmt.b32 $3, $4, 0x43000000, 0x7344;"
)


@triton.jit
def _floats(words, PTX: tl.constexpr):
    """The four bytes of words, by WHOLE or HALF."""
    if INTERPRETED:
        shift: tl.constexpr = 0 if PTX == WHOLE else 16
        base: tl.constexpr = 0x4B000000 if PTX == WHOLE else 0x43000000
        first = ((words & 255) << shift | base).to(tl.float32, bitcast=True)
        second = ((words >> 8 & 255) << shift | base).to(tl.float32, bitcast=True)
        third = ((words >> 16 & 255) << shift | base).to(tl.float32, bitcast=True)
        fourth = ((words >> 24 & 255) << shift | base).to(tl.float32, bitcast=True)
        return first, second, third, fourth
    else:
        return tl.inline_asm_elementwise(
            PTX,
            "=r,=r,=r,=r,r",
            [words],
            dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
            is_pure=True,
            pack=1,
        )


@triton.jit
def _dot_int8(words, x_0, x_1, x_2, x_3):
    """Of signed bytes, which 128 makes unsigned."""
    w_0, w_1, w_2, w_3 = _floats(words ^ -0x7F7F7F80, WHOLE)
    offset: tl.constexpr = 8388608.0 + 128.0
    return (w_0 - offset) * x_0 + (w_1 - offset) * x_1 + (w_2 - offset) * x_2 + (w_3 - offset) * x_3


@triton.jit
def _int8_kernel(
    inputs,
    weight,
    scale,
    up_weight,
    up_scale,
    norm,
    residual,
    out,
    eps,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    EVEN: tl.constexpr,
    GATED: tl.constexpr,
    NORM: tl.constexpr,
    RESIDUAL: tl.constexpr,
):
    """A program four rows: of the weight, or two of both weights if GATED. inputs: (SIZE,), four bfloat16 each, SIZE =
    K / 4; weights: (N, SIZE), four bytes each; scales: (N,); norm: as inputs, the weight of their RMSNorm. out: (N,),
    of silu(gate) * up if GATED, else as residual, which it is added to.

    Rows are tensors of their own, so that all that is loaded has one shape, and with it the same threads.
    """
    inputs, norm = _as(inputs, tl.int64), _as(norm, tl.int64)
    weight, up_weight = _as(weight, tl.int32), _as(up_weight, tl.int32)
    first = tl.program_id(0) * (2 if GATED else 4)
    row_0 = weight + first.to(tl.int64) * SIZE
    row_1 = row_0 + SIZE
    row_2 = up_weight + first.to(tl.int64) * SIZE if GATED else row_0 + 2 * SIZE
    row_3 = row_2 + SIZE
    columns = tl.arange(0, BLOCK)
    total_0 = tl.zeros((BLOCK,), tl.float32)
    total_1 = tl.zeros((BLOCK,), tl.float32)
    total_2 = tl.zeros((BLOCK,), tl.float32)
    total_3 = tl.zeros((BLOCK,), tl.float32)
    squares = tl.zeros((BLOCK,), tl.float32)
    for _ in range(0, SIZE, BLOCK):
        inside = columns < SIZE
        words_0 = _load_once(row_0 + columns, inside, EVEN)
        words_1 = _load_once(row_1 + columns, inside, EVEN)
        words_2 = _load_once(row_2 + columns, inside, EVEN)
        words_3 = _load_once(row_3 + columns, inside, EVEN)
        x_0, x_1, x_2, x_3 = _four(_load(inputs + columns, inside, EVEN))
        if NORM:  # by what all inputs share, the root of their mean square, the sums are divided
            squares += x_0 * x_0 + x_1 * x_1 + x_2 * x_2 + x_3 * x_3
            n_0, n_1, n_2, n_3 = _four(_load(norm + columns, inside, EVEN))
            x_0, x_1, x_2, x_3 = x_0 * n_0, x_1 * n_1, x_2 * n_2, x_3 * n_3
        total_0 += _dot_int8(words_0, x_0, x_1, x_2, x_3)
        total_1 += _dot_int8(words_1, x_0, x_1, x_2, x_3)
        total_2 += _dot_int8(words_2, x_0, x_1, x_2, x_3)
        total_3 += _dot_int8(words_3, x_0, x_1, x_2, x_3)
        columns += BLOCK
    # As one sum: for each the threads would wait for one another once more.
    totals = tl.join(tl.join(total_0, total_1), tl.join(total_2, total_3))
    result, up = tl.split(tl.sum(totals, 0))  # of rows 0 and 1, and of rows 2 and 3
    rows = first + tl.arange(0, 2)
    up_rows = rows if GATED else rows + 2
    result *= tl.load(scale + rows).to(tl.float32)
    up *= tl.load(up_scale + up_rows).to(tl.float32)
    if NORM:
        factor = tl.rsqrt(tl.sum(squares) / (4 * SIZE) + eps)
        result, up = result * factor, up * factor
    if RESIDUAL:
        result += tl.load(residual + rows)
        up += tl.load(residual + up_rows)
    if GATED:
        tl.store(out + rows, result * tl.sigmoid(result) * up)
    else:
        tl.store(out + rows, result)
        tl.store(out + up_rows, up)


@triton.jit
def _scaled(total, inputs, pair, GROUP: tl.constexpr):
    """Sums over the words of a thread with scale and zero: ((128 + q) - 136) * scale + zero, times x.
    (1, QUADS, 4) -> (1, QUADS)."""
    scale = _low(pair)
    zero = _high(pair) - 136.0 * scale
    if GROUP >= 128:
        return tl.sum(total, 2) * scale + tl.sum(inputs, 2) * zero
    else:
        return tl.sum(total * scale + inputs * zero, 2)


@triton.jit
def _load_pairs(pairs, stride, quads, GROUP: tl.constexpr):
    """Scale and zero of every word, or of four where they share it."""
    pairs += quads % 32 // 4
    if GROUP >= 128:
        return tl.load(pairs + quads // (GROUP // 4) * stride)
    else:
        pairs += quads // 32 * (128 // GROUP) * stride
        step: tl.constexpr = 1 if GROUP == 32 else 0
        first = tl.load(pairs)
        second = tl.load(pairs + step * stride)
        third = tl.load(pairs + (1 + step) * stride)
        fourth = tl.load(pairs + (1 + 2 * step) * stride)
        return tl.join(tl.join(first, third), tl.join(second, fourth)).reshape(1, quads.shape[1], 4)


@triton.jit
def _int4_kernel(
    planes,
    weight,
    pairs,
    up_weight,
    up_pairs,
    residual,
    out,
    num_rows,
    stride,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    GROUP: tl.constexpr,
    QUADS: tl.constexpr,
    EVEN: tl.constexpr,
    GATED: tl.constexpr,
    RESIDUAL: tl.constexpr,
):
    """A program two tiles of eight rows, which share the inputs: of both weights if GATED, else of one.

    planes: (8, SIZE), SIZE = K / 8; weights: (N / 8, PADDED) words in tinygemm's order, 128 inputs a block of 32 times
    4 words, of which lane l has those of row l / 4, and blocks without inputs; pairs: (PADDED / G, stride) words of
    scale and zero. out: (N,), as residual, which it is added to, or (8, N / 8) of silu(gate) * up if GATED.
    """
    pairs, up_pairs = _as(pairs, tl.int32), _as(up_pairs, tl.int32)
    tile = tl.program_id(0)
    up_tile = tile if GATED else tile + tl.num_programs(0)
    weight += tile.to(tl.int64) * PADDED
    up_weight += up_tile.to(tl.int64) * PADDED
    pairs += tile * 8
    up_pairs += up_tile * 8
    quads = tl.arange(0, QUADS)[None, :]
    words = tl.arange(0, 4)[None, None, :]
    total = tl.zeros((1, QUADS), tl.float32)
    up_total = tl.zeros((1, QUADS), tl.float32)
    for _ in range(0, PADDED // 4, QUADS):
        wide = quads[:, :, None]
        inside = wide < 2 * SIZE
        v = tl.load(weight + (wide * 4 + words))
        u = tl.load(up_weight + (wide * 4 + words))
        pair = _load_pairs(pairs, stride, quads, GROUP)
        up_pair = _load_pairs(up_pairs, stride, quads, GROUP)
        v_0, v_2, v_4, v_6 = _floats(v & 0x0F0F0F0F, HALF)
        v_1, v_3, v_5, v_7 = _floats((v >> 4) & 0x0F0F0F0F, HALF)
        u_0, u_2, u_4, u_6 = _floats(u & 0x0F0F0F0F, HALF)
        u_1, u_3, u_5, u_7 = _floats((u >> 4) & 0x0F0F0F0F, HALF)
        x = planes + ((wide // 32 * 4 + wide % 4) * 4 + words)
        # One plane at a time: all eight would not fit into the registers.
        p = _load(x, inside, EVEN)
        a, b, inputs = v_0 * p, u_0 * p, p
        p = _load(x + SIZE, inside, EVEN)
        a, b, inputs = a + v_1 * p, b + u_1 * p, inputs + p
        p = _load(x + 2 * SIZE, inside, EVEN)
        a, b, inputs = a + v_2 * p, b + u_2 * p, inputs + p
        p = _load(x + 3 * SIZE, inside, EVEN)
        a, b, inputs = a + v_3 * p, b + u_3 * p, inputs + p
        p = _load(x + 4 * SIZE, inside, EVEN)
        a, b, inputs = a + v_4 * p, b + u_4 * p, inputs + p
        p = _load(x + 5 * SIZE, inside, EVEN)
        a, b, inputs = a + v_5 * p, b + u_5 * p, inputs + p
        p = _load(x + 6 * SIZE, inside, EVEN)
        a, b, inputs = a + v_6 * p, b + u_6 * p, inputs + p
        p = _load(x + 7 * SIZE, inside, EVEN)
        a, b, inputs = a + v_7 * p, b + u_7 * p, inputs + p
        total += _scaled(a, inputs, pair, GROUP)
        up_total += _scaled(b, inputs, up_pair, GROUP)
        quads += QUADS
    totals = tl.join(total, up_total).reshape(QUADS // 32, 8, 4, 2)  # four lanes of 32 share a row
    result, up_result = tl.split(tl.sum(tl.sum(totals, 2), 0))
    rows = tile * 8 + tl.arange(0, 8)
    if GATED:
        plane = rows % 2 * 4 + rows // 16 % 2 * 2 + rows // 8 % 2
        column = rows // 128 * 16 + rows // 2 % 4 * 4 + rows // 32 % 4
        tl.store(out + plane * (num_rows // 8) + column, result * tl.sigmoid(result) * up_result)
    else:
        up_rows = up_tile * 8 + tl.arange(0, 8)
        if RESIDUAL:
            result += tl.load(residual + rows)
            up_result += tl.load(residual + up_rows)
        tl.store(out + rows, result)
        tl.store(out + up_rows, up_result)


@triton.jit
def _int4_planes_kernel(
    inputs, norm, out, eps, SIZE: tl.constexpr, ALL: tl.constexpr, BLOCK: tl.constexpr, NORM: tl.constexpr
):
    """A program BLOCK columns of one plane. inputs, norm: (SIZE,), SIZE = K, and ALL a power of two of no less; out:
    (8, K / 8)."""
    plane = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < SIZE // 8
    source = (
        column // 16 * 128 + column % 4 * 32 + plane // 2 % 2 * 16 + plane % 2 * 8 + column // 4 % 4 * 2 + plane // 4
    )
    x = tl.load(inputs + source, inside, other=0).to(tl.float32)
    if NORM:
        every = tl.arange(0, ALL)
        numbers = tl.load(inputs + every, every < SIZE, other=0).to(tl.float32)
        x *= tl.rsqrt(tl.sum(numbers * numbers) / SIZE + eps) * tl.load(norm + source, inside, other=0).to(tl.float32)
        x = x.to(tl.bfloat16).to(tl.float32)  # as the norm itself
    tl.store(out + plane * (SIZE // 8) + column, x, inside)


@triton.jit
def _int4_numbers_kernel(
    weight, pairs, out, stride, SIZE: tl.constexpr, PADDED: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr
):
    """A program eight rows, and BLOCK neighbouring pairs of inputs: weight and pairs as above; out: (N, SIZE), two
    bfloat16 each, SIZE = K / 2."""
    pairs, out = _as(pairs, tl.int32), _as(out, tl.int32)
    row = tl.program_id(0) * 8 + tl.arange(0, 8)[:, None]
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = column < SIZE
    lane = row % 8 * 4 + column % 4
    words = tl.load(
        weight + row.to(tl.int64) // 8 * PADDED + column // 64 * 128 + lane * 4 + column % 64 // 16, inside
    )
    words = words >> column // 4 % 4 * 4  # neighbours are sixteen bits apart
    pair = tl.load(pairs + column * 2 // GROUP * stride + row, inside)
    even = ((words & 15) - 8).to(tl.float32) * _low(pair) + _high(pair)
    odd = ((words >> 16 & 15) - 8).to(tl.float32) * _low(pair) + _high(pair)
    low = even.to(tl.bfloat16).to(tl.uint16, bitcast=True).to(tl.int32)
    high = odd.to(tl.bfloat16).to(tl.uint16, bitcast=True).to(tl.int32)
    tl.store(out + row.to(tl.int64) * SIZE + column, high << 16 | low, inside)


# torch.compile takes these into what it makes, where a launch takes a fraction of an operator's call from Python. The
# interpreter's kernels it cannot take.
_operator: Any = torch.library.custom_op if interprets() else torch.library.triton_op


def _launched(kernel: Any) -> Any:
    return kernel if interprets() else torch.library.wrap_triton(kernel)


def _launch_int8(
    inputs: Tensor,
    weights: list[Tensor],
    scales: list[Tensor],
    norm: Tensor | None,
    eps: float,
    residual: Tensor | None = None,
) -> Tensor:
    num_rows, size = weights[0].shape[0], weights[0].shape[1] // 4
    even = size % 1024 == 0
    block = min(1024 if even else 512, triton.next_power_of_2(size))
    out = inputs.new_empty(num_rows)
    with torch.cuda.device_of(inputs):
        _launched(_int8_kernel)[(num_rows * len(weights) // 4,)](
            inputs.contiguous(),
            weights[0],
            scales[0],
            weights[-1],
            scales[-1],
            scales[0] if norm is None else norm.contiguous(),
            inputs if residual is None else residual.contiguous(),
            out,
            eps,
            SIZE=size,
            BLOCK=block,
            EVEN=even,
            GATED=len(weights) == 2,
            NORM=norm is not None,
            RESIDUAL=residual is not None,
            num_warps=4,
        )
    return out


def _launch_int4(
    planes: Tensor, weights: list[Tensor], pairs: list[Tensor], out: Tensor, residual: Tensor | None = None
) -> Tensor:
    gated = len(weights) == 2
    size, tiles, blocks = planes.shape[1], weights[0].shape[0], weights[0].shape[1]
    with torch.cuda.device_of(planes):
        _launched(_int4_kernel)[(tiles if gated else tiles // 2,)](
            planes.contiguous(),
            weights[0],
            pairs[0],
            weights[-1],
            pairs[-1],
            planes if residual is None else residual.contiguous(),
            out,
            8 * tiles,
            pairs[0].shape[1],
            SIZE=size,
            PADDED=128 * blocks,
            GROUP=128 * blocks // pairs[0].shape[0],
            QUADS=1024 if blocks == 32 else 256,  # as measured: a loop that is none, or one with little in it
            EVEN=8 * size == 128 * blocks,
            GATED=gated,
            RESIDUAL=residual is not None,
            num_warps=8,
        )
    return out


@_operator("baichuan_hf::int8_matvec", mutates_args=())
def int8_matvec(
    inputs: Tensor,
    weight: Tensor,
    scale: Tensor,
    norm: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
) -> Tensor:
    """(weight @ rms_norm(inputs)) * scale + residual.

    Args:
        inputs: (K,), bfloat16.
        weight: (N, K), int8; K and N multiples of 4.
        scale: (N,) or (N, 1).
        norm: (K,), bfloat16, the weight of the norm; None: there is none.
        eps: of the norm.
        residual: (N,), bfloat16, or None.

    Returns:
        (N,), bfloat16.
    """
    return _launch_int8(inputs, [weight], [scale], norm, eps, residual)


@_operator("baichuan_hf::int8_gated_matvec", mutates_args=())
def int8_gated_matvec(
    inputs: Tensor,
    gate_weight: Tensor,
    gate_scale: Tensor,
    up_weight: Tensor,
    up_scale: Tensor,
    norm: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """silu(gate) * up of two such products: (N,), bfloat16."""
    return _launch_int8(inputs, [gate_weight, up_weight], [gate_scale, up_scale], norm, eps)


@_operator("baichuan_hf::int4_planes", mutates_args=())
def int4_planes(inputs: Tensor, norm: Tensor | None = None, eps: float = 0.0) -> Tensor:
    """What `int4_matvec` multiplies with, of rms_norm(inputs).

    Args:
        inputs: (K,), bfloat16; K a multiple of 128.
        norm: (K,), bfloat16, the weight of the norm; None: there is none.
        eps: of the norm.

    Returns:
        (8, K / 8), float32, in the order of tinygemm's nibbles: of 32 inputs a word has a neighbouring pair in each
        eight, the odd ones last.
    """
    size = len(inputs)
    out = inputs.new_empty(8, size // 8, dtype=torch.float32)
    with torch.cuda.device_of(inputs):
        _launched(_int4_planes_kernel)[(8, triton.cdiv(size, 8 * 512))](
            inputs.contiguous(),
            inputs if norm is None else norm.contiguous(),
            out,
            eps,
            SIZE=size,
            ALL=triton.next_power_of_2(size),
            BLOCK=512,
            NORM=norm is not None,
            num_warps=4,
        )
    return out


@_operator("baichuan_hf::int4_matvec", mutates_args=())
def int4_matvec(planes: Tensor, weight: Tensor, pairs: Tensor, residual: Tensor | None = None) -> Tensor:
    """The product with a weight that `torch.ops.aten._weight_int4pack_mm` takes.

    Args:
        planes: (8, K / 8) of x, see `int4_planes`.
        weight: (N / 8, K' / 128, 32, 4), int32; K' a multiple of 1024 of at least K, which is one of 128; N one of 16.
        pairs: (K' / G, N, 2) of scale and zero, bfloat16; G is 32, 64 or a multiple of 128.
        residual: (N,), bfloat16, what the product is added to, or None.

    Returns:
        (N,), bfloat16.
    """
    return _launch_int4(planes, [weight], [pairs], pairs.new_empty(8 * len(weight)), residual)


@_operator("baichuan_hf::int4_gated_matvec", mutates_args=())
def int4_gated_matvec(
    planes: Tensor, gate_weight: Tensor, gate_pairs: Tensor, up_weight: Tensor, up_pairs: Tensor
) -> Tensor:
    """silu(gate) * up of two such products, as the planes (8, N / 8) of the next; N a multiple of 128."""
    out = planes.new_empty(8, len(gate_weight))
    return _launch_int4(planes, [gate_weight, up_weight], [gate_pairs, up_pairs], out)


@_operator("baichuan_hf::int4_numbers", mutates_args=())
def int4_numbers(weight: Tensor, pairs: Tensor, columns: int) -> Tensor:
    """What such a weight holds: (N, columns), bfloat16."""
    num_rows, padded = 8 * weight.shape[0], 128 * weight.shape[1]
    out = pairs.new_empty(num_rows, columns)
    with torch.cuda.device_of(weight):
        _launched(_int4_numbers_kernel)[(weight.shape[0], triton.cdiv(columns, 512))](
            weight,
            pairs,
            out,
            pairs.shape[1],
            SIZE=columns // 2,
            PADDED=padded,
            GROUP=padded // pairs.shape[0],
            BLOCK=256,
        )
    return out


@int4_numbers.register_fake
def _(weight, pairs, columns):
    return pairs.new_empty(8 * weight.shape[0], columns)


@int4_planes.register_fake
def _(inputs, norm=None, eps=0.0):
    return inputs.new_empty(8, inputs.shape[0] // 8, dtype=torch.float32)


@int8_matvec.register_fake
def _(inputs, weight, scale, norm=None, eps=0.0, residual=None):
    return inputs.new_empty(weight.shape[0])


@int8_gated_matvec.register_fake
def _(inputs, gate_weight, gate_scale, up_weight, up_scale, norm=None, eps=0.0):
    return inputs.new_empty(gate_weight.shape[0])


@int4_matvec.register_fake
def _(planes, weight, pairs, residual=None):
    return pairs.new_empty(8 * weight.shape[0])


@int4_gated_matvec.register_fake
def _(planes, gate_weight, gate_pairs, up_weight, up_pairs):
    return planes.new_empty(8, gate_weight.shape[0])
