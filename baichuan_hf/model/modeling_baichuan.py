"""The Baichuan models: base, backbone, and a class per task.

Shape legend: B batch, T tokens, S tokens with the cached ones.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Cache,
    CompileConfig,
    DynamicCache,
    EncoderDecoderCache,
    GenerationMixin,
    PreTrainedModel,
    initialization,
)
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GenericForQuestionAnswering, GenericForTokenClassification
from transformers.modeling_outputs import (
    ImageClassifierOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention import BaichuanAttention, BaichuanCrossAttention
from .checkpoint_files import check_loaded_weights, explain_loading_errors, written_beside
from .configuration_baichuan import BaichuanConfig
from .decoding import compiled_step, decoding_masks, default_compile_config
from .experts import load_balancing_loss
from .fully_sharded import gathered_once
from .initialization import initialize_projection, mark_projections
from .layers import BaichuanDecoderLayer
from .linear_attention import PerformerAttention
from .lm_head import MaskedLMHead, build_lm_head, fit_output_embeddings, max_z_loss
from .loss import FusedLoss, chunked_loss
from .masks import (
    attention_mask_of,
    holds_segments,
    mask_of_a_step,
    padding_mask,
    restarting_positions,
    token_positions,
)
from .normalization import build_normalization
from .outputs import BaichuanCausalLMOutput, BaichuanMaskedLMOutput, BaichuanModelOutput
from .patch_embeddings import PatchEmbeddings
from .position_protocol import Positions
from .positions import POSITIONS, build_positions
from .quantized import check_quantized
from .saving import CONVERSIONS, HUB_OPTIONS, Layout, PushToHub, add_code, layout_to_save
from .stop_checks import host_ahead
from .tensor_parallel import check_gatherable, check_tensor_parallel
from .weight_only import adopt_int4


class BaichuanPreTrainedModel(PushToHub, PreTrainedModel):
    """What all Baichuan models share: loading, saving, initialisation, and what transformers may do with them."""

    config_class = BaichuanConfig
    config: BaichuanConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    # Of a language model: with labels, return the loss only, without holding the logits. Set it on the model to train.
    skip_logits = False
    # And a kernel that computes it, if there is one (see `adapters/liger.py`).
    fused_loss: FusedLoss | None = None
    _no_split_modules = ["BaichuanDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _keys_to_ignore_on_load_unexpected = [
        r"rotary_emb\.inv_freq",  # a buffer that Baichuan-7B files hold
        r"pooler\.",  # of the base model, where a head has no use for it
    ]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": BaichuanDecoderLayer,
        "attentions": BaichuanAttention,
        "cross_attentions": BaichuanCrossAttention,
        "router_logits": OutputRecorder(MixtralTopKRouter, index=0),
    }

    @property
    def _supports_flash_attn(self) -> bool:
        # Flash attention knows no bias and would drop it; continuous batching asks here before it switches to it.
        return POSITIONS[self.config.position_embedding_type].backends is None

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        # transformers looks for the experts' decorator in this file's source, but they have a file of their own.
        return True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any):
        """As in transformers, but a damaged or incomplete checkpoint is an error that names what is wrong."""
        check_tensor_parallel(kwargs)
        from_checkpoint = pretrained_model_name_or_path is not None and kwargs.get("state_dict") is None
        wants_info = kwargs.pop("output_loading_info", False)
        ignore_mismatched = kwargs.pop("ignore_mismatched_sizes", False)
        with explain_loading_errors(pretrained_model_name_or_path):
            model, info = super().from_pretrained(
                pretrained_model_name_or_path,
                *args,
                output_loading_info=True,
                ignore_mismatched_sizes=ignore_mismatched or from_checkpoint,
                **kwargs,
            )
        if from_checkpoint:
            mismatched = [] if ignore_mismatched else info["mismatched_keys"]
            check_loaded_weights(pretrained_model_name_or_path, model.config, info["missing_keys"], mismatched)
        if getattr(model, "is_quantized", False):
            check_quantized(model)
            adopt_int4(model)
        return (model, info) if wants_info else model

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        *args: Any,
        push_to_hub: bool = False,
        layout: Layout | None = None,
        **kwargs: Any,
    ) -> None:
        """As in transformers, in a layout of choice (see `baichuan_hf.save_layout`).

        The files are written beside and then renamed: a save that fails loses nothing. Raises ValueError if the model
        has no such layout, RuntimeError if torch is too old to gather a model under tensor parallelism.
        """
        check_gatherable(self)
        layout = layout_to_save(self, save_directory, layout)
        if getattr(self, "is_quantized", False):
            # What a quantiser does on loading transformers cannot revert (5.16 to 5.23): a second save would fail.
            kwargs.setdefault("save_original_format", False)
        if not is_main_process:
            super().save_pretrained(save_directory, False, state_dict, *args, **kwargs)
            return
        hub_options = {key: kwargs.pop(key) for key in HUB_OPTIONS & kwargs.keys()}
        with written_beside(save_directory) as temporary:
            if layout in CONVERSIONS:
                weights = self.state_dict() if state_dict is None else state_dict
                converted, weights = CONVERSIONS[layout](self, weights)
                converted.save_pretrained(temporary, True, weights, *args, **kwargs)
            else:
                super().save_pretrained(temporary, True, state_dict, *args, **kwargs)
            if layout == "remote_code" and not self._hf_peft_config_loaded:
                add_code(temporary / "config.json", BaichuanPreTrainedModel, auto_map_of(type(self).__name__))
        if push_to_hub:
            hub_options.setdefault("repo_id", Path(save_directory).name)
            self.push_to_hub(**hub_options, **kwargs, layout=layout)

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *args: Any, **kwargs: Any) -> str:
        POSITIONS[self.config.position_embedding_type].check_backend(attn_implementation)
        return super()._check_and_adjust_attn_implementation(attn_implementation, *args, **kwargs)

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        options = getattr(kwargs.get("gradient_checkpointing_func"), "keywords", {})
        if enable and options.get("use_reentrant") and self.config.num_local_experts:
            # The routers' logits would come from the pass without gradients, and their loss would train nothing.
            raise ValueError(
                f"use_reentrant=True does not go with num_local_experts={self.config.num_local_experts}: the"
                " load-balancing loss would have no gradient. Leave it out, or pass {'use_reentrant': False}."
            )
        super()._set_gradient_checkpointing(enable, *args, **kwargs)

    def _logits_and_loss(
        self,
        head: nn.Module,
        hidden_states: Tensor,
        labels: Tensor | None,
        *,
        skip_logits: bool | None,
        shifted: bool = True,
        kept: int | Tensor = 0,
        **kwargs: Any,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Of a language model: logits and loss, or with labels and `skip_logits` the loss alone, in chunks."""
        shift_labels = kwargs.get("shift_labels")
        has_labels = labels is not None or shift_labels is not None
        z_loss_weight, vocab_size = self.config.z_loss_weight, self.config.vocab_size
        with explain_index_error("labels", labels, vocab_size, "vocab_size"):
            if has_labels and (self.skip_logits if skip_logits is None else skip_logits):
                options = {"vocab_size": vocab_size, "shifted": shifted, "z_loss_weight": z_loss_weight, **kwargs}
                loss_of = partial(chunked_loss, labels=labels, fused=self.fused_loss, **options)
                return None, gathered_once(loss_of, head, hidden_states)
            logits = head(hidden_states[:, slice(-kept, None) if isinstance(kept, int) else kept])
            if not has_labels:
                return logits, None
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **kwargs)
        if z_loss_weight:
            given = labels if shift_labels is None else shift_labels
            shifted = shifted and shift_labels is None
            loss = loss + z_loss_weight * max_z_loss(logits, given, shifted=shifted, **kwargs)
        return logits, loss

    def _wants_router_logits(self, asked: bool | None, labels: Tensor | None) -> bool:
        if asked is None:
            asked = self.config.output_router_logits or labels is not None
        return asked and self.config.num_local_experts > 0

    def _add_aux_loss(
        self, loss: Tensor | None, router_logits: tuple[Tensor, ...] | None, attention_mask: Any
    ) -> tuple[Tensor | None, Tensor | None]:
        """The loss with the experts' load-balancing loss in it, and that by itself."""
        if router_logits is None:
            return loss, None
        aux_loss = load_balancing_loss(router_logits, attention_mask, self.config)
        if loss is not None:
            loss = loss + self.config.router_aux_loss_coef * aux_loss.to(loss.device)
        return loss, aux_loss

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if hasattr(module, "initial_gains"):
            initialize_projection(module, self.config)
        if isinstance(module, Positions | PerformerAttention):
            module.reset_buffers()
        if isinstance(module, PatchEmbeddings):
            initialization.normal_(module.cls_token, std=self.config.initializer_range)


