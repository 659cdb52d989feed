"""Peers reproduced: how far converted models are from the ones of transformers that they were made of.

    python -m baichuan_hf.benchmarks.peers tests/benchmarks/peers.csv

Tiny models with random weights, biases and norms included, in float32: for every architecture several configurations
and two seeds, at several lengths, without padding and with padding on either side. One row per architecture is
appended, with the largest difference of any output. The tests in tests/conversion measure with the same functions.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from ..conversion import ARCHITECTURES, from_transformers
from ..conversion.architecture import has_pooler
from .rows import append_rows, machine


SEEDS = (0, 1)
LENGTHS = (1, 7, 24, 33)
TOKENS = {"vocab_size": 97, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = TOKENS | {
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
YARN = {"rope_type": "yarn", "rope_theta": 5e3, "factor": 4.0, "original_max_position_embeddings": 16}
GPT2 = TOKENS | {"n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 64}
BLOOM = TOKENS | {"hidden_size": 48, "n_layer": 3, "n_head": 8}
MPT = TOKENS | {"d_model": 48, "n_layers": 3, "n_heads": 8, "max_seq_len": 96}
T5 = TOKENS | {"d_model": 48, "d_kv": 10, "d_ff": 88, "num_layers": 3, "num_heads": 6}
LONGFORMER = SIZES | {"max_position_embeddings": 70, "pad_token_id": 1, "bos_token_id": 0}
VIT = {
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "image_size": 12,
    "patch_size": 4,
    "num_labels": 5,
}
MARIAN = {
    "vocab_size": 97,
    "d_model": 48,
    "encoder_layers": 3,
    "encoder_attention_heads": 6,
    "encoder_ffn_dim": 88,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 70,
    "max_position_embeddings": 64,
    "pad_token_id": 96,
    "decoder_start_token_id": 96,
    "eos_token_id": 0,
    "forced_eos_token_id": None,
}

# Configurations per `model_type`; the first one is also used for the classes beside the first.
CONFIGURATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "bert": {
        "two-segments": SIZES,
        "wide-relu": SIZES | {"hidden_act": "relu", "num_attention_heads": 4, "type_vocab_size": 3},
        "untied": SIZES | {"tie_word_embeddings": False, "layer_norm_eps": 1e-3},
    },
    "bloom": {"heads-8": BLOOM, "heads-5": BLOOM | {"hidden_size": 40, "n_head": 5, "tie_word_embeddings": False}},
    "gpt2": {
        "tied": GPT2,
        "inner-relu": GPT2 | {"n_inner": 70, "activation_function": "relu", "tie_word_embeddings": False},
    },
    "llama": {
        "heads": SIZES,
        "grouped-biases": SIZES | {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True, "head_dim": 10},
        "multi-query-yarn": SIZES | {"num_key_value_heads": 1, "rope_parameters": YARN, "tie_word_embeddings": True},
        "dynamic-gelu": SIZES | {"rope_parameters": DYNAMIC, "max_position_embeddings": 16, "hidden_act": "gelu"},
    },
    "longformer": {
        "window-4": LONGFORMER | {"attention_window": 4},
        "window-24": LONGFORMER | {"attention_window": 24, "type_vocab_size": 1, "num_attention_heads": 4},
    },
    "marian": {
        "shared-scaled": MARIAN | {"scale_embedding": True, "activation_function": "silu"},
        "apart": MARIAN
        | {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 89}
        | {"pad_token_id": 88, "decoder_start_token_id": 88},
        "untied": MARIAN | {"tie_word_embeddings": False, "activation_function": "relu"},
    },
    "mistral": {
        "window": SIZES | {"num_key_value_heads": 2, "sliding_window": 7},
        "full": SIZES | {"num_key_value_heads": 6, "sliding_window": None, "head_dim": 12},
    },
    "mixtral": {
        "two-of-four": SIZES | {"num_key_value_heads": 2, "num_local_experts": 4, "router_aux_loss_coef": 0.1},
        "window": SIZES | {"num_key_value_heads": 6, "num_local_experts": 3, "sliding_window": 7, "head_dim": 10},
        "one-of-five": SIZES | {"num_key_value_heads": 1, "num_local_experts": 5, "num_experts_per_tok": 1},
    },
    "mpt": {
        "heads-8": MPT,
        "heads-6": MPT | {"n_heads": 6},
        "heads-3": MPT | {"n_heads": 3, "layer_norm_epsilon": 1e-3},
    },
    "t5": {
        "relu": T5,
        "geglu": T5 | {"feed_forward_proj": "gated-gelu", "d_kv": 5, "relative_attention_num_buckets": 10},
        "silu": T5 | {"feed_forward_proj": "gated-silu", "relative_attention_max_distance": 20},
    },
    "vit": {
        "pixels-12": VIT,
        "grey": VIT | {"num_channels": 1, "image_size": 18, "patch_size": 6, "hidden_act": "relu"},
    },
}

# Their references count columns, where the models converted from them count tokens.
COUNTS_COLUMNS = ("bert", "gpt2")
OUTPUTS = ("logits", "last_hidden_state", "pooler_output", "start_logits", "end_logits")
CONFIGURED = [(kind, name) for kind, configurations in CONFIGURATIONS.items() for name in configurations]


def build_reference(kind: str, name: str, *, seed: int = 0, model_class: str | None = None) -> PreTrainedModel:
    """A model of transformers with random weights in eval mode, by default of the first class of its architecture."""
    # A config given to a model is changed by it.
    config = AutoConfig.for_model(kind, **CONFIGURATIONS[kind][name])
    reference = getattr(transformers, model_class or next(iter(ARCHITECTURES[kind].classes)))(config)
    return randomize(reference, seed).eval()


@torch.no_grad()
def randomize(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Draw all weights anew, also the biases and norms that transformers starts at 0 and 1.

    The weights are wide: with the usual 0.02 every position looks alike, and a wrong one would not show.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.state_dict().items():
        if "embed_positions" in name:
            continue  # Marian's sinusoids
        noise = torch.randn(weight.shape, generator=generator, dtype=torch.float32) * 0.2
        is_norm = weight.ndim == 1 and bool((weight == 1).all())
        weight.copy_(noise + 1 if is_norm else noise)
    return model


def paddings(reference: PreTrainedModel) -> tuple[str, ...]:
    """The sides on which a reference can be padded: not the left where it takes column 0 for the first token."""
    if reference.config.model_type == "vit":
        return ("none",)
    if reference.config.is_encoder_decoder or has_pooler(reference):
        return ("none", "right")
    return ("none", "left", "right")


def draw_inputs(reference: PreTrainedModel, length: int, padding: str, *, seed: int = 0) -> dict[str, Tensor]:
    """Inputs of a batch of three, padded by up to a half: what both models are given."""
    generator = torch.Generator().manual_seed(seed)
    config = reference.config
    if config.model_type == "vit":
        shape = (3, config.num_channels, config.image_size, config.image_size)
        return {"pixel_values": torch.randn(shape, generator=generator)}
    inputs = {"input_ids": torch.randint(3, 87, (3, length), generator=generator)}
    mask = torch.ones(3, length, dtype=torch.long)
    for row, count in enumerate((0, length // 4, length // 2)):
        if padding == "left":
            mask[row, :count] = 0
        elif padding == "right":
            mask[row, length - count :] = 0
    if padding != "none":
        inputs["attention_mask"] = mask
    # Some references tell padding by its token.
    inputs["input_ids"][mask == 0] = config.pad_token_id
    if segments := getattr(config, "type_vocab_size", 0):
        inputs["token_type_ids"] = torch.randint(segments, (3, length), generator=generator)
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(3, 87, (3, length // 2 + 2), generator=generator)
    return inputs


def reference_inputs(reference: PreTrainedModel, inputs: dict[str, Tensor], num_global_tokens: int = 1) -> dict:
    """The same for `reference`, with what ours knows by itself: global tokens, and positions that count tokens."""
    kind, mask = reference.config.model_type, inputs.get("attention_mask")
    if kind == "longformer":
        tokens = torch.ones_like(inputs["input_ids"]) if mask is None else mask
        return inputs | {"global_attention_mask": tokens * (tokens.cumsum(-1) <= num_global_tokens)}
    if kind in COUNTS_COLUMNS and mask is not None:
        return inputs | {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    return inputs


@torch.no_grad()
def largest_difference(
    reference: PreTrainedModel, ours: PreTrainedModel, *, length: int, padding: str = "none", seed: int = 0
) -> float:
    """Of all outputs, at tokens that are no padding."""
    inputs = draw_inputs(reference, length, padding, seed=seed)
    expected, actual = reference(**reference_inputs(reference, inputs)), ours(**inputs, output_hidden_states=True)
    pairs = [(actual.get(name), expected[name]) for name in OUTPUTS if expected.get(name) is not None]
    if type(reference).__name__ == "ViTModel":
        pairs = [(actual.logits, expected.pooler_output), (actual.hidden_states[-1], expected.last_hidden_state)]
    mask = inputs.get("attention_mask")
    differences = [0.0]
    for ours_is, theirs_is in pairs:
        difference = (ours_is - theirs_is).abs()
        if mask is not None and difference.shape[:2] == mask.shape:
            difference = difference[mask.bool()]
        differences.append(difference.max().item())
    return max(differences)


def greedy_tokens(model: PreTrainedModel, inputs: dict[str, Tensor], **options: Any) -> Tensor:
    """What `model` writes after the texts of `inputs`."""
    texts = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
    # No token twice, or some random models write one over and over; none ends a text, so that all rows go on.
    settings = {"do_sample": False, "num_beams": 1, "no_repeat_ngram_size": 1, "eos_token_id": None}
    return model.generate(**texts, max_new_tokens=16, **(settings | options))


def measure(kind: str) -> dict[str, Any]:
    """The row of one architecture."""
    largest, tokens_equal, written = 0.0, True, 0
    for reference in _references(kind):
        ours = from_transformers(reference)
        for length in LENGTHS:
            for padding in paddings(reference):
                found = largest_difference(reference, ours, length=length, padding=padding)
                largest = max(largest, found)
        if reference.can_generate():
            inputs = draw_inputs(reference, 12, paddings(reference)[1])
            tokens = [greedy_tokens(model, inputs) for model in (reference, ours)]
            tokens_equal, written = tokens_equal and torch.equal(*tokens), written + tokens[0].numel()
    classes = ARCHITECTURES[kind].classes
    return {
        "architecture": kind,
        "reference": " ".join(classes),
        "ours": " ".join(dict.fromkeys(classes.values())),
        "configurations": " ".join(CONFIGURATIONS[kind]),
        "max_difference": f"{largest:.1e}",
        "greedy_tokens": ("equal" if tokens_equal else "differ") if written else "",
    }


def _references(kind: str) -> Iterator[PreTrainedModel]:
    first, *others = ARCHITECTURES[kind].classes
    for name in CONFIGURATIONS[kind]:
        for seed in SEEDS:
            yield build_reference(kind, name, seed=seed, model_class=first)
    for model_class in others:
        yield build_reference(kind, next(iter(CONFIGURATIONS[kind])), model_class=model_class)


def main(results: str) -> None:
    rows = [machine(torch.device("cpu")) | measure(kind) for kind in ARCHITECTURES]
    append_rows(Path(results), rows)
    for row in rows:
        print(f"{row['architecture']:12} {row['max_difference']:>8}  {row['greedy_tokens']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
