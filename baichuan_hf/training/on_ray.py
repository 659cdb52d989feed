"""The tasks of `baichuan-hf train` on a Ray cluster."""

import importlib.util
from collections.abc import Sequence
from typing import Any

from .parsing import parse_arguments
from .tasks import train


def train_on_ray(words: Sequence[str], *, num_workers: int, use_gpu: bool = True, **options: Any) -> None:
    """Run `baichuan-hf train WORDS` by Ray Train's workers, as `torchrun` would by its processes.

    Every worker reads --train-file, and the first writes what the command writes, the metrics among it, into
    --output-dir: both are to be on storage that all machines share.

    Args:
        words: the arguments of the command.
        num_workers: processes, each with a GPU, wherever in the cluster there is one.
        use_gpu: False: each has a CPU core instead.
        options: further ones of ray.train.torch.TorchTrainer, as `run_config`.

    Raises:
        ImportError: Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise ImportError("train_on_ray needs Ray: pip install 'baichuan-hf[ray]'")
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    scaling = ScalingConfig(num_workers=num_workers, use_gpu=use_gpu)
    TorchTrainer(_work, train_loop_config={"words": [*words]}, scaling_config=scaling, **options).fit()


def _work(config: dict[str, Any]) -> None:
    train(*parse_arguments(config["words"]))
