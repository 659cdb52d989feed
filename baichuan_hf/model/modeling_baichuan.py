"""The Baichuan models: base, backbone, and a class per task.

Shape legend: B batch, T tokens, S tokens with the cached ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import GenericForQuestionAnswering, GenericForTokenClassification
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from transformers.utils import can_return_tuple, is_torchdynamo_compiling
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention import BaichuanAttention
from .checkpoint_files import check_loaded_weights, explain_loading_errors, written_beside
from .configuration_baichuan import BaichuanConfig
from .layers import BaichuanDecoderLayer
from .lm_head import NormHead, build_lm_head, max_z_loss
from .normalization import build_normalization
from .positions import AlibiEmbedding, build_positions, check_alibi_backend
from .tensor_parallel import check_tensor_parallel


# What `save_pretrained(push_to_hub=True)` takes for the Hub.
HUB_OPTIONS = {"repo_id", "commit_message", "private", "revision", "create_pr", "commit_description", "tags"}

MASKS = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}


class BaichuanPreTrainedModel(PreTrainedModel):
    """What all Baichuan models share: loading, saving, initialisation, and what transformers may do with them."""

    config_class = BaichuanConfig
    config: BaichuanConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["BaichuanDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq"]  # a buffer that Baichuan-7B files hold
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": BaichuanDecoderLayer, "attentions": BaichuanAttention}

    @property
    def _supports_flash_attn(self) -> bool:
        # Flash attention knows no bias and would drop it; continuous batching asks here before it switches to it.
        return self.config.position_embedding_type != "alibi"

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
        return (model, info) if wants_info else model

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        *args: Any,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """As in transformers, but the files are written beside and then renamed: a save that fails loses nothing."""
        if not is_main_process:
            super().save_pretrained(save_directory, False, *args, **kwargs)
            return
        hub_options = {key: kwargs.pop(key) for key in HUB_OPTIONS & kwargs.keys()}
        with written_beside(save_directory) as temporary:
            super().save_pretrained(temporary, True, *args, **kwargs)
        if push_to_hub:
            hub_options.setdefault("repo_id", Path(save_directory).name)
            self.push_to_hub(**hub_options, **kwargs)

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *args: Any, **kwargs: Any) -> str:
        if self.config.position_embedding_type == "alibi":
            check_alibi_backend(attn_implementation)
        return super()._check_and_adjust_attn_implementation(attn_implementation, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, AlibiEmbedding):
            module.reset_buffers()


class BaichuanModel(BaichuanPreTrainedModel):
    """The layers without a head: token ids to hidden states."""

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(BaichuanDecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = build_normalization(config)
        self.positions = build_positions(config)
        self.dropout = nn.Dropout(config.hidden_dropout)
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
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """
        Args:
            input_ids: (B, T) token ids; or give `inputs_embeds`.
            attention_mask: (B, S), 1 for tokens and 0 for padding on either side. Without a cache it may number the
                segments of packed rows (1, 1, 2, 2, 3, 0), which then do not see each other. A ready mask
                (B, 1, T, S), or one per kind of layer, is used as it is.
            position_ids: (B, T) positions; by default they count columns. Positions that restart mark packed rows too.
            past_key_values: cache of keys and values.
            inputs_embeds: (B, T, hidden_size), in place of `input_ids`.
            use_cache: whether to return a cache.

        Returns:
            `last_hidden_state` (B, T, hidden_size) after the final norm, and the cache.

        Raises:
            ValueError: neither or both inputs are given, or an id lies outside the vocabulary.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            with explain_index_error("input_ids", input_ids, self.embed_tokens.num_embeddings, "vocab_size"):
                inputs_embeds = self.embed_tokens(input_ids)
        if past_key_values is None and holds_segments(attention_mask):
            attention_mask, position_ids = None, restarting_positions(attention_mask)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen)[None]

        position_embeddings = self.positions.rotation(inputs_embeds, position_ids)
        biases = {
            kind: self._attention_bias(kind, attention_mask, inputs_embeds, position_ids, past_key_values, kwargs)
            for kind in dict.fromkeys(self.config.layer_types)
        }

        # Only now: with a cache, even an empty one, transformers does not look for packed rows.
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)

        hidden_states = self.dropout(inputs_embeds)
        for layer, kind in zip(self.layers[: self.config.num_hidden_layers], self.config.layer_types, strict=False):
            mask, bias_kwargs = biases[kind]
            hidden_states = layer(
                hidden_states,
                attention_mask=mask,
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **bias_kwargs,
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)

    def _attention_bias(
        self,
        kind: str,
        attention_mask: Any,
        inputs_embeds: Tensor,
        position_ids: Tensor,
        past_key_values: Cache | None,
        kwargs: dict[str, Any],
    ) -> tuple[Any, dict[str, Any]]:
        """The mask of one kind of layer with the positions' bias, and what else the attention function is told."""
        if isinstance(attention_mask, dict):
            mask = attention_mask[kind]
        else:
            mask = MASKS[kind](
                config=self.config,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                position_ids=position_ids,
                **self.positions.mask_options(inputs_embeds, kwargs),
            )
        return self.positions.bias(
            mask,
            hidden_states=inputs_embeds,
            past_key_values=past_key_values,
            layer_idx=self.config.layer_types.index(kind),
            **kwargs,
        )


