"""Model folders into graphs."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, DynamicCache, PreTrainedModel

from ..checkpoints import resolve_model
from ..conversion.folders import check_folders, copy_processors, written_anew
from ..hub.folder_card import auto_class_of
from ..model.configuration_baichuan import BaichuanConfig


class Format(NamedTuple):
    """What a graph can be written as."""

    name: str  # of transformers' exporter
    packages: tuple[str, ...]  # that write and run it


FORMATS = {"onnx": Format("onnx", ("onnx", "onnxscript", "onnxruntime")), "torch": Format("dynamo", ())}
# Of the largest number of an output.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class Exported(NamedTuple):
    """What `export_folder` has done."""

    model_class: str
    files: list[str]
    difference: float  # the largest from the model, of an output that the graph gave for inputs of other sizes
    largest: float  # of those outputs
    copied: list[str]  # what else is in the new folder


def export_folder(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    to: str = "onnx",
    cache: bool = True,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
) -> Exported:
    """Write a model as one graph, for batches and texts of any length, with its tokenizer.

    A language model's graph takes and gives the keys and values of a cache, of any length and at first none, unless
    `cache` is False. The folder is written when the graph, read back and run, has given what the model gives; `source`
    is only read, and no code in it is run.

    Args:
        source: folder of a Baichuan model, or `tiny`.
        destination: a new or empty folder, or with `overwrite` one that holds a model.
        to: one of `FORMATS`.
        cache: of a language model.
        dtype: that the graph computes in.
        overwrite: whether to replace what is in `destination`.

    Raises:
        ImportError: transformers is older than 5.23, or a package of the format is missing.
        ValueError: the model is quantised or of a kind that has no graph, or its graph computes something else.
        OSError: `source` is no checkpoint folder, or lacks weights.
    """
    try:
        from transformers.exporters import AutoHfExporter, ExportedModel
    except ImportError as error:
        raise ImportError(
            f"export needs transformers 5.23 or newer, this is {transformers.__version__}:"
            " pip install 'baichuan-hf[export]'"
        ) from error
    exporter_name, packages = FORMATS[to]
    if missing := [package for package in packages if importlib.util.find_spec(package) is None]:
        raise ImportError(f"--to {to} needs {', '.join(missing)}: pip install 'baichuan-hf[export]'")

    folder, destination = Path(resolve_model(str(source))), Path(destination)
    check_folders(folder, destination, overwrite)
    model = load(folder, dtype)
    cached = cache and model.can_generate() and model.config.is_causal
    model.config.use_cache = cached
    exporter = AutoHfExporter.from_config({"export_format": exporter_name})
    if cached and "sliding_attention" in model.config.layer_types:
        raise ValueError(
            f"{source}: sliding_window={model.config.sliding_window} has a cache that drops what is out of sight, and"
            " a graph cannot follow its size: give --no-cache."
        )
    try:
        exported = exporter.export(model, draw_inputs(model, 2, 5 if cached else 0, 3), {"dynamic": True})
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{source} cannot be traced, the path that it takes depends on its inputs: {reason}"
        ) from error
    if to == "torch":
        # Pickled into the file, they would have to be trusted by whoever loads it.
        exported.program.example_inputs = None
    with written_anew(destination) as temporary:
        exported.save_pretrained(temporary)
        files = sorted(path.name for path in temporary.iterdir())
        if model.can_generate():
            model.generation_config.save_pretrained(temporary)
        copied = copy_processors(folder, temporary, portable=True)
        difference, largest = compare(model, ExportedModel.from_pretrained(temporary), 4 if cached else 0)
        if not difference <= TOLERANCE[dtype] * largest:
            raise ValueError(
                f"{source}: the graph gives other numbers than the model (by up to {difference:.2g} of"
                f" {largest:.2g}), so it was not written."
            )
    return Exported(type(model).__name__, files, difference, largest, copied)


def load(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a folder, of the class that its config names.

    Raises:
        ValueError: it is no Baichuan, or quantised.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if not isinstance(config, BaichuanConfig):
        raise ValueError(f"{folder}: model_type is {config.model_type!r}, not 'baichuan': convert it first.")
    if getattr(config, "quantization_config", None):
        raise ValueError(f"{folder} is quantised: export the model that it was made from.")
    name = (config.architectures or ["BaichuanForCausalLM"])[0].replace("BaiChuan", "Baichuan")
    return getattr(transformers, auto_class_of(name)).from_pretrained(folder, dtype=dtype).eval()


@torch.no_grad()
def draw_inputs(model: PreTrainedModel, rows: int, past: int, length: int, *, padding: int = 0) -> dict[str, Any]:
    """Random inputs of a model: `length` tokens a row behind `past` in a cache (0: without one), or images.

    Args:
        padding: so many tokens on the left of the first row are padding.
    """
    config, generator = model.config, torch.Generator().manual_seed(0)
    if model.main_input_name == "pixel_values":
        shape = (rows, config.num_channels, config.image_size, config.image_size)
        return {"pixel_values": torch.randn(shape, generator=generator).to(model.dtype)}
    ids = torch.randint(config.vocab_size, (rows, past + length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    inputs: dict[str, Any] = {"input_ids": ids[:, past:], "attention_mask": mask}
    if past:
        cache = DynamicCache(config=config)
        model(input_ids=ids[:, :past], attention_mask=mask[:, :past], past_key_values=cache)
        inputs["past_key_values"] = cache
    return inputs


@torch.no_grad()
def compare(model: PreTrainedModel, graph: Any, past: int) -> tuple[float, float]:
    """The largest difference and the largest number of the first output, for a batch of another size than the
    traced one, with padding; `past` tokens are in a cache."""
    # Drawn for each, as a model adds to the cache that it is given.
    both = {run: draw_inputs(model, 3, past, 7, padding=2) for run in (graph, model)}
    (found, *_), (expected, *_) = (
        (value for value in run(**inputs).values() if isinstance(value, Tensor)) for run, inputs in both.items()
    )
    mask = both[model].get("attention_mask")
    difference = (found - expected).abs()
    if mask is not None and difference.shape[:2] == mask[:, past:].shape:
        # What padding gives is nobody's matter.
        difference = difference[mask[:, past:].bool()]
    return difference.max().item(), expected.abs().max().item()
