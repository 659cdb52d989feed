"""An adapter of PEFT into the weights of its model."""

from __future__ import annotations

import os
import warnings

from transformers import PreTrainedModel


def merge_adapter(model: PreTrainedModel, adapter: str | os.PathLike) -> PreTrainedModel:
    """`model` with the adapter in its weights; trained heads and tokens take the place of its own.

    Raises:
        ValueError: the model is quantised, the adapter is of another model, or it has no place in the weights.
    """
    from peft import PeftModel

    name = model.name_or_path or type(model).__name__
    if getattr(model, "is_quantized", False):
        raise ValueError(f"{name} is quantised: merge {adapter} into the model that it was made from.")
    try:
        with warnings.catch_warnings():
            # Of weights that are missing, which the second loading tells.
            warnings.filterwarnings("ignore", message="Found missing adapter keys")
            adapted = PeftModel.from_pretrained(model, str(adapter))
        keys = adapted.load_adapter(str(adapter), adapted.active_adapter)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ValueError(_of_another_model(name, adapter, " ".join(str(error).split())[:300])) from error
    if not hasattr(adapted, "merge_and_unload"):
        kind = adapted.active_peft_config.peft_type.value
        raise ValueError(
            f"The adapter {adapter} is of the kind {kind}, which changes no weights that could be merged."
        )
    for problem, names in {"lacks": keys.missing_keys, "has besides": keys.unexpected_keys}.items():
        if names:
            raise ValueError(_of_another_model(name, adapter, f"it {problem} {len(names)} weights, first {names[0]}"))
    if getattr(model.config, "normalize_lm_head", False) and "lm_head" in adapted.base_model.targeted_module_names:
        raise ValueError(
            f"The adapter {adapter} adapts lm_head, which is a NormHead: it adds to the logits after their"
            " normalisation, so no weight of the head is the two in one. Convert model and adapter to Llama, where"
            " there is one, and merge there."
        )
    return adapted.merge_and_unload(safe_merge=True)


def _of_another_model(name: str, adapter: str | os.PathLike, reason: str) -> str:
    return f"The adapter {adapter} does not go with {name}, it is of another model: {reason}"
