"""Texts in batches, and how good a model is on them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Quality:
    """Of a model on labelled batches: the mean loss, and of a classifier the accuracy."""

    loss: float
    accuracy: float | None = None


def make_batches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    labels: Sequence[str] | None = None,
    *,
    max_length: int = 512,
    batch_size: int = 8,
) -> list[dict[str, Tensor]]:
    """`input_ids` and `attention_mask` (B, T), and `labels`: of a language model the ids, of a classifier those given.

    Raises ValueError for a label that `config.label2id` does not have.
    """
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    batches = []
    for start in range(0, len(texts), batch_size):
        rows = slice(start, start + batch_size)
        batch = dict(
            tokenizer(list(texts[rows]), truncation=True, max_length=max_length, padding=True, return_tensors="pt").to(
                model.device
            )
        )
        if labels is not None:
            batch["labels"] = torch.tensor([_label_id(model, label) for label in labels[rows]], device=model.device)
        elif model.config.is_causal and model.get_output_embeddings() is not None:
            batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        batches.append({name: batch[name] for name in ("input_ids", "attention_mask", "labels") if name in batch})
    return batches


def _label_id(model: PreTrainedModel, label: str) -> int:
    ids = {str(name): index for name, index in model.config.label2id.items()}
    if label not in ids:
        raise ValueError(f"label {label!r} is not among the model's: {', '.join(map(repr, ids))}")
    return ids[label]


@torch.no_grad()
def measure_quality(model: PreTrainedModel, batches: Iterable[dict[str, Tensor]]) -> Quality:
    """The loss over all tokens (of a classifier: all texts), and of a classifier the share of right labels."""
    loss, right, count = 0.0, 0, 0
    labels: Tensor
    for batch in batches:
        outputs, labels = model(**batch), batch["labels"]
        items = len(labels) if labels.ndim == 1 else int((labels[:, 1:] != -100).sum())
        loss += float(outputs.loss) * items if items else 0.0
        right += int((outputs.logits.argmax(-1) == labels).sum()) if labels.ndim == 1 else 0
        count += items
    return Quality(loss / count, right / count if labels.ndim == 1 else None)
