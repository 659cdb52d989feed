"""Arguments that a model's role has no use for, or that it misses, are errors that say so."""

import pytest
import torch

import baichuan_hf
from baichuan_hf import BaichuanForCausalLM, BaichuanForMaskedLM, BaichuanModel
from tests.helpers import tiny_config


IDS = torch.arange(3, 12)[None]
STATES = torch.zeros(1, 4, 64)
ENCODER = {"is_causal": False}
WINDOWED = {"sliding_window": 3, "num_global_tokens": 1, **ENCODER}

# Settings, arguments, and what the message must hold.
MISPLACED = {
    "encoder-states-without-cross-attention": ({}, {"encoder_hidden_states": STATES}, "add_cross_attention is False"),
    "cross-attention-without-encoder-states": (
        {"add_cross_attention": True},
        {},
        "encoder_hidden_states is missing.*EncoderDecoderModel",
    ),
    "segments-without-embeddings": (
        {},
        {"token_type_ids": torch.zeros_like(IDS)},
        "token_type_ids is given.*type_vocab_size is 0",
    ),
    "segments-outside-the-embeddings": (
        {"type_vocab_size": 2},
        {"token_type_ids": torch.full_like(IDS, 2)},
        "token_type_ids holds values from 2 to 2.*type_vocab_size is 2.*0 to 1",
    ),
    "text-longer-than-learned-positions": (
        {"position_embedding_type": "learned", "max_position_embeddings": 8},
        {},
        "position_ids holds values from 0 to 8.*max_position_embeddings is 8",
    ),
    "tokens-outside-the-vocabulary": (
        {"vocab_size": 9},
        {},
        "input_ids holds values from 3 to 11.*vocab_size is 9.*0 to 8",
    ),
    "packed-rows-in-windows": (WINDOWED, {"attention_mask": torch.tensor([[1] * 4 + [2] * 5])}, "pad the texts"),
    "restarting-positions-in-windows": (WINDOWED, {"position_ids": torch.arange(9)[None] % 5}, "pad the texts"),
    "ready-mask-in-windows": (WINDOWED, {"attention_mask": torch.ones(1, 1, 9, 9, dtype=torch.bool)}, "pad the texts"),
}


@pytest.mark.parametrize("name", MISPLACED)
def test_misplaced_arguments(name):
    settings, arguments, message = MISPLACED[name]
    model = BaichuanModel(tiny_config(**settings)).eval()
    with pytest.raises(ValueError, match=message):
        model(IDS, **arguments)


@pytest.mark.parametrize("ids, embeds", [(None, None), (IDS, torch.zeros(1, 9, 64))], ids=["neither", "both"])
def test_exactly_one_input(ids, embeds):
    model = BaichuanModel(tiny_config())
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(ids, inputs_embeds=embeds)


@pytest.mark.parametrize(
    "model_class, settings, other",
    [(BaichuanForCausalLM, ENCODER, BaichuanForMaskedLM), (BaichuanForMaskedLM, {}, BaichuanForCausalLM)],
    ids=["language-model-of-an-encoder", "masked-model-of-a-decoder"],
)
def test_wrong_class_for_the_role(model_class, settings, other):
    with pytest.raises(ValueError, match=f"{model_class.__name__}.*is_causal.*{other.__name__}"):
        model_class(tiny_config(**settings))


def test_image_that_makes_more_patches_than_positions():
    config = tiny_config(image_size=64, patch_size=8, max_position_embeddings=64, **ENCODER)
    with pytest.raises(ValueError, match="65 tokens.*max_position_embeddings is 64"):
        baichuan_hf.BaichuanForImageClassification(config)


def test_encoder_has_no_cache():
    assert BaichuanModel(tiny_config(**ENCODER))(IDS, use_cache=True).past_key_values is None
