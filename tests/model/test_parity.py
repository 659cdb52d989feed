"""Equal logits, gradients and tokens to transformers' own models with their weights copied in."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedModel

from baichuan_hf import BaichuanForCausalLM
from tests.helpers import tiny_config


SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
CASES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama-gqa": (LlamaConfig, LlamaForCausalLM, {"num_key_value_heads": 2}),
    "llama-mqa": (LlamaConfig, LlamaForCausalLM, {"num_key_value_heads": 1}),
    "llama-biases": (LlamaConfig, LlamaForCausalLM, {"attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": (LlamaConfig, LlamaForCausalLM, {"head_dim": 16}),
    "llama-tied": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True}),
    "llama-gelu": (LlamaConfig, LlamaForCausalLM, {"hidden_act": "gelu"}),
    "llama-linear": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}),
    "llama-dynamic": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}),
    "llama-yarn": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": YARN}),
    "mistral-window": (MistralConfig, MistralForCausalLM, {"sliding_window": 7, "num_key_value_heads": 2}),
}


def copy_of(reference: PreTrainedModel, **settings) -> BaichuanForCausalLM:
    """Our model with the weights of a Llama or Mistral; fused heads get q, k and v stacked."""
    model = BaichuanForCausalLM(tiny_config(**SIZES | settings, normalize_lm_head=False)).eval()
    weights = reference.state_dict()
    for kind in ("weight", "bias"):
        for layer in range(SIZES["num_hidden_layers"]):
            prefix = f"model.layers.{layer}.self_attn."
            if model.config.fused_qkv and f"{prefix}q_proj.{kind}" in weights:
                parts = [weights.pop(f"{prefix}{name}_proj.{kind}") for name in "qkv"]
                weights[f"{prefix}W_pack.{kind}"] = torch.cat(parts)
    model.load_state_dict(weights)
    return model


@pytest.fixture(params=CASES, ids=list(CASES))
def pair(request) -> tuple[PreTrainedModel, BaichuanForCausalLM]:
    config_class, model_class, settings = CASES[request.param]
    torch.manual_seed(0)
    # Wide weights: with the usual 0.02 every position looks alike, and a wrong one would not show.
    config = config_class(
        **{"num_key_value_heads": 6, "sliding_window": None} | SIZES | settings, initializer_range=0.3
    )
    reference = model_class(config).eval()
    return reference, copy_of(reference, **settings)


@pytest.mark.parametrize("length", [5, 32, 75], ids=["short", "full-context", "beyond-the-context"])
def test_logits_equal(pair, length):
    reference, ours = pair
    ids = torch.randint(3, 97, (2, length))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, reference(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_equal_under_padding(pair, side):
    reference, ours = pair
    ids = torch.randint(3, 97, (3, 21))
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 4, 13)):
        columns = slice(0, padding) if side == "left" else slice(21 - padding, 21)
        mask[row, columns] = 0
    position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": position_ids}
    with torch.no_grad():
        ours_logits, logits = ours(**inputs).logits, reference(**inputs).logits
    torch.testing.assert_close(ours_logits[mask.bool()], logits[mask.bool()], atol=1e-4, rtol=0)


def test_loss_and_gradients_equal(pair):
    reference, ours = pair
    ids = torch.randint(3, 97, (2, 19))
    losses = [model(ids, labels=ids).loss for model in pair]
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-5)
    for loss in losses:
        loss.backward()
    name = "model.layers.1.mlp.down_proj.weight"
    gradients = [model.get_parameter(name).grad for model in pair]
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_equal(pair, cache):
    ids = torch.randint(3, 97, (2, 11))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    tokens = [
        model.generate(
            ids, attention_mask=mask, max_new_tokens=24, do_sample=False, eos_token_id=None, cache_implementation=cache
        )
        for model in pair
    ]
    assert torch.equal(*tokens)
