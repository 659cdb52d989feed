"""Classifiers of several sizes on the same rows: what is kept of the accuracy, and what is saved of size and time.

    python -m baichuan_hf.benchmarks.smaller ROWS.csv teacher=out/teacher student=out/student -- --train-file X.csv ...

The first is what the others are compared with. Behind `--` stand the words of `baichuan-hf train --task classify` that
choose the rows; it is the rows to evaluate on that are measured. One row for each folder is appended to ROWS.csv.
"""

import shlex
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ..pruning import make_batches, measure_quality, zero_share
from ..training import parse_arguments
from ..training.tasks.labelled_texts import load_labelled_texts
from .rows import append_rows, machine
from .timing import interleaved


def measure(folders: dict[str, str], words: list[str], *, rounds: int = 5) -> list[dict[str, Any]]:
    """Accuracy, size, share of zeros and texts a second of each folder, timed in turns on 256 of the rows."""
    arguments: Any = parse_arguments(["--task", "classify", *words])[0]
    rows = load_labelled_texts(arguments)["test"]
    names = rows.features["label"].names
    # Alike in length: little padding.
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]["text"]))
    texts = [rows[index]["text"] for index in order]
    labels = [names[rows[index]["label"]] for index in order]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    table, actions, sample = [], {}, texts[:: max(len(texts) // 256, 1)][:256]
    for name, folder in folders.items():
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval().to(device)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        size: dict[str, Any] = {"max_length": arguments.max_length, "batch_size": 32}
        quality = measure_quality(model, make_batches(model, tokenizer, texts, labels, **size))
        files = sum(file.stat().st_size for file in Path(folder).glob("model*.safetensors"))
        table.append(
            {
                "model": name,
                "accuracy": f"{quality.accuracy:.4f}",
                "rows": len(texts),
                "parameters": model.num_parameters(),
                "megabytes": f"{files / 1e6:.1f}",
                "zeros": f"{zero_share(model):.3f}",
            }
        )
        actions[name] = _run_all(model, make_batches(model, tokenizer, sample, **size))
    seconds = interleaved(actions, device, rounds=rounds)
    for row in table:
        row["texts_per_second"] = f"{len(sample) / median(seconds[row['model']]):.1f}"
        row["times_faster"] = f"{median(seconds[table[0]['model']]) / median(seconds[row['model']]):.2f}"
    return table


def _run_all(model: Any, batches: list[dict[str, torch.Tensor]]) -> Any:
    @torch.no_grad()
    def run() -> None:
        for batch in batches:
            model(**batch)

    return run


def main(results: str, *words: str) -> None:
    split = words.index("--") if "--" in words else len(words)
    folders = dict(word.split("=", 1) for word in words[:split])
    origin = machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    command = shlex.join(["python", "-m", "baichuan_hf.benchmarks.smaller", results, *words])
    rows = [
        {"date": origin["date"], **row, "device": origin["device"], "versions": origin["versions"], "command": command}
        for row in measure(folders, list(words[split + 1 :]))
    ]
    append_rows(Path(results), rows)
    for row in rows:
        print({name: row[name] for name in ("model", "accuracy", "parameters", "megabytes", "zeros", "times_faster")})


if __name__ == "__main__":
    main(*sys.argv[1:])
