"""The order of norms and residuals against a loop written from the papers; DeepNet's scales; layer drop."""

import math

import pytest
import torch

from baichuan_hf import BaichuanConfig, BaichuanForCausalLM, BaichuanModel
from tests.helpers import tiny_config
from tests.helpers.reference import causal_mask, hidden_states, perturb, softmax_attention


LAYERS = 3
DEEP_NORM = {"norm_type": "deep_norm", "norm_position": "post"}

# Wang et al. 2022, figure 2: N encoder layers, M decoder layers. Settings, alpha, beta.
DEEP_NETS = {
    "encoder": ({"is_causal": False}, (2 * LAYERS) ** 0.25, (8 * LAYERS) ** -0.25),
    "decoder": ({}, (2 * LAYERS) ** 0.25, (8 * LAYERS) ** -0.25),
    "encoder-of-a-pair": (
        {"is_causal": False, "num_decoder_layers": 5},
        0.81 * (LAYERS**4 * 5) ** (1 / 16),
        0.87 * (LAYERS**4 * 5) ** (-1 / 16),
    ),
    "decoder-of-a-pair": ({"add_cross_attention": True}, (3 * LAYERS) ** 0.25, (12 * LAYERS) ** -0.25),
}


def plain_config(**overrides) -> BaichuanConfig:
    """With the components that the loop has."""
    plain = {"position_embedding_type": "none", "norm_type": "layer_norm", "gated_mlp": False, "hidden_act": "relu"}
    biases = {"attention_bias": True, "mlp_bias": True, "norm_bias": True}
    return tiny_config(num_hidden_layers=LAYERS, **plain | biases | overrides)


def assert_equals_the_loop(config: BaichuanConfig, alpha: float) -> None:
    model = perturb(BaichuanModel(config))
    ids = torch.randint(3, 128, (2, 9))
    states = torch.randn(2, 6, 64) if config.add_cross_attention else None
    with torch.no_grad():
        actual = model(ids, encoder_hidden_states=states).last_hidden_state
    attend = softmax_attention(causal_mask(9) if config.is_causal else 0.0)
    expected = hidden_states(model, ids, attend, alpha=alpha, encoder_states=states)
    torch.testing.assert_close(actual, expected.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", DEEP_NETS)
def test_deep_norm_equals_the_papers_loop(name):
    settings, alpha, _ = DEEP_NETS[name]
    assert_equals_the_loop(plain_config(**DEEP_NORM, **settings), alpha)


@pytest.mark.parametrize("settings", [{}, {"is_causal": False}, {"add_cross_attention": True}], ids=str)
@pytest.mark.parametrize("order", ["pre", "post", "sandwich"])
def test_norm_positions_equal_a_loop(order, settings):
    assert_equals_the_loop(plain_config(norm_position=order, **settings), alpha=1.0)


@pytest.mark.parametrize("heads", [4, 2], ids=["fused", "grouped"])
@pytest.mark.parametrize("gated", [False, True], ids=["two-layer", "gated"])
@pytest.mark.parametrize("name", DEEP_NETS)
def test_deep_net_scales_what_the_paper_scales(name, gated, heads):
    settings, _, beta = DEEP_NETS[name]
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_key_value_heads": heads}
    model = BaichuanModel(plain_config(**DEEP_NORM, **settings, **sizes | {"gated_mlp": gated}))
    counted = 0
    for module_name, module in model.layers.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        kind = module_name.split(".")[-1]
        parts = {kind: module.weight}
        if kind == "W_pack":
            parts = dict(zip(("q_proj", "k_proj", "v_proj"), module.weight.chunk(3), strict=True))
        for part, matrix in parts.items():
            xavier = math.sqrt(2 / sum(matrix.shape))
            gain = 1.0 if part in ("q_proj", "k_proj") else beta
            # The estimate from n numbers is off by 1 / sqrt(2n): at most 0.8% here.
            assert matrix.std().item() == pytest.approx(gain * xavier, rel=0.04), f"{module_name}: {part}"
            counted += 1
    assert counted == LAYERS * (6 + gated + 4 * model.config.add_cross_attention)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_layers_are_dropped_as_often_as_told(checkpointing):
    model = BaichuanForCausalLM(tiny_config(layer_drop=0.5, num_hidden_layers=4)).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    changed = []
    handles = [
        layer.register_forward_hook(lambda _, inputs, output: changed.append(not torch.equal(inputs[0], output)))
        for layer in model.model.layers
    ]
    ids = torch.randint(3, 128, (1, 3))
    for _ in range(200):
        model(ids)
    assert len(changed) == 800
    assert 340 < sum(changed) < 460  # of 800 fair coins, four standard deviations are 57
    changed.clear()
    model.eval()(ids)
    assert changed == [True] * 4
    for handle in handles:
        handle.remove()


def test_a_dropped_layer_is_left_out():
    """Against the model without its layers: what comes out are the embeddings, and no layer gets a gradient."""
    model = BaichuanModel(tiny_config(layer_drop=0.999, final_norm=False)).train()
    ids = torch.randint(3, 128, (2, 5))
    torch.manual_seed(0)
    output = model(ids).last_hidden_state
    assert torch.equal(output, model.embed_tokens(ids))
    output.sum().backward()
    assert all(parameter.grad.abs().max() == 0 for parameter in model.layers.parameters())
    assert model.embed_tokens.weight.grad.abs().max() > 0


def test_deep_net_scales_experts_but_not_their_router():
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_local_experts": 3}
    model = BaichuanModel(plain_config(**DEEP_NORM, **sizes | {"gated_mlp": True, "mlp_bias": False}))
    beta = (8 * LAYERS) ** -0.25
    for layer in model.layers:
        experts = layer.mlp.experts
        gates_and_ups = [part for expert in experts.gate_up_proj for part in expert.chunk(2)]
        for matrix in [*gates_and_ups, *experts.down_proj]:
            assert matrix.std().item() == pytest.approx(beta * math.sqrt(2 / (128 + 256)), rel=0.04)
        router = layer.mlp.gate.weight
        assert router.std().item() == pytest.approx(math.sqrt(2 / (128 + 3)), rel=0.2)


@pytest.mark.parametrize(("batch", "tokens"), [(1, 4097), (2, 9000)])
def test_a_long_text_in_parts(batch, tokens):
    """Without gradients its inner states are made some tokens at a time."""
    torch.manual_seed(tokens)
    config = tiny_config(hidden_size=8, intermediate_size=20, num_attention_heads=2)
    mlp = BaichuanModel(config).eval().layers[0].mlp
    states = torch.randn(batch, tokens, 8)
    whole = mlp(states)
    assert whole.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(mlp(states), whole.detach())
