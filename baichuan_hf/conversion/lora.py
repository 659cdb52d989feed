"""LoRA adapters between Baichuan's W_pack and Llama's q_proj, k_proj and v_proj."""

from __future__ import annotations

import copy
import math
import os
import re
from collections import defaultdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..model.configuration_baichuan import NORMALIZED_HEAD_VOCAB_SIZE, BaichuanConfig
from .folders import copy_processors, written_anew
from .to_llama import llama_config, normalized_rows


ADAPTER_CONFIG = "adapter_config.json"
PARTS = ("q_proj", "k_proj", "v_proj")
GROUPED = "Such a Baichuan has q_proj, k_proj and v_proj too: the adapter fits it as it is."
PREFIX = "base_model.model."
LORA_KEY = re.compile(r"(.+)\.(lora_A\.weight|lora_B\.weight|lora_magnitude_vector)")


class Adapted(NamedTuple):
    """What `convert_adapter` has done."""

    modules: int  # pairs of matrices that were written
    rank: int  # the largest
    error: float | None  # of --rank: largest relative error of a layer's W_pack, in Frobenius norm
    base_checked: bool  # whether the config of the model that it was trained on was at hand


def convert_adapter(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    to: Literal["baichuan", "llama"],
    rank: int | None = None,
    base: str | os.PathLike | None = None,
    overwrite: bool = False,
) -> Adapted:
    """Write a PEFT LoRA adapter for the other layout of its base model.

    To Llama each W_pack's B is split by rows, and q, k and v share its A: exact, of the same rank. Back, the A's are
    stacked and the B's stand on a diagonal: exact, of the rank of all three together; `rank` cuts it off by a
    singular value decomposition. The factor of every pair (alpha / r, or alpha / sqrt(r) of rsLoRA) is kept.

    Args:
        source: a folder with adapter_config.json.
        destination: a new or empty folder, or with `overwrite` one that holds an adapter.
        to: the layout of the base model that the new adapter is for.
        rank: for `baichuan`: the rank of W_pack.
        base: folder or Hub name of that base model, for the new config; None keeps the old name.
        overwrite: whether to replace an adapter in `destination`.

    Raises:
        ValueError: `destination` holds an adapter, or the adapter cannot be converted; the message says why.
        OSError: `source` lacks weights.
    """
    from peft import PeftConfig
    from peft.utils import load_peft_weights

    source, destination = Path(source), Path(destination)
    if source.resolve() == destination.resolve():
        raise ValueError(f"{destination} is the source itself, which is never changed: name another folder.")
    if (destination / ADAPTER_CONFIG).exists() and not overwrite:
        raise ValueError(f"{destination} holds an adapter already: name another folder, or pass --overwrite.")
    if rank is not None and to == "llama":
        raise ValueError("--rank is for --to baichuan: to Llama the rank stays as it is.")
    config = PeftConfig.from_pretrained(str(source))
    check_kind(source, config)
    base_config = base_config_of(source, config.base_model_name_or_path)
    if isinstance(base_config, BaichuanConfig):
        llama_config(base_config)
    if to == "baichuan" and base_config is not None:
        heads, groups = base_config.num_attention_heads, base_config.num_key_value_heads
        if heads != groups:
            raise ValueError(f"{source}: its model has {heads} heads in {groups} groups. {GROUPED}")

    modules, others = by_module(load_peft_weights(str(source), device="cpu"))
    target_config = config_of_model(base) if to == "baichuan" else base_config
    others = {name: _head(source, name, tensor, to, target_config) for name, tensor in others.items()}
    if "lora_magnitude_vector" in modules.get("lm_head", {}):
        raise ValueError(f"{source}: DoRA on lm_head cannot be converted, its magnitudes are those of another head.")
    scales = {name: scale_of(name, config) for name in modules}
    error = None
    if to == "llama":
        modules, scales = _split(source, modules, scales)
    else:
        modules, scales, error = _fuse(source, modules, scales, rank, config.use_rslora)

    new = copy.deepcopy(config)
    _describe(
        new,
        modules,
        scales,
    )
    new.auto_mapping = None  # names our classes
    if base is not None:
        new.base_model_name_or_path = str(base)
    weights = {f"{PREFIX}{name}.{kind}": tensor for name, pair in modules.items() for kind, tensor in pair.items()}
    weights = {name: tensor.clone() for name, tensor in (weights | others).items()}
    with written_anew(destination) as folder:
        save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        new.save_pretrained(str(folder))
        copy_processors(source, folder, portable=to == "llama")
    ranks = [len(pair["lora_A.weight"]) for pair in modules.values()]
    return Adapted(len(modules), max(ranks), error, base_config is not None)


