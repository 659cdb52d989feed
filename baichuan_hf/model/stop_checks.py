"""A host that asks a GPU for the next token before it knows whether this one was the last."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

import torch
from transformers.generation import utils as generation


_is_ahead: ContextVar[bool] = ContextVar("is_ahead", default=False)


@contextmanager
def host_ahead() -> Iterator[None]:
    """Within it, transformers' `_sample` defers the check whether all texts have ended by a token, on CUDA, too.

    Its `DeferredStopCheck` (from 5.17 on) does so on MPS only. Else the GPU waits for the host between two tokens; so
    it computes one token more than needed where a text ends early, of which nothing is left, but that sampling has
    drawn once more.
    """
    token = _is_ahead.set(True)
    try:
        yield
    finally:
        _is_ahead.reset(token)


def _extend_to_cuda() -> None:
    if (deferred := getattr(generation, "DeferredStopCheck", None)) is None:
        return
    known = deferred.is_supported

    @wraps(known)
    def is_supported(device: torch.device, cache: Any, cache_is_returned: bool, is_assistant: bool) -> bool:
        # A cache that is handed out would have to be cut back.
        ahead = _is_ahead.get() and device.type == "cuda" and not cache_is_returned and not is_assistant
        return ahead or known(device, cache, cache_is_returned, is_assistant)

    deferred.is_supported = staticmethod(is_supported)


_extend_to_cuda()
