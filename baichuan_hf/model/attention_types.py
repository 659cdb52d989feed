"""The kinds of attention that `config.attention_type` names."""

from __future__ import annotations

from .attention import BaichuanAttention
from .configuration_baichuan import BaichuanConfig
from .linear_attention import LinformerAttention, PerformerAttention
from .window_attention import WindowedAttention


ATTENTIONS: dict[str, type[BaichuanAttention]] = {
    "softmax": BaichuanAttention,
    "linformer": LinformerAttention,
    "performer": PerformerAttention,
}


def build_attention(config: BaichuanConfig, layer_idx: int) -> BaichuanAttention:
    """The attention that `config.attention_type` names; where a layer has global tokens, `WindowedAttention`."""
    if config.num_global_tokens and config.layer_types[layer_idx] == "sliding_attention":
        return WindowedAttention(config, layer_idx)
    return ATTENTIONS[config.attention_type](config, layer_idx)
