"""FSDP2 and tensor parallelism of accelerate on the CPU.

accelerate shards on accelerators only, and on the CPU quietly trains by data parallelism instead. torch itself shards
over gloo: so accelerate is told that the CPU is an accelerator whose backend is gloo.
"""

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType


def pretend_accelerator() -> None:
    PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
