"""The config of a folder: what kind of Baichuan it is, what that was inferred from, and what speaks against it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..conversion import ARCHITECTURES
from ..model.chat_templates import USER_TOKEN_ID, chat_generation
from ..model.checkpoint_files import is_lfs_pointer
from ..model.configuration_baichuan import BaichuanConfig, infer_family
from ..model.presets import FAMILIES, PRESETS
from ..model.registration import AUTO_CLASSES
from ..model.sentencepiece_model import SentencePieceModel
from .report import Inferred, Report


PART = "config"
INFERRED_FROM = {
    "position_embedding_type": ("model_max_length", "max_position_embeddings"),
    "normalize_lm_head": ("vocab_size",),
}
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
# In files of every origin, and of no effect here; generation settings are read from the file of their own.
KNOWN_KEYS = {
    *("auto_map", "torch_dtype", "gradient_checkpointing", "quantization_config", "num_labels", "_name_or_path"),
    *("_from_model_config", "rope_theta", "rope_scaling", "_attn_implementation", "pretraining_tp"),
    *("user_token_id", "assistant_token_id", "temperature", "top_k", "top_p", "repetition_penalty", "do_sample"),
    *("max_new_tokens", "max_length"),
}


def check_configuration(folder: Path, report: Report) -> BaichuanConfig | None:
    """The config, or None with an error in `report` where it cannot be read or is of another model."""
    file = folder / "config.json"
    if not file.is_file() or is_lfs_pointer(file):
        return None  # an error among the files
    try:
        raw: dict[str, Any] = dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        report.error(
            PART, f"config.json is no JSON object: {error}", "copy it from the model that this one was made from"
        )
        return None
    if (kind := raw.get("model_type")) != BaichuanConfig.model_type:
        report.error(PART, f"model_type is {kind!r}, not 'baichuan'", _way_out_of_type(kind, folder))
        return None
    try:
        config = BaichuanConfig.from_pretrained(folder)
    except Exception as error:  # whatever values of any origin lead to
        message = " ".join(str(error).split())
        report.error(PART, message or repr(error), "correct the field in config.json")
        return None
    report.family = family_of(config)
    for name, value in infer_family(raw).items():
        found = {source: raw.get(source) for source in INFERRED_FROM[name]}
        report.inferred[name] = Inferred(value, ", ".join(f"{key}={given}" for key, given in found.items()))
    _check_inferred(folder, raw, config, report)
    _check_classes(raw, report)
    if unknown := sorted(set(raw) - set(BaichuanConfig.__dataclass_fields__) - KNOWN_KEYS):
        report.note(PART, f"keys without meaning here: {', '.join(unknown)}")
    return config


def family_of(config: BaichuanConfig) -> str:
    """Which of the published models a config is like, and by its sizes is or is not."""
    kind = (config.position_embedding_type, config.normalize_lm_head)
    head = "NormHead" if config.normalize_lm_head else "plain head"
    for name in FAMILIES:
        preset = PRESETS[name]
        if kind == (preset["position_embedding_type"], preset["normalize_lm_head"]):
            sizes = "its sizes" if _has_sizes_of(config, name) else "other sizes"
            return f"{name} ({kind[0]}, {head}), {sizes}"
    return f"of its own ({kind[0]}, {head})"


def _has_sizes_of(config: BaichuanConfig, preset: str) -> bool:
    return all(getattr(config, name) == PRESETS[preset][name] for name in SIZES)


def _check_inferred(folder: Path, raw: dict[str, Any], config: BaichuanConfig, report: Report) -> None:
    """Look for what contradicts the inferred values: the sizes of a published model, or its tokenizer."""
    positions, head = config.position_embedding_type, config.normalize_lm_head
    sizes_of = [name for name in FAMILIES if _has_sizes_of(config, name)]
    usual = {PRESETS[name]["position_embedding_type"] for name in sizes_of}
    if "position_embedding_type" in report.inferred and usual and positions not in usual:
        report.warning(
            PART,
            f"positions are taken for {positions!r}, but a model of these sizes ({', '.join(sizes_of)}) has"
            f" {usual.pop()!r}",
            'write "position_embedding_type" into config.json, with the value of the model that this one was made'
            " from",
        )
    generation = _generation_of(folder)
    second = "z_loss_weight" in raw or generation == 2
    if "normalize_lm_head" in report.inferred and (generation is not None or second) and head != second:
        sign = (
            "z_loss_weight in config.json" if "z_loss_weight" in raw else f"the tokenizer of generation {generation}"
        )
        report.warning(
            PART,
            f"the head is taken for {'a NormHead' if head else 'a plain one'}, but {sign} speaks for"
            f" {'a NormHead (Baichuan2)' if second else 'a plain one (Baichuan 1)'}",
            f'write "normalize_lm_head": {str(second).lower()} into config.json, if it was made from a'
            f" Baichuan{'2' if second else ' of the first generation'}",
        )


def _generation_of(folder: Path) -> int | None:
    """1 or 2, by the chat pieces of `tokenizer.model`; None if it has none or cannot be read."""
    try:
        return chat_generation(SentencePieceModel.from_file(folder / "tokenizer.model").token(USER_TOKEN_ID))
    except (OSError, ValueError):
        return None


def _check_classes(raw: dict[str, Any], report: Report) -> None:
    ours = {model_class.__name__ for model_class in AUTO_CLASSES.values()}
    for name in raw.get("architectures") or ():
        if name not in ours and name.replace("BaiChuan", "Baichuan") in ours:
            report.note(PART, f"the class is spelled {name}, and is taken for {name.replace('BaiChuan', 'Baichuan')}")
        elif name not in ours:
            report.warning(
                PART,
                f"architectures names {name}, which is none of {', '.join(sorted(ours))}: taken for a language model",
                "name the class of ours that has its head, if it is none",
            )
    if auto_map := raw.get("auto_map"):
        report.note(
            PART, f"auto_map points at code that is never run with `import baichuan_hf`: {', '.join(sorted(auto_map))}"
        )


def _way_out_of_type(kind: Any, folder: Path) -> str:
    if kind in ARCHITECTURES:
        return f"make it one: baichuan-hf convert {folder} DST --to baichuan"
    if kind is None or "baichuan" in str(kind).lower():
        return 'write "model_type": "baichuan" into config.json'
    return "load it with transformers' own classes; this package is for Baichuan models"