class BaichuanModel(BaichuanPreTrainedModel):
    """The layers without a head: token ids to hidden states.

    Args:
        config: the settings.
        add_pooling_layer: False for a head that does not use the pooled output, whatever the config says.
    """

    def __init__(self, config: BaichuanConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens: nn.Module = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        if config.type_vocab_size:
            self.embed_token_types = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.positions = build_positions(config)
        if config.embedding_norm:
            self.embedding_norm = build_normalization(config)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(BaichuanDecoderLayer(config, index) for index in range(config.num_hidden_layers))
        attentions = [module for module in self.layers.modules() if isinstance(module, BaichuanAttention)]
        self.takes_segments = not any(attention.takes_padding_mask for attention in attentions)
        self.norm = build_normalization(config) if config.final_norm else nn.Identity()
        pools = config.add_pooling_layer and add_pooling_layer
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size) if pools else None
        mark_projections(self, config)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaichuanModelOutput:
        """
        Args:
            input_ids: (B, T) token ids; or give `inputs_embeds`.
            attention_mask: (B, S), 1 for tokens and 0 for padding on either side. Without a cache it may number the
                segments of packed rows (1, 1, 2, 2, 3, 0), which then do not see each other. A ready mask
                (B, 1, T, S), or one per kind of layer, is used as it is.
            position_ids: (B, T) positions; by default they count columns, or tokens where the positions themselves
                matter and not only distances. Positions that restart mark packed rows too.
            past_key_values: cache of keys and values.
            inputs_embeds: (B, T, hidden_size), in place of `input_ids`.
            token_type_ids: (B, T) segments, with `config.type_vocab_size`; 0 by default.
            encoder_hidden_states: (B, S', encoder's hidden_size), with `config.add_cross_attention`.
            encoder_attention_mask: (B, S'), 0 for the encoder's padding.
            use_cache: whether to return a cache; an encoder has none.

        Returns:
            `last_hidden_state` (B, T, hidden_size) after the final norm, the cache, and what else the model has.

        Raises:
            ValueError: neither or both inputs are given, an id lies outside the vocabulary, or an argument does not
                go with the config.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            with explain_index_error("input_ids", input_ids, self.vocab_size, "vocab_size"):
                inputs_embeds = self.embed_tokens(input_ids)
        self._check_roles(token_type_ids, encoder_hidden_states)
        use_cache = use_cache and self.config.is_causal
        self_cache = past_key_values
        if isinstance(past_key_values, EncoderDecoderCache):
            self_cache = past_key_values.self_attention_cache

        given_mask = attention_mask
        if past_key_values is None and self.takes_segments and holds_segments(attention_mask):
            attention_mask, position_ids = None, restarting_positions(attention_mask)
        if position_ids is None:
            position_ids = self._default_positions(attention_mask, inputs_embeds, self_cache)

        hidden_states = self._embed(inputs_embeds, position_ids, token_type_ids)
        del inputs_embeds  # no layer needs a long text's
        position_embeddings = self.positions.rotation(hidden_states, position_ids)
        biases = {
            kind: self._attention_bias(kind, attention_mask, hidden_states, position_ids, self_cache, kwargs)
            for kind in dict.fromkeys(self.config.layer_types)
        }
        if encoder_attention_mask is not None:
            encoder_attention_mask = create_bidirectional_mask(
                config=self.config,
                inputs_embeds=hidden_states,
                attention_mask=encoder_attention_mask,
                encoder_hidden_states=encoder_hidden_states,
            )

        # Only now: with a cache, even an empty one, transformers does not look for packed rows.
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
            if self.config.add_cross_attention:
                past_key_values = EncoderDecoderCache(past_key_values, DynamicCache())

        # A slice of the list of layers would be built in every step.
        for layer, kind in zip(self.layers, self.config.layer_types[: self.config.num_hidden_layers], strict=False):
            mask, bias_kwargs = biases[kind]
            # The mask in place: reentrant checkpointing gives gradients to positional arguments only.
            hidden_states = layer(
                hidden_states,
                mask,
                encoder_hidden_states,
                encoder_attention_mask=encoder_attention_mask,
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **bias_kwargs,
                **kwargs,
            )
        hidden_states = self.norm(hidden_states)
        pooled = None
        if self.pooler is not None:
            pooled = self.pooler(first_token(hidden_states, given_mask)).tanh()
        return BaichuanModelOutput(
            last_hidden_state=hidden_states, past_key_values=past_key_values, pooler_output=pooled
        )

    def _check_roles(self, token_type_ids: Tensor | None, encoder_hidden_states: Tensor | None) -> None:
        if token_type_ids is not None and not self.config.type_vocab_size:
            raise ValueError("token_type_ids is given, but config.type_vocab_size is 0: this model has no segments.")
        if encoder_hidden_states is not None and not self.config.add_cross_attention:
            raise ValueError("encoder_hidden_states is given, but config.add_cross_attention is False.")
        if encoder_hidden_states is None and self.config.add_cross_attention:
            raise ValueError(
                "config.add_cross_attention is True, but encoder_hidden_states is missing: pass an encoder's last"
                " hidden states, or use the model inside transformers' EncoderDecoderModel."
            )

    def _default_positions(self, attention_mask: Any, inputs_embeds: Tensor, cache: Cache | None) -> Tensor:
        num_queries = inputs_embeds.shape[1]
        counts_tokens = self.positions.absolute or self.layers[0].self_attn.absolute
        if counts_tokens and isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
            return token_positions(attention_mask, num_queries)
        seen = cache.get_seq_length() if cache is not None else 0
        return (torch.arange(num_queries, device=inputs_embeds.device) + seen)[None]

    def _embed(self, inputs_embeds: Tensor, position_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """The sum of embeddings, segments and positions, and its norm, as far as the config has them."""
        if self.config.embedding_multiplier != 1.0:
            inputs_embeds = inputs_embeds * self.config.embedding_multiplier
        if self.config.type_vocab_size:
            if token_type_ids is None:
                token_type_ids = torch.zeros(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)
            with explain_index_error("token_type_ids", token_type_ids, self.config.type_vocab_size, "type_vocab_size"):
                inputs_embeds = inputs_embeds + self.embed_token_types(token_type_ids)
        if self.positions.absolute:
            limit = self.config.max_position_embeddings
            with explain_index_error("position_ids", position_ids, limit, "max_position_embeddings"):
                inputs_embeds = self.positions.embed(inputs_embeds, position_ids)
        if self.config.embedding_norm:
            inputs_embeds = self.embedding_norm(inputs_embeds)
        return self.dropout(inputs_embeds) if self.training else inputs_embeds

    def _attention_bias(
        self,
        kind: str,
        attention_mask: Any,
        hidden_states: Tensor,
        position_ids: Tensor,
        past_key_values: Cache | None,
        kwargs: dict[str, Any],
    ) -> tuple[Any, dict[str, Any]]:
        """The mask of one kind of layer with the positions' bias, and what else the attention function is told."""
        layer_idx = self.config.layer_types.index(kind)
        attention: BaichuanAttention = self.layers[layer_idx].self_attn  # type: ignore[assignment]
        if attention.takes_padding_mask:
            return padding_mask(attention_mask, position_ids), {}
        if isinstance(attention_mask, dict):
            mask = attention_mask[kind]
        else:
            mask = attention_mask_of(
                kind,
                self.config,
                inputs_embeds=hidden_states,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                position_ids=position_ids,
                **self.positions.mask_options(hidden_states, kwargs),
            )
        mask, options = self.positions.bias(
            mask, hidden_states=hidden_states, past_key_values=past_key_values, layer_idx=layer_idx, **kwargs
        )
        return mask_of_a_step(mask, hidden_states, self.config, past_key_values), options


