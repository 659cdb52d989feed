"""Linformer and Performer against their papers' formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

from baichuan_hf import BaichuanForMaskedLM, BaichuanModel
from baichuan_hf.model.linear_attention import PerformerAttention, orthogonal_features
from tests.helpers import tiny_config
from tests.helpers.reference import hidden_states, perturb


PLAIN = {
    "is_causal": False,
    "position_embedding_type": "none",
    "norm_type": "layer_norm",
    "gated_mlp": False,
    "hidden_act": "relu",
    "attention_bias": True,
    "mlp_bias": True,
    "norm_bias": True,
}


def linformer(query, key, value, layer, weights):
    """softmax(Q (E K)' / sqrt(d)) F V, of texts shorter than E and F with the columns that they have."""
    length = key.shape[2]
    key = weights[f"{layer}.key_mixing.weight"][:, :length] @ key
    value = weights[f"{layer}.value_mixing.weight"][:, :length] @ value
    return (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1) @ value


def performer(query, key, value, layer, weights):
    """FAVOR+ with the features of the layer: exp(w . x - |x|^2 / 2) / sqrt(M) of x / d^(1/4), without stabilisers."""
    features = weights[f"{layer}.random_features"]

    def kernel(x):
        x = x / x.shape[-1] ** 0.25
        return (x @ features.T - x.square().sum(-1, keepdim=True) / 2).exp() / math.sqrt(len(features))

    query, key = kernel(query), kernel(key)
    normalizer = query @ key.sum(-2)[..., None]
    return query @ (key.transpose(-1, -2) @ value) / normalizer


REFERENCES = {"linformer": linformer, "performer": performer}


@pytest.fixture(params=REFERENCES)
def kind(request) -> str:
    return request.param


def make(kind: str, **overrides) -> BaichuanModel:
    sizes = {"max_position_embeddings": 24, "projected_length": 7, "num_random_features": 50}
    return perturb(BaichuanModel(tiny_config(attention_type=kind, **PLAIN | sizes | overrides)))


@pytest.mark.parametrize("length", [1, 5, 24])
def test_equals_the_papers_formula(kind, length):
    model = make(kind)
    ids = torch.randint(3, 128, (2, length))
    with torch.no_grad():
        actual = model(ids).last_hidden_state
    torch.testing.assert_close(actual, hidden_states(model, ids, REFERENCES[kind]).float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_texts_equal_the_papers_formula_alone(kind, side):
    model = make(kind)
    ids = torch.randint(3, 128, (3, 13))
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 4, 12)):
        mask[row, slice(0, padding) if side == "left" else slice(13 - padding, 13)] = 0
    with torch.no_grad():
        actual = model(ids, attention_mask=mask).last_hidden_state
    for row in range(3):
        alone = hidden_states(model, ids[row][mask[row].bool()][None], REFERENCES[kind])[0]
        torch.testing.assert_close(actual[row][mask[row].bool()], alone.float(), atol=1e-4, rtol=1e-4)


def error_to_softmax(features: int, seed: int) -> float:
    """Performer's relative error to softmax attention to the same queries, keys and values. The variance of its kernel
    is exponential in their size: that of trained models needs many features."""
    torch.manual_seed(seed)
    config = tiny_config(attention_type="performer", num_random_features=features, **PLAIN)
    attention = PerformerAttention(config, 0)
    attention.reset_buffers()
    query, key, value = torch.randn(3, 1, 4, 40, 16).unbind()
    query, key = query / 2, key / 2
    with torch.no_grad():
        actual, _ = attention.attend(query, key, value, None)
    expected = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    return ((actual - expected).norm() / expected.norm()).item()


def test_performer_converges_to_softmax_attention():
    """As 1 / sqrt(M): sixteen times the features leave about a quarter of the error."""
    few, many = (sum(error_to_softmax(features, seed) for seed in range(12)) / 12 for features in (1024, 16384))
    assert many < 0.03
    assert 3 < few / many < 5


def test_features_are_orthogonal_and_normally_long():
    features = orthogonal_features(40, 16)
    assert features.shape == (40, 16)
    for block in (features[:16], features[16:32], features[32:]):
        product = block @ block.T
        torch.testing.assert_close(product, torch.diag(product.diagonal()), atol=1e-4, rtol=0)
    many = orthogonal_features(16000, 16)
    assert many.mean().abs() < 0.01
    assert many.square().sum(-1).mean().item() == pytest.approx(16, rel=0.02)


def test_features_are_drawn_per_layer_redrawn_and_saved(tmp_path):
    model = BaichuanForMaskedLM(tiny_config(attention_type="performer", is_causal=False)).eval()
    attentions = [layer.self_attn for layer in model.model.layers]
    # The paper's choice is head_dim * ln(head_dim).
    assert attentions[0].random_features.shape == (int(16 * math.log(16)), 16)
    assert not torch.equal(*(attention.random_features for attention in attentions))
    ids = torch.randint(3, 128, (1, 9))
    with torch.no_grad():
        before = model(ids).logits
        for attention in attentions:
            attention.redraw()
        redrawn = model(ids).logits
    assert not torch.allclose(before, redrawn)
    model.save_pretrained(tmp_path)
    again = BaichuanForMaskedLM.from_pretrained(tmp_path).eval()
    for attention, layer in zip(attentions, again.model.layers, strict=True):
        assert torch.equal(attention.random_features, layer.self_attn.random_features)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, redrawn)


def test_linformer_refuses_a_text_longer_than_its_projections():
    model = make("linformer")
    with pytest.raises(ValueError, match="25 tokens.*max_position_embeddings.*24"):
        model(torch.randint(3, 128, (1, 25)))


def test_packed_rows_are_refused(kind):
    model = make(kind)
    ids = torch.randint(3, 128, (1, 6))
    for packed in (
        {"attention_mask": torch.tensor([[1, 1, 1, 2, 2, 2]])},
        {"position_ids": torch.arange(6)[None] % 3},
    ):
        with pytest.raises(ValueError, match="attention_mask.*pad the texts"):
            model(ids, **packed)


@pytest.mark.parametrize("seed", [0, 1])
def test_performer_is_as_exact_under_autocast_as_in_bfloat16(seed):
    """Rounded exponents are wrong by a factor: autocast must not reach them."""
    torch.manual_seed(seed)
    config = tiny_config(
        attention_type="performer", is_causal=False, position_embedding_type="none", num_random_features=64
    )
    attention = BaichuanModel(config).layers[0].self_attn
    attention.W_pack.weight.data.mul_(8)  # sharper attention, larger exponents
    x = torch.randn(1, 64, config.hidden_size)
    with torch.no_grad():
        exact, _ = attention(x)
        with torch.autocast("cpu", torch.bfloat16):
            autocast, _ = attention(x)
        bfloat16, _ = attention.bfloat16()(x.bfloat16())
    assert (autocast - exact).norm() < 1.1 * (bfloat16 - exact).norm()
