"""Against transformers' own models with the same weights: RoPE and its scalings, windows, grouped heads, biases; and
ALiBi beyond the trained length against its formula."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

import baichuan_hf
from tests.helpers import tiny_config


def split_weights(model):
    """The weights under the names of Llama: W_pack is q, k and v, one above the other."""
    weights = {}
    for name, weight in model.state_dict().items():
        if "W_pack" in name:
            for part, piece in zip("qkv", weight.chunk(3), strict=True):
                weights[name.replace("W_pack", f"{part}_proj")] = piece
        else:
            weights[name] = weight
    return weights


def reference(model, config_class, model_class, **more):
    config = model.config
    names = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "rms_norm_eps",
    ]
    names += ["num_key_value_heads", "head_dim", "max_position_embeddings", "hidden_act", "rope_parameters"]
    names += ["pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings"]
    llama = model_class(config_class(**{name: getattr(config, name) for name in names}, **more)).eval()
    llama.load_state_dict(split_weights(model))
    return llama


def make(**overrides):
    torch.manual_seed(0)
    model = baichuan_hf.BaichuanForCausalLM(tiny_config(initializer_range=0.2, **overrides)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    return model


ROPE = {
    "plain": None,
    "theta": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 32,
    },
}


@pytest.mark.parametrize("heads", [{}, {"num_key_value_heads": 2}, {"head_dim": 32}], ids=["fused", "grouped", "wide"])
@pytest.mark.parametrize("rope", ROPE)
def test_equals_llama(rope, heads):
    overrides = {"rope_parameters": ROPE[rope]} if ROPE[rope] else {}
    model = make(max_position_embeddings=32, **overrides, **heads)
    llama = reference(model, LlamaConfig, LlamaForCausalLM)
    torch.manual_seed(1)
    ids = torch.randint(3, 128, (2, 80))  # well beyond the context
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    with torch.no_grad():
        for length in (20, 80):
            ours = model(ids[:, :length], attention_mask=mask[:, :length]).logits
            theirs = llama(ids[:, :length], attention_mask=mask[:, :length]).logits
            keep = mask[:, :length].bool()
            assert (ours - theirs)[keep].abs().max() < 2e-5

    labels = ids.clone()
    gradients = []
    for m in (model.train(), llama.train()):
        m(ids, labels=labels).loss.backward()
        gradients.append(m.model.embed_tokens.weight.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rope", ["linear", "yarn"])
def test_scaled_rope_changes_the_logits(rope):
    ids = torch.arange(3, 50)[None]
    with torch.no_grad():
        plain = make(max_position_embeddings=32)(ids).logits
        assert not torch.allclose(
            make(max_position_embeddings=32, rope_parameters=ROPE[rope])(ids).logits, plain, atol=0.1
        )


def test_equals_llama_with_biases():
    model = make(attention_bias=True, mlp_bias=True)
    llama = reference(model, LlamaConfig, LlamaForCausalLM, attention_bias=True, mlp_bias=True)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert (model(ids).logits - llama(ids).logits).abs().max() < 2e-5


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("heads", [{}, {"num_key_value_heads": 2}], ids=["fused", "grouped"])
def test_sliding_window_equals_mistral(attention, heads):
    model = make(sliding_window=5, **heads)
    mistral = reference(model, MistralConfig, MistralForCausalLM, sliding_window=5)
    model.set_attn_implementation(attention)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert (model(ids).logits - mistral(ids).logits).abs().max() < 2e-5
        tokens = [m.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None) for m in (model, mistral)]
    assert torch.equal(*tokens)


def test_sliding_window_with_alibi():
    """Tokens outside the window change nothing; the bias inside stays."""
    model = make(sliding_window=4, position_embedding_type="alibi", num_hidden_layers=1)
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
    model = make(
        position_embedding_type="alibi", alibi_scaling=scaling, num_hidden_layers=1, max_position_embeddings=24
    )
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
