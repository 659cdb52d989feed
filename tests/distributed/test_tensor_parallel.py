"""Tensor parallelism over two CPU processes against one process."""

import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed
from packaging.version import Version
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

from baichuan_hf import BaichuanForCausalLM
from baichuan_hf.model.position_biases import AlibiBias
from tests.distributed.launch import TORCHRUN, launch
from tests.helpers import FAMILIES, tiny_config
from tests.helpers.reference import perturb


# The original families, and the components that bring projections, biases or a bias per head of their own.
MODELS = FAMILIES | {
    "biases": {"gated_mlp": False, "hidden_act": "gelu", "mlp_bias": True, "attention_bias": True, "norm_bias": True},
    "experts": {"num_local_experts": 4, "moe_layer_interval": 2},
    "ungated-experts": {"num_local_experts": 4, "gated_mlp": False, "hidden_act": "gelu", "num_key_value_heads": 2},
    "relative": {"position_embedding_type": "relative", "norm_position": "sandwich"},
    "deep-norm": {"norm_type": "deep_norm", "norm_position": "post", "position_embedding_type": "learned"},
}


def is_gathered(model) -> bool:
    """Whether the model can be saved: before 2.12 torch cannot put W_pack together again."""
    return Version(torch.__version__).release >= (2, 12) or not model.config.fused_qkv


def results(model) -> dict[str, torch.Tensor]:
    """Logits, by both forms of the ALiBi bias, and greedy tokens of a fixed batch, padded on the left."""
    input_ids = torch.arange(3, 23).view(2, 10)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[0, :3] = 0
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    with torch.no_grad():
        logits = model(**inputs).logits
        # The form of the ALiBi bias that accelerators use for long inputs.
        with mock.patch.object(AlibiBias, "_uses_head_dims", return_value=True):
            head_dims_logits = model(**inputs).logits
    tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    return {"logits": logits, "head_dims_logits": head_dims_logits, "tokens": tokens}


def test_two_processes_equal_one(subtests, tmp_path):
    for family, overrides in MODELS.items():
        model = BaichuanForCausalLM(tiny_config(**overrides, initializer_range=0.2))
        perturb(model)
        model.save_pretrained(tmp_path / family / "one")
    launch(TORCHRUN, "tests.distributed.test_tensor_parallel", tmp_path)

    for family in MODELS:
        with subtests.test(family):
            one, two = tmp_path / family / "one", tmp_path / family / "two"
            model = AutoModelForCausalLM.from_pretrained(one)
            expected = results(model)
            found = load_file(two / "results.safetensors")
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

            if not is_gathered(model):
                continue
            original, saved = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
            assert saved.keys() == original.keys()
            assert all(torch.equal(saved[name], weight) for name, weight in original.items())


def worker(folder: Path) -> None:
    torch.distributed.init_process_group("gloo")
    for family in MODELS:
        one, two = folder / family / "one", folder / family / "two"
        model = AutoModelForCausalLM.from_pretrained(one, distributed_config=DistributedConfig(tp_size=2))
        for layer in model.model.layers:
            columns = layer.self_attn.o_proj.weight.to_local().shape[1]
            assert columns == model.config.hidden_size // 2, "the attention is not sharded"
            down = layer.mlp.experts.down_proj if hasattr(layer.mlp, "experts") else layer.mlp.down_proj.weight
            assert down.to_local().shape[-1] == model.config.intermediate_size // 2, "the layer is not sharded"
        found = results(model)
        if is_gathered(model):
            model.save_pretrained(two)
        else:
            with pytest.raises(RuntimeError, match="W_pack.*torch 2.12 or newer"):
                model.save_pretrained(two)
        if torch.distributed.get_rank() == 0:
            two.mkdir(exist_ok=True)
            save_file({name: value.contiguous() for name, value in found.items()}, two / "results.safetensors")


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
