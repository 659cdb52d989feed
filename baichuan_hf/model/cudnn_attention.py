"""Attention by cuDNN: where SDPA is kept from it, and causal with ALiBi, whose bias its kernel computes, forward and
backward.

Shape legend: B batch, H heads, T tokens, D head dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache, StaticCache


# Planning the kernel for a length that is new takes 60 to 330 ms, which shorter texts do not earn back.
MIN_TOKENS = 2048


def sdpa_kernels(query: Tensor, cache: Cache | None, *, training: bool) -> AbstractContextManager[None]:
    """Keeps SDPA from cuDNN, which torch prefers on a Hopper GPU, where it would plan for what never comes again.

    It plans for every number of queries and of keys anew: with a cache that grows, in every step of `generate`.

    Args:
        query: (B, H, T, D).
        cache: whose keys the queries attend to.
        training: then batches of one size are the rule, and the choice is torch's, but for what is generated.
    """
    if torch.compiler.is_compiling() or not query.is_cuda:
        return nullcontext()
    learns = training and (cache is None or torch.is_grad_enabled())
    repeats = query.shape[2] == 1 and isinstance(cache, StaticCache)
    return nullcontext() if learns or repeats or query.shape[2] >= MIN_TOKENS else _without_cudnn()


@contextmanager
def _without_cudnn() -> Iterator[None]:
    # The switch is the process's: whoever finds it off leaves it to who turned it off.
    if not torch.backends.cuda.cudnn_sdp_enabled():
        yield
        return
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


def suits_cudnn(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether cuDNN can attend from `query` to all of `key`, (B, H, T, D) each, the key's heads may be fewer.

    It needs the extra `cudnn`, half precision, and an Ampere GPU or later; under torch.compile the plain way is fused.
    """
    if torch.compiler.is_compiling() or not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        return False
    if not _has_cudnn() or torch.cuda.get_device_capability(query.device)[0] < 8:
        return False
    tensors = (query, key, value)
    # Loads of 16 bytes.
    aligned = all(
        x.stride(-1) == 1 and x.data_ptr() % 16 == 0 and all(s % 8 == 0 for s in x.stride()[:3]) for x in tensors
    )
    same = all(type(x) is Tensor and x.dtype == query.dtype for x in tensors)
    dim, length = query.shape[-1], query.shape[2]
    return aligned and same and dim % 8 == 0 and dim <= 128 and key.shape[2] == length >= MIN_TOKENS


class AlibiAttention(torch.autograd.Function):
    """(B, H, T, D), twice (B, key/value heads, T, D), scale of the scores -> (B, H, T, D), causal, with the slopes of
    `alibi_slopes`, which are those of cuDNN."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        batch, heads, length, dim = query.shape
        # In memory (B, T, H, D), as the output projection reads it.
        output = query.new_empty(batch, length, heads, dim).transpose(1, 2)
        # Of the scores' sums, for the backward pass.
        stats = query.new_empty(batch, heads, length, 1, dtype=torch.float32)
        tensors = {"q": query, "k": key, "v": value, "output": output, "stats": stats}
        if not any(ctx.needs_input_grad):
            del tensors["stats"]
        _run("forward", tensors, scaling)
        ctx.save_for_backward(query, key, value, output, stats)
        ctx.scaling = scaling
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, stats = ctx.saved_tensors
        gradients = [torch.empty_like(x) for x in (query, key, value)]
        names = ("q", "k", "v", "o", "dO", "stats", "dq", "dk", "dv")
        values = (query, key, value, output, gradient.contiguous(), stats, *gradients)
        _run("backward", dict(zip(names, values, strict=True)), ctx.scaling)
        return *gradients, None


class _Layout(NamedTuple):
    """What cuDNN must know of a tensor to plan a kernel."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


@cache
def _has_cudnn() -> bool:
    return find_spec("cudnn") is not None


@cache
def _cudnn() -> Any:
    try:  # transformers asks readers of remote code for whatever is imported outside of a `try`
        import cudnn
    except ImportError:
        raise
    return cudnn


@cache
def _handle(device: int) -> Any:
    with torch.cuda.device(device):
        return _cudnn().create_handle()


def _run(direction: str, tensors: dict[str, Tensor], scaling: float) -> None:
    device = next(iter(tensors.values())).device
    with torch.cuda.device(device):
        handle = _handle(device.index)
        _cudnn().set_stream(handle=handle, stream=torch.cuda.current_stream(device).cuda_stream)
        layouts = tuple((name, _Layout(tuple(x.shape), x.stride(), x.dtype)) for name, x in tensors.items())
        graph, workspace = _PLANS[direction](device.index, layouts, scaling)
        space = torch.empty(workspace, dtype=torch.uint8, device=device)
        graph.execute(
            {index: x.data_ptr() for index, x in enumerate(tensors.values())}, space.data_ptr(), handle=handle
        )


@lru_cache(maxsize=256)
def _plan_forward(device: int, layouts: tuple[tuple[str, _Layout], ...], scaling: float) -> tuple[Any, int]:
    cudnn = _cudnn()
    graph, given = _declare(device, layouts[:3])
    output, stats = graph.sdpa(
        name="forward",
        **given,
        is_inference=len(layouts) == 4,
        attn_scale=scaling,
        use_alibi_mask=True,
        use_causal_mask=True,
    )
    results = (output,) if len(layouts) == 4 else (output, stats.set_data_type(cudnn.data_type.FLOAT))
    return _build(graph, results, layouts)


@lru_cache(maxsize=256)
def _plan_backward(device: int, layouts: tuple[tuple[str, _Layout], ...], scaling: float) -> tuple[Any, int]:
    graph, given = _declare(device, layouts[:6])
    results = graph.sdpa_backward(
        name="backward", **given, attn_scale=scaling, use_alibi_mask=True, use_causal_mask=True
    )
    return _build(graph, results, layouts)


_PLANS = {"forward": _plan_forward, "backward": _plan_backward}


def _declare(device: int, layouts: tuple[tuple[str, _Layout], ...]) -> tuple[Any, dict[str, Any]]:
    cudnn = _cudnn()
    types = {
        torch.float16: cudnn.data_type.HALF,
        torch.bfloat16: cudnn.data_type.BFLOAT16,
        torch.float32: cudnn.data_type.FLOAT,
    }
    graph = cudnn.pygraph(
        io_data_type=types[layouts[0][1].dtype],
        intermediate_data_type=cudnn.data_type.FLOAT,
        compute_data_type=cudnn.data_type.FLOAT,
        handle=_handle(device),
    )
    given = {
        name: graph.tensor(name=name, dim=layout.shape, stride=layout.stride, data_type=types[layout.dtype], uid=index)
        for index, (name, layout) in enumerate(layouts)
    }
    return graph, given


def _build(graph: Any, results: tuple[Any, ...], layouts: tuple[tuple[str, _Layout], ...]) -> tuple[Any, int]:
    """The graph with a plan, and the bytes of memory that it works in."""
    first = len(layouts) - len(results)
    for index, result in enumerate(results, first):
        layout = layouts[index][1]
        result.set_output(True).set_dim(layout.shape).set_stride(layout.stride).set_uid(index)
    cudnn = _cudnn()
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    graph.check_support()
    graph.build_plans()
    return graph, max(graph.get_workspace_size(), 1)
