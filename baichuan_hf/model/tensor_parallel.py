"""Tensor parallelism: the sharding of the fused q, k, v matrix, which transformers has no name for, and what older
versions cannot do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers.distributed.tensor_parallel import PackedColwiseParallel


try:
    from transformers.distributed.parallel_utils import ALL_PARALLEL_STYLES
except ImportError:  # where the oldest supported versions keep it
    from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES


class FusedColwiseParallel(PackedColwiseParallel):
    """Each process takes its heads' rows out of each of the three parts of `W_pack`, of the weight as of the bias; the
    stock "packed_colwise" knows two parts, and takes a bias for one."""

    def __init__(self) -> None:
        super().__init__(split_factor=3)

    def shard_param(self, module: nn.Module, param: str, mesh: Any) -> None:
        parameter = module._parameters.get(param)
        if parameter is None or parameter.ndim != 1:
            super().shard_param(module, param, mesh)
            return
        # Only here: not every build of torch has them.
        from torch.distributed.tensor import distribute_tensor
        from torch.distributed.tensor.placement_types import _StridedShard

        rows = distribute_tensor(parameter, mesh, [_StridedShard(dim=0, split_factor=3)], src_data_rank=None)
        module._parameters[param] = nn.Parameter(rows, requires_grad=parameter.requires_grad)


ALL_PARALLEL_STYLES.register("packed3_colwise", FusedColwiseParallel())


def check_tensor_parallel(loading_options: dict[str, Any]) -> None:
    """Refuse `tp_plan=` where `from_pretrained` does not know it yet.

    Raises:
        ImportError: transformers is older than 5.17.
    """
    if loading_options.get("tp_plan") is not None and Version(transformers.__version__) < Version("5.17"):
        raise ImportError(
            f"tp_plan needs transformers 5.17 or newer; this is {transformers.__version__}. Update it, or pass"
            " distributed_config=DistributedConfig(tp_size=...) from transformers.distributed."
        )


def check_gatherable(model: nn.Module) -> None:
    """Refuse to save what torch cannot put together.

    Raises:
        RuntimeError: torch is older than 2.12, and a matrix is divided like `W_pack`, each of its parts by itself.
    """
    if Version(torch.__version__).release >= (2, 12):
        return
    parameters: Iterator[tuple[str, Any]] = model.named_parameters()
    for name, parameter in parameters:
        kinds = {type(placement).__name__ for placement in getattr(parameter, "placements", ())}
        if "_StridedShard" in kinds and (mesh := parameter.device_mesh).ndim == 1:
            raise RuntimeError(
                f"{name} is divided between {mesh.size()} processes in a way that torch {torch.__version__} cannot put"
                " together again: save the model with torch 2.12 or newer."
            )
