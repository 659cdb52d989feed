"""Bits per byte on held-out text, beside a unigram model of the same tokens and two compressors."""

import gzip
import json
import lzma
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...evaluation.perplexity import document_stream, stream_bits


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
    ids, _ = document_stream(tokenizer, documents)
    sizes = {
        "model": stream_bits(model, ids, context=model.config.max_position_embeddings),
        "gzip": 8 * len(gzip.compress(data, 9)),
        "xz": 8 * len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
    }
    if unigram_counts is not None:
        sizes["unigram"] = unigram_bits(ids[1:], unigram_counts)
    rates = {name: round(bits / len(data), 4) for name, bits in sizes.items()}
    return {"bytes": len(data), "tokens": len(ids) - 1, **rates}
