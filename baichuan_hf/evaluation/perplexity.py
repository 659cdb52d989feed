"""How well a language model foretells a text: bits per byte, and perplexity per token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging


def read_documents(source: str, column: str = "text") -> list[str]:
    """The texts of a file, folder or data set (`load_splits`) that are not empty; of several splits, those of `test`.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: it cannot be read, has no such column, or no text in it.
    """
    from ..data.tables import load_splits, require_columns

    splits = load_splits(source)
    chosen = next((name for name in ("test", "validation") if name in splits), next(iter(splits)))
    require_columns(splits[chosen], {"--text-column": column}, source)
    texts = [str(text) for text in splits[chosen][column] if text is not None]
    if not (documents := [text for text in texts if text.strip()]):
        raise ValueError(f"{source}: holds no text (column {column!r})")
    return documents


def measure_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    *,
    context: int | None = None,
    batch_size: int = 1,
    desc: str | None = None,
) -> dict[str, Any]:
    """Bits per byte of UTF-8, which models of any tokenizer share, and perplexity per token of this one.

    The text is one stream, </s> behind each document; for it a newline is counted.

    Args:
        model: a causal language model, in eval mode.
        tokenizer: that of the model.
        documents: texts, which need not fit into a window.
        context: tokens of a window, which sees nothing before it; by default as many as the model was made for.
        batch_size: windows at once. The logits of each are context x vocabulary numbers of float32.
        desc: shows a progress bar of that name.

    Raises:
        FloatingPointError: the model computes NaN.
    """
    ids, num_bytes = document_stream(tokenizer, documents)
    context = context or model.config.max_position_embeddings
    bits = stream_bits(model, ids, context=context, batch_size=batch_size, desc=desc)
    if not math.isfinite(bits):
        raise FloatingPointError(
            "The logits are not finite. `baichuan-hf check FOLDER` looks for broken weights; in float16 try"
            " --dtype bfloat16 or float32."
        )
    tokens = len(ids) - 1
    return {
        "documents": len(documents),
        "bytes": num_bytes,
        "tokens": tokens,
        "bits_per_byte": bits / num_bytes,
        "perplexity": 2 ** (bits / tokens),
    }


def document_stream(tokenizer: PreTrainedTokenizerBase, documents: Sequence[str]) -> tuple[list[int], int]:
    """The ids of `documents` with </s> before, between and behind them, and the bytes, with a newline behind each."""
    end = tokenizer.eos_token_id
    ids = [end]
    for row in tokenizer(list(documents), return_attention_mask=False, verbose=False)["input_ids"]:
        ids += [*row, end]
    return ids, sum(len(document.encode()) + 1 for document in documents)


@torch.inference_mode()
def stream_bits(
    model: PreTrainedModel, ids: Sequence[int], *, context: int, batch_size: int = 16, desc: str | None = None
) -> float:
    """Bits that the model spends on `ids[1:]`, read in windows of `context` that overlap by one token."""
    windows = [ids[start : start + context + 1] for start in range(0, len(ids) - 1, context)]
    nats = 0.0
    with logging.tqdm(total=len(ids) - 1, desc=desc, unit=" tokens", disable=desc is None) as progress:
        for start in range(0, len(windows), batch_size):
            batch = windows[start : start + batch_size]
            width = max(map(len, batch))
            # Rows are padded on the right, where a causal model is not disturbed.
            rows = torch.tensor([[*row, *[-100] * (width - len(row))] for row in batch], device=model.device)
            logits = model(input_ids=rows[:, :-1].clamp(min=0), use_cache=False).logits.float()
            nats += torch.nn.functional.cross_entropy(
                logits.mT, rows[:, 1:], ignore_index=-100, reduction="sum"
            ).item()
            progress.update(sum(map(len, batch)) - len(batch))
    return nats / math.log(2)
