"""ALiBi: its slopes, their scaling, and the forms of its bias, which must agree. RoPE is in test_parity.py."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
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
    slopes, columns = alibi_slopes(12), torch.arange(length)
    query, key, scaling = alibi_head_dims(slopes, 32, columns[-5:], columns, dtype)
    product = scaling * (query.double() @ key.double().transpose(-1, -2))[0]  # (heads, queries, keys)
    bias = slopes.double()[:, None, None] * columns
    # Float16 has no room below 6e-8 for the last part of a small slope; the rest is exact to 22 bits.
    torch.testing.assert_close(product - product[..., :1], bias.expand_as(product), atol=1e-3, rtol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("heads", "head_dim", "length"), [(3, 20, 1031), (2, 32, 2048)])
def test_head_dims_are_as_exact_as_a_mask(heads, head_dim, length, seed):
    """Attention in float32 and its gradients, far from the last key too, by their distance from float64."""
    torch.manual_seed(seed)
    states = torch.randn(3, 1, heads, length, head_dim)
    slopes, columns = alibi_slopes(heads), torch.arange(length)
    distance = columns[:, None] - columns

    def computed(dtype, with_dims):
        query, key, value = leaves = [x.to(dtype).requires_grad_() for x in states]
        if with_dims:
            dims = alibi_head_dims(slopes, head_dim, columns, columns, dtype)
            extended = dims.extend(query, key, value)
            output = F.scaled_dot_product_attention(*extended, is_causal=True, scale=dims.scaling)[..., :head_dim]
        else:
            mask = (-slopes[:, None, None].to(dtype) * distance).masked_fill(distance < 0, -torch.inf)
            output = F.scaled_dot_product_attention(query, key, value, mask[None])
        output.square().sum().backward()
        return [output.detach().double(), *(leaf.grad.double() for leaf in leaves)]

    exact, masked, dims = (
        computed(*way) for way in [(torch.double, False), (torch.float, False), (torch.float, True)]
    )
    for of_exact, of_mask, of_dims in zip(exact, masked, dims, strict=True):
        assert (of_dims - of_exact).norm() < 1.5 * (of_mask - of_exact).norm()


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


@pytest.mark.parametrize("padding", [slice(0), slice(30), slice(-30, None)], ids=["whole-rows", "left", "right"])
@pytest.mark.parametrize("length", [64, 131])
def test_head_dims_agree_with_the_mask(model, length, padding, monkeypatch):
    ids = torch.randint(3, 128, (2, length))
    mask = torch.ones_like(ids)
    mask[1, padding] = 0
    plain = logits_and_gradient(model, ids, mask)
    # For so few tokens the model would not choose this form.
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


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("padding", [0, 300])
def test_long_prompts_in_bfloat16_are_as_close_to_float32_as_with_the_mask(padding, seed, monkeypatch):
    torch.manual_seed(seed)
    config = tiny_config(position_embedding_type="alibi", initializer_range=0.2, num_attention_heads=2)
    exact = BaichuanForCausalLM(config).eval()
    half = copy.deepcopy(exact).bfloat16()
    ids = torch.randint(3, 128, (2, 1100))
    mask = torch.ones_like(ids)
    mask[1, :padding] = 0
    expected = logits_and_gradient(exact, ids, mask)
    fast = logits_and_gradient(half, ids, mask)
    monkeypatch.setattr(AlibiBias, "_uses_head_dims", lambda *_: False)
    plain = logits_and_gradient(half, ids, mask)
    for of_fast, of_plain, of_exact in zip(fast, plain, expected, strict=True):
        assert (of_fast.float() - of_exact).norm() < 1.05 * (of_plain.float() - of_exact).norm()


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_long_prompts_are_continued_as_with_the_mask(model, cache, monkeypatch):
    ids = torch.randint(3, 128, (2, 1100))
    mask = torch.ones_like(ids)
    mask[0, :77] = 0
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "cache_implementation": cache}
    for inputs in ({"input_ids": ids}, {"input_ids": ids, "attention_mask": mask}):
        output = model.generate(**inputs, **options, output_logits=True, return_dict_in_generate=True)
        with monkeypatch.context() as patch:
            patch.setattr(AlibiBias, "_uses_head_dims", lambda *_: False)
            plain = model.generate(**inputs, **options, output_logits=True, return_dict_in_generate=True)
        assert torch.equal(output.sequences, plain.sequences)
        torch.testing.assert_close(torch.stack(output.logits), torch.stack(plain.logits), atol=1e-4, rtol=0)


class LargestTensor(TorchDispatchMode):
    """The numbers in the largest tensor that any operation gives back."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.size = max([self.size, *(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))])
        return result


@pytest.mark.parametrize(
    "overrides", [{}, {"num_key_value_heads": 2}, {"alibi_scaling": {"alibi_type": "dynamic"}}], ids=str
)
def test_long_texts_have_no_tensor_of_queries_by_keys(overrides):
    model = BaichuanForCausalLM(tiny_config(position_embedding_type="alibi", **overrides))
    ids = torch.randint(3, 128, (1, 1100))
    with LargestTensor() as largest:
        model(ids, labels=ids).loss.backward()
    assert largest.size < 1100 * 1100
    with LargestTensor() as largest:
        model(ids[:, :1000])
    assert largest.size >= 1000 * 1000  # few enough for a mask: what is measured above could have been seen


def test_form_of_the_bias_depends_on_the_device():
    model = BaichuanForCausalLM(tiny_config(position_embedding_type="alibi", attention_dropout=0.1)).eval()
    embedding = model.model.positions
    on_gpu = torch.empty(1, 4096, 8, device="meta")  # stands for a device that is not the CPU
    on_cpu = torch.empty(1, 4096, 8)
    assert embedding._uses_head_dims(on_gpu, {})
    assert embedding._uses_head_dims(on_cpu, {})
    assert embedding.mask_options(on_cpu, {}) == {}
    assert embedding._uses_head_dims(on_gpu[:, :100], {})
    assert not embedding._uses_head_dims(on_cpu[:, :100], {})
    assert not embedding._uses_head_dims(on_gpu[:, :1], {})
    assert not embedding._uses_head_dims(on_gpu, {"cache": object()})
    model.train()
    assert embedding._uses_head_dims(on_gpu, {})
    assert not embedding._uses_head_dims(on_cpu, {})


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
