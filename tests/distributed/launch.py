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


def launch(launcher: list[str], worker: str, *arguments: str | Path, cpu: bool = True) -> str:
    """Run the module `worker` by two processes and give what they print; a failure of theirs fails the test with it.

    Without `cpu` accelerate is not told that it is on one (see `gloo.py`).
    """
    command = [sys.executable, "-m", *launcher, "-m", worker, *map(str, arguments)]
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": str(cpu).lower(),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
    }
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if result.returncode:
        pytest.fail(f"{' '.join(command)}\n{result.stdout}\n{result.stderr}", pytrace=False)
    return result.stdout
