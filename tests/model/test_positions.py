"""ALiBi: its slopes, their scaling, and the forms of its bias, which must agree. RoPE is in test_parity.py."""

import copy

import pytest
import torch
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

from baichuan_hf import BaichuanForCausalLM
from baichuan_hf.model.position_biases import AlibiBias, ComputedBias, alibi_head_dims, alibi_slopes
from tests.helpers import tiny_config


@pytest.mark.parametrize("heads", [1, 2, 5, 8, 12, 40, 64])
def test_slopes_equal_those_of_bloom(heads):
    alibi = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)  # (heads, 1, 2): slope * position
    torch.testing.assert_close(alibi_slopes(heads), alibi[:, 0, 1], atol=0, rtol=1e-6)


def scaled_slopes(scaling, *, heads=8, length=64, context=64):
    embedding = AlibiBias(
        tiny_config(
            num_attention_heads=heads,
            head_dim=8,
            position_embedding_type="alibi",
            max_position_embeddings=context,
            alibi_scaling=scaling,
        )
    )
    return embedding._scaled_slopes(torch.arange(length))


def test_linear_scaling_divides_every_slope():
    torch.testing.assert_close(
        scaled_slopes({"alibi_type": "linear", "factor": 4.0}), alibi_slopes(8) / 4, atol=0, rtol=1e-6
    )


@pytest.mark.parametrize("heads", [8, 6, 1], ids=["power-of-two", "interleaved", "one-head"])
def test_ntk_scaling_keeps_near_heads_and_stretches_far_ones(heads):
    plain, scaled = alibi_slopes(heads), scaled_slopes({"alibi_type": "ntk", "factor": 4.0}, heads=heads)
    order = plain.argsort(descending=True)
    ratio = (plain / scaled)[order]
    if heads > 1:
        assert ratio[0].item() == pytest.approx(1, rel=1e-5)
        # keezen/ntk_alibi: for slopes 2^(-8h/H) that is a factor of a^((h-1)/(H-1)).
        expected = 4.0 ** ((plain.log()[order][0] - plain.log()[order]) / (plain.max().log() - plain.min().log()))
        torch.testing.assert_close(ratio, expected, atol=0, rtol=1e-5)
    assert ratio[-1].item() == pytest.approx(4, rel=1e-5)


def test_dynamic_scaling_begins_beyond_the_context():
    torch.testing.assert_close(scaled_slopes({"alibi_type": "dynamic"}, length=64), alibi_slopes(8))
    torch.testing.assert_close(
        scaled_slopes({"alibi_type": "dynamic"}, length=192), scaled_slopes({"alibi_type": "ntk", "factor": 3.0})
    )


@pytest.mark.parametrize("scaling", ["linear", "ntk", "dynamic"])
def test_scaled_model_decodes_as_in_one_pass(scaling):
    factor = {} if scaling == "dynamic" else {"factor": 3.0}
    torch.manual_seed(0)
    config = tiny_config(position_embedding_type="alibi", alibi_scaling={"alibi_type": scaling, **factor})
    model = BaichuanForCausalLM(config).eval()
    ids = torch.randint(3, 128, (1, 20))
    with torch.no_grad():
        prefill = model(ids[:, :-1], use_cache=True)
        step = model(ids[:, -1:], past_key_values=prefill.past_key_values).logits
        torch.testing.assert_close(step, model(ids).logits[:, -1:], atol=1e-4, rtol=0)


def test_scaling_changes_the_output():
    torch.manual_seed(0)
    plain = BaichuanForCausalLM(tiny_config(position_embedding_type="alibi", initializer_range=0.3)).eval()
    scaled = BaichuanForCausalLM(
        tiny_config(position_embedding_type="alibi", alibi_scaling={"alibi_type": "ntk", "factor": 8.0})
    ).eval()
    scaled.load_state_dict(plain.state_dict())
    ids = torch.randint(3, 128, (1, 40))
    assert (plain(ids).logits - scaled(ids).logits).abs().max() > 1e-2


