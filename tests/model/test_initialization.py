"""Every scheme's distribution, per projection. DeepNet's is in test_layers.py."""

import math

import pytest
import torch
from torch import Tensor

from baichuan_hf import BaichuanForCausalLM, BaichuanModel
from baichuan_hf.model.initialization import INITIALIZERS
from tests.helpers import tiny_config


HIDDEN, INNER = 96, 160
SIZES = {"hidden_size": HIDDEN, "intermediate_size": INNER, "initializer_range": 0.03}


def std_of(scheme: str, matrix: Tensor) -> float:
    """Of the papers, for a matrix (out, in)."""
    fan_out, fan_in = matrix.shape
    return {
        "normal": 0.03,
        "xavier_uniform": math.sqrt(2 / (fan_in + fan_out)),
        "kaiming_normal": math.sqrt(2 / fan_in),
        "small": math.sqrt(2 / (5 * HIDDEN)),
    }[scheme]


def projections(model: BaichuanModel) -> dict[str, Tensor]:
    """Every matrix of attention and feed-forward layers, those that are stored as one apart."""
    found = {}
    for name, weight in model.layers.named_parameters():
        if "norm" in name or name.endswith("bias"):
            continue
        parts = {"W_pack": 3, "gate_up_proj": 2}
        for stacked in weight if weight.ndim == 3 else [weight]:
            for part in stacked.chunk(next((count for kind, count in parts.items() if kind in name), 1)):
                found[f"{name}-{len(found)}"] = part
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_key_value_heads": 2, "gated_mlp": False, "add_cross_attention": True},
        {"num_local_experts": 3},
        {"num_local_experts": 3, "gated_mlp": False},
        {"attention_type": "linformer", "is_causal": False, "position_embedding_type": "none"},
        {"num_global_tokens": 1, "sliding_window": 4, "is_causal": False},
    ],
    ids=["decoder", "grouped-with-cross-attention", "gated-experts", "experts", "linformer", "longformer"],
)
@pytest.mark.parametrize("scheme", sorted(INITIALIZERS.keys() - {"deep_net"}))
def test_projections_are_drawn_as_in_the_papers(scheme, settings):
    model = BaichuanModel(tiny_config(initializer_type=scheme, **SIZES | settings))
    for name, matrix in projections(model).items():
        error = 5 / math.sqrt(2 * matrix.numel())  # five standard deviations of the estimate
        assert matrix.std().item() == pytest.approx(std_of(scheme, matrix), rel=error), name
        assert abs(matrix.mean().item()) < 5 * matrix.std().item() / math.sqrt(matrix.numel()), name
        if scheme == "xavier_uniform":
            bound = math.sqrt(6 / sum(matrix.shape))
            assert 0.97 * bound < matrix.abs().max().item() <= bound, name


@pytest.mark.parametrize("scheme", INITIALIZERS)
def test_the_rest_is_drawn_alike_by_every_scheme(scheme):
    deep_norm = {"norm_type": "deep_norm", "norm_position": "post"} if scheme == "deep_net" else {}
    biases = {"attention_bias": True, "mlp_bias": True, "norm_bias": True}
    model = BaichuanForCausalLM(tiny_config(initializer_type=scheme, **SIZES | deep_norm | biases))
    for matrix in (model.model.embed_tokens.weight[1:], model.lm_head.weight):
        assert matrix.std().item() == pytest.approx(0.03, rel=0.05)
    assert model.model.embed_tokens.weight[0].abs().max() == 0  # the padding's
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert parameter.abs().max() == 0, name
        elif "norm" in name:
            assert (parameter == 1).all(), name


def test_loaded_weights_are_not_drawn_again(tmp_path):
    model = BaichuanForCausalLM(tiny_config(initializer_type="kaiming_normal"))
    model.save_pretrained(tmp_path)
    torch.manual_seed(7)
    again = BaichuanForCausalLM.from_pretrained(tmp_path)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name


def test_deep_net_without_deep_norm_is_refused():
    with pytest.raises(Exception, match="initializer_type='deep_net'.*norm_type='rms_norm'.*deep_norm"):
        tiny_config(initializer_type="deep_net")
