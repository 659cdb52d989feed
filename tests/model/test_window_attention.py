"""Longformer's attention: block by block as with a mask of queries by keys. The reference is in tests/conversion."""

import copy

import pytest
import torch

from baichuan_hf import BaichuanForMaskedLM
from tests.helpers import tiny_config


SETTINGS = {
    "rope": {},
    "learned": {"position_embedding_type": "learned"},
    "grouped": {"num_key_value_heads": 2},
    "one-key-head": {"num_key_value_heads": 1, "position_embedding_type": "none"},
    "mixed-layers": {"layer_types": ["full_attention", "sliding_attention"]},
    "biases": {"attention_bias": True},
}
WIDE = {"initializer_range": 0.2, "is_causal": False, "max_position_embeddings": 64}


def pair_of(**overrides) -> tuple[BaichuanForMaskedLM, BaichuanForMaskedLM]:
    """One model, computing block by block and with a mask."""
    blocks = BaichuanForMaskedLM(tiny_config(**WIDE | overrides)).eval()
    plain = copy.deepcopy(blocks)
    plain.set_attn_implementation("eager")
    assert blocks.config._attn_implementation == "sdpa"
    return blocks, plain


def padded(length: int, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows without padding, with some, and with all but one token of it."""
    ids = torch.randint(3, 128, (3, length))
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, length // 3, length - 1)):
        mask[row, slice(0, padding) if side == "left" else slice(length - padding, length)] = 0
    return ids, mask


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("num_global", [1, 3])
@pytest.mark.parametrize("window", [1, 4, 7, 50])
@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 30])
def test_blocks_equal_the_mask(length, window, num_global, side):
    models = pair_of(sliding_window=window, num_global_tokens=num_global)
    ids, mask = padded(length, side)
    with torch.no_grad():
        blocks, plain = (model(ids, attention_mask=mask).logits[mask.bool()] for model in models)
    torch.testing.assert_close(blocks, plain, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SETTINGS)
def test_gradients_of_the_blocks_equal_those_of_the_mask(name):
    models = pair_of(sliding_window=3, num_global_tokens=2, **SETTINGS[name])
    ids, mask = padded(17, "left")
    gradients = []
    for model in models:
        loss = model.train()(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()} | {"loss": loss})
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_blocks_in_bfloat16():
    models = pair_of(sliding_window=3, num_global_tokens=2, num_key_value_heads=2)
    ids, mask = padded(17, "right")
    with torch.no_grad():
        expected = models[1](ids, attention_mask=mask).logits[mask.bool()]
        for model in models:
            logits = model.to(torch.bfloat16)(ids, attention_mask=mask).logits[mask.bool()]
            assert (logits - expected).norm() / expected.norm() < 0.03


def test_a_token_sees_its_window_and_the_global_tokens():
    model, _ = pair_of(sliding_window=2, num_global_tokens=1, num_hidden_layers=1, position_embedding_type="none")
    embeds = torch.randn(1, 12, 64, requires_grad=True)
    hidden = model.model(inputs_embeds=embeds).last_hidden_state
    for position in (0, 6, 11):
        gradient = torch.autograd.grad(hidden[0, position].sum(), embeds, retain_graph=True)[0]
        seen = set(gradient[0].abs().sum(-1).nonzero().flatten().tolist())
        near = set(range(12)) if position == 0 else {0, *range(position - 2, min(position + 3, 12))}
        assert seen == near
