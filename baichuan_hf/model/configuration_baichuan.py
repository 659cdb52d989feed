"""`BaichuanConfig`: every setting of the model, checked when it is built."""

# No `from __future__ import annotations`: `strict` checks the fields by their annotations, which must be real types.
import difflib
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from .presets import PRESETS


PositionEmbeddingType = Literal["rope", "alibi", "sinusoidal", "learned", "relative", "none"]
NormType = Literal["rms_norm", "layer_norm", "deep_norm"]
NormPosition = Literal["pre", "post", "sandwich"]
AttentionType = Literal["softmax", "linformer", "performer"]
InitializerType = Literal["normal", "xavier_uniform", "kaiming_normal", "deep_net", "small"]

# Vocabulary size from which an original checkpoint is of the second generation, whose head is normalised.
NORMALIZED_HEAD_VOCAB_SIZE = 125696

ALIBI_SCALING_TYPES = ("linear", "ntk", "dynamic")


def infer_family(values: Mapping[str, Any]) -> dict[str, Any]:
    """What an original `config.json` leaves unsaid: the positions and whether the head is normalised.

    Args:
        values: configuration keys as found in the file or given by the caller.

    Returns:
        The values of `position_embedding_type` and `normalize_lm_head` for those of the two that `values` lacks.
    """
    inferred: dict[str, Any] = {}
    if values.get("position_embedding_type") is None:
        alibi = values.get("model_max_length") is not None and values.get("max_position_embeddings") is None
        inferred["position_embedding_type"] = "alibi" if alibi else "rope"
    if values.get("normalize_lm_head") is None:
        vocab_size = values.get("vocab_size", BaichuanConfig.vocab_size)
        inferred["normalize_lm_head"] = vocab_size >= NORMALIZED_HEAD_VOCAB_SIZE
    return inferred