class BaichuanForCausalLM(BaichuanPreTrainedModel, GenerationMixin):
    """Language model: hidden states to logits over the vocabulary, by a plain head or a normalised one."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__(config)
        if not config.is_causal:
            raise ValueError(
                f"{type(self).__name__} needs a causal model, but is_causal is False: use BaichuanForMaskedLM, or"
                " is_causal=True."
            )
        self.model = BaichuanModel(config, add_pooling_layer=False)
        self.vocab_size = config.vocab_size
        self.lm_head: nn.Module = build_lm_head(config, bias=config.lm_head_bias)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        skip_logits: bool | None = None,
        **kwargs: Any,
    ) -> BaichuanCausalLMOutput:
        """
        Args:
            input_ids: as `attention_mask`, `position_ids`, `past_key_values`, `inputs_embeds`, `token_type_ids`,
                `encoder_hidden_states`, `encoder_attention_mask` and `use_cache`, those of `BaichuanModel`.
            labels: (B, T) token ids, shifted here; -100 is ignored. With `config.z_loss_weight` the max-z loss of
                Baichuan2 is added, with experts their load-balancing loss times `config.router_aux_loss_coef`.
            output_router_logits: whether to return the routers' logits; by default if there are labels, for the loss.
            logits_to_keep: compute the logits of the last so many positions only (0: of all), or of these indices.
            skip_logits: with labels: return the loss only, computed in chunks (`chunked_loss`), which spares the
                memory of the logits; by default the attribute `skip_logits` of the model, False.
            kwargs: `num_items_in_batch` of Trainer and `label_smoothing` (with `skip_logits`) among them.

        Returns:
            `logits` (B, T or fewer, vocab_size), `loss` if labels are given, the cache, and what else was asked for.

        Raises:
            ValueError: a label lies outside the vocabulary.

        Example:

        ```python
        >>> import baichuan_hf
        >>> from transformers import AutoModelForCausalLM, AutoTokenizer

        >>> folder = baichuan_hf.bundled_checkpoint("tiny")
        >>> model = AutoModelForCausalLM.from_pretrained(folder)
        >>> tokenizer = AutoTokenizer.from_pretrained(folder)
        >>> inputs = tokenizer("The weather today", return_tensors="pt")
        >>> text = tokenizer.batch_decode(model.generate(**inputs, max_new_tokens=20))
        ```
        """
        outputs: BaichuanModelOutput = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            token_type_ids=token_type_ids,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            use_cache=use_cache,
            output_router_logits=self._wants_router_logits(output_router_logits, labels),
            **kwargs,
        )
        logits, loss = self._logits_and_loss(
            self.lm_head,
            outputs.last_hidden_state,
            labels,
            skip_logits=skip_logits,
            kept=logits_to_keep,
            **kwargs,
        )
        loss, aux_loss = self._add_aux_loss(loss, outputs.router_logits, attention_mask)
        return BaichuanCausalLMOutput(
            loss=loss,
            aux_loss=aux_loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
            router_logits=outputs.router_logits,
        )

    # What `generate` asks for.
    create_masks_for_generate = staticmethod(decoding_masks)

    def get_compiled_call(self, compile_config: CompileConfig | None) -> Callable[..., Any]:
        """The step that `generate` repeats with a static cache, on a GPU as a CUDA graph: see `compiled_step`."""
        return compiled_step(self, compile_config, super().get_compiled_call)

    def _sample(self, *args: Any, synced_gpus: bool = False, **kwargs: Any) -> Any:
        with nullcontext() if synced_gpus else host_ahead():
            return super()._sample(*args, synced_gpus=synced_gpus, **kwargs)

    def _default_compile_config(self) -> CompileConfig:
        return default_compile_config(self) or super()._default_compile_config()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Put in a new head, as the kind that the config names."""
        self.lm_head = fit_output_embeddings(new_embeddings, self.config).train(self.training)


