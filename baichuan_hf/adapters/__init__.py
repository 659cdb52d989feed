"""Adapters through PEFT: the layers of a Baichuan model that LoRA and its relatives adapt by default."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


# What published adapters target: the fused projection. A model with separate projections has no W_pack; PEFT adapts
# those names of the list that exist.
LORA_TARGETS = ["W_pack", "q_proj", "k_proj", "v_proj"]

_MAPPING = "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING"
_CONSTANTS = "peft.utils.constants"


def register_lora_targets() -> None:
    """Tell PEFT which layers to adapt in a model of type `baichuan` when the user names none.

    PEFT takes seconds to import, so it is told when somebody imports it.
    """
    if _CONSTANTS in sys.modules:
        _add_targets(sys.modules[_CONSTANTS])
    elif not any(isinstance(finder, _PeftFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _PeftFinder())


def _add_targets(constants: ModuleType) -> None:
    for model_type in ("baichuan", "encoder-decoder"):
        getattr(constants, _MAPPING).setdefault(model_type, LORA_TARGETS)


class _PeftFinder(importlib.abc.MetaPathFinder):
    """Finds PEFT's table of targets once, and adds ours right after it is loaded."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != _CONSTANTS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_add(module: ModuleType) -> None:
            execute(module)
            _add_targets(module)

        spec.loader.exec_module = execute_and_add  # type: ignore[method-assign]
        return spec
