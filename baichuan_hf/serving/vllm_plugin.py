"""What vLLM loads at its start, in each of its processes: pyproject.toml names it in the group vllm.general_plugins.

To import this package is half of it: config and tokenizer are then found without remote code. vLLM itself and
`vllm_model.py` are imported once a Baichuan model is asked for, so that no other model depends on them.
"""

from __future__ import annotations

import logging
from typing import Any

from packaging.specifiers import SpecifierSet


ARCHITECTURES = ("BaichuanForCausalLM", "BaiChuanForCausalLM")  # the second in the first Baichuan-7B
TESTED = ">=0.31,<0.33"

# Below "vllm", whose handler prints it.
logger = logging.getLogger("vllm.baichuan_hf")


def register() -> None:
    """Tell vLLM where the model is; calling it again changes nothing."""
    from vllm import ModelRegistry

    for name in ARCHITECTURES:
        ModelRegistry.register_model(name, f"{__name__}:BaichuanForCausalLM")


def __getattr__(name: str) -> Any:
    if name != "BaichuanForCausalLM":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import vllm

    doubt = untested(vllm.__version__)
    if doubt:
        logger.warning(doubt)
    try:
        from .vllm_model import BaichuanForCausalLM
    except ImportError as error:
        raise ImportError(f"{doubt or 'This vLLM lacks what Baichuan needs.'} ({error})") from error
    return BaichuanForCausalLM


def untested(version: str) -> str | None:
    """What to say of a vLLM that is outside the tested range, and None for one within."""
    if SpecifierSet(TESTED).contains(version, prereleases=True):
        return None
    return (
        f"Baichuan models are tested with vLLM {TESTED}, and this is {version}: they may fail to load or give other"
        " text than transformers does. To be sure, pip install 'baichuan-hf[vllm]'."
    )
