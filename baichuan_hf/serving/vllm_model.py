"""Baichuan for vLLM: its Llama with ALiBi as the other kind of positions, `W_pack`, and NormHead.

Weights are read by their original names. `vllm_support.py` has what needs no vLLM.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.models.llama import LlamaDecoderLayer, LlamaForCausalLM
from vllm.model_executor.models.utils import extract_layer_index

from ..model.configuration_baichuan import BaichuanConfig
from .vllm_support import alibi_slopes, check_servable, fold_head


class BaichuanAttention(nn.Module):
    """`LlamaAttention` with the projections and positions of Baichuan; built by `LlamaDecoderLayer`."""

    def __init__(
        self,
        config: BaichuanConfig,
        *,
        bias: bool,
        bias_o_proj: bool,
        quant_config: Any,
        cache_config: Any,
        prefix: str,
        **sizes: Any,  # the config has them
    ) -> None:
        super().__init__()
        head_dim = config.head_dim
        self.projection = "W_pack" if config.fused_qkv else "qkv_proj"
        qkv = QKVParallelLinear(
            config.hidden_size,
            head_dim,
            config.num_attention_heads,
            config.num_key_value_heads,
            bias=bias,
            quant_config=quant_config,
            prefix=f"{prefix}.{self.projection}",
        )
        self.add_module(self.projection, qkv)
        self.o_proj = RowParallelLinear(
            config.num_attention_heads * head_dim,
            config.hidden_size,
            bias=bias_o_proj,
            quant_config=quant_config,
            prefix=f"{prefix}.o_proj",
        )
        self.widths = [heads * head_dim for heads in (qkv.num_heads, qkv.num_kv_heads, qkv.num_kv_heads)]
        self.rotary_emb = None
        if config.position_embedding_type == "rope":
            length = config.max_position_embeddings
            self.rotary_emb = get_rope(head_dim, max_position=length, rope_parameters=config.rope_parameters)
        slopes = None
        if config.position_embedding_type == "alibi":
            first = get_tensor_model_parallel_rank() * qkv.num_heads
            slopes = alibi_slopes(config)[first : first + qkv.num_heads]
        sliding = config.layer_types[extract_layer_index(prefix)] == "sliding_attention"
        self.attn = Attention(
            qkv.num_heads,
            head_dim,
            head_dim**-0.5,
            num_kv_heads=qkv.num_kv_heads,
            alibi_slopes=slopes,
            per_layer_sliding_window=config.sliding_window if sliding else None,
            quant_config=quant_config,
            cache_config=cache_config,
            prefix=f"{prefix}.attn",
        )

    def forward(self, positions: Tensor, hidden_states: Tensor) -> Tensor:
        qkv, _ = getattr(self, self.projection)(hidden_states)
        query, key, value = qkv.split(self.widths, dim=-1)
        if self.rotary_emb is not None:
            query, key = self.rotary_emb(positions, query, key)
        output, _ = self.o_proj(self.attn(query, key, value))
        return output


class BaichuanForCausalLM(LlamaForCausalLM):
    """Both spellings of the original class, RoPE and ALiBi."""

    packed_modules_mapping = LlamaForCausalLM.packed_modules_mapping | {"W_pack": ["W_pack"]}

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        config = vllm_config.model_config.hf_config
        check_servable(config)
        layer_type = partial(LlamaDecoderLayer, attn_layer_type=BaichuanAttention)
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=layer_type)
        if config.normalize_lm_head:
            # An adapter would be added to the normalised rows, not before.
            self.embedding_modules = {"embed_tokens": "input_embeddings"}

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        return super().load_weights(fold_head(weights) if self.config.normalize_lm_head else weights)
