"""A checkpoint of a few thousand weights with a real tokenizer, and texts that it can learn to tell apart."""

import csv
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from .models import golden_folder, tiny_config


def save_checkpoint(folder: Path, **overrides: Any) -> Path:
    """A random language model over the surrogate tokenizer, in bfloat16 as published checkpoints are."""
    from baichuan_hf import BaichuanForCausalLM, BaichuanTokenizer

    tokenizer = BaichuanTokenizer.from_pretrained(golden_folder("tokenizers") / "baichuan-surrogate")
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48}
    model = BaichuanForCausalLM(tiny_config(**(sizes | overrides)))
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def quiet_arguments(folder: Path, **values: Any) -> TrainingArguments:
    """`TrainingArguments` of a short run on the CPU that writes into `folder`, with neither checkpoints nor a bar."""
    quiet = {"save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "report_to": "none"}
    return TrainingArguments(output_dir=str(folder), **(quiet | values))


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def reviews(count: int = 48) -> list[dict[str, str]]:
    """Short texts whose words give the label away, in two languages, no two equal."""
    words = {"good": ["很好", "great"], "bad": ["很差", "awful"]}
    labels = list(words)
    return [
        {"review": f"{index} {words[labels[index % 2]][index // 2 % 2]}", "stars": labels[index % 2]}
        for index in range(count)
    ]
