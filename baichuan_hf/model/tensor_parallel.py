"""Tensor parallelism: the sharding of the fused q, k, v matrix, which transformers has no name for."""

from __future__ import annotations

from typing import Any

import transformers
from packaging.version import Version
from transformers.distributed.tensor_parallel import PackedColwiseParallel


try:
    from transformers.distributed.parallel_utils import ALL_PARALLEL_STYLES
except ImportError:  # where the oldest supported versions keep it
    from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES


# Each process takes its heads' rows out of each of the three parts; the stock "packed_colwise" knows two parts only.
ALL_PARALLEL_STYLES.register("packed3_colwise", PackedColwiseParallel(split_factor=3))


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
