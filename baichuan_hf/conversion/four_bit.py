"""The files of Baichuan2-7B-Chat-4bits and Baichuan2-13B-Chat-4bits: bitsandbytes' nf4 of 2023, its state in lists.

Beside each packed weight `X.weight.data` there stands `X.weight.quant_state`, as bitsandbytes 0.41 kept it in memory:
`[absmax, shape, dtype, blocksize, [offset, [absmax, code, blocksize, ...]], quant_type, code]`, where the inner list
quantises the outer absmax (or is None). Only that version loads it; the numbers are today's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from ..model.checkpoint_files import QUANT_STATE, holds_four_bit
from .weight import Weight


DATA = ".weight.data"
NESTED_BLOCK_SIZE = 256  # where the inner list does not say


@dataclass(frozen=True)
class FourBitWeight(Weight):
    """A weight in four bits; read, it is in the dtype that it was quantised from.

    `parts` gives the packed numbers and their state.
    """

    parts: Callable[[], tuple[Tensor, list[Any]]]

    def as_saved_today(self, name: str) -> dict[str, Weight]:
        """The same bits under the names that bitsandbytes gives them in a file since version 0.42."""
        packed, state = self.parts()
        absmax, shape, dtype, block_size, nested, kind, code = state
        meta = {"quant_type": kind, "blocksize": block_size, "dtype": _name(dtype), "shape": tuple(shape)}
        tensors = {"": packed, ".absmax": absmax, ".quant_map": code}
        if nested is not None:
            offset, (nested_absmax, nested_code, *rest) = nested
            meta |= {"nested_blocksize": rest[0] if rest else NESTED_BLOCK_SIZE, "nested_dtype": "float32"}
            meta |= {"nested_offset": offset.item()}
            tensors |= {".nested_absmax": nested_absmax, ".nested_quant_map": nested_code}
        packed_meta = torch.tensor(list(json.dumps(meta).encode()), dtype=torch.uint8)
        tensors[f".quant_state.bitsandbytes__{kind}"] = packed_meta
        # Copies: the code books of all weights are one in the file, which safetensors refuses.
        return {name + suffix: Weight(tensor.to("meta"), tensor.clone) for suffix, tensor in tensors.items()}


def join_four_bit(metas: Mapping[str, Any], read: Callable[[str], Any]) -> dict[str, Weight]:
    """The weights of such a file.

    Args:
        metas: what the file holds, on the meta device.
        read: gives the entry of a name.

    Raises:
        ValueError: a weight lacks its state, or the state is of another form.
    """
    weights: dict[str, Weight] = {}
    for name, meta in metas.items():
        if name.endswith(DATA) and name.removesuffix(DATA) + QUANT_STATE in metas:
            continue
        if not name.endswith(QUANT_STATE):
            weights[name] = Weight(meta.detach(), partial(read, name))
            continue
        module = name.removesuffix(QUANT_STATE)
        if module + DATA not in metas or not isinstance(meta, list | tuple) or len(meta) != 7:
            raise ValueError(
                f"{name} is not the state of {module}{DATA} in seven entries, as bitsandbytes 0.41 has it: get the"
                " model in full precision."
            )
        shape, dtype = meta[1:3]

        parts = partial(_read_both, read, module + DATA, name)
        plain = torch.empty(shape, dtype=dtype, device="meta")
        weights[f"{module}.weight"] = FourBitWeight(plain, partial(_read_plain, parts), parts)
    return weights


def config_of(source: Path) -> Any:
    """The config of a folder; without its quantisation if that is this one, whose weights are read as plain ones."""
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if getattr(config, "quantization_config", None) and holds_four_bit(source):
        del config.quantization_config
    return config


def as_saved_today(weights: Mapping[str, Weight], config: Any) -> dict[str, Weight]:
    """`weights`, some of which are in four bits, with these as bitsandbytes saves them now, and `config` saying so."""
    written: dict[str, Weight] = {}
    for name, weight in weights.items():
        written |= weight.as_saved_today(name) if isinstance(weight, FourBitWeight) else {name: weight}
    first = next(weight for weight in weights.values() if isinstance(weight, FourBitWeight))
    _, (_, _, dtype, _, nested, kind, _) = first.parts()
    # Written out: transformers' BitsAndBytesConfig cannot be built where bitsandbytes is not installed.
    config.quantization_config = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": kind,
        "bnb_4bit_use_double_quant": nested is not None,
        "bnb_4bit_compute_dtype": _name(dtype),
    }
    return written


def dequantized(packed: Tensor, state: list[Any]) -> Tensor:
    """The weight that four-bit numbers stand for: `code[number] * absmax` of its block, two numbers a byte.

    Args:
        packed: uint8, the first number in the upper half of a byte.
        state: as in the module's docstring.
    """
    absmax, shape, dtype, block_size, nested, _, code = state
    if nested is not None:
        offset, (nested_absmax, nested_code, *rest) = nested
        scales = nested_absmax.repeat_interleave(rest[0] if rest else NESTED_BLOCK_SIZE)[: absmax.numel()]
        absmax = nested_code[absmax.flatten().int()] * scales + offset
    numbers = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], dim=1).flatten()[: shape.numel()]
    values = code.float()[numbers.int()]
    scales = absmax.float().repeat_interleave(block_size)[: values.numel()]
    return values.mul_(scales).to(dtype).view(shape)


def _read_both(read: Callable[[str], Any], *names: str) -> tuple[Tensor, list[Any]]:
    data, state = map(read, names)
    return data, state


def _read_plain(parts: Callable[[], tuple[Tensor, list[Any]]]) -> Tensor:
    return dequantized(*parts())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
