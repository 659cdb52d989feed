"""FSDP2: a head that runs on many parts of a batch, its weights gathered once for all of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn


def is_distributed() -> bool:
    """Whether this is one of several processes; not every build of torch knows of such."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def gathered_once(function: Callable[[nn.Module, Tensor], Tensor], head: nn.Module, states: Tensor) -> Tensor:
    """`function(head, states)`, which may run the head as often as it likes, and again in the backward pass.

    FSDP2 gathers the weights of a module when it is called, and divides them again when the gradient of its input is
    there. With many calls it does so many times, and before torch 2.13 it has not gathered them where a checkpoint
    repeats a call. So all that `function` does is one call to FSDP2. A head with hooks of others too, as those of
    tensor parallelism, is called as it is: they are for logits.

    Args:
        function: of a module that computes what `head` does, and `states`, to one tensor.
        head: a module, of which any parts may be sharded.
        states: its input.
    """
    if not is_distributed():
        return function(head, states)
    from torch.distributed.fsdp import FSDPModule

    parts = [part for part in head.modules() if isinstance(part, FSDPModule)]
    if not parts or any(len(part._forward_pre_hooks) > 1 or len(part._forward_hooks) > 1 for part in parts):
        return function(head, states)

    def without_hooks(module: nn.Module) -> nn.Module:
        # The weights are those of `module`, also after FSDP2 has put others in their place.
        children = {name: child if child is None else without_hooks(child) for name, child in module._modules.items()}
        classes = type(module).__mro__
        sharded = isinstance(module, FSDPModule)
        twin: nn.Module = object.__new__(classes[classes.index(FSDPModule) + 1] if sharded else classes[0])
        vars(twin).update(vars(module), _modules=children)
        if sharded:
            vars(twin).update(_forward_pre_hooks=OrderedDict(), _forward_hooks=OrderedDict())
        return twin

    def call(part: nn.Module, forward: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
        part.forward = forward
        try:
            return part(states)
        finally:
            del part.forward

    run = partial(function, without_hooks(head))
    for part in parts:
        run = partial(call, part, run)
    return run(states)
