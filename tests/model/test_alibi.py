"""Attention with ALiBi against its formula, with every scaling, and under a sliding window."""

import copy

import pytest
import torch

from baichuan_hf import BaichuanForCausalLM
from baichuan_hf.model import attention, cudnn_attention
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


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float32, 1e-4)])
def test_a_long_text_without_a_mask_of_heads(dtype, tolerance):
    """Against the mask that eager attention has, in float64."""
    model, ids = make(max_position_embeddings=2048), torch.randint(3, 128, (1, 1100))
    with torch.no_grad():
        logits = model.to(dtype)(ids).logits.double()
        model.set_attn_implementation("eager")
        expected = model.double()(ids).logits
    assert (logits - expected).abs().max() < tolerance * expected.std()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "sizes", [{}, {"num_attention_heads": 5, "hidden_size": 80}, {"num_key_value_heads": 2}], ids=str
)
def test_cudnn_is_as_close_to_float32_as_the_plain_way(dtype, sizes, monkeypatch):
    """Logits and gradients of the kernel with the bias built in, and of extra head dimensions, against a mask."""
    pytest.importorskip("cudnn", reason="needs cuDNN's frontend: pip install 'baichuan-hf[cudnn]'")
    torch.manual_seed(0)
    config = tiny_config(position_embedding_type="alibi", **sizes)
    model = BaichuanForCausalLM(config).to("cuda", dtype)
    ids = torch.randint(3, config.vocab_size, (2, 333), device="cuda")
    calls, monkeypatched = [], cudnn_attention.suits_cudnn
    monkeypatch.setattr(cudnn_attention, "MIN_TOKENS", 1)

    def computed(model):
        model.zero_grad()
        outputs = model(ids, labels=ids)
        outputs.loss.backward()
        return [outputs.logits.detach().float(), *(weight.grad.float() for weight in model.parameters())]

    exact = computed(copy.deepcopy(model).float())
    monkeypatch.setattr(attention, "suits_cudnn", lambda *tensors: calls.append(1) or monkeypatched(*tensors))
    fast = computed(model)
    assert calls
    monkeypatch.setattr(attention, "suits_cudnn", lambda *tensors: False)
    plain = computed(model)
    for of_fast, of_plain, of_exact in zip(fast, plain, exact, strict=True):
        error = (of_plain - of_exact).norm() + 1e-3 * of_exact.norm()
        assert (of_fast - of_exact).norm() < 1.2 * error