class BaichuanForCausalLM(BaichuanPreTrainedModel, GenerationMixin):
    """Language model: hidden states to logits over the vocabulary, by a plain head or a normalised one."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__(config)
        self.model = BaichuanModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head: nn.Module = build_lm_head(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """
        Args:
            input_ids: as `attention_mask`, `position_ids`, `past_key_values`, `inputs_embeds` and `use_cache`, those
                of `BaichuanModel`.
            labels: (B, T) token ids, shifted here; -100 is ignored. With `config.z_loss_weight` the max-z loss of
                Baichuan2 is added.
            logits_to_keep: compute the logits of the last so many positions only (0: of all), or of these indices.
            kwargs: `num_items_in_batch` of Trainer among them.

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
        outputs: BaseModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])

        loss = None
        if labels is not None:
            with explain_index_error("labels", labels, self.vocab_size, "vocab_size"):
                loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.vocab_size, **kwargs)
            if self.config.z_loss_weight:
                loss = loss + self.config.z_loss_weight * max_z_loss(logits, labels, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Put in a new head. A plain linear layer becomes a normalised one where the config asks for it: that is what
        `resize_token_embeddings` hands over."""
        if self.config.normalize_lm_head and type(new_embeddings) is nn.Linear:
            head = NormHead(new_embeddings.in_features, new_embeddings.out_features, bias=False, device="meta")
            head.weight = new_embeddings.weight
            head._is_hf_initialized = True  # type: ignore[assignment]  # or post_init would draw the weight anew
            new_embeddings = head.train(self.training)
        self.lm_head = new_embeddings


class BaichuanForSequenceClassification(BaichuanPreTrainedModel):
    """Classifies a text by the hidden state of its last token: single label, several labels, or regression."""

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = BaichuanModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        """
        Args:
            input_ids: as `attention_mask`, `position_ids`, `past_key_values`, `inputs_embeds` and `use_cache`, those
                of `BaichuanModel`. The last token is found by the mask, or without one by `config.pad_token_id`.
            labels: (B,) class indices, (B, num_labels) for several labels, or (B,) or (B, num_labels) numbers for
                regression, according to `config.problem_type`.

        Returns:
            `logits` (B, num_labels), and `loss` if labels are given.

        Raises:
            ValueError: several texts, but neither a mask nor `pad_token_id` to find where each ends; or a label
                outside `num_labels`.
        """
        outputs: BaseModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        last = self._last_token(input_ids, attention_mask, hidden_states)
        rows = torch.arange(hidden_states.shape[0], device=hidden_states.device)
        pooled_logits = self.score(hidden_states[rows, last])

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

    def _last_token(self, input_ids: Tensor | None, attention_mask: Tensor | None, hidden_states: Tensor) -> Tensor:
        """The column of each row's last token, (B,), with padding on either side."""
        if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
            is_token = attention_mask[:, -hidden_states.shape[1] :] != 0
        elif input_ids is not None and self.config.pad_token_id is not None:
            is_token = input_ids != self.config.pad_token_id
        elif hidden_states.shape[0] == 1:
            is_token = torch.ones(hidden_states.shape[:2], dtype=torch.bool, device=hidden_states.device)
        else:
            raise ValueError(
                f"A batch of {hidden_states.shape[0]} texts was given without attention_mask, and"
                f" config.pad_token_id is {self.config.pad_token_id}: pass attention_mask (the tokenizer returns it),"
                " or set config.pad_token_id."
            )
        columns = torch.arange(is_token.shape[1], device=is_token.device)
        return (columns * is_token).argmax(dim=-1).to(hidden_states.device)


class BaichuanForTokenClassification(GenericForTokenClassification, BaichuanPreTrainedModel):
    """Labels every token: `logits` (B, T, num_labels)."""

    def __init__(self, config: BaichuanConfig) -> None:
        # Not the mixin's constructor: it needs a registered class, which remote code is not.
        super(GenericForTokenClassification, self).__init__(config)
        self.num_labels = config.num_labels
        self.model = BaichuanModel(config)
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
                labels=labels,
                use_cache=use_cache,
                **kwargs,
            )


class BaichuanForQuestionAnswering(GenericForQuestionAnswering, BaichuanPreTrainedModel):
    """Finds the answer to a question in a text: `start_logits` and `end_logits`, each (B, T)."""

    def __init__(self, config: BaichuanConfig) -> None:
        super(GenericForQuestionAnswering, self).__init__(config)
        self.model = BaichuanModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()


def holds_segments(attention_mask: Any) -> bool:
    """Whether a mask (B, T) numbers the segments of packed rows. While tracing, where values are unknown, every
    integer mask counts as one: the result is the same, only without the shortcut for rows without padding."""
    if not isinstance(attention_mask, Tensor) or attention_mask.ndim != 2 or attention_mask.is_floating_point():
        return False
    if attention_mask.dtype == torch.bool:
        return False
    return is_torchdynamo_compiling() or bool((attention_mask > 1).any())


def restarting_positions(segments: Tensor) -> Tensor:
    """Positions (B, T) that restart with every segment of `segments` (B, T); transformers packs by such positions.

    Padding counts as a segment, which no token sees.
    """
    columns = torch.arange(segments.shape[1], device=segments.device)
    starts = torch.ones_like(segments, dtype=torch.bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return columns - (columns * starts).cummax(dim=1).values


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