class BaichuanForMaskedLM(BaichuanPreTrainedModel):
    """Masked language model: an encoder (`is_causal=False`) that predicts the tokens behind masks (BERT)."""

    _tied_weights_keys = {"lm_head.decoder.weight": "model.embed_tokens.weight"}

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__(config)
        if config.is_causal:
            raise ValueError(
                "BaichuanForMaskedLM needs an encoder, but is_causal is True: use BaichuanForCausalLM, or"
                " is_causal=False."
            )
        self.model = BaichuanModel(config, add_pooling_layer=False)
        self.vocab_size = config.vocab_size
        self.lm_head = MaskedLMHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_router_logits: bool | None = None,
        skip_logits: bool | None = None,
        **kwargs: Any,
    ) -> BaichuanMaskedLMOutput:
        """
        Args:
            input_ids: as `attention_mask`, `position_ids`, `inputs_embeds` and `token_type_ids`, those of
                `BaichuanModel`.
            labels: (B, T) token ids of the same positions; -100 is ignored.
            output_router_logits: as `skip_logits`, that of `BaichuanForCausalLM`.

        Returns:
            `logits` (B, T, vocab_size), and `loss` if labels are given.

        Raises:
            ValueError: a label lies outside the vocabulary.
        """
        outputs: BaichuanModelOutput = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            token_type_ids=token_type_ids,
            output_router_logits=self._wants_router_logits(output_router_logits, labels),
            **kwargs,
        )
        logits, loss = self._logits_and_loss(
            self.lm_head, outputs.last_hidden_state, labels, skip_logits=skip_logits, shifted=False, **kwargs
        )
        loss, aux_loss = self._add_aux_loss(loss, outputs.router_logits, attention_mask)
        return BaichuanMaskedLMOutput(
            loss=loss,
            aux_loss=aux_loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
        )

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Put in a new output matrix, as the kind that the config names."""
        self.lm_head.decoder = fit_output_embeddings(new_embeddings, self.config).train(self.training)


class BaichuanForSequenceClassification(BaichuanPreTrainedModel):
    """Classifies a text, by one label, several, or a number: from the hidden state of its last token, in an encoder
    from that of its first, pooled if the config has a pooling layer; or from the mean over its tokens
    (`config.classifier_pooling`)."""

    # The loss is the mean over a batch, which Trainer must divide where it accumulates batches: it would take the
    # **kwargs of `forward` for a sign that the model does.
    accepts_loss_kwargs = False

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = BaichuanModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout)
        # As in Llama's classifier, or for an encoder as in BERT's.
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=not config.is_causal)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        """
        Args:
            input_ids: as `attention_mask`, `position_ids`, `past_key_values`, `inputs_embeds`, `token_type_ids` and
                `use_cache`, those of `BaichuanModel`. Which tokens a text has is found by the mask, or without one
                by `config.pad_token_id`.
            labels: (B,) class indices, (B, num_labels) for several labels, or (B,) or (B, num_labels) numbers for
                regression, according to `config.problem_type`.

        Returns:
            `logits` (B, num_labels), and `loss` if labels are given.

        Raises:
            ValueError: several texts, but neither a mask nor `pad_token_id` to find where each ends; or a label
                outside `num_labels`.
        """
        outputs: BaichuanModelOutput = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            token_type_ids=token_type_ids,
            use_cache=use_cache,
            **kwargs,
        )
        pooled = self._pool(outputs, input_ids, attention_mask)
        pooled_logits = self.score(self.dropout(pooled))

        loss = None
        if labels is not None:
            with explain_index_error("labels", labels, self.num_labels, "num_labels"):
                loss = self.loss_function(
                    logits=pooled_logits, labels=labels, pooled_logits=pooled_logits, config=self.config
                )
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=pooled_logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _pool(self, outputs: BaichuanModelOutput, input_ids: Tensor | None, attention_mask: Tensor | None) -> Tensor:
        """(B, hidden_size)"""
        if outputs.pooler_output is not None:
            return outputs.pooler_output
        hidden_states = outputs.last_hidden_state
        if self.config.classifier_pooling == "mean":
            weights = self._is_token(input_ids, attention_mask, hidden_states).to(hidden_states)
            return (weights[:, None] @ hidden_states)[:, 0] / weights.sum(dim=-1, keepdim=True).clamp(min=1)
        if not self.config.is_causal:
            return first_token(hidden_states, attention_mask)
        is_token = self._is_token(input_ids, attention_mask, hidden_states)
        columns = torch.arange(is_token.shape[1], device=is_token.device)
        last = (columns * is_token).argmax(dim=-1).to(hidden_states.device)
        return hidden_states[torch.arange(hidden_states.shape[0], device=hidden_states.device), last]

    def _is_token(self, input_ids: Tensor | None, attention_mask: Tensor | None, hidden_states: Tensor) -> Tensor:
        """(B, T) booleans, False for padding on either side."""
        if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
            return attention_mask[:, -hidden_states.shape[1] :] != 0
        if input_ids is not None and self.config.pad_token_id is not None:
            return input_ids != self.config.pad_token_id
        if hidden_states.shape[0] == 1:
            return torch.ones(hidden_states.shape[:2], dtype=torch.bool, device=hidden_states.device)
        raise ValueError(
            f"A batch of {hidden_states.shape[0]} texts was given without attention_mask, and"
            f" config.pad_token_id is {self.config.pad_token_id}: pass attention_mask (the tokenizer returns it),"
            " or set config.pad_token_id."
        )


class BaichuanForTokenClassification(GenericForTokenClassification, BaichuanPreTrainedModel):
    """Labels every token: `logits` (B, T, num_labels)."""

    accepts_loss_kwargs = False  # as above

    def __init__(self, config: BaichuanConfig) -> None:
        # Not the mixin's constructor: it needs a registered class, which remote code is not.
        super(GenericForTokenClassification, self).__init__(config)
        self.num_labels = config.num_labels
        self.model = BaichuanModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    # Every name is written out: Trainer reads them, and drops the columns of a data set that are not among them.
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """As `BaichuanModel`; labels: (B, T) class indices, -100 is ignored.

        Raises:
            ValueError: a label lies outside `num_labels`.
        """
        with explain_index_error("labels", labels, self.num_labels, "num_labels"):
            return super().forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                token_type_ids=token_type_ids,
                labels=labels,
                use_cache=use_cache,
                **kwargs,
            )


class BaichuanForQuestionAnswering(GenericForQuestionAnswering, BaichuanPreTrainedModel):
    """Finds the answer to a question in a text: `start_logits` and `end_logits`, each (B, T)."""

    def __init__(self, config: BaichuanConfig) -> None:
        super(GenericForQuestionAnswering, self).__init__(config)
        self.model = BaichuanModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()


class BaichuanForImageClassification(BaichuanPreTrainedModel):
    """Classifies an image, cut into patches that are an encoder's tokens behind a class token (ViT)."""

    main_input_name = "pixel_values"

    accepts_loss_kwargs = False  # as above

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = BaichuanModel(config)
        # In the place of the token embeddings, which an image does not need.
        self.model.embed_tokens = PatchEmbeddings(config)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels) if config.num_labels else nn.Identity()
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> ImageClassifierOutput:
        """
        Args:
            pixel_values: (B, num_channels, image_size, image_size).
            labels: (B,) class indices, or as `config.problem_type` says.

        Returns:
            `logits` (B, num_labels) from the class token, or without labels in the config its features themselves, (B,
            hidden_size); and `loss` if labels are given.

        Raises:
            ValueError: the images have another size, or a label lies outside `num_labels`.
        """
        patches = self.model.embed_tokens(pixel_values)
        outputs: BaichuanModelOutput = self.model(inputs_embeds=patches, **kwargs)
        pooled = outputs.last_hidden_state[:, 0] if outputs.pooler_output is None else outputs.pooler_output
        logits = self.classifier(self.dropout(pooled))
        loss = None
        if labels is not None:
            with explain_index_error("labels", labels, self.num_labels, "num_labels"):
                loss = self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


