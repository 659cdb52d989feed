"""What has no equal here is refused by name, and no weight gets lost."""

from dataclasses import replace

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoConfig

from baichuan_hf import from_transformers
from baichuan_hf.benchmarks.peers import CONFIGURATIONS, build_reference
from baichuan_hf.conversion import ARCHITECTURES
from baichuan_hf.conversion.convert import build_model
from tests.helpers.converted import FIRST, pair


def build(kind, model_class=None, **settings):
    config = AutoConfig.for_model(kind, **CONFIGURATIONS[kind][FIRST[kind]] | settings)
    return getattr(transformers, model_class or next(iter(ARCHITECTURES[kind].classes)))(config)


MPT_SETTINGS = {
    "attn_type": "multiquery_attention",
    "alibi": False,
    "alibi_bias_max": 16,
    "clip_qkv": 3.0,
    "prefix_lm": True,
    "qk_ln": True,
    "softmax_scale": 0.5,
}
SETTINGS = [
    ("bert", None, {"add_cross_attention": True, "is_decoder": True}, ["is_decoder=True", "allowed: False"]),
    ("bert", None, {"position_embedding_type": "relative_key"}, ["position_embedding_type='relative_key'"]),
    ("bert", None, {"classifier_dropout": 0.3}, ["classifier_dropout=0.3", "allowed: None, 0.1"]),
    ("bloom", None, {"apply_residual_connection_post_layernorm": True}, ["apply_residual_connection_post_layernorm"]),
    ("gpt2", None, {"scale_attn_weights": False}, ["scale_attn_weights=False", "allowed: True"]),
    ("gpt2", None, {"scale_attn_by_inverse_layer_idx": True}, ["scale_attn_by_inverse_layer_idx=True"]),
    ("gpt2", None, {"reorder_and_upcast_attn": True}, ["reorder_and_upcast_attn=True"]),
    ("gpt2", None, {"add_cross_attention": True}, ["add_cross_attention=True"]),
    ("gpt2", None, {"embd_pdrop": 0.2}, ["embd_pdrop=0.2", "resid_pdrop=0.1", "set model.config.embd_pdrop = 0.1"]),
    ("longformer", None, {"attention_window": [4, 4, 8]}, ["attention_window=[4, 4, 8]", "allowed: [4, 4, 4]"]),
    ("longformer", None, {"hidden_act": "relu"}, ["hidden_act='relu'", "allowed: 'gelu'"]),
    ("marian", None, {"activation_dropout": 0.1}, ["activation_dropout=0.1"]),
    ("mistral", None, {"layer_types": ["full_attention"] * 3}, ["layer_types=", "sliding_attention"]),
    ("mixtral", None, {"router_jitter_noise": 0.1}, ["router_jitter_noise=0.1", "allowed: 0.0"]),
    *[
        ("mpt", None, {"attn_config": {name: value}}, [f"attn_config.{name}={value!r}"])
        for name, value in MPT_SETTINGS.items()
    ],
    ("mpt", None, {"expansion_ratio": 2}, ["expansion_ratio=2", "allowed: 4"]),
    ("mpt", None, {"logit_scale": 0.5}, ["logit_scale=0.5"]),
    ("mpt", None, {"no_bias": False}, ["no_bias=False"]),
    ("vit", None, {"qkv_bias": False}, ["qkv_bias=False", "allowed: True"]),
    ("vit", None, {"image_size": [12, 16]}, ["image_size=[12, 16]", "[12, 12]"]),
    ("vit", "ViTModel", {"pooler_act": "relu"}, ["pooler_act='relu'", "allowed: 'tanh'"]),
    ("vit", "ViTModel", {"pooler_output_size": 7}, ["pooler_output_size=7", "48"]),
]


@pytest.mark.parametrize(
    ("kind", "model_class", "settings", "messages"),
    SETTINGS,
    ids=[f"{kind}-{messages[0].partition('=')[0]}" for kind, _, _, messages in SETTINGS],
)
def test_settings_without_an_equal_are_refused(kind, model_class, settings, messages):
    with pytest.raises(ValueError, match=f"model_type '{kind}'") as error:
        from_transformers(build(kind, model_class, **settings))
    assert all(message in str(error.value) for message in messages), error.value


@pytest.mark.parametrize(
    ("kind", "model_class", "supported"),
    [
        ("bert", "BertForPreTraining", "BertForMaskedLM"),
        ("t5", "T5ForConditionalGeneration", "T5EncoderModel"),
        ("longformer", "LongformerForSequenceClassification", "LongformerModel"),
    ],
)
def test_classes_without_an_equal_are_refused(kind, model_class, supported):
    with pytest.raises(ValueError, match=rf"{model_class} \(model_type '{kind}'\) cannot be .* {supported}"):
        from_transformers(build(kind, model_class))


def test_other_architectures_are_refused():
    config = AutoConfig.for_model("gpt_neox", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match=r"model_type 'gpt_neox' cannot be .* Supported: bert, bloom, gpt2, llama"):
        from_transformers(model)


def test_a_path_is_no_model():
    with pytest.raises(TypeError, match="a model of transformers, not str"):
        from_transformers("gpt2")


def test_a_converted_model_is_baichuan_already():
    with pytest.raises(ValueError, match="is Baichuan already"):
        from_transformers(pair("llama")[1])


def test_quantised_and_offloaded_weights_are_refused():
    reference = build("llama")
    reference.is_quantized = True
    with pytest.raises(ValueError, match=r"dequantize\(\)"):
        from_transformers(reference)
    reference.is_quantized = False
    reference.model.norm.to("meta")
    with pytest.raises(ValueError, match="norm.weight is not in memory"):
        from_transformers(reference)


def test_every_weight_needs_a_place():
    reference = build("gpt2")
    reference.transformer.h[1].adapter = nn.Linear(3, 3)
    with pytest.raises(ValueError, match=r"weights h\.1\.adapter\.weight, h\.1\.adapter\.bias have no place"):
        from_transformers(reference)


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_positions_must_be_the_sinusoids(half):
    reference = build_reference("marian", FIRST["marian"])
    with torch.no_grad():
        reference.state_dict()[f"model.{half}.embed_positions.weight"][3, 4] += 0.5
    with pytest.raises(ValueError, match=rf"{half}\.embed_positions\.weight have no place"):
        from_transformers(reference)


def test_every_weight_of_ours_is_made_from_one_that_is_there():
    reference, architecture = pair("gpt2")[0], ARCHITECTURES["gpt2"]
    table = dict(architecture.weights)
    norm = table.pop("norm")
    with pytest.raises(ValueError, match="Nothing says what 'model.norm.weight' is made from"):
        build_model(reference, replace(architecture, weights=table))
    with pytest.raises(ValueError, match=r"'typo.weight' of the reference, .* 'model.norm.weight' .* missing"):
        build_model(reference, replace(architecture, weights={**table, "norm": "typo"}))
    with pytest.raises(ValueError, match=r"'ln_f.weight' of the reference, .* taken already"):
        build_model(reference, replace(architecture, weights={**table, "norm": norm, "embed_tokens": "ln_f"}))
