"""Tensor parallelism: the sharding of the fused q, k, v matrix, which transformers has no name for."""

from __future__ import annotations

from typing import Any


try:
    from transformers.distributed.parallel_utils import ALL_PARALLEL_STYLES
    from transformers.distributed.tensor_parallel import PackedColwiseParallel
except ImportError:
    try:  # transformers 5.17 and neighbours keep both in one module
        from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES, PackedColwiseParallel
    except ImportError:
        ALL_PARALLEL_STYLES = PackedColwiseParallel = None


# Each process takes its heads' rows out of each of the three parts; the stock "packed_colwise" knows two parts only.
if PackedColwiseParallel is not None:
    ALL_PARALLEL_STYLES.register("packed3_colwise", PackedColwiseParallel(split_factor=3))


def check_tensor_parallel(loading_options: dict[str, Any]) -> None:
    """Refuse tensor parallelism with a transformers that cannot shard a three-way packed projection.

    Raises:
        ImportError: transformers is older than 5.17.
    """
    asked = any(loading_options.get(option) is not None for option in ("tp_plan", "tp_size", "distributed_config"))
    if asked and PackedColwiseParallel is None:
        raise ImportError(
            "Tensor parallelism of Baichuan's fused W_pack needs transformers 5.17 or newer:"
            " pip install -U 'transformers>=5.17,<6'"
        )
