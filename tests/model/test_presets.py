"""Every preset at full size, on the meta device, against the number of parameters of the model that it names."""

import pytest
import torch
import transformers

import baichuan_hf
from baichuan_hf import BaichuanConfig
from baichuan_hf.conversion import ARCHITECTURES
from baichuan_hf.conversion.convert import shared_settings
from baichuan_hf.evaluation import build_on_meta


def on_meta(model_class, *args, **kwargs):
    with torch.device("meta"):
        return model_class(*args, **kwargs)


def count(model):
    """Tied weights once."""
    return sum(parameter.numel() for parameter in model.parameters())


LLAMA_13B = {"hidden_size": 5120, "intermediate_size": 13696, "num_hidden_layers": 40, "num_attention_heads": 40}
TINY = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6, "num_attention_heads": 8}
ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
# RoBERTa numbers positions from 2, behind its id of padding: the first two rows of its table are never used.
UNUSED_POSITIONS = 2 * 768

# preset: the class of the published model, what its config says, and how many parameters more ours has.
REFERENCES = {
    # Neither ALiBi nor the normalised head has parameters of its own.
    "baichuan-7b": ("LlamaForCausalLM", {"vocab_size": 64000}, 0),
    "baichuan-13b": ("LlamaForCausalLM", {"vocab_size": 64000, **LLAMA_13B}, 0),
    "baichuan2-7b": ("LlamaForCausalLM", {"vocab_size": 125696}, 0),
    "baichuan2-13b": ("LlamaForCausalLM", {"vocab_size": 125696, **LLAMA_13B}, 0),
    "tiny": ("LlamaForCausalLM", {"vocab_size": 6144, **TINY}, 0),
    "llama-2-7b": ("LlamaForCausalLM", {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}, 0),
    "mistral-7b": ("MistralForCausalLM", {"max_position_embeddings": 32768, "rms_norm_eps": 1e-5}, 0),
    "mixtral-8x7b": ("MixtralForCausalLM", {"max_position_embeddings": 32768, "router_aux_loss_coef": 0.02}, 0),
    "gpt2": ("GPT2LMHeadModel", {}, 0),
    "bloom-7b1": ("BloomForCausalLM", {"hidden_size": 4096, "n_layer": 30, "n_head": 32, "pad_token_id": 3}, 0),
    "mpt-7b": ("MptForCausalLM", {"d_model": 4096, "n_layers": 32, "n_heads": 32, "vocab_size": 50432}, 0),
    "bert-base-uncased": ("BertForMaskedLM", {}, 0),
    "t5-encoder-base": ("T5EncoderModel", {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12}, 0),
    "longformer-base": (
        "LongformerForMaskedLM",
        {**ROBERTA, "max_position_embeddings": 4098},
        -UNUSED_POSITIONS,
    ),
    # No segments; in each layer 256 mixtures of 512 keys, and as many of values.
    "linformer-base": ("RobertaForMaskedLM", ROBERTA, -UNUSED_POSITIONS - 768 + 12 * 2 * 256 * 512),
    # No segments; 8192 positions in place of 512.
    "performer-base": ("RobertaForMaskedLM", ROBERTA, -UNUSED_POSITIONS - 768 + (8192 - 512) * 768),
    "vit-base": ("ViTForImageClassification", {"num_labels": 1000}, 0),
}

# What papers and model cards say, and to what they round.
PUBLISHED = {
    "baichuan-7b": (7_000_559_616, 0),  # github.com/baichuan-inc/Baichuan-7B
    "baichuan-13b": (13_264_901_120, 0),  # github.com/baichuan-inc/Baichuan-13B
    "llama-2-7b": (6.74e9, 0.01e9),  # huggingface.co/meta-llama/Llama-2-7b-hf
    "mistral-7b": (7.24e9, 0.01e9),  # huggingface.co/mistralai/Mistral-7B-v0.1
    "mixtral-8x7b": (46.7e9, 0.1e9),  # mistral.ai/news/mixtral-of-experts
    "gpt2": (124e6, 1e6),  # huggingface.co/openai-community/gpt2
    "bloom-7b1": (7_069_016_064, 0),  # huggingface.co/bigscience/bloom-7b1
    "mpt-7b": (6.7e9, 0.1e9),  # huggingface.co/mosaicml/mpt-7b
    "glm-130b": (130e9, 2e9),  # Zeng et al. 2022
    "bert-base-uncased": (110e6, 1e6),  # Devlin et al. 2019
    "longformer-base": (149e6, 1e6),  # huggingface.co/transformers/v3.0.2/pretrained_models.html
    "vit-base": (86_567_656, 0),  # pytorch.org/vision/main/models/generated/torchvision.models.vit_b_16.html
}

