"""A training step of a model sharded by FSDP2 over two processes against one process."""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

from baichuan_hf import BaichuanForCausalLM
from tests.distributed.launch import TORCHRUN, launch
from tests.helpers import FAMILIES, tiny_config


def step(source: Path, target: Path, input_ids: torch.Tensor, **options: Any) -> None:
    """Load a model, take one step of gradient descent on `input_ids`, and save it."""
    model = AutoModelForCausalLM.from_pretrained(source, **options).train()
    if options:
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters()), "the model is not sharded"
    model(input_ids=input_ids, labels=input_ids).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.5).step()
    model.save_pretrained(target)


def batch() -> torch.Tensor:
    return torch.arange(3, 43).view(4, 10)


def test_two_processes_equal_one(subtests, tmp_path):
    for family, overrides in FAMILIES.items():
        BaichuanForCausalLM(tiny_config(**overrides)).save_pretrained(tmp_path / family / "start")
    launch(TORCHRUN, "tests.distributed.test_fsdp", tmp_path)

    for family in FAMILIES:
        with subtests.test(family):
            folder = tmp_path / family
            step(folder / "start", folder / "one", batch())
            start, one, two = (AutoModelForCausalLM.from_pretrained(folder / name) for name in ("start", "one", "two"))
            assert not torch.allclose(one.lm_head.weight, start.lm_head.weight, atol=1e-3)
            torch.testing.assert_close(two.state_dict(), one.state_dict(), atol=1e-5, rtol=1e-5)


def worker(root: Path) -> None:
    torch.distributed.init_process_group("gloo")
    own_rows = batch().chunk(2)[torch.distributed.get_rank()]
    for family in FAMILIES:
        folder = root / family
        step(folder / "start", folder / "two", own_rows, distributed_config=DistributedConfig(fsdp_size=2))


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
