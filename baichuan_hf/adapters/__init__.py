"""What other libraries are told of Baichuan models: PEFT which layers to adapt by default, Liger how to patch them."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


# What published adapters target: the fused projection. A model with separate projections has no W_pack; PEFT adapts
# those names of the list that exist.
LORA_TARGETS = ["W_pack", "q_proj", "k_proj", "v_proj"]


def register_adapters() -> None:
    """Tell PEFT which layers to adapt in a model of type `baichuan` when the user names none, and Liger what
    `use_liger_kernel` of TrainingArguments is to change in one.

    Both take seconds to import, so they are told when somebody imports them.
    """
    _when_imported("peft.utils.constants", _add_lora_targets)
    _when_imported("liger_kernel.transformers.monkey_patch", _add_liger_function)


def _add_lora_targets(constants: ModuleType) -> None:
    for model_type in ("baichuan", "encoder-decoder"):
        constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.setdefault(model_type, LORA_TARGETS)


def _add_liger_function(monkey_patch: ModuleType) -> None:
    from .liger import apply_liger_kernel_to_baichuan

    monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN.setdefault("baichuan", apply_liger_kernel_to_baichuan)


def _when_imported(name: str, action: Callable[[ModuleType], None]) -> None:
    """Call `action` with the module of that name: now if it is there, else right after it is loaded."""
    if name in sys.modules:
        action(sys.modules[name])
    elif not any(isinstance(finder, _Finder) and finder.name == name for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(name, action))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module, once, and has something done with it when it is loaded."""

    def __init__(self, name: str, action: Callable[[ModuleType], None]) -> None:
        self.name = name
        self.action = action

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_act(module: ModuleType) -> None:
            execute(module)
            self.action(module)

        spec.loader.exec_module = execute_and_act  # type: ignore[method-assign]
        return spec