# Presets that a converter makes from the published config, and fields that are not of that.
CONVERTED = [
    "llama-2-7b",
    "mistral-7b",
    "mixtral-8x7b",
    "gpt2",
    "bloom-7b1",
    "mpt-7b",
    "bert-base-uncased",
    "t5-encoder-base",
    "longformer-base",
    "vit-base",
]
UNCOMPARED = {"add_pooling_layer", "architectures", "tokenizer_class", "use_cache"}


@pytest.mark.parametrize("preset", REFERENCES)
def test_parameters_equal_those_of_transformers(preset):
    name, values, difference = REFERENCES[preset]
    model_class = getattr(transformers, name)
    reference = on_meta(model_class, model_class.config_class(**values))
    assert count(build_on_meta(BaichuanConfig.from_preset(preset))) == count(reference) + difference


@pytest.mark.parametrize("preset", CONVERTED)
def test_values_are_those_of_the_published_config(preset):
    name, values, _ = REFERENCES[preset]
    model_class = getattr(transformers, name)
    reference = on_meta(model_class, model_class.config_class(**values))
    converter = ARCHITECTURES[reference.config.model_type]
    expected = BaichuanConfig(**shared_settings(reference.config) | converter.settings(reference)).to_dict()
    ours = BaichuanConfig.from_preset(preset).to_dict()
    assert {field: ours[field] for field in ours.keys() - UNCOMPARED} == {
        field: expected[field] for field in ours.keys() - UNCOMPARED
    }


@pytest.mark.parametrize("preset", PUBLISHED)
def test_parameters_agree_with_the_published_number(preset):
    number, rounding = PUBLISHED[preset]
    assert abs(count(build_on_meta(BaichuanConfig.from_preset(preset))) - number) <= rounding


def test_bert_has_a_pooler():
    ours = on_meta(baichuan_hf.BaichuanModel, BaichuanConfig.from_preset("bert-base-uncased"))
    assert count(ours) == count(on_meta(transformers.BertModel, transformers.BertConfig()))


def test_labels_of_a_preset_can_be_chosen():
    assert BaichuanConfig.from_preset("vit-base", num_labels=10).num_labels == 10
    names = {0: "cat", 1: "dog", 2: "bird"}
    config = BaichuanConfig.from_preset("vit-base", id2label=names)
    assert (config.num_labels, config.id2label) == (3, names)


def test_glm_130b_adds_up():
    """transformers has no GLM-130B; its released code has these matrices, a bias for each but the embedding, two norms
    a layer and one more."""
    hidden, inner, layers = 12288, 32768, 70
    matrices = 4 * hidden * hidden + 3 * hidden * inner
    biases = 4 * hidden + 2 * inner + hidden
    norms = 2 * hidden
    expected = 150528 * hidden + layers * (matrices + biases + 2 * norms) + norms
    assert count(build_on_meta(BaichuanConfig.from_preset("glm-130b"))) == expected == 128_697_794_560


def test_transformer_base_is_a_pair():
    """Vaswani et al. 2017, table 3: 65 million, with one embedding for encoder, decoder and head."""
    decoder = BaichuanConfig.from_preset("transformer-base")
    encoder = BaichuanConfig.from_preset("transformer-base", is_causal=False, add_cross_attention=False)
    model = on_meta(
        transformers.EncoderDecoderModel,
        encoder=on_meta(baichuan_hf.BaichuanModel, encoder),
        decoder=on_meta(baichuan_hf.BaichuanForCausalLM, decoder),
    )
    marian = transformers.MarianConfig(
        vocab_size=37000,
        d_model=512,
        encoder_layers=6,
        decoder_layers=6,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=2048,
        decoder_ffn_dim=2048,
        max_position_embeddings=512,
        pad_token_id=0,
    )
    reference = count(on_meta(transformers.MarianMTModel, marian))
    # Marian shares the embedding, stores its sinusoids, and has a bias in each of 6 x (4 + 8) projections.
    assert count(model) - 37000 * 512 == reference - 2 * 512 * 512 - 6 * (4 + 8) * 512 == 63_045_632
    assert abs(63_045_632 - 65e6) < 2e6


def test_every_preset_is_compared():
    assert set(baichuan_hf.list_presets()) == REFERENCES.keys() | {"glm-130b", "transformer-base"}
