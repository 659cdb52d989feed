"""The ways to quantise: what each is called, which library does it, and what that needs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..model.quantized import CPU_MULTIPLES


@dataclass(frozen=True)
class Method:
    """One way to quantise."""

    about: str
    extra: str  # of pyproject
    packages: tuple[str, ...]
    config: Callable[..., QuantizationConfigMixin]
    # What the inputs and outputs of a layer must be multiples of; others are left as they are.
    multiples: tuple[int, int] = (1, 1)
    # Compute capability of CUDA; None: any device.
    capability: tuple[int, int] | None = None
    calibrated: bool = False
    grouped: bool = False  # whether it has a group size, which the inputs must be a multiple of


def quantization_config(
    method: str,
    *,
    group_size: int = 128,
    skip: Sequence[str] = ("lm_head",),
    dtype: torch.dtype = torch.bfloat16,
    **calibration: Any,
) -> QuantizationConfigMixin:
    """What `from_pretrained(..., quantization_config=)` takes.

    Args:
        method: one of `METHODS`.
        group_size: neighbouring inputs that share a scale, where the method has groups.
        skip: modules that stay as they are, by name or pattern.
        dtype: that is computed in where weights are unpacked first.
        calibration: for `gptq`: `dataset` (texts) and `tokenizer`.

    Raises:
        ValueError: there is no such method, or the machine cannot compute it.
        ImportError: its library is missing.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r}: unknown; there are {', '.join(METHODS)}.")
    found = METHODS[method]
    for package in found.packages:
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"method {method!r} needs {package}: pip install 'baichuan-hf[{found.extra}]'")
    if found.capability is not None:
        have = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
        if have is None or have < found.capability:
            others = ", ".join(name for name, other in METHODS.items() if other.capability is None)
            raise ValueError(
                f"method {method!r} needs a GPU of compute capability {'.'.join(map(str, found.capability))} or newer,"
                f" this machine has {'.'.join(map(str, have)) if have else 'none'}. Anywhere run: {others}."
            )
    return found.config(group_size=group_size, skip=list(skip), dtype=dtype, **calibration)


def _torchao(name: str, **settings: Any) -> Callable[..., QuantizationConfigMixin]:
    def build(*, skip: list[str], **_: Any) -> QuantizationConfigMixin:
        import torchao.quantization
        from transformers import TorchAoConfig

        return TorchAoConfig(getattr(torchao.quantization, name)(**settings), modules_to_not_convert=skip)

    return build


def _torchao_int4(*, skip: list[str], group_size: int, **_: Any) -> QuantizationConfigMixin:
    # The layout of torch's own kernel; others need a package of kernels more.
    return _torchao("Int4WeightOnlyConfig", group_size=group_size, int4_packing_format="tile_packed_to_4d")(skip=skip)


def _torchao_int4_dynamic(*, skip: list[str], group_size: int, **_: Any) -> QuantizationConfigMixin:
    from ..training.quantization_aware import quantization_config

    config = quantization_config(group_size)
    config.modules_to_not_convert = skip
    return config


def _bitsandbytes_int8(*, skip: list[str], **_: Any) -> QuantizationConfigMixin:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)


def _bitsandbytes_4bit(kind: str) -> Callable[..., QuantizationConfigMixin]:
    def build(*, skip: list[str], dtype: torch.dtype, **_: Any) -> QuantizationConfigMixin:
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=kind,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=skip,
        )

    return build


def _gptq(
    *, skip: list[str], group_size: int, dataset: Sequence[str], tokenizer: Any, modules: list[list[str]], **_: Any
) -> QuantizationConfigMixin:
    from transformers import GPTQConfig

    return GPTQConfig(
        bits=4,
        group_size=group_size,
        dataset=list(dataset),
        tokenizer=tokenizer,
        modules_in_block_to_quantize=modules,
    )


_by_torchao = partial(Method, extra="torchao", packages=("torchao",))
_by_bitsandbytes = partial(Method, extra="quantization", packages=("bitsandbytes",))
# Also where a GPU could take other shapes, so that what is saved loads on a CPU.
_by_bitsandbytes_4bit = partial(_by_bitsandbytes, multiples=CPU_MULTIPLES)

METHODS: dict[str, Method] = {
    "int8": _by_torchao("weights of 8 bits", config=_torchao("Int8WeightOnlyConfig")),
    "int8-dynamic": _by_torchao(
        "weights and inputs of 8 bits", config=_torchao("Int8DynamicActivationInt8WeightConfig")
    ),
    "int4": _by_torchao(
        "weights of 4 bits in groups", config=_torchao_int4, multiples=(1, 8), capability=(8, 0), grouped=True
    ),
    "int4-dynamic": _by_torchao(
        "for models trained with --qat: weights rounded to 4 bits, inputs to 8; a file holds 8 for each",
        config=_torchao_int4_dynamic,
        grouped=True,
    ),
    "float8": _by_torchao("weights of 8-bit floats", config=_torchao("Float8WeightOnlyConfig")),
    "float8-dynamic": _by_torchao(
        "weights and inputs of 8-bit floats",
        config=_torchao("Float8DynamicActivationFloat8WeightConfig"),
        multiples=(16, 16),
        capability=(8, 9),
    ),
    "bnb-int8": _by_bitsandbytes("weights and inputs of 8 bits, outliers apart", config=_bitsandbytes_int8),
    "nf4": _by_bitsandbytes_4bit(
        "weights of 4 bits, spaced as a normal distribution", config=_bitsandbytes_4bit("nf4")
    ),
    "fp4": _by_bitsandbytes_4bit("weights of 4-bit floats", config=_bitsandbytes_4bit("fp4")),
    "gptq": Method(
        "weights of 4 bits in groups, fitted to texts",
        extra="gptq",
        packages=("gptqmodel", "optimum"),
        config=_gptq,
        multiples=(32, 32),
        calibrated=True,
        grouped=True,
    ),
}
