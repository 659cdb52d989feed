"""Recording CUDA graphs in every call of `generate`: on the model's GPU, beside other threads, and without harm where
it fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

import torch


# Beside a recording other threads may do as they like: their work is no part of it.
ERROR_MODE = "thread_local"

# Graphs whose recording failed to end: torch's allocator of pinned memory keeps asking them what they record.
_UNENDED: list[torch.cuda.CUDAGraph] = []


@contextmanager
def recording(graph: torch.cuda.CUDAGraph, device: torch.device) -> Iterator[None]:
    """As `torch.cuda.graph`, but on the device of the work, whichever is the current one, and without waiting for it
    and giving back all its free memory before.

    Args:
        graph: a new one.
        device: of what is recorded.

    Raises:
        RuntimeError: what ran cannot be recorded, such as reading a result on the host. torch is left as it was.
    """
    caller = torch.cuda.current_stream(device)
    stream = _stream(device, caller.cuda_stream)
    keeper = _keeper(stream)
    generator = torch.cuda.default_generators[caller.device_index]
    random_state = generator.clone_state()
    stream.wait_stream(caller)
    with torch.cuda.stream(stream):
        graph.capture_begin(pool=keeper.pool(), capture_error_mode=ERROR_MODE)
        try:
            yield
        finally:
            try:
                graph.capture_end()
            except RuntimeError:
                # torch would take its random numbers and its memory for recorded ever after.
                _UNENDED.append(graph)
                generator.graphsafe_set_state(random_state)
                with suppress(RuntimeError):  # it had been told to end
                    torch._C._cuda_endAllocateToPool(caller.device_index, keeper.pool())
                    torch._C._cuda_releasePool(caller.device_index, keeper.pool())
                _keeper.cache_clear()  # for pinned memory the recording into its pool never ends
                raise
    caller.wait_stream(stream)


@cache
def _stream(device: torch.device, caller: int) -> torch.cuda.Stream:
    """The stream to record on what `caller` replays: cuBLAS keeps memory for every stream that it is called on."""
    return torch.cuda.Stream(device)


@cache
def _keeper(stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    """A graph whose memory is that of all graphs that are recorded on the stream, which are replayed one after the
    other: were there none, torch would make new memory for every one, and keep it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode=ERROR_MODE):
        torch.zeros(1, device=stream.device)
    return graph