@pytest.mark.parametrize("length", [3, 257, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_head_dims_multiply_to_the_bias(dtype, length):
    slopes = alibi_slopes(12) / 32**-0.5
    query, key = (x.double() for x in alibi_head_dims(slopes, length, dtype))
    product = (query @ key.transpose(-1, -2))[0, :, 0]  # (heads, keys), a constant per head away from the bias
    bias = slopes.double()[:, None] * torch.arange(length)
    # Float16 has no room below 6e-8 for the last part of a small slope; the rest is exact to 22 bits.
    torch.testing.assert_close(product - product[:, :1], bias, atol=1e-3, rtol=1e-6)


@pytest.fixture(params=[{}, {"num_key_value_heads": 2}, {"num_attention_heads": 3, "hidden_size": 48}], ids=str)
def model(request) -> BaichuanForCausalLM:
    torch.manual_seed(1)
    config = tiny_config(position_embedding_type="alibi", initializer_range=0.2, **request.param)
    return BaichuanForCausalLM(config).eval()


def logits_and_gradient(model, ids, mask):
    model.zero_grad()
    # A token that follows padding is predicted from padding, which attends to nothing that means anything.
    predicted_from_text = torch.cat([mask[:, :1] * 0, mask[:, :-1]], dim=1).bool()
    output = model(ids, attention_mask=mask, labels=ids.masked_fill(~predicted_from_text, -100))
    output.loss.backward()
    return output.logits[mask.bool()], model.get_parameter("model.layers.0.mlp.up_proj.weight").grad.clone()


@pytest.mark.parametrize("padding", [0, 30], ids=["whole-rows", "left-padded"])
@pytest.mark.parametrize("length", [64, 131])
def test_head_dims_agree_with_the_mask(model, length, padding, monkeypatch):
    ids = torch.randint(3, 128, (2, length))
    mask = torch.ones_like(ids)
    mask[1, :padding] = 0
    plain = logits_and_gradient(model, ids, mask)
    # On a CPU the model would not choose this form.
    monkeypatch.setattr(AlibiBias, "_uses_head_dims", lambda *_: True)
    fast = logits_and_gradient(model, ids, mask)
    torch.testing.assert_close(fast[0], plain[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(fast[1], plain[1], atol=1e-5, rtol=1e-3)


def test_head_dims_go_on_from_a_cache(model, monkeypatch):
    ids = torch.randint(3, 128, (2, 90))
    with torch.no_grad():
        plain = model(ids).logits
        monkeypatch.setattr(AlibiBias, "_uses_head_dims", lambda *_: True)
        cache = model(ids[:, :20], use_cache=True).past_key_values
        rest = model(ids[:, 20:], past_key_values=cache).logits
    torch.testing.assert_close(rest, plain[:, 20:], atol=1e-4, rtol=0)


def test_mask_is_not_multiplied_by_heads_on_an_accelerator(monkeypatch):
    """Long inputs to SDPA on an accelerator keep a mask without heads: seen by where the model would put it."""
    model = BaichuanForCausalLM(tiny_config(position_embedding_type="alibi"))
    embedding = model.model.positions
    on_gpu = torch.empty(1, 4096, 8, device="meta")  # stands for a device that is not the CPU
    assert embedding._uses_head_dims(on_gpu, {})
    assert embedding.mask_options(on_gpu, {}) == {}
    assert not embedding._uses_head_dims(on_gpu[:, :1], {})
    assert not embedding._uses_head_dims(torch.empty(1, 4096, 8), {})
    assert not embedding._uses_head_dims(on_gpu, {"cache": object()})


def test_computed_bias_gives_the_elements_of_the_bias():
    slopes, queries, keys = alibi_slopes(6)[None], torch.arange(4, 9), torch.arange(9)
    bias = slopes[0][:, None, None] * (keys - queries[:, None])
    computed = ComputedBias(slopes, queries, keys)
    for index in [(0, 0, 0), (5, 4, 8), (2, 3, 1)]:
        assert computed[(torch.tensor(0), *map(torch.tensor, index))] == bias[index]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_slopes_stay_exact_when_the_model_is_cast(dtype):
    model = BaichuanForCausalLM(tiny_config(position_embedding_type="alibi", num_attention_heads=8)).to(dtype)
    assert torch.equal(model.model.positions.slopes, alibi_slopes(8))
    assert torch.equal(copy.deepcopy(model).model.positions.slopes, alibi_slopes(8))


def test_head_dims_are_exact_in_the_precision_of_autocast(monkeypatch):
    monkeypatch.setattr(AlibiBias, "_uses_head_dims", lambda *_: True)
    embedding = AlibiBias(tiny_config(position_embedding_type="alibi"))
    embedding.config._attn_implementation = "sdpa"
    with torch.autocast("cpu", torch.bfloat16):
        _, options = embedding.bias(None, hidden_states=torch.zeros(1, 100, 8), past_key_values=None, layer_idx=0)
    assert options["head_dims"].query.dtype == options["head_dims"].key.dtype == torch.bfloat16
