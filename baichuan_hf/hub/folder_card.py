"""What a card can say of a folder from its files alone: how to load it, its base model, its licence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, try_to_load_from_cache

from ..checkpoints import resolve_model
from ..model.modeling_baichuan import AUTO_CLASSES
from .model_card import published_card


TAGS = ["baichuan", "baichuan-hf"]
# Beside an adapter that `baichuan-hf train` has saved, for `baichuan_hf.adapters.loading.load_adapted`.
BASE_CONFIG = "base_config"
LICENSE_FIELDS = ("license", "license_name", "license_link")

PIPELINE_TAGS = {
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForQuestionAnswering": "question-answering",
    "AutoModelForImageClassification": "image-classification",
    "AutoModelForSeq2SeqLM": "translation",
}
# By PEFT's name of the task.
AUTO_OF_ADAPTER = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "AutoModelForMaskedLM",  # PEFT has no task for masked words: `train --task mlm` says this
}

LOAD_REMOTE = """\
from transformers import {auto}, AutoTokenizer

folder = "{name}"  # where this card is, or the name of its repository
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = {auto}.from_pretrained(folder, trust_remote_code=True)"""
LOAD_LLAMA = LOAD_REMOTE.replace(", trust_remote_code=True", "")
LOAD_MODEL = "import baichuan_hf\n" + LOAD_LLAMA
LOAD_TRAINED_ADAPTER = """\
import baichuan_hf
from baichuan_hf.adapters.loading import load_adapted
from transformers import {auto}, AutoTokenizer

folder = "{name}"  # where this card is; of a repository: huggingface_hub.snapshot_download("owner/name")
tokenizer = AutoTokenizer.from_pretrained(folder)
model = load_adapted(folder, {auto})  # with the base model under it: {base}"""
LOAD_ADAPTER = """\
import baichuan_hf
from peft import PeftModel
from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{base}")
model = {auto}.from_pretrained("{base}")
model = PeftModel.from_pretrained(model, "{name}")  # where this card is, or the name of its repository"""


def card_of_folder(folder: Path, license: str | None = None) -> dict[str, Any]:
    """The data of a card for a saved model or adapter, as `render_card` takes it.

    Args:
        folder: what `save_pretrained` has written, of a Baichuan, its Llama or a PEFT adapter.
        license: identifier; None takes that of the base model, where it is known.

    Raises:
        FileNotFoundError: the folder holds none of these.
        ValueError: the licence is not known.
    """
    config, adapter_config = folder / "config.json", folder / "adapter_config.json"
    file = adapter_config if adapter_config.is_file() else config
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds neither card.yaml nor a model or adapter to make a card of.")
    values = json.loads(file.read_text(encoding="utf-8"))
    name = folder.resolve().name
    if file is config:
        auto = auto_class_of((values.get("architectures") or [""])[0])
        base, shown = None, ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
        metadata = {"library_name": "transformers", "pipeline_tag": PIPELINE_TAGS.get(auto), "tags": TAGS}
    else:
        auto = AUTO_OF_ADAPTER.get(values.get("task_type"), "AutoModelForCausalLM")
        base, shown = values["base_model_name_or_path"], ("peft_type", "r", "lora_alpha", "target_modules")
        metadata = {"library_name": "peft", "pipeline_tag": PIPELINE_TAGS[auto], "tags": [*TAGS, "lora"]}
        if is_hub_name(base):
            metadata["base_model"] = base
    found = {"license": license} if license else license_of(base) if base else {}
    if not found:
        raise ValueError(
            f"The card of {name} has no licence, nor is that of what it is made of known: give --license."
        )
    summary = {
        "en": f"A PEFT adapter for `{base}`." if base else f"A `{values['model_type']}` model.",
        "zh": f"`{base}` 的 PEFT 适配器。" if base else f"`{values['model_type']}` 模型。",
    }
    rows = [[f"`{key}`", values[key]] for key in shown if values.get(key) is not None]
    return {
        "name": name,
        "metadata": {**found, **{key: value for key, value in metadata.items() if value}},
        "summary": summary,
        **conditions_of(base, license),
        "usage": loading_code(folder).format(name=folder, auto=auto, base=base),
        "sections": [{"title": {"en": "Settings", "zh": "设置"}, "table": {"columns": ["", ""], "rows": rows}}],
    }


def loading_code(folder: Path) -> str:
    """The code that loads what is in `folder`, with {name}, {auto} and for an adapter {base} to fill in."""
    if (folder / "adapter_config.json").is_file():
        return LOAD_TRAINED_ADAPTER if (folder / BASE_CONFIG).is_dir() else LOAD_ADAPTER
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "auto_map" in values:
        return LOAD_REMOTE
    return LOAD_LLAMA if values["model_type"] == "llama" else LOAD_MODEL


def auto_class_of(class_name: str) -> str:
    """The Auto class that loads one of ours or its Llama; a pair is of those for sequence to sequence."""
    name = class_name.removeprefix("FSDP").replace("Llama", "Baichuan")
    found = (auto for auto, model_class in AUTO_CLASSES.items() if model_class.__name__ == name)
    return next(found, "AutoModelForSeq2SeqLM")


def is_hub_name(model: str) -> bool:
    """Whether it is `owner/name` and no folder."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model) is not None and not Path(model).exists()


def conditions_of(base: str | None, license: str | None) -> dict[str, Any]:
    """The quoted conditions of a published model that another is made of, unless that has a licence of its own."""
    conditions = None if license or not base else published_card(base).get("conditions")
    return {"conditions": conditions} if conditions else {}


def license_of(model: str) -> dict[str, str]:
    """What the card of a model says of its licence, in the fields of a card's head; {} if that is not at hand.

    Nothing is downloaded for it: the published models are known, a folder or the cache may hold a card.
    """
    try:
        source = resolve_model(model)
    except FileNotFoundError:  # a folder of another machine
        return {}
    metadata = published_card(source).get("metadata")
    if metadata is None:
        card = Path(source) / "README.md" if Path(source).is_dir() else try_to_load_from_cache(source, "README.md")
        if not isinstance(card, str | Path) or not Path(card).is_file():
            return {}
        metadata = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    found = {field: metadata[field] for field in LICENSE_FIELDS if metadata.get(field)}
    complete = found.get("license") not in ("other", "unknown", None) or len(found) == len(LICENSE_FIELDS)
    return found if complete else {}
