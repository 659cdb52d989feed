"""The last test of a folder: it loads, and what it computes are numbers and words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoTokenizer

from ..conversion.folders import has_tokenizer
from ..model.configuration_baichuan import BaichuanConfig
from ..model.registration import AUTO_CLASSES
from .report import Report


PART = "generation"
PROMPT = "登鹳雀楼->王之涣\n夜雨寄北->"
NEW_TOKENS = 16


def check_generation(folder: Path, config: BaichuanConfig, report: Report, *, device: str = "auto") -> None:
    """Load the model as a user does, and let it compute the logits of a text; a language model writes on greedily."""
    needed = sum(getattr(torch, dtype).itemsize * count for dtype, count in report.dtypes.items())
    on_cpu = device == "cpu" or (device == "auto" and not torch.accelerator.is_available())
    if on_cpu and needed > (free := psutil.virtual_memory().available):
        report.note(
            PART,
            f"not tried: the weights take {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB of memory are free",
            "run it on a machine with more",
        )
        return
    classes = {found.__name__: found for found in AUTO_CLASSES.values()}
    model_class = classes[report.model_class or "BaichuanForCausalLM"]
    if has_tokenizer(folder):
        ids = AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt").input_ids
    else:
        ids = torch.arange(3, 19)[None]
    try:
        model = model_class.from_pretrained(folder, dtype="auto", device_map=device).eval()
        ids = ids.to(model.device)
        with torch.no_grad():
            outputs = model(**{"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    except Exception as error:  # whatever a folder of any origin leads to is what this looks for
        report.error(PART, f"it fails: {' '.join(str(error).split())[:300]}", "see the errors and warnings above")
        return
    numbers = outputs.logits if "logits" in outputs else outputs[0]
    if not numbers.isfinite().all():
        report.error(
            PART,
            f"the {model.dtype} model computes NaN or infinity, though its weights are finite",
            "load it in float32 or bfloat16: from_pretrained(..., dtype='bfloat16')",
        )
    elif model.can_generate() and config.is_causal:
        _write(folder, model, ids, report)


def _write(folder: Path, model: Any, ids: torch.Tensor, report: Report) -> None:
    written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False)
    new = written[0, ids.shape[1] :].tolist()
    report.generated = str(new)
    if has_tokenizer(folder):
        report.generated = AutoTokenizer.from_pretrained(folder).decode(new, skip_special_tokens=True)
    if len(set(new)) == 1 and len(new) == NEW_TOKENS:
        report.warning(
            PART,
            f"it writes one token over and over: {report.generated!r}",
            "see what was inferred above; positions or head of another kind give such texts",
        )
