"""One model under `training.py`: does a step of training for each line it reads, and answers with what that took."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.integrations.liger import apply_liger_kernel

from .random_models import inference_dtype, random_config, random_model
from .timing import synchronize


def main() -> None:
    settings = json.loads(sys.argv[1])
    device = torch.device(settings["device"])
    torch.manual_seed(0)
    model = build(settings, device)
    if device.type == "cuda":
        # What a model was quantised from is neither part of its training nor to be kept from the models beside it.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    shape = (settings["batch_size"], settings["length"])
    text = torch.randint(3, settings["shape"]["vocab_size"], shape, device=device)
    for _ in sys.stdin:
        synchronize(device)
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = model(input_ids=text, labels=text, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronize(device)
        seconds = time.perf_counter() - start
        peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
        print(json.dumps({"seconds": seconds, "loss": loss.item(), "peak_gib": peak}), flush=True)


def build(settings: dict[str, Any], device: torch.device) -> torch.nn.Module:
    """The model with random weights, as `settings` say: adapters, kernels, compiled and checkpointed layers."""
    frozen = settings["method"] != "full"
    # As Trainer has it: float32 weights under autocast, but a frozen base in the precision it is used in.
    dtype = inference_dtype(device) if frozen else torch.float32
    config = random_config(
        settings["shape"], length=settings["length"], llama=settings["model"] == "llama", alibi=settings["alibi"]
    )
    model = random_model(config, dtype=dtype, device=device)
    if settings["method"] == "qlora":
        model = _in_four_bits(model)
    if settings["liger"]:
        apply_liger_kernel(model, None)
    if hasattr(model, "skip_logits"):
        model.skip_logits = True
    model.train()
    layers = model.model.layers
    if every := settings["checkpoint_every"]:
        model.gradient_checkpointing_enable({"use_reentrant": False}, every_n_layers=every)
    if not frozen:
        return _compiled(model, settings, layers)
    from peft import LoraConfig, get_peft_model

    model.enable_input_require_grads()
    adapted = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    return _compiled(adapted, settings, layers)


def _compiled(model: torch.nn.Module, settings: dict[str, Any], layers: torch.nn.ModuleList) -> torch.nn.Module:
    # Layer by layer: they share one compilation, which takes seconds where the whole model takes minutes.
    if settings["compiled"]:
        for layer in layers:
            layer.compile()
    return model


def _in_four_bits(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights as `from_pretrained` quantises them."""
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return type(model).from_pretrained(
        None,
        config=model.config,
        state_dict=model.state_dict(),
        dtype=torch.bfloat16,
        quantization_config=quantization,
        device_map={"": model.device},
    )


if __name__ == "__main__":
    main()
