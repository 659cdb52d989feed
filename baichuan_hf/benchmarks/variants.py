"""The small models of `baichuan-hf bench architectures`: each differs from one baseline in one component."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ..evaluation.size import build_on_meta, count_parameters
from ..model.configuration_baichuan import BaichuanConfig
from ..model.presets import PRESETS


HEAD_DIM = 32
# What a feed-forward layer's width is a multiple of, and how near the parameters must come to the baseline's.
WIDTH_STEP = 8
TOLERANCE = 0.01


@dataclass(frozen=True)
class Settings:
    """What all runs of a comparison share.

    Args:
        steps: of the optimiser.
        batch_size: rows of a step.
        length: tokens of a row.
        hidden_size: width of the shallow models; the deep ones have half of it.
        num_hidden_layers: of the shallow models.
        deep_layers: of the deep ones.
        learning_rates: peaks to try with the first seed; the best one of a variant is taken for its other seeds.
        seeds: runs of a variant at that rate. A seed fixes the initial weights and the order of the rows.
    """

    steps: int = 500
    batch_size: int = 32
    length: int = 256
    hidden_size: int = 256
    num_hidden_layers: int = 4
    deep_layers: int = 24
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    seeds: int = 3

    @property
    def eval_lengths(self) -> tuple[int, ...]:
        """The trained length and its multiples: tokens that a model sees at once when it is evaluated."""
        return tuple(self.length * factor for factor in (1, 2, 4, 8))


@dataclass(frozen=True)
class Variant:
    """One value of one component.

    Args:
        axis: the component.
        name: its value.
        changes: of the baseline's config.
        deep: whether it changes the deep baseline.
        equal: which count of parameters equals the baseline's, `total` or `active`.
    """

    axis: str
    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    deep: bool = False
    equal: str = "total"

    @property
    def key(self) -> str:
        return f"{self.axis}: {self.name}" if self.changes else "baseline, deep" if self.deep else "baseline"


def list_variants(settings: Settings) -> list[Variant]:
    """Every variant; the baseline is one of each axis, under the name of its component there."""
    post: dict[str, Any] = {"norm_position": "post", "final_norm": False}
    positions: dict[str, dict[str, Any]] = {
        "rope": {},
        "alibi": {"position_embedding_type": "alibi"},
        # The paper's factor: without it the sines would drown the embeddings.
        "sinusoidal": {
            "position_embedding_type": "sinusoidal",
            "embedding_multiplier": math.sqrt(settings.hidden_size),
        },
        # No more than are trained: there is nothing to learn the others from.
        "learned": {"position_embedding_type": "learned", "max_position_embeddings": settings.length},
        "relative (T5)": {"position_embedding_type": "relative"},
        "none": {"position_embedding_type": "none"},
    }
    norm_positions: dict[str, dict[str, Any]] = {
        "pre": {},
        "post": post,
        "sandwich": {"norm_position": "sandwich"},
        "post, layer_norm": {**post, "norm_type": "layer_norm"},
        "post, deep_norm": {**post, "norm_type": "deep_norm"},
    }
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    axes: dict[str, dict[str, dict[str, Any]]] = {
        "norm": {"rms_norm": {}, "layer_norm": {"norm_type": "layer_norm"}},
        "norm position": norm_positions,
        f"norm position, {settings.deep_layers} layers": norm_positions,
        "feed-forward": {
            "SwiGLU": {},
            "GeGLU": {"hidden_act": "gelu"},
            "ReGLU": {"hidden_act": "relu"},
            "GLU": {"hidden_act": "sigmoid"},
            "silu": {"gated_mlp": False},
            "gelu": {"gated_mlp": False, "hidden_act": "gelu"},
            "relu": {"gated_mlp": False, "hidden_act": "relu"},
        },
        "positions": positions,
        "attention": {
            "multi-head": {},
            "grouped-query, 2 groups": {"num_key_value_heads": 2},
            "multi-query": {"num_key_value_heads": 1},
            f"sliding window, {settings.length // 4}": {"sliding_window": settings.length // 4},
        },
        "experts": {"dense": {}, "4, equal active": experts, "4, equal total": experts},
        "initialisation": {
            "normal, 0.02": {},
            **{name: {"initializer_type": name} for name in ("xavier_uniform", "kaiming_normal", "small")},
        },
    }
    return [
        Variant(axis, name, changes, deep=axis.endswith("layers"), equal="active" if "active" in name else "total")
        for axis, values in axes.items()
        for name, changes in values.items()
    ]


def build_config(settings: Settings, variant: Variant) -> BaichuanConfig:
    """The variant's config, its feed-forward layers as wide as gives it the parameters of the shallow baseline.

    Raises:
        ValueError: no width comes near enough.
    """
    target = count_parameters(build_on_meta(_config(settings, Variant("", ""), _baseline_width(settings))))["total"]
    if not variant.changes and not variant.deep:
        return _config(settings, variant, _baseline_width(settings))

    def count(width: int) -> int:
        return count_parameters(build_on_meta(_config(settings, variant, width)))[variant.equal]

    least, per_step = count(WIDTH_STEP), count(2 * WIDTH_STEP) - count(WIDTH_STEP)
    width = WIDTH_STEP * max(1, 1 + round((target - least) / per_step))
    if abs(count(width) / target - 1) > TOLERANCE:
        raise ValueError(
            f"{variant.key}: no feed-forward width gives it the baseline's {target:,} parameters; the nearest is"
            f" {width} with {count(width):,}. Take a larger hidden_size or fewer deep_layers."
        )
    return _config(settings, variant, width)


def _baseline_width(settings: Settings) -> int:
    """8/3 of the hidden size, LLaMA's proportion."""
    return WIDTH_STEP * round(settings.hidden_size * 8 / 3 / WIDTH_STEP)


def _config(settings: Settings, variant: Variant, intermediate_size: int) -> BaichuanConfig:
    hidden_size = settings.hidden_size // 2 if variant.deep else settings.hidden_size
    values = {
        "vocab_size": PRESETS["tiny"]["vocab_size"],
        "hidden_size": hidden_size,
        "num_hidden_layers": settings.deep_layers if variant.deep else settings.num_hidden_layers,
        "num_attention_heads": hidden_size // HEAD_DIM,
        "max_position_embeddings": settings.eval_lengths[-1],
        "position_embedding_type": "rope",
        "normalize_lm_head": False,
    }
    if variant.deep:
        # The embedding of the padding token, here <unk> of WikiText, stays zero. A row that begins with it is zero in
        # every layer, and the gradients of so many norms of zero are beyond float32: a step of NaN.
        values["pad_token_id"] = None
    return BaichuanConfig(**(values | {"intermediate_size": intermediate_size} | variant.changes))