@strict
class BaichuanConfig(PreTrainedConfig):
    r"""
    Configuration of the Baichuan models. The defaults are those of Baichuan2-7B.

    Two fields are inferred when they are absent, as in an original checkpoint: `position_embedding_type` is `"alibi"`
    if `model_max_length` is given and `max_position_embeddings` is not, else `"rope"`; `normalize_lm_head` is true if
    `vocab_size >= 125696`. A value that is given always wins.

    Args:
        vocab_size: Number of token ids.
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the feed-forward layer.
        num_hidden_layers: Number of layers.
        num_attention_heads: Number of query heads.
        num_key_value_heads: Number of key and value heads; defaults to `num_attention_heads`. When the two are equal
            q, k and v are one fused matrix (`W_pack`), as in the original checkpoints.
        head_dim: Width of a head; defaults to `hidden_size // num_attention_heads`.
        hidden_act: Activation of the feed-forward layer, a name of `transformers.activations.ACT2FN`.
        gated_mlp: Whether the feed-forward layer is gated (with `silu`: SwiGLU, Shazeer 2020).
        max_position_embeddings: Context length in tokens.
        model_max_length: The same under the name that the ALiBi families use in their files.
        position_embedding_type: `"rope"` (Su et al. 2021), `"alibi"` (Press et al. 2022), `"sinusoidal"` (Vaswani
            et al. 2017), `"learned"`, `"relative"` (T5's bucketed bias, Raffel et al. 2020) or `"none"`.
        rope_parameters: Parameters of RoPE and its scaling, as everywhere in transformers: `rope_type`
            (`default`, `linear`, `dynamic`, `yarn`, ...), `rope_theta`, `factor`, ...
        alibi_scaling: Context extension of ALiBi: `{"alibi_type": "linear" | "ntk", "factor": 4.0}`, or
            `{"alibi_type": "dynamic"}`, whose factor grows with the sequence beyond `max_position_embeddings`.
        relative_attention_num_buckets: Number of distances that `"relative"` positions tell apart.
        relative_attention_max_distance: Distance from which all fall into the last bucket.
        norm_type: `"rms_norm"` (Zhang & Sennrich 2019), `"layer_norm"` (Ba et al. 2016), or `"deep_norm"`: LayerNorm
            after a residual scaled by DeepNet's alpha, with weights scaled by its beta (Wang et al. 2022).
        norm_position: `"pre"`: x + f(norm(x)); `"post"`: norm(x + f(x)); `"sandwich"`: x + norm(f(norm(x))).
        rms_norm_eps: Epsilon of every norm.
        attention_bias: Whether q, k, v and o have biases.
        mlp_bias: Whether the feed-forward layers have biases.
        norm_bias: Whether the norms have biases.
        embedding_norm: Whether a norm follows the embeddings.
        embedding_multiplier: Factor of the token embeddings; sqrt(hidden_size) in Vaswani et al. 2017.
        final_norm: Whether a norm follows the last layer.
        type_vocab_size: Number of segment embeddings (BERT).
        is_causal: Whether a token sees only itself and what stands before it; False makes an encoder.
        add_pooling_layer: Whether `BaichuanModel` pools the first token through a dense layer and tanh (BERT).
        classifier_pooling: What `BaichuanForSequenceClassification` goes by: `"token"`, a text's last token, in an
            encoder its first; or `"mean"`, the mean over its tokens.
        add_cross_attention: Whether the layers also attend to an encoder, inside `EncoderDecoderModel`.
        cross_attention_hidden_size: Width of that encoder; defaults to `hidden_size`.
        num_decoder_layers: For an encoder with `"deep_norm"` that feeds a decoder: the decoder's number of layers.
        sliding_window: Number of tokens that a causal sliding layer sees, the token itself included; in an encoder,
            the number that it sees on either side.
        layer_types: `"full_attention"` or `"sliding_attention"` per layer; filled from `sliding_window` when absent.
        attention_type: `"softmax"`, or for encoders `"linformer"` (Wang et al. 2020) or `"performer"` (Choromanski et
            al. 2021), whose cost grows linearly with the length.
        projected_length: Linformer's k: keys and values are projected from the length to so many.
        num_random_features: Performer's number of random features per head; defaults to
            `head_dim * ln(head_dim)`, rounded down.
        num_global_tokens: With `sliding_window`, for encoders: so many first tokens see all and are seen by all,
            through projections of their own (Longformer, Beltagy et al. 2020).
        num_local_experts: Number of experts per sparse layer (Mixtral, Jiang et al. 2024); 0 is dense.
        num_experts_per_tok: Number of experts that a token visits.
        router_aux_loss_coef: Weight of the load-balancing loss.
        output_router_logits: Whether the output holds the routers' logits.
        moe_layer_interval: Every how many layers one has experts.
        lm_head_bias: Whether the output matrix of `BaichuanForCausalLM` has a bias (Marian).
        normalize_lm_head: Whether the rows of the output matrix are normalised (NormHead of Baichuan2).
        z_loss_weight: Weight of the max-z loss of Baichuan2.
        attention_dropout: Dropout of the attention weights.
        hidden_dropout: Dropout of the embeddings and of each sublayer's output, before it is added.
        layer_drop: Probability that a layer is left out of a training step (Fan et al. 2020).
        initializer_range: Standard deviation of the initial weights, for `initializer_type="normal"`.
        initializer_type: `"normal"`, `"xavier_uniform"`, `"kaiming_normal"`, `"small"` (Nguyen & Salazar 2019) or, the
            default of `"deep_norm"`, `"deep_net"`.
        image_size: Height and width of an image in pixels, for `BaichuanForImageClassification`.
        patch_size: Height and width of a patch; each becomes a token (ViT, Dosovitskiy et al. 2021).
        num_channels: Number of colours.

    Raises:
        StrictDataclassError: a field has a wrong type or a value that is not allowed, or two fields contradict.

    Example:

    ```python
    >>> from baichuan_hf import BaichuanConfig
    >>> BaichuanConfig.from_preset("baichuan2-13b").position_embedding_type
    'alibi'
    ```
    """

    model_type = "baichuan"
    attribute_map: ClassVar[dict[str, str]] = {"num_experts": "num_local_experts"}  # tools ask for either
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    base_model_pp_plan: ClassVar[dict[str, Any]] = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 125696
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    gated_mlp: bool = True
    max_position_embeddings: int | None = None
    model_max_length: int | None = None
    position_embedding_type: PositionEmbeddingType | None = None
    rope_parameters: dict | None = None
    alibi_scaling: dict | None = None
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    norm_type: NormType = "rms_norm"
    norm_position: NormPosition = "pre"
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    mlp_bias: bool = False
    norm_bias: bool = False
    embedding_norm: bool = False
    embedding_multiplier: float | int = 1.0
    final_norm: bool = True
    type_vocab_size: int = 0
    is_causal: bool = True
    add_pooling_layer: bool = False
    classifier_pooling: Literal["token", "mean"] = "token"
    add_cross_attention: bool = False
    cross_attention_hidden_size: int | None = None
    num_decoder_layers: int | None = None
    sliding_window: int | None = None
    layer_types: list[str] | None = None
    attention_type: AttentionType = "softmax"
    projected_length: int = 256
    num_random_features: int | None = None
    num_global_tokens: int = 0
    num_local_experts: int = 0
    num_experts_per_tok: int = 2
    router_aux_loss_coef: float | int = 0.001
    output_router_logits: bool = False
    moe_layer_interval: int = 1
    lm_head_bias: bool = False
    normalize_lm_head: bool | None = None
    z_loss_weight: float | int = 0.0
    attention_dropout: float | int = 0.0
    hidden_dropout: float | int = 0.0
    layer_drop: float | int = 0.0
    initializer_range: float = 0.02
    initializer_type: InitializerType | None = None
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    use_cache: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    # A folder with a bare `tokenizer.model` is found by this name.
    tokenizer_class: str | None = "BaichuanTokenizer"

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "BaichuanConfig":
        """The configuration of a named architecture at full size, with `overrides` on top.

        Raises:
            ValueError: there is no such preset, or an override is no field of the configuration.
        """
        if name not in PRESETS:
            raise ValueError(f"There is no preset {name!r}{_nearest(name, PRESETS)}. Presets: {', '.join(PRESETS)}.")
        fields = [*cls.__dataclass_fields__, "num_labels"]
        for key in overrides:
            if key not in fields:
                raise ValueError(f"{key!r} is no field of BaichuanConfig{_nearest(key, fields)}.")
        if names := overrides.get("id2label"):
            overrides = {"num_labels": len(names), **overrides}
        return cls(**{**PRESETS[name], **overrides})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any):
        # The base class sets the caller's values on the finished object, where derived fields and checks miss them.
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f"model_type is {model_type!r}, not {cls.model_type!r}: this is no Baichuan checkpoint. Load it with"
                " transformers' AutoConfig and AutoModel classes."
            )
        fields = set(cls.__dataclass_fields__) - {"dtype"}
        overrides = {key: kwargs.pop(key) for key in list(kwargs) if key in fields}
        return super().from_dict({**config_dict, **infer_family(config_dict), **overrides}, **kwargs)

    def __post_init__(self, **kwargs: Any) -> None:
        # Stale in original files: code that is not needed, and a switch stored as a one-element list.
        if self._auto_class is None:
            # Names code in the folder, which is needed only where this class is such code itself.
            kwargs.pop("auto_map", None)
        kwargs.pop("gradient_checkpointing", None)

        for field, value in infer_family(vars(self)).items():
            setattr(self, field, value)
        if self.position_embedding_type != "rope":
            if self.rope_parameters or kwargs.get("rope_scaling"):
                raise ValueError(
                    f"rope_parameters is set, but position_embedding_type is {self.position_embedding_type!r}: drop"
                    " rope_parameters, or use position_embedding_type='rope'."
                )
            kwargs.pop("rope_scaling", None)
        if self.alibi_scaling and self.position_embedding_type != "alibi":
            raise ValueError(
                f"alibi_scaling is set, but position_embedding_type is {self.position_embedding_type!r}: drop"
                " alibi_scaling, or use position_embedding_type='alibi'."
            )

        if self.max_position_embeddings is None:
            self.max_position_embeddings = self.model_max_length or 4096
        if self.model_max_length is None:
            self.model_max_length = self.max_position_embeddings
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self._check_divisible("hidden_size", "num_attention_heads")
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.layer_types is None:
            kind = "full_attention" if self.sliding_window is None else "sliding_attention"
            self.layer_types = [kind] * self.num_hidden_layers
        if self.initializer_type is None:
            self.initializer_type = "deep_net" if self.norm_type == "deep_norm" else "normal"

        if self.rope_parameters is not None:
            # The base class fills it in; the caller's stays as it is.
            self.rope_parameters = dict(self.rope_parameters)
        super().__post_init__(**kwargs)
        if self.position_embedding_type != "rope":
            self.rope_parameters = None
        self.base_model_tp_plan = self._tensor_parallel_plan()

    @property
    def fused_qkv(self) -> bool:
        """Whether q, k and v are the one matrix `W_pack`."""
        return self.num_key_value_heads == self.num_attention_heads

    def is_sparse_layer(self, layer_idx: int) -> bool:
        """Whether the feed-forward layer of layer `layer_idx`, counted from 0, consists of experts."""
        return self.num_local_experts > 0 and (layer_idx + 1) % self.moe_layer_interval == 0

    def _tensor_parallel_plan(self) -> dict[str, str]:
        # Of the instance: a plan that names projections which the model lacks is refused by transformers.
        separate = {"q_proj": "colwise", "k_proj": "colwise", "v_proj": "colwise"}
        attention = {"W_pack": "packed3_colwise"} if self.fused_qkv else separate
        if self.num_global_tokens:
            attention = attention | {f"{name}_global_proj": "colwise" for name in "qkv"}
        plan = {f"self_attn.{name}": style for name, style in attention.items()}
        plan["self_attn.o_proj"] = "rowwise"
        if self.add_cross_attention:
            plan |= {f"cross_attn.{name}": style for name, style in separate.items()}
            plan["cross_attn.o_proj"] = "rowwise"
        sparse = {self.is_sparse_layer(index) for index in range(self.num_hidden_layers)}
        if False in sparse:
            plan |= {"mlp.up_proj": "colwise", "mlp.down_proj": "rowwise"}
            if self.gated_mlp:
                plan["mlp.gate_proj"] = "colwise"
        if True in sparse:
            up = {"gate_up_proj": "packed_colwise"} if self.gated_mlp else {"up_proj": "colwise"}
            plan |= {f"mlp.experts.{name}": style for name, style in {**up, "down_proj": "rowwise"}.items()}
            plan["mlp.experts"] = "moe_tp_experts"
        return {f"layers.*.{name}": style for name, style in plan.items()}

    def _check_divisible(self, field: str, divisor_field: str) -> None:
        value, divisor = getattr(self, field), getattr(self, divisor_field)
        if divisor < 1 or value % divisor:
            raise ValueError(f"{field} ({value}) must be a multiple of {divisor_field} ({divisor}).")

    def validate_sizes(self) -> None:
        positive = (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
            "model_max_length",
            "sliding_window",
            "projected_length",
            "num_random_features",
            "relative_attention_num_buckets",
            "num_experts_per_tok",
            "moe_layer_interval",
            "num_decoder_layers",
            "image_size",
            "patch_size",
            "num_channels",
        )
        for field in positive:
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{field} ({value}) must be at least 1.")
        for field in ("type_vocab_size", "num_global_tokens", "num_local_experts"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field} ({getattr(self, field)}) must be at least 0.")
        self._check_divisible("num_attention_heads", "num_key_value_heads")

    def validate_activation(self) -> None:
        if self.hidden_act not in ACT2FN:
            nearest, allowed = _nearest(self.hidden_act, ACT2FN), ", ".join(sorted(ACT2FN))
            raise ValueError(f"hidden_act={self.hidden_act!r} is unknown{nearest}. Allowed: {allowed}.")

    def validate_attention(self) -> None:
        allowed = ("full_attention", "sliding_attention")
        for kind in self.layer_types:
            if kind not in allowed:
                raise ValueError(f"layer_types holds {kind!r}; allowed are {allowed}.")
        if self.is_causal and self.sliding_window == 1:
            # transformers' cache keeps the last sliding_window - 1 tokens as [-0:], which is all.
            raise ValueError("sliding_window (1) must be at least 2 with is_causal=True: or a token sees only itself.")
        if "sliding_attention" in self.layer_types and self.sliding_window is None:
            raise ValueError("layer_types holds 'sliding_attention', but sliding_window is None: give its length.")

    def validate_norms(self) -> None:
        if self.norm_type == "deep_norm":
            self._refuse_unless("norm_type", norm_position="post")
        if self.initializer_type == "deep_net":
            self._refuse_unless("initializer_type", norm_type="deep_norm")

    def validate_roles(self) -> None:
        if self.add_cross_attention:
            # generate() makes the cache of the cross-attention like the other: a window would forget the encoder.
            decoder = {"attention_type": "softmax", "num_global_tokens": 0, "is_causal": True}
            self._refuse_unless("add_cross_attention", **decoder, sliding_window=None)
        if self.classifier_pooling == "mean":
            self._refuse_unless("classifier_pooling", add_pooling_layer=False)
        if self.attention_type != "softmax":
            self._refuse_unless("attention_type", is_causal=False, num_global_tokens=0, sliding_window=None)
        if self.num_global_tokens > 0:
            self._refuse_unless("num_global_tokens", is_causal=False)
            if self.sliding_window is None:
                raise ValueError(
                    f"num_global_tokens={self.num_global_tokens} does not go with sliding_window=None: set"
                    " sliding_window, or leave num_global_tokens at 0 for full attention."
                )

    def validate_positions(self) -> None:
        if self.position_embedding_type == "rope" and self.head_dim % 2:
            raise ValueError(
                f"head_dim ({self.head_dim}) must be even with position_embedding_type='rope', which rotates pairs."
            )
        # Keys that are projected along the length have no position of their own any more, and the kernel of FAVOR+
        # has no score to add a bias to.
        added = ("sinusoidal", "learned", "none")
        if self.attention_type == "linformer":
            self._refuse_unless("attention_type", position_embedding_type=added)
        if self.attention_type == "performer":
            self._refuse_unless("attention_type", position_embedding_type=(*added, "rope"))
        if self.num_global_tokens > 0:
            self._refuse_unless("num_global_tokens", position_embedding_type=(*added, "rope"))
        if self.attention_type == "performer":
            self._refuse_unless("attention_type", attention_dropout=0.0)
        buckets, sides = self.relative_attention_num_buckets, 1 if self.is_causal else 2
        if self.position_embedding_type == "relative" and buckets < 2 * sides:
            raise ValueError(
                f"relative_attention_num_buckets ({buckets}) must be at least {2 * sides} with"
                f" is_causal={self.is_causal}: two for either side that a token sees."
            )
        if self.position_embedding_type == "relative" and self.relative_attention_max_distance <= buckets // 2:
            raise ValueError(
                f"relative_attention_max_distance ({self.relative_attention_max_distance}) must be above half of"
                f" relative_attention_num_buckets ({buckets})."
            )

    def validate_experts(self) -> None:
        if self.num_local_experts < 1:
            return
        if self.num_experts_per_tok > self.num_local_experts:
            raise ValueError(
                f"num_experts_per_tok ({self.num_experts_per_tok}) must be at most num_local_experts"
                f" ({self.num_local_experts})."
            )
        self._refuse_unless("num_local_experts", mlp_bias=False)

    def validate_image(self) -> None:
        self._check_divisible("image_size", "patch_size")

    def _refuse_unless(self, field: str, **needed: Any) -> None:
        """Raise an error that names `field` and the other one that does not go with its value."""
        for other, values in needed.items():
            allowed = values if isinstance(values, tuple) else (values,)
            if (value := getattr(self, other)) not in allowed:
                raise ValueError(
                    f"{field}={getattr(self, field)!r} does not go with {other}={value!r}: use {other}="
                    + " or ".join(map(repr, allowed))
                    + f", or change {field}."
                )

    def validate_rope_type(self) -> None:
        rope_type = (self.rope_parameters or {}).get("rope_type", "default")
        allowed = ["default", *ROPE_INIT_FUNCTIONS]
        if rope_type not in allowed:
            raise ValueError(f"rope_parameters['rope_type'] is {rope_type!r}; allowed are {', '.join(allowed)}.")

    def validate_probabilities(self) -> None:
        for field in ("attention_dropout", "hidden_dropout", "layer_drop"):
            value = getattr(self, field)
            if not 0 <= value < 1:
                raise ValueError(f"{field} ({value}) must be at least 0 and below 1.")

    def validate_alibi_scaling(self) -> None:
        if self.alibi_scaling is None:
            return
        kind, factor = self.alibi_scaling.get("alibi_type"), self.alibi_scaling.get("factor")
        if kind not in ALIBI_SCALING_TYPES:
            raise ValueError(f"alibi_scaling['alibi_type'] is {kind!r}; allowed are {ALIBI_SCALING_TYPES}.")
        if unknown := set(self.alibi_scaling) - {"alibi_type", "factor"}:
            raise ValueError(
                f"alibi_scaling holds unknown keys {sorted(unknown)}; allowed are 'alibi_type', 'factor'."
            )
        if kind == "dynamic" and factor is not None:
            raise ValueError("alibi_scaling['factor'] does not go with 'dynamic', whose factor follows the length.")
        if kind != "dynamic" and (not isinstance(factor, int | float) or factor < 1):
            raise ValueError(f"alibi_scaling['factor'] is {factor!r}; {kind!r} needs a number of at least 1.")


def list_presets() -> list[str]:
    """The names that `BaichuanConfig.from_preset` takes."""
    return list(PRESETS)


def _nearest(name: str, names: Any) -> str:
    matches = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""
