"""`baichuan-hf bench tokenizer`: our tokenizer next to the library sentencepiece, on one `tokenizer.model`."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from rich.table import Table
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..checkpoints import resolve_model
from ..training.tiny.evaluate import written_texts
from .rows import append_rows, machine, rows_table
from .timing import interleaved


# Bytes of a document, drawn evenly on a logarithmic scale: from a sentence to some pages.
SHORTEST, LONGEST = 64, 16384
# Documents of a batch: the default of `Dataset.map`.
BATCH = 1000
PEER = "sentencepiece"
CPU = torch.device("cpu")


def measure_tokenizer(
    rows: Path,
    *,
    model: str = "tiny",
    text_files: Sequence[Path] = (),
    megabytes: float = 10.0,
    rounds: int = 3,
    command: str = "",
    report: Callable[[str], None] = print,
) -> None:
    """Append a row for batches and for single texts by each: sentencepiece on one thread and on all, ours, also
    without the mask, which sentencepiece does not make, and the library under ours, `tokenizers`, without our lookup
    of words. They take turns, each with all of the texts.

    Args:
        rows: ROWS.csv.
        model: `tiny`, or a folder that holds `tokenizer.model`.
        text_files: plain text, a part of a document a line; none: the half pages that come with the package.
        megabytes: of the documents that are made of them, in random order and as often as needed.
        rounds: turns of each that count.
        command: written into every row.
        report: called with a line for each row.

    Raises:
        ImportError: sentencepiece is not installed.
        ValueError: an id is another one than sentencepiece's, or the files hold no text.
    """
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        raise ImportError("the peer is missing: pip install 'baichuan-hf[sentencepiece]'") from error
    folder = resolve_model(model)
    tokenizer = AutoTokenizer.from_pretrained(folder, add_bos_token=False, add_eos_token=False)
    tokenizer.model_max_length = int(1e9)  # without a warning
    peer = SentencePieceProcessor(model_file=str(Path(folder) / "tokenizer.model"))
    documents = list(_documents(_lines(text_files, tokenizer), round(megabytes * 1e6)))
    batches = [documents[start : start + BATCH] for start in range(0, len(documents), BATCH)]
    for batch in batches:
        for text, found, expected in zip(batch, tokenizer(batch)["input_ids"], peer.encode(batch), strict=True):
            if not found == expected == tokenizer(text)["input_ids"]:
                raise ValueError(f"The ids of {text[:200]!r} are not those of sentencepiece.")

    def library(texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)]

    def singly(encode: Callable[[Any], object]) -> Callable[[list[str]], object]:
        return lambda texts: [encode(text) for text in texts]

    ways: dict[str, dict[str, Callable[[list[str]], object]]] = {
        "batches": {
            PEER: peer.encode,
            f"{PEER}, all threads": partial(peer.encode, num_threads=os.cpu_count()),
            "tokenizers": library,
            "baichuan-hf": tokenizer,
            "baichuan-hf, ids alone": partial(tokenizer, return_attention_mask=False),
        },
        "single texts": {PEER: singly(peer.encode), "baichuan-hf": singly(tokenizer)},
    }
    origin = {**machine(CPU), "command": command}
    size = sum(len(text.encode()) for text in documents) / 1e6
    for way, encoders in ways.items():
        passes = {name: partial(_encode_all, encode, batches) for name, encode in encoders.items()}
        times = interleaved(passes, CPU, rounds=rounds)
        for name, taken in times.items():
            speeds = [theirs / ours for theirs, ours in zip(times[PEER], taken, strict=True)]
            low, *_, high = quantiles(speeds, n=5, method="inclusive") if rounds > 1 else speeds * 2
            row = {
                "texts": way,
                "tokenizer": name,
                "pieces": len(tokenizer),
                "megabytes": f"{size:.3f}",
                "documents": len(documents),
                "seconds": f"{median(taken):.5f}",
                "mb_per_second": f"{size / median(taken):.2f}",
                "speed": f"{median(speeds):.2f}",
                "speed_p20": f"{low:.2f}",
                "speed_p80": f"{high:.2f}",
            }
            append_rows(rows, [{**row, **origin}])
            report(f"{way}, {name}: {row['mb_per_second']} MB/s")


def _encode_all(encode: Callable[[list[str]], object], batches: list[list[str]]) -> None:
    for batch in batches:
        encode(batch)


def tokenizer_table(rows: Path) -> Table:
    """The rows of a file, as a table to print."""
    columns = {
        "texts": "texts",
        "tokenizer": "tokenizer",
        "pieces": "pieces",
        "megabytes": "MB",
        "mb_per_second": "MB/s",
        "speed": "against sentencepiece",
    }
    return rows_table(rows, columns)


def _lines(files: Sequence[Path], tokenizer: PreTrainedTokenizerBase) -> list[list[str]]:
    """The lines of each file, but for those with the text of a special token, of which sentencepiece knows nothing."""
    sources = [file.read_text(encoding="utf-8").splitlines() for file in files] or list(written_texts().values())
    kept = [
        [line for line in lines if line and not any(token in line for token in tokenizer.all_special_tokens)]
        for lines in sources
    ]
    for file, lines in zip(files, kept, strict=False):
        if not lines:
            raise ValueError(f"{file}: holds no text.")
    return kept


def _documents(sources: list[list[str]], size: int) -> Iterator[str]:
    """Documents of `size` bytes in all, each of lines that follow each other in one of the sources."""
    draw = random.Random(0)
    while size > 0:
        lines = draw.choice(sources)
        room = round(SHORTEST * (LONGEST / SHORTEST) ** draw.random())
        start = draw.randrange(len(lines))
        document = ""
        while len(document.encode()) < room:
            document += lines[start % len(lines)] + "\n"
            start += 1
        document = document.encode()[:room].decode(errors="ignore")
        size -= len(document.encode())
        yield document
