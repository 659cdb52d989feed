"""Where a fast kernel takes the place of several operations of torch, and what it falls back to.

Kernels are for eager mode on a GPU: torch.compile fuses the plain operations by itself.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor


# Launching a kernel of Triton takes Python longer than a few of torch's: that counts where there is little to compute.
MIN_SIZE = 2**18


def use_triton(*tensors: Tensor) -> bool:
    """Whether Triton's kernels compute with these tensors: on a GPU, if there are many numbers or the launch is only
    recorded for a CUDA graph; or on a CPU under Triton's interpreter."""
    first = tensors[0]
    if not (first.is_cuda or interprets()) or torch.compiler.is_compiling() or not _has_triton():
        return False
    if not all(type(tensor) is Tensor and tensor.dtype == first.dtype for tensor in tensors):
        return False
    return not first.is_cuda or first.numel() >= MIN_SIZE or torch.cuda.is_current_stream_capturing()


def runs_ptx(device: torch.device) -> bool:
    """Whether Triton's kernels that hold instructions of NVIDIA's GPUs run on this device."""
    return ((device.type == "cuda" and torch.version.hip is None) or interprets()) and _has_triton()


def is_exporting() -> bool:
    """`torch.compiler.is_exporting`, which in torch before 2.12 holds for all that torch.compile traces."""
    return torch.compiler._is_exporting_flag


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def interprets() -> bool:
    """Whether Triton's interpreter runs the kernels, on a CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"
