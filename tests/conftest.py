"""Settings for every test: offline, one seed, and no uninitialised memory that happens to hold zeros."""

import os


# Before transformers is imported: it reads this once.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from transformers import set_seed


@pytest.fixture(autouse=True)
def reproducible():
    """Fixes the seed, and fills what `torch.empty` returns with NaN, so that a weight nobody initialised shows."""
    set_seed(0)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)
