"""The loss in chunks of a model sharded by FSDP2 over two processes against the loss on whole logits of one."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from packaging.version import Version
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode

from baichuan_hf import BaichuanForCausalLM, BaichuanForMaskedLM
from tests.distributed.launch import TORCHRUN, launch
from tests.helpers import tiny_config


HEADS: dict[str, dict[str, Any]] = {
    "linear": {"z_loss_weight": 0.1},
    "normhead": {"normalize_lm_head": True, "z_loss_weight": 0.1},
    "tied": {"tie_word_embeddings": True},
    "masked": {"is_causal": False},
    "adapted": {"normalize_lm_head": True},
    "hooked": {},
}
if Version(torch.__version__) < Version("2.13"):
    del HEADS["hooked"]  # torch itself cannot, see `gathered_once`


class Collectives(TorchDispatchMode):
    """Counts what the processes say to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.counts[func.__name__] += 1
        return func(*args, **(kwargs or {}))


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    config = tiny_config(initializer_range=0.3, **HEADS[name])
    model = BaichuanForCausalLM(config) if config.is_causal else BaichuanForMaskedLM(config)
    if name == "adapted":
        model = get_peft_model(model, LoraConfig(target_modules=["W_pack", "lm_head"], init_lora_weights=False))
    return model.train()


def shard(model: nn.Module) -> None:
    """As accelerate does it."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
    for layer in base.model.layers:
        fully_shard(layer)
    tied = [embeddings] if base.config.tie_word_embeddings else []
    fully_shard([base.model.norm, *tied, head], reshard_after_forward=False)
    fully_shard(model)


def rows() -> Tensor:
    return torch.arange(3, 43).view(4, 10)


def gradients(model: nn.Module, input_ids: Tensor, **options: Any) -> dict[str, Tensor]:
    """The sums of two passes: what one leaves behind must not disturb the next."""
    for _ in range(2):
        model(input_ids=input_ids, labels=input_ids, **options).loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chunked_loss")
    launch(TORCHRUN, "tests.distributed.test_chunked_loss", folder)
    return torch.load(folder / "results.pt")


@pytest.mark.parametrize("name", HEADS)
def test_equal_to_whole_logits_of_one_process(results, name):
    expected = gradients(make(name), rows())
    torch.testing.assert_close(results[name]["gradients"], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in HEADS if name != "hooked"])
def test_many_chunks_gather_no_more_than_one(results, name):
    assert results[name]["many"] == results[name]["one"]


def worker(folder: Path) -> None:
    torch.distributed.init_process_group("gloo")
    own = rows().chunk(2)[torch.distributed.get_rank()]
    results: dict[str, Any] = {}
    for name in HEADS:
        results[name] = {}
        for chunks, size in {"one": 2**20, "many": 3 * 128}.items():
            model = make(name)
            shard(model)
            if name == "hooked":
                model.lm_head.register_forward_hook(lambda module, args, logits: logits.clone())
            with Collectives() as collectives:
                found = gradients(model, own, skip_logits=True, max_logits=size)
            results[name][chunks] = dict(collectives.counts)
            results[name]["gradients"] = {key: value.full_tensor() for key, value in found.items()}
    if torch.distributed.get_rank() == 0:
        torch.save(results, folder / "results.pt")


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