# What Auto classes load, also those of a folder with the code beside the weights.
AUTO_CLASSES: dict[str, type[BaichuanPreTrainedModel]] = {
    "AutoModel": BaichuanModel,
    "AutoModelForCausalLM": BaichuanForCausalLM,
    "AutoModelForMaskedLM": BaichuanForMaskedLM,
    "AutoModelForSequenceClassification": BaichuanForSequenceClassification,
    "AutoModelForTokenClassification": BaichuanForTokenClassification,
    "AutoModelForQuestionAnswering": BaichuanForQuestionAnswering,
    "AutoModelForImageClassification": BaichuanForImageClassification,
}


def auto_map_of(class_name: str) -> dict[str, str]:
    """What a config says of the code beside the weights of a model of that class.

    Raises:
        ValueError: the class is defined elsewhere.
    """
    name = class_name.removeprefix("FSDP")  # as FSDP2 calls a class that it has wrapped
    if name not in (known := [model_class.__name__ for model_class in AUTO_CLASSES.values()]):
        raise ValueError(f"layout='remote_code' carries the code of {', '.join(known)}, but not of {name}.")
    auto_map = {auto: f"modeling_baichuan.{model_class.__name__}" for auto, model_class in AUTO_CLASSES.items()}
    return {"AutoConfig": "configuration_baichuan.BaichuanConfig", **auto_map}


def first_token(hidden_states: Tensor, attention_mask: Any) -> Tensor:
    """The hidden states of each row's first token, (B, hidden_size), with padding on either side."""
    if not isinstance(attention_mask, Tensor) or attention_mask.ndim != 2:
        return hidden_states[:, 0]
    first = (attention_mask != 0).int().argmax(dim=-1)
    return hidden_states[torch.arange(hidden_states.shape[0], device=hidden_states.device), first]


@contextmanager
def explain_index_error(name: str, values: Tensor | None, size: int, field: str) -> Iterator[None]:
    """Turn torch's IndexError on the CPU into one that names the argument, its range and the limit."""
    try:
        yield
    except IndexError as error:
        if values is None or values.is_floating_point():
            raise
        raise ValueError(
            f"{name} holds values from {values.min().item()} to {values.max().item()}, but config.{field} is {size}:"
            f" allowed are 0 to {size - 1}"
            + (" (and -100, ignored)." if name == "labels" else ". Does the tokenizer belong to this model?")
        ) from error