def is_adapter(folder: str | os.PathLike) -> bool:
    """Whether a folder holds an adapter of PEFT."""
    return (Path(folder) / ADAPTER_CONFIG).is_file()


Pair = dict[str, Tensor]  # lora_A.weight (r, in), lora_B.weight (out, r) and, of DoRA, lora_magnitude_vector (out,)


def check_kind(source: Path, config: Any) -> None:
    kind = getattr(config.peft_type, "value", config.peft_type)
    if kind != "LORA":
        raise ValueError(f"{source} is an adapter of the kind {kind}; only LORA can be converted.")
    for name, none in {"bias": "none", "lora_bias": False, "use_qalora": False, "target_parameters": None}.items():
        if (value := getattr(config, name, none)) not in (none, []):
            raise ValueError(f"{source}: {name}={value!r} cannot be converted, only {name}={none!r}.")


def base_config_of(source: Path, base: str | None) -> Any:
    """The config of the base model, kept beside the adapter by `baichuan-hf train` or in a folder; None elsewhere."""
    return config_of_model(source / "base_config") or config_of_model(base)


def config_of_model(folder: str | os.PathLike | None) -> Any:
    from transformers import AutoConfig

    if folder is None or not (Path(folder) / "config.json").is_file():
        return None
    return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def by_module(weights: dict[str, Tensor]) -> tuple[dict[str, Pair], dict[str, Tensor]]:
    """The matrices of each adapted linear layer, and all that is not of one, as trained heads and tokens."""
    modules: dict[str, Pair] = defaultdict(dict)
    others = {}
    for key, tensor in weights.items():
        if match := LORA_KEY.fullmatch(key):
            modules[match[1].removeprefix(PREFIX)][match[2]] = tensor
        else:
            others[key] = tensor
    return dict(modules), others


def _head(source: Path, name: str, tensor: Tensor, to: str, config: Any) -> Tensor:
    """A weight beside the pairs: that of a NormHead, which PEFT saves with one that is adapted, is folded for Llama.

    Args:
        config: of the model that has, or will have, our head; None if it is not at hand.
    """
    if ".lm_head." not in name or not name.endswith(".weight"):
        return tensor
    normalizes = getattr(config, "normalize_lm_head", len(tensor) >= NORMALIZED_HEAD_VOCAB_SIZE)
    if not normalizes:
        return tensor
    folded = normalized_rows(tensor)
    if to == "baichuan" and not torch.allclose(folded, tensor, atol=1e-2 / math.sqrt(tensor.shape[-1])):
        raise ValueError(
            f"{source} holds a trained head ({name}) whose rows have other lengths than 1: a NormHead would take their"
            " lengths away. Merge the adapter into its Llama, and convert that."
        )
    return folded


