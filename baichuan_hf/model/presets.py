"""Named architectures at full size, as plain values of `BaichuanConfig` (data, no logic)."""

from __future__ import annotations

from typing import Any


PRESETS: dict[str, dict[str, Any]] = {
    "baichuan-7b": {
        "vocab_size": 64000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 4096,
        "position_embedding_type": "rope",
        "normalize_lm_head": False,
    },
    "baichuan-13b": {
        "vocab_size": 64000,
        "hidden_size": 5120,
        "intermediate_size": 13696,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "model_max_length": 4096,
        "position_embedding_type": "alibi",
        "normalize_lm_head": False,
    },
    "baichuan2-7b": {
        "vocab_size": 125696,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 4096,
        "position_embedding_type": "rope",
        "normalize_lm_head": True,
    },
    "baichuan2-13b": {
        "vocab_size": 125696,
        "hidden_size": 5120,
        "intermediate_size": 13696,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "model_max_length": 4096,
        "position_embedding_type": "alibi",
        "normalize_lm_head": True,
    },
    "llama-2-7b": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 4096,
        "position_embedding_type": "rope",
        "normalize_lm_head": False,
        "rms_norm_eps": 1e-5,
        "pad_token_id": None,
    },
    "mistral-7b": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
        "position_embedding_type": "rope",
        "normalize_lm_head": False,
        "rms_norm_eps": 1e-5,
        "pad_token_id": None,
    },
}
