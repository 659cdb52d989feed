"""Triton kernels for what torch does in several passes over memory; each has a plain twin, which `kernels` chooses.

Shape legend: B batch, H heads, T tokens, D head dimension.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


try:  # transformers asks readers of remote code for whatever is imported outside of a `try`
    import triton
    import triton.language as tl
except ImportError:
    raise


@triton.jit
def _rotate_kernel(
    x,
    out,
    cos,
    sin,
    num_tokens,
    stride_batch,
    stride_head,
    stride_token,
    cos_stride_batch,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """A program a token, whose heads it takes a few at a time: out = x * cos - swapped halves of x * sin.
    x: (B, H, T, D) with any strides; out: (B, T, H, D)."""
    row = tl.program_id(0).to(tl.int64)
    batch, token = row // num_tokens, row % num_tokens
    columns = tl.arange(0, BLOCK_HALF)
    inside = columns < HALF
    angles = batch * cos_stride_batch + token * 2 * HALF + columns
    cos_1 = tl.load(cos + angles, mask=inside).to(tl.float32)[None]
    cos_2 = tl.load(cos + angles + HALF, mask=inside).to(tl.float32)[None]
    sin_1 = tl.load(sin + angles, mask=inside).to(tl.float32)[None]
    sin_2 = tl.load(sin + angles + HALF, mask=inside).to(tl.float32)[None]
    if TRANSPOSED:  # the gradient's way: the rotation's matrix, transposed
        sin_1, sin_2 = sin_2, sin_1
    x += batch * stride_batch + token * stride_token
    out += row * HEADS * 2 * HALF
    for first in range(0, HEADS, BLOCK_HEADS):
        heads = first + tl.arange(0, BLOCK_HEADS)[:, None]
        mask = (heads < HEADS) & inside[None]
        source = x + heads * stride_head + columns[None]
        x_1 = tl.load(source, mask=mask).to(tl.float32)
        x_2 = tl.load(source + HALF, mask=mask).to(tl.float32)
        target = out + heads * 2 * HALF + columns[None]
        tl.store(target, x_1 * cos_1 - x_2 * sin_1, mask=mask)
        tl.store(target + HALF, x_2 * cos_2 - x_1 * sin_2, mask=mask)


def _rotate(states: Tensor, cos: Tensor, sin: Tensor, *, transposed: bool) -> Tensor:
    if states.stride(-1) != 1:
        states = states.contiguous()
    batch, heads, tokens, dim = states.shape
    out = states.new_empty(batch, tokens, heads, dim)
    cos, sin = cos.contiguous(), sin.contiguous()
    with torch.cuda.device_of(states):
        _rotate_kernel[(batch * tokens,)](
            states,
            out,
            cos,
            sin,
            tokens,
            *states.stride()[:3],
            cos.stride(0) if len(cos) > 1 else 0,
            HEADS=heads,
            HALF=dim // 2,
            BLOCK_HALF=triton.next_power_of_2(dim // 2),
            BLOCK_HEADS=8,
            TRANSPOSED=transposed,
        )
    return out.transpose(1, 2)


class Rotation(torch.autograd.Function):
    """`positions.rotate` in one pass, computed in float32 and rounded once."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(states, cos, sin, transposed=False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _rotate(gradient, *ctx.saved_tensors, transposed=True), None, None


@triton.jit
def _silu_mul_kernel(gate, up, out, size, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < size
    g = tl.load(gate + index, mask=mask).to(tl.float32)
    u = tl.load(up + index, mask=mask).to(tl.float32)
    tl.store(out + index, g * tl.sigmoid(g) * u, mask=mask)


@triton.jit
def _silu_mul_backward_kernel(gate, up, gradient, gate_gradient, up_gradient, size, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < size
    g = tl.load(gate + index, mask=mask).to(tl.float32)
    u = tl.load(up + index, mask=mask).to(tl.float32)
    d = tl.load(gradient + index, mask=mask).to(tl.float32)
    s = tl.sigmoid(g)
    tl.store(gate_gradient + index, d * u * s * (1 + g * (1 - s)), mask=mask)
    tl.store(up_gradient + index, d * g * s, mask=mask)


BLOCK = 2048  # numbers of a program of an elementwise kernel


class SiluMul(torch.autograd.Function):
    """silu(gate) * up in one pass, computed in float32 and rounded once; the backward pass keeps `gate` and `up`."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        out = torch.empty_like(gate)
        with torch.cuda.device_of(gate):
            _silu_mul_kernel[(triton.cdiv(gate.numel(), BLOCK),)](gate, up, out, gate.numel(), BLOCK=BLOCK)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        gate_gradient, up_gradient = torch.empty_like(gate), torch.empty_like(up)
        with torch.cuda.device_of(gate):
            _silu_mul_backward_kernel[(triton.cdiv(gate.numel(), BLOCK),)](
                gate, up, gradient.contiguous(), gate_gradient, up_gradient, gate.numel(), BLOCK=BLOCK
            )
        return gate_gradient, up_gradient
