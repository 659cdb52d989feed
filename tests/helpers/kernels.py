"""Triton's kernels in tests: on a GPU, or on a CPU in a process of its own, whose interpreter runs them."""

import os
import subprocess
import sys

import pytest
import torch


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


needs_kernels = pytest.mark.skipif(
    not (interpreted() or torch.cuda.is_available()), reason="needs a GPU, or Triton's interpreter (the test above)"
)


def run_under_the_interpreter(file: str) -> None:
    """The tests of a file that need no GPU."""
    pytest.importorskip("triton", reason="needs Triton: pip install triton")
    if interpreted() or torch.cuda.is_available():
        pytest.skip("the kernels run in this process")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", "-m", "not gpu", file]
    result = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-4000:]
    assert " passed" in result.stdout
