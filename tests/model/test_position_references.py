"""Positions against transformers' modules and a loop from the papers. RoPE is in test_parity.py, ALiBi's forms in
test_positions.py."""

import pytest
import torch
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding
from transformers.models.t5.modeling_t5 import T5Attention

from baichuan_hf import BaichuanModel
from baichuan_hf.model.position_biases import RelativeBias, alibi_slopes
from baichuan_hf.model.positions import build_positions
from tests.helpers import tiny_config
from tests.helpers.reference import causal_mask, hidden_states, perturb, softmax_attention


LENGTH = 19
DISTANCES = torch.arange(LENGTH) - torch.arange(LENGTH)[:, None]  # key minus query


@pytest.mark.parametrize("dim", [64, 33], ids=["even", "odd"])
def test_sinusoidal_equals_marian(dim):
    positions = build_positions(
        tiny_config(hidden_size=dim, num_attention_heads=1, position_embedding_type="sinusoidal")
    )
    marian = MarianSinusoidalPositionalEmbedding(600, dim)
    marian.weight.data = marian.create_weight()
    expected = marian(torch.Size([1, 600]))
    actual = positions.embed(torch.zeros(1, 600, dim), torch.arange(600)[None])
    # A float32 angle of 600 radians is exact to 3e-5.
    torch.testing.assert_close(actual[0], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("causal", [True, False], ids=["decoder", "encoder"])
@pytest.mark.parametrize("buckets, farthest", [(32, 128), (8, 20), (10, 7), (4, 3)])
def test_buckets_equal_those_of_t5(buckets, farthest, causal):
    config = tiny_config(
        position_embedding_type="relative",
        is_causal=causal,
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=farthest,
    )
    distances = torch.arange(-300, 301)
    expected = T5Attention._relative_position_bucket(
        distances, bidirectional=not causal, num_buckets=buckets, max_distance=farthest
    )
    assert torch.equal(RelativeBias(config)._buckets(distances), expected)


def plain_model(position_embedding_type: str, causal: bool) -> BaichuanModel:
    plain = {"norm_type": "layer_norm", "gated_mlp": False, "hidden_act": "relu"}
    biases = {"attention_bias": True, "mlp_bias": True, "norm_bias": True}
    return perturb(
        BaichuanModel(tiny_config(position_embedding_type=position_embedding_type, is_causal=causal, **plain | biases))
    )


def alibi_bias(model: BaichuanModel) -> torch.Tensor:
    """-slope * distance, to either side (Press et al. 2022; the symmetric form is its natural one for encoders)."""
    return -alibi_slopes(4).double()[:, None, None] * DISTANCES.abs()


def relative_bias(model: BaichuanModel) -> torch.Tensor:
    """A learned number per head and bucket of T5."""
    bidirectional = not model.config.is_causal
    buckets = T5Attention._relative_position_bucket(DISTANCES, bidirectional=bidirectional)
    return model.positions.relative_attention_bias.weight.double()[buckets].permute(2, 0, 1)


@pytest.mark.parametrize("causal", [True, False], ids=["decoder", "encoder"])
@pytest.mark.parametrize("name, bias_of", [("alibi", alibi_bias), ("relative", relative_bias)])
def test_biases_equal_a_loop(name, bias_of, causal):
    model = plain_model(name, causal)
    ids = torch.randint(3, 128, (2, LENGTH))
    bias = bias_of(model) + (causal_mask(LENGTH) if causal else 0.0)
    with torch.no_grad():
        actual = model(ids).last_hidden_state
    expected = hidden_states(model, ids, softmax_attention(bias))
    torch.testing.assert_close(actual, expected.float(), atol=1e-5, rtol=1e-5)


def test_symmetric_alibi_reads_a_text_backwards_alike():
    model = plain_model("alibi", causal=False)
    ids = torch.randint(3, 128, (1, LENGTH))
    with torch.no_grad():
        forwards, backwards = (model(x).last_hidden_state for x in (ids, ids.flip(1)))
    torch.testing.assert_close(backwards.flip(1), forwards, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("causal, fewest", [(True, 2), (False, 4)], ids=["decoder", "encoder"])
def test_buckets_too_few_for_the_formula_are_refused(causal, fewest):
    settings = {"position_embedding_type": "relative", "is_causal": causal}
    tiny_config(relative_attention_num_buckets=fewest, **settings)
    with pytest.raises(Exception, match=rf"relative_attention_num_buckets \({fewest - 1}\).*{fewest}.*is_causal"):
        tiny_config(relative_attention_num_buckets=fewest - 1, **settings)
