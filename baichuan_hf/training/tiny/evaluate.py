"""Bits per byte on held-out text, beside a unigram model of the same tokens and two compressors."""

import gzip
import json
import lzma
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase


WRITTEN = Path(__file__).with_name("held_out.json")


def held_out_texts(valid: Path) -> dict[str, list[str]]:
    """Documents to measure on: the held-out part of the corpus by language (`zh`, `en`), the same by source, and
    `written_texts`."""
    texts = defaultdict(list)
    for row in Dataset.from_parquet(str(valid)):
        texts[row["language"]].append(row["text"])
        texts[row["source"]].append(row["text"])
    return {**texts, **written_texts()}


def written_texts() -> dict[str, list[str]]:
    """Half a page in each language, written to measure on: the text that every copy of the package has."""
    return json.loads(WRITTEN.read_text(encoding="utf-8"))


@torch.inference_mode()
def stream_bits(model: PreTrainedModel, ids: Sequence[int], *, context: int, batch_size: int = 16) -> float:
    """Bits that the model spends on `ids[1:]`, read in windows of `context` that overlap by one token."""
    windows = [ids[start : start + context + 1] for start in range(0, len(ids) - 1, context)]
    nats = 0.0
    for start in range(0, len(windows), batch_size):
        batch = windows[start : start + batch_size]
        width = max(map(len, batch))
        # Rows are padded on the right, where a causal model is not disturbed.
        rows = torch.tensor([[*row, *[-100] * (width - len(row))] for row in batch], device=model.device)
        logits = model(input_ids=rows[:, :-1].clamp(min=0), use_cache=False).logits.float()
        nats += torch.nn.functional.cross_entropy(logits.mT, rows[:, 1:], ignore_index=-100, reduction="sum").item()
    return nats / math.log(2)


def unigram_bits(ids: Sequence[int], counts: np.ndarray) -> float:
    """Bits under the token frequencies `counts` (vocab_size,) of the training text, one added to each."""
    probabilities = (counts + 1) / (counts + 1).sum()
    return float(-np.log2(probabilities[np.asarray(ids)]).sum())


def bits_per_byte(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    *,
    unigram_counts: np.ndarray | None = None,
) -> dict[str, float]:
    """Bits per byte of UTF-8 by the model, by gzip -9, by xz -9e, and by token frequencies if they are given.

    The model reads windows of its context length that see nothing before them. The text is one stream, a newline
    behind each document; the models write </s> in its place, so all code the same number of bytes.
    """
    data = "".join(f"{document}\n" for document in documents).encode()
    end = tokenizer.eos_token_id
    ids = [end]
    for row in tokenizer(list(documents), return_attention_mask=False, verbose=False)["input_ids"]:
        ids += [*row, end]
    sizes = {
        "model": stream_bits(model, ids, context=model.config.max_position_embeddings),
        "gzip": 8 * len(gzip.compress(data, 9)),
        "xz": 8 * len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
    }
    if unigram_counts is not None:
        sizes["unigram"] = unigram_bits(ids[1:], unigram_counts)
    rates = {name: round(bits / len(data), 4) for name, bits in sizes.items()}
    return {"bytes": len(data), "tokens": len(ids) - 1, **rates}
