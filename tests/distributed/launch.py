"""Two processes on the CPU, started as a user starts them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
# `--cpu` alone starts one process, and more only through MPI; ACCELERATE_USE_CPU below keeps this one off the GPUs.
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_machines=1", "--num_processes=2"]


def launch(launcher: list[str], worker: str, folder: Path) -> None:
    """Run the module `worker` in `folder` by two processes; a failure of theirs fails the test with their output."""
    command = [sys.executable, "-m", *launcher, "-m", worker, str(folder)]
    cpu = {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment = os.environ | cpu | {"PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if result.returncode:
        pytest.fail(f"{' '.join(command)}\n{result.stdout}\n{result.stderr}", pytrace=False)
