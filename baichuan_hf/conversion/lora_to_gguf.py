"""A LoRA adapter as a GGUF file of its own, which llama.cpp puts upon the GGUF file of its model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from ..model.configuration_baichuan import BaichuanConfig
from .folders import written_anew
from .lora import base_config_of, by_module, check_kind, config_of_model, scale_of
from .to_gguf import architecture_of, gguf_names
from .weight_files import weights_of


# PEFT saves the head under an adapted one; it is as in the model.
UNCHANGED = "lm_head.base_layer.weight"


class WrittenAdapter(NamedTuple):
    """What `convert_adapter_to_gguf` has done."""

    file: Path
    architecture: str  # of llama.cpp, as of the model's file
    modules: int
    rank: int  # the largest


def convert_adapter_to_gguf(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    base: str | os.PathLike | None = None,
    overwrite: bool = False,
) -> WrittenAdapter:
    """Write a PEFT LoRA adapter of a Baichuan for llama.cpp, in float32, with the factor of each pair in its B.

    W_pack's B is split, and q and k are in the order of ggml's rotation, as in the file of the model.

    Args:
        source: a folder with adapter_config.json.
        destination: a file `*.gguf`, or a folder for one with the name of `source`.
        base: folder of the model; None takes the config beside the adapter, or the folder that the adapter names.
        overwrite: whether to replace a file.

    Raises:
        ImportError: the package gguf is missing.
        ValueError: the file exists, the model's config is not at hand or no Baichuan's, or the adapter holds what
            llama.cpp has no place for; the message names it.
        OSError: `source` lacks weights.
    """
    try:
        import gguf
    except ImportError as error:
        raise ImportError("--to gguf needs the package gguf: pip install 'baichuan-hf[gguf]'") from error
    from peft import PeftConfig
    from peft.utils import load_peft_weights

    source, destination = Path(source), Path(destination)
    config = PeftConfig.from_pretrained(str(source))
    check_kind(source, config)
    named = config.base_model_name_or_path
    base_config = base_config_of(source, named) if base is None else config_of_model(base)
    if not isinstance(base_config, BaichuanConfig):
        raise ValueError(
            f"{base or named}, the model of {source}, is no folder of a Baichuan, whose config is needed: give --base."
        )
    modules, others = by_module(load_peft_weights(str(source), device="cpu"))
    if left := [name for name in others if not name.endswith(UNCHANGED)]:
        raise ValueError(f"{source} holds {left[0]}, which is no LoRA: merge it, by `convert MODEL DST --adapter`.")
    if dora := [name for name, pair in modules.items() if "lora_magnitude_vector" in pair]:
        raise ValueError(f"{source} has DoRA on {dora[0]}, which llama.cpp has not: merge it, by `convert --adapter`.")
    if destination.suffix != ".gguf":
        destination /= f"{source.resolve().name}.gguf"
    if destination.exists() and not overwrite:
        raise ValueError(f"{destination} exists already: name another file, or pass --overwrite.")

    architecture = architecture_of(base_config)
    writer = gguf.GGUFWriter(None, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_name(source.resolve().name)
    # None of its own: with 0 llama.cpp takes the pairs as they are.
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 0)
    for module, pair in modules.items():
        a, b = pair["lora_A.weight"].float(), pair["lora_B.weight"].float() * scale_of(module, config)
        # B has the rows of the weight that it is for.
        for name, weight in gguf_names(weights_of({f"{module}.weight": b}), base_config, architecture).items():
            writer.add_tensor(f"{name}.lora_a", a.numpy())
            writer.add_tensor(f"{name}.lora_b", weight.read().contiguous().numpy())
    with written_anew(destination.parent, destination.name) as folder:
        writer.write_header_to_file(folder / destination.name)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return WrittenAdapter(
        destination, architecture, len(modules), max(len(pair["lora_A.weight"]) for pair in modules.values())
    )
