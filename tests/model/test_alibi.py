"""Attention with ALiBi against its formula, with every scaling, and under a sliding window."""

import pytest
import torch

from baichuan_hf import BaichuanForCausalLM
from tests.helpers import tiny_config


def make(**overrides):
    torch.manual_seed(0)
    return BaichuanForCausalLM(tiny_config(position_embedding_type="alibi", initializer_range=0.2, **overrides)).eval()


def test_sliding_window_with_alibi():
    """Tokens outside the window change nothing; the bias inside stays."""
    model = make(sliding_window=4, num_hidden_layers=1)
    ids = torch.arange(3, 23)[None]
    changed = ids.clone()
    changed[0, 0] = 100
    with torch.no_grad():
        difference = (model(ids).logits - model(changed).logits)[0].abs().amax(-1)
        assert (difference[:4] > 1e-3).all()
        assert (difference[4:] < 1e-6).all()
        cache = None
        for piece in ids.split([6, 1, 5, 8], dim=1):
            output = model(piece, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
        assert (output.logits - model(ids).logits[:, -8:]).abs().max() < 2e-4


def alibi_attention(query, key, value, slopes):
    """softmax(q k / sqrt(d) + slope * (j - i)) v over j <= i, in float64."""
    length = query.shape[-2]
    distance = torch.arange(length)[None, :] - torch.arange(length)[:, None]
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + slopes[:, None, None] * distance
    return scores.masked_fill(distance > 0, -torch.inf).softmax(-1) @ value


def scaled(slopes, scaling, length, context):
    """The slopes by the words of the configuration: `linear` divides all by the factor; `ntk` leaves the steepest,
    divides the flattest by the factor and those between geometrically; `dynamic` is `ntk` by length / context."""
    if scaling is None:
        return slopes
    factor = scaling.get("factor", max(1.0, length / context))
    if scaling["alibi_type"] == "linear":
        return slopes / factor
    steps = torch.log(slopes.max() / slopes) / torch.log(slopes.max() / slopes.min())
    return slopes / factor**steps


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("length", [16, 48], ids=["inside", "beyond"])
@pytest.mark.parametrize(
    "scaling",
    [None, {"alibi_type": "linear", "factor": 4.0}, {"alibi_type": "ntk", "factor": 4.0}, {"alibi_type": "dynamic"}],
    ids=lambda s: s["alibi_type"] if s else "plain",
)
def test_alibi_attention_by_its_formula(scaling, length, attention):
    model = make(alibi_scaling=scaling, num_hidden_layers=1, max_position_embeddings=24)
    model.set_attn_implementation(attention)
    ids = torch.arange(3, 3 + length)[None]
    layer = model.model.layers[0]
    seen = {}
    layer.self_attn.o_proj.register_forward_pre_hook(lambda module, args: seen.update(output=args[0]))
    with torch.no_grad():
        model(ids)
        hidden = layer.input_layernorm(model.model.embed_tokens(ids))
        query, key, value = (
            x.view(length, 4, 16).transpose(0, 1).double() for x in layer.self_attn.W_pack(hidden)[0].chunk(3, dim=-1)
        )
        slopes = scaled(
            torch.tensor([2.0 ** (-2 * (i + 1)) for i in range(4)], dtype=torch.float64), scaling, length, 24
        )
        expected = alibi_attention(query, key, value, slopes).transpose(0, 1).reshape(length, 64)
    assert (seen["output"][0] - expected).abs().max() < 1e-5
