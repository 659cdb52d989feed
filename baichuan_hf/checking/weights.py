"""The weights of a folder: names and shapes against the config, and what they hold, one tensor at a time."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from ..conversion.weight_files import Weight, open_weights
from ..evaluation import build_on_meta
from ..model.checkpoint_files import SIZE_FIELDS
from ..model.configuration_baichuan import BaichuanConfig
from .report import Report


PART = "weights"
# What wrappers of training put in front of every name.
PREFIXES = ("module.", "_orig_mod.", "base_model.model.")
SHOWN = 3


def check_weights(folder: Path, config: BaichuanConfig, report: Report) -> None:
    """Compare the weights with those of the model that the config describes, and look for NaN, infinity and zeros."""
    skeleton = build_on_meta(config)
    report.model_class = type(skeleton).__name__
    if report.has_errors("files"):
        report.note(PART, "not looked at: the files come first")
        return
    # A buffer that Baichuan-7B's files hold is computed now.
    ignored = re.compile("|".join(skeleton._keys_to_ignore_on_load_unexpected or ["$^"]))
    expected = skeleton.state_dict()
    weights = open_weights(folder)
    weights = {name: weight for name, weight in weights.items() if name in expected or not ignored.search(name)}
    sizes: Counter[str] = Counter()
    for weight in weights.values():
        sizes[str(weight.meta.dtype).removeprefix("torch.")] += weight.meta.numel()
    report.parameters, report.dtypes = sizes.total(), dict(sizes.most_common())
    if (quantization := getattr(config, "quantization_config", None)) is not None:
        method = dict(quantization).get("quant_method")
        report.note(PART, f"quantised ({method}): names and shapes are not compared, loading is the test")
    else:
        _check_dtypes(config, report)
        _check_names(weights, skeleton, folder, report)
        _check_shapes(weights, skeleton, config, folder, report)
    _check_values(weights, config, report)


def _check_dtypes(config: BaichuanConfig, report: Report) -> None:
    declared = str(config.dtype).removeprefix("torch.")
    floats = [dtype for dtype in report.dtypes if "float" in dtype]
    if len(floats) > 1:
        report.note(PART, f"of several dtypes: {', '.join(floats)}; loading takes them to the one of the config")
    if config.dtype is not None and floats and floats[0] != declared:
        report.note(PART, f"{floats[0]}, though config.json says {declared}, which is what dtype='auto' loads")


def _check_names(weights: Mapping[str, Weight], skeleton: PreTrainedModel, folder: Path, report: Report) -> None:
    tied = skeleton.all_tied_weights_keys
    expected = skeleton.state_dict().keys() - tied
    names = set(weights)
    base = f"{skeleton.base_model_prefix}."
    if not any(name.startswith(base) for name in names):
        # Of a model without a head, as transformers finds them too.
        names = {base + name if base + name in expected else name for name in names}
    report.missing = sorted(expected - names)
    report.unexpected = sorted(names - expected - tied.keys())
    if report.missing:
        report.error(
            PART,
            f"{len(report.missing)} of {len(expected)} are missing: {_first(report.missing)}",
            _way_out_of_missing(report, folder),
        )
    if report.unexpected:
        report.warning(
            PART,
            f"{len(report.unexpected)} have no place in a {report.model_class}, and are not read:"
            f" {_first(report.unexpected)}",
            "see the missing ones" if report.missing else "nothing to do, if the model is known to be whole without",
        )


def _way_out_of_missing(report: Report, folder: Path) -> str:
    common = os.path.commonprefix(report.unexpected)
    if prefix := next((prefix for prefix in PREFIXES if common.startswith(prefix)), None):
        return f"the names begin with {prefix!r}: save the model that training has wrapped, not the wrapper"
    if any(".q_proj." in name for name in report.unexpected) and any(".W_pack." in name for name in report.missing):
        return (
            'W_pack stands there as q_proj, k_proj and v_proj: a Llama under another name. Write "model_type": "llama"'
            ' and "architectures": ["LlamaForCausalLM"] into config.json, and convert it: baichuan-hf convert'
            f" {folder} DST --to baichuan"
        )
    if any("lora_" in name for name in report.unexpected):
        return "an adapter is mixed in: merge it with PEFT's merge_and_unload(), and save what that returns"
    layers = {name for name in report.missing if ".layers." in name}
    if layers:
        return "a shard is not in the index, or num_hidden_layers is too large: download the folder again"
    return "it was saved as another class: correct architectures in config.json, or train the new head"


def _check_shapes(
    weights: Mapping[str, Weight], skeleton: PreTrainedModel, config: BaichuanConfig, folder: Path, report: Report
) -> None:
    for name, expected in skeleton.state_dict().items():
        weight = weights.get(name, weights.get(name.removeprefix(f"{skeleton.base_model_prefix}.")))
        if weight is None or weight.meta.shape == expected.shape:
            continue
        fields = next((fields for part, fields in SIZE_FIELDS.items() if part in name), "hidden_size").split(" or ")
        rows = len(weight.meta)
        vocabulary = fields[0] == "vocab_size" and weight.meta.shape[1:] == expected.shape[1:]
        report.error(
            PART,
            f"{name} is {tuple(weight.meta.shape)}, but {tuple(expected.shape)} by config.json"
            f" ({', '.join(f'{field}={getattr(config, field)}' for field in fields)})",
            f'write "vocab_size": {rows}, or have all written anew: baichuan-hf convert {folder} DST --to baichuan'
            f" --vocab-size {rows}"
            if vocabulary
            else f"correct {' or '.join(fields)} in config.json",
        )


def _check_values(weights: Mapping[str, Weight], config: BaichuanConfig, report: Report) -> None:
    total = sum(weight.meta.nbytes for weight in weights.values())
    broken, zero = [], []
    with logging.tqdm(total=total, desc="Checking", unit="B", unit_scale=True) as progress:
        for name, weight in weights.items():
            tensor = weight.read()
            progress.update(tensor.nbytes)
            if not tensor.is_floating_point() or not tensor.numel():
                continue
            if tensor.element_size() == 1:
                tensor = tensor.float()
            smallest, largest = (value.item() for value in torch.aminmax(tensor))
            if not (abs(smallest) < float("inf") and abs(largest) < float("inf")):
                broken.append(f"{name} ({int((~tensor.isfinite()).sum()):,} of {tensor.numel():,})")
            elif smallest == largest == 0 and not name.endswith(".bias"):
                zero.append(name)
            elif name.endswith(("embed_tokens.weight", "lm_head.weight")):
                _note_zero_rows(name, tensor, config, report)
    if broken:
        report.error(
            PART,
            f"NaN or infinity in {_first(broken)}",
            "take an earlier checkpoint; in float16 numbers above 65,504 overflow: train and save in bfloat16",
        )
    if zero:
        report.error(
            PART,
            f"zero throughout: {_first(zero)}",
            "take an earlier checkpoint, or download the folder again: the save was cut off, or was of empty shards"
            " (DeepSpeed ZeRO-3, FSDP)",
        )


def _note_zero_rows(name: str, tensor: Tensor, config: BaichuanConfig, report: Report) -> None:
    """Rows that were added and never trained; that of padding is meant to be zero."""
    rows = (~tensor.any(dim=1)).nonzero().flatten().tolist()
    rows = [row for row in rows if row != config.pad_token_id]
    if rows:
        report.note(PART, f"{len(rows)} rows of {name} are zero, first {rows[0]}: tokens that were never trained")


def _first(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
