"""Settings for every test: offline, one seed, and no uninitialised memory that happens to hold zeros."""

import os
import random


# Before transformers is imported: it reads this once.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from transformers.utils import logging


@pytest.fixture(autouse=True)
def reproducible():
    """Fixes the seed, lets transformers warn (a command may have silenced it in this process), and fills what
    `torch.empty` returns with NaN, so that a weight nobody initialised shows."""
    logging.set_verbosity_warning()
    random.seed(0)
    torch.manual_seed(0)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)