def _pattern(name: str, patterns: dict[str, Any] | None, default: Any) -> Any:
    """As PEFT looks up rank_pattern and alpha_pattern."""
    return next((value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", name)), default)


def scale_of(name: str, config: Any) -> float:
    """What B A is multiplied with."""
    rank = _pattern(name, config.rank_pattern, config.r)
    alpha = _pattern(name, config.alpha_pattern, config.lora_alpha)
    return alpha / math.sqrt(rank) if config.use_rslora else alpha / rank


def _split(
    source: Path, modules: dict[str, Pair], scales: dict[str, float]
) -> tuple[dict[str, Pair], dict[str, float]]:
    if not any(name.endswith("W_pack") for name in modules):
        raise ValueError(f"{source} has nothing on W_pack: it fits a Llama with the same modules as it is.")
    split, split_scales = {}, {}
    for name, pair in modules.items():
        if not name.endswith("W_pack"):
            split[name], split_scales[name] = pair, scales[name]
            continue
        for index, part in enumerate(PARTS):
            target = name.removesuffix("W_pack") + part
            # A is (r, in); B and DoRA's magnitudes have a row for each output.
            split[target] = {
                kind: tensor if kind == "lora_A.weight" else tensor.chunk(3)[index] for kind, tensor in pair.items()
            }
            split_scales[target] = scales[name]
    return split, split_scales


def _fuse(
    source: Path, modules: dict[str, Pair], scales: dict[str, float], rank: int | None, use_rslora: bool
) -> tuple[dict[str, Pair], dict[str, float], float | None]:
    fused: dict[str, Pair] = {}
    fused_scales: dict[str, float] = {}
    errors = []
    for name, pair in modules.items():
        attention, _, part = name.rpartition(".")
        if part not in PARTS:
            fused[name], fused_scales[name] = pair, scales[name]
            continue
        target = f"{attention}.W_pack"
        if target in fused:
            continue
        parts = [modules.get(f"{attention}.{part}") for part in PARTS]
        part_scales = [scales.get(f"{attention}.{part}") for part in PARTS]
        # One of the factors, so that equal ones leave every number as it is.
        scale = fused_scales[target] = next(scale for scale in part_scales if scale is not None)
        fused[target] = _one_below_the_other(source, attention, parts, part_scales, scale)
        if rank is not None:
            fused[target], error = _truncated(fused[target], rank)
            errors.append(error)
    if fused.keys() == modules.keys():
        raise ValueError(f"{source} has nothing on {', '.join(PARTS)}: it fits a Baichuan as it is.")
    return fused, fused_scales, max(errors, default=None)


def _one_below_the_other(
    source: Path, attention: str, parts: list[Pair | None], scales: list[float | None], scale: float
) -> Pair:
    """q, k and v as one: the A's stacked, the B's on a diagonal, zeros where a part has no adapter."""
    present = [part for part in parts if part is not None]
    rows = {len(part["lora_B.weight"]) for part in present}
    if len(rows) > 1:
        raise ValueError(
            f"{source}: q, k and v of {attention} have {sorted(rows)} rows, so its heads are grouped. {GROUPED}"
        )
    magnitudes = [part["lora_magnitude_vector"] for part in present if "lora_magnitude_vector" in part]
    if magnitudes and len(present) < 3:
        raise ValueError(
            f"{source}: DoRA on some of q, k and v only ({attention}) cannot become DoRA on W_pack, whose other rows"
            " would need magnitudes. Merge the adapter into its model, and convert that."
        )
    blocks = [
        torch.zeros(max(rows), 0) if part is None else part["lora_B.weight"] * (part_scale / scale)
        for part, part_scale in zip(parts, scales, strict=True)
    ]
    pair = {
        "lora_A.weight": torch.cat([part["lora_A.weight"] for part in present]),
        "lora_B.weight": torch.block_diag(*blocks).to(present[0]["lora_B.weight"].dtype),
    }
    return pair | ({"lora_magnitude_vector": torch.cat(magnitudes)} if magnitudes else {})


def _truncated(pair: Pair, rank: int) -> tuple[Pair, float]:
    """The best pair of a lower rank, and its relative error in Frobenius norm."""
    a, b = pair["lora_A.weight"], pair["lora_B.weight"]
    if not 1 <= rank <= len(a):
        raise ValueError(f"--rank is {rank}; the exact adapter has {len(a)}: give at least 1 and at most that.")
    if "lora_magnitude_vector" in pair:
        raise ValueError("--rank does not go with DoRA, whose magnitudes are of the exact matrix: leave it out.")
    # B A = Qb (Rb Ra') Qa', of which the middle is small.
    qb, rb = torch.linalg.qr(b.double())
    qa, ra = torch.linalg.qr(a.double().T)
    u, s, vh = torch.linalg.svd(rb @ ra.T)
    error = (s[rank:].square().sum() / s.square().sum().clamp(min=torch.finfo(s.dtype).tiny)).sqrt().item()
    root = s[:rank].sqrt()
    left, right = qb @ u[:, :rank] * root, root[:, None] * vh[:rank] @ qa.T
    return {"lora_A.weight": right.to(a.dtype), "lora_B.weight": left.to(b.dtype)}, error


def _describe(config: Any, modules: dict[str, Pair], scales: dict[str, float]) -> None:
    """Set targets, ranks and alphas in `config` to what the matrices are."""
    given = config.target_modules
    if isinstance(given, str) or config.exclude_modules or any("." in name for name in given):
        config.target_modules = set(modules)
        config.layers_to_transform = config.layers_pattern = config.exclude_modules = None
    else:
        config.target_modules = {name.rpartition(".")[2] for name in modules}
    ranks = {name: len(pair["lora_A.weight"]) for name, pair in modules.items()}
    root = math.sqrt if config.use_rslora else float
    alphas = {name: _whole(scales[name] * root(rank)) for name, rank in ranks.items()}
    config.r, config.rank_pattern = _default_and_others(ranks)
    config.lora_alpha, config.alpha_pattern = _default_and_others(alphas)


def _whole(number: float) -> float | int:
    return round(number) if math.isclose(number, round(number), rel_tol=1e-12) else number


def _default_and_others(values: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The commonest value, and the others by the last part of the name, or where that is not enough by all of it."""
    by_last = defaultdict(set)
    for name, value in values.items():
        by_last[name.rpartition(".")[2]].add(value)
    default = max(set(values.values()), key=list(values.values()).count)
    others = {}
    for name, value in values.items():
        last = name.rpartition(".")[2]
        if by_last[last] == {value}:
            others[last] = value
        else:
            others[re.escape(name)] = value
    return default, {name: value for name, value in others.items() if value != default}
