"""Experts against a loop over tokens, and transformers' implementations of them against each other."""

import copy

import pytest
import torch
import torch.nn.functional as F

from baichuan_hf import BaichuanForCausalLM
from baichuan_hf.model.experts import MixtureOfExperts, load_balancing_loss
from baichuan_hf.model.feed_forward import FeedForward, GatedFeedForward
from tests.helpers import tiny_config


EXPERTS = {"num_local_experts": 5, "initializer_range": 0.2}
IMPLEMENTATIONS = ["batched_mm", "grouped_mm"]


@pytest.fixture(params=[True, False], ids=["gated", "two-layer"])
def gated(request) -> bool:
    return request.param


@pytest.mark.parametrize("per_token", [1, 2, 5])
def test_equal_a_loop_over_tokens(gated, per_token):
    """Mixtral: softmax over all experts, the best K scaled to a sum of 1."""
    config = tiny_config(gated_mlp=gated, num_experts_per_tok=per_token, hidden_act="gelu", **EXPERTS)
    layer = BaichuanForCausalLM(config).model.layers[0].mlp.eval()
    weights = dict(layer.named_parameters())
    x = torch.randn(2, 4, 64)
    expected = torch.zeros_like(x)
    for row, column in ((r, c) for r in range(2) for c in range(4)):
        token = x[row, column]
        probabilities = (weights["gate.weight"] @ token).softmax(-1)
        chosen = probabilities.topk(per_token).indices
        for expert in chosen:
            if gated:
                gate, up = (weights["experts.gate_up_proj"][expert] @ token).chunk(2)
                inner = F.gelu(gate) * up
            else:
                inner = F.gelu(weights["experts.up_proj"][expert] @ token)
            share = probabilities[expert] / probabilities[chosen].sum()
            expected[row, column] += share * (weights["experts.down_proj"][expert] @ inner)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_implementations_agree(gated, implementation):
    eager = BaichuanForCausalLM(tiny_config(gated_mlp=gated, **EXPERTS))
    eager.set_experts_implementation("eager")
    other = copy.deepcopy(eager)
    other.set_experts_implementation(implementation)
    ids = torch.randint(3, 128, (2, 9))
    results = []
    for model in (eager, other):
        output = model(ids, labels=ids)
        output.loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        results.append(gradients | {"logits": output.logits, "loss": output.loss})
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


def test_the_implementation_is_chosen_when_loading(gated, tmp_path):
    config = tiny_config(gated_mlp=gated, **EXPERTS)
    BaichuanForCausalLM(config).save_pretrained(tmp_path)
    model = BaichuanForCausalLM.from_pretrained(tmp_path, experts_implementation="batched_mm")
    assert model.config._experts_implementation == "batched_mm"


@pytest.mark.parametrize("interval, sparse", [(1, {0, 1, 2, 3, 4}), (2, {1, 3}), (3, {2}), (6, set())])
def test_every_so_many_layers_have_experts(gated, interval, sparse):
    config = tiny_config(gated_mlp=gated, moe_layer_interval=interval, num_hidden_layers=5, **EXPERTS)
    model = BaichuanForCausalLM(config)
    for index, layer in enumerate(model.model.layers):
        dense = GatedFeedForward if gated else FeedForward
        assert type(layer.mlp) is (MixtureOfExperts if index in sparse else dense)
    ids = torch.randint(3, 128, (1, 6))
    logits = model(ids, output_router_logits=True).router_logits
    assert [x.shape for x in logits or ()] == [(6, 5)] * len(sparse)


def plain_loss(router_logits: tuple[torch.Tensor, ...], kept: torch.Tensor, per_token: int) -> float:
    """Fedus et al. 2021, equation 4, over the tokens of all layers: E * sum over experts of the share of the tokens
    that go there times the mean probability."""
    probabilities = torch.cat([layer[kept] for layer in router_logits]).softmax(-1)
    experts = probabilities.shape[1]
    counts = torch.bincount(probabilities.topk(per_token).indices.flatten(), minlength=experts)
    return (experts * (counts / len(probabilities) * probabilities.mean(0)).sum()).item()


@pytest.mark.parametrize("per_token", [1, 2])
def test_load_balancing_loss_equals_the_papers(per_token):
    config = tiny_config(num_experts_per_tok=per_token, router_aux_loss_coef=0.5, **EXPERTS)
    model = BaichuanForCausalLM(config).eval()
    ids = torch.randint(3, 128, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    labels = ids.masked_fill(mask == 0, -100)
    with torch.no_grad():
        output = model(ids, attention_mask=mask, labels=labels, output_router_logits=True)
        without = model(ids, attention_mask=mask, labels=labels, output_router_logits=False)
    expected = plain_loss(output.router_logits, mask.flatten().bool(), per_token)
    assert output.aux_loss.item() == pytest.approx(expected, rel=1e-5)
    assert output.loss.item() == pytest.approx(without.loss.item() + 0.5 * expected, rel=1e-5)
    assert without.aux_loss is None


@pytest.mark.parametrize("per_token", [1, 2])
def test_load_balancing_loss_of_equally_busy_experts(per_token):
    config = tiny_config(num_local_experts=4, num_experts_per_tok=per_token)
    # Each expert is the first choice of a quarter of the tokens, and the second of another.
    logits = torch.tensor([[4.0, 2, 0, 0], [0, 4, 2, 0], [0, 0, 4, 2], [2, 0, 0, 4]])
    assert load_balancing_loss((logits,), None, config).item() == pytest.approx(per_token, rel=1e-6)


def test_reentrant_checkpointing_is_refused():
    model = BaichuanForCausalLM(tiny_config(**EXPERTS))
    with pytest.raises(ValueError, match="use_reentrant=True.*num_local_experts=5.*'use_reentrant': False"):
        model.gradient_checkpointing_enable({"use_reentrant": True})
    model.gradient_checkpointing_enable({"use_reentrant": False})
