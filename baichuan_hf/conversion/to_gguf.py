"""Ours into GGUF, the file of llama.cpp: weights, settings, tokenizer and chat template in one; streamed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.utils import logging

from ..model.configuration_baichuan import BaichuanConfig
from ..model.lm_head import NormHead
from ..model.positions import RotaryEmbedding
from .baichuan_folders import class_of, fitting, weights_to_convert
from .folders import check_source, written_anew
from .four_bit import config_of
from .gguf_vocabulary import add_vocabulary, read_vocabulary
from .to_llama import ROWS_AT_ONCE, check_components, llama_weights
from .weight_files import Weight, check_room, weights_of


if TYPE_CHECKING:
    import gguf

# What the package gguf writes by itself and is of use: its ternary types are for models that were trained so.
Quantization = Literal["q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
TYPES = {torch.float16: "F16", torch.bfloat16: "BF16"}
TORCH_DTYPES = {"F32": torch.float32} | {name: dtype for dtype, name in TYPES.items()}
# Those of transformers whose frequencies are the same at every length.
ROPE_TYPES = ("default", "linear", "yarn", "llama3")
# llama.cpp goes by the number of layers: only with these has its Baichuan RoPE or ALiBi, with others no positions.
BAICHUAN_LAYERS = {"rope": 32, "alibi": 40}
HEAD = "output.weight"


class Written(NamedTuple):
    """What `convert_to_gguf` has done."""

    file: Path
    architecture: str  # of llama.cpp
    parameters: int
    kind: str  # ggml's name of the type of the matrices
    left_out: list[str]  # weights in the files that are no part of the model
    lost: list[str]  # what is otherwise than in the source, in sentences


def convert_to_gguf(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    dtype: torch.dtype | None = None,
    quantize: Quantization | None = None,
    vocab_size: int | None = None,
    adapter: str | os.PathLike | None = None,
    overwrite: bool = False,
) -> Written:
    """Write the language model of a Baichuan folder as one GGUF file; one tensor is in memory at a time.

    A model of the shape of the originals becomes llama.cpp's `baichuan`. That one knows 32 layers with RoPE and 40
    with ALiBi; others become `llama` or, with ALiBi, `refact`, which compute the same. NormHead is folded. The file is
    renamed when all has gone well; `source` is only read, and no code in it is run.

    Args:
        source: a folder with config, weights and `tokenizer.model`.
        destination: a file `*.gguf`, or a folder for one whose name follows llama.cpp's convention.
        dtype: of the matrices; None keeps it. Norms and biases are float32.
        quantize: ggml's type of the matrices instead; those whose rows its blocks of 32 do not divide become F16.
        vocab_size: rows of embeddings and head, see `convert_baichuan_folder`.
        adapter: a PEFT adapter of the model, merged into it; the whole model is then in memory.
        overwrite: whether to replace a file.

    Raises:
        ImportError: the package gguf is missing.
        ValueError: the file exists, or llama.cpp has no equal of a setting; the message names it.
        OSError: `source` is no checkpoint folder or lacks weights or tokenizer, or the disk is too small.
    """
    try:
        import gguf
    except ImportError as error:
        raise ImportError("--to gguf needs the package gguf: pip install 'baichuan-hf[gguf]'") from error

    source, destination = Path(source).resolve(), Path(destination)
    if dtype is not None and quantize is not None:
        raise ValueError(f"dtype={dtype} and quantize={quantize!r} are both types of the matrices: give one.")
    check_source(source)
    config = config_of(source)
    model_class = class_of(config, source, "gguf")
    if model_class.__name__ != "BaichuanForCausalLM":
        raise ValueError(f"{source} holds a {model_class.__name__}: only a BaichuanForCausalLM can become GGUF.")
    architecture = architecture_of(config)
    vocabulary = read_vocabulary(source, vocab_size or config.vocab_size)
    weights = weights_to_convert(source, config, model_class, dtype=None, vocab_size=vocab_size, adapter=adapter)
    weights, left_out = fitting(weights, model_class, config, source)
    parameters = sum(weight.meta.numel() for weight in weights.values())
    kind = quantize.upper() if quantize else TYPES.get(dtype or next(iter(weights.values())).meta.dtype, "F32")

    metadata = gguf.Metadata.load(model_path=source, total_params=parameters)
    metadata.size_label = metadata.size_label or gguf.size_label(parameters, 0, 0, 0)
    metadata.sampling_penalty_repeat = gguf.Metadata.load_generation_config(source).get("repetition_penalty")
    if destination.suffix != ".gguf":
        parts = (metadata.basename, metadata.finetune, metadata.version, metadata.size_label)
        destination /= f"{gguf.naming_convention(metadata.name, *parts, kind)}.gguf"
    if destination.parent.resolve() == source:
        raise ValueError(f"{destination} is in the source, which is never changed: name another place.")
    if destination.exists() and not overwrite:
        raise ValueError(f"{destination} exists already: name another file, or pass --overwrite.")
    writer = gguf.GGUFWriter(None, architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    metadata.set_gguf_meta_model(writer)
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_settings(writer, config)
    add_vocabulary(writer, vocabulary)
    named = gguf_weights(weights, config, architecture)
    with written_anew(destination.parent, destination.name) as folder:
        narrow = write_file(writer, named, kind, folder / destination.name, normalize_head=config.normalize_lm_head)

    lost = vocabulary.lost
    if narrow:
        lost.append(f"{len(narrow)} matrices, first {narrow[0]}, have rows that {kind} does not divide: F16.")
    return Written(destination, architecture, parameters, kind, left_out, lost)


def architecture_of(config: BaichuanConfig) -> str:
    """The architecture of llama.cpp that computes the same.

    Raises:
        ValueError: there is none.
    """
    target = "one of llama.cpp's models"
    check_components(config, target)
    allowed: dict[str, tuple[Any, ...]] = {"position_embedding_type": ("rope", "alibi"), "hidden_act": ("silu",)}
    if config.position_embedding_type == "alibi":
        allowed |= {"alibi_scaling": (None,), "attention_bias": (False,), "mlp_bias": (False,)}
    for name, values in allowed.items():
        if (found := getattr(config, name)) not in values:
            raise ValueError(
                f"{name}={found!r} cannot become {target}, which have {' or '.join(map(repr, values))}"
                f" (position_embedding_type={config.position_embedding_type!r})."
            )
    rope_type = rope_type_of(config)
    if rope_type not in ROPE_TYPES or (config.rope_parameters or {}).get("partial_rotary_factor", 1) != 1:
        raise ValueError(
            f"rope_parameters={config.rope_parameters} cannot become {target}: whole heads are rotated there, by"
            f" frequencies of one of the types {', '.join(ROPE_TYPES)}."
        )
    original = (
        config.num_hidden_layers == BAICHUAN_LAYERS[config.position_embedding_type]
        and config.head_dim * config.num_attention_heads == config.hidden_size
        and not (config.attention_bias or config.mlp_bias)
        and rope_type == "default"
    )
    if original:
        return "baichuan"
    return {"rope": "llama", "alibi": "refact"}[config.position_embedding_type]


def rope_type_of(config: BaichuanConfig) -> str:
    """`"default"` also where nothing is rotated."""
    return (config.rope_parameters or {}).get("rope_type", "default")


def add_settings(writer: gguf.GGUFWriter, config: BaichuanConfig) -> None:
    """The sizes, and how tokens are rotated."""
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    # llama.cpp's Baichuan asks for it with ALiBi too.
    writer.add_rope_dimension_count(config.head_dim)
    if config.position_embedding_type == "rope":
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        if (factor := RotaryEmbedding(config).attention_scaling) != 1:
            writer.add_rope_scaling_attn_factors(factor)


def gguf_weights(weights: Mapping[str, Weight], config: BaichuanConfig, architecture: str) -> dict[str, Weight]:
    """Our weights by the names of GGUF: those of a Llama, with q and k in the order of ggml's rotation. NormHead is
    not folded yet."""
    named = gguf_names(weights, config, architecture)
    named.setdefault(HEAD, named["token_embd.weight"])
    if rope_type_of(config) != "default":
        # Of any scaling: what ggml divides the frequencies of RoPE as first published by.
        base, dim = config.rope_parameters["rope_theta"], config.head_dim
        unscaled = 1 / base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
        named |= weights_of({"rope_freqs.weight": unscaled / RotaryEmbedding(config).inv_freq})
    return named


def gguf_names(weights: Mapping[str, Weight], config: BaichuanConfig, architecture: str) -> dict[str, Weight]:
    """Any of our weights, or what has the rows of one, by the names and in the order of GGUF."""
    import gguf

    heads = {}
    if config.position_embedding_type == "rope":
        heads = {".q_proj.": config.num_attention_heads, ".k_proj.": config.num_key_value_heads}
    by_name = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(by_name[architecture], config.num_hidden_layers)
    named = {}
    for name, weight in llama_weights(weights, config, LlamaForCausalLM, fold_head=False).items():
        for part, count in heads.items():
            if part in name:
                weight = weight.then(partial(interleaved, heads=count))
        named[names.get_name(name, try_suffixes=(".weight", ".bias"))] = weight
    return named


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """The rows of q or k, where ggml rotates neighbours and transformers the two halves of a head."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def write_file(
    writer: gguf.GGUFWriter, weights: Mapping[str, Weight], kind: str, path: Path, *, normalize_head: bool
) -> list[str]:
    """Write all to a file, tensor by tensor; the names of those that `kind` does not fit.

    Raises:
        OSError: the disk has too little room, seen before anything is written.
    """
    import gguf

    kinds, narrow, needed = {}, [], 0
    for name, weight in weights.items():
        shape, wanted = weight.meta.shape, gguf.GGMLQuantizationType[kind]
        if weight.meta.ndim == 1:
            # ggml adds and multiplies by nothing else.
            wanted = gguf.GGMLQuantizationType.F32
        elif shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0]:
            wanted = gguf.GGMLQuantizationType.F16
            narrow.append(name)
        block, size = gguf.GGML_QUANT_SIZES[wanted]
        length = shape.numel() // block * size
        writer.add_tensor_info(name, shape, np.dtype(np.float32), length, raw_dtype=wanted)
        kinds[name] = wanted
        needed += length
    check_room(path.parent, needed)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    try:
        with logging.tqdm(total=needed, desc="Converting", unit="B", unit_scale=True) as progress:
            for name, weight in weights.items():
                data = encoded(weight.read(), kinds[name], normalize=normalize_head and name == HEAD)
                writer.write_tensor_data(data)
                progress.update(data.nbytes)
    finally:
        writer.close()
    return narrow


def encoded(weight: Tensor, kind: gguf.GGMLQuantizationType, *, normalize: bool) -> np.ndarray:
    """The bytes of a weight in a type of ggml, uint8.

    Made of some rows at a time, so that there is no copy in float32. With `normalize` of rows of length 1, as NormHead
    has them, which are rounded but once in this way.
    """
    import gguf

    weight = weight.reshape(-1, weight.shape[-1])
    data = np.empty(gguf.quant_shape_to_byte_shape(weight.shape, kind), dtype=np.uint8)
    for start in range(0, len(weight), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        rows = weight[part].float()
        if normalize:
            rows = F.normalize(rows, dim=-1, eps=NormHead.EPS)
        if kind.name in TORCH_DTYPES:
            data[part] = rows.to(TORCH_DTYPES[kind.name]).view(torch.uint8).numpy()
        else:
            data[part] = gguf.quants.quantize(rows.numpy(), kind)
    return data
