"""`baichuan-hf demo`: the main job of the package on bundled data, in one command."""

import contextlib
import csv
import io
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from . import options


REVIEWS = Path(__file__).parents[1] / "data" / "reviews"

# Run as it is shown, in a process of its own.
LOAD_AND_CLASSIFY = """\
import json, sys
import baichuan_hf  # the Auto classes now know Baichuan
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
print(json.dumps(classify(json.load(sys.stdin))))
"""

NEW_REVIEWS = [
    "房间很干净，老板很热情，下次还来。",
    "等了一个小时，菜还是凉的，非常失望。",
    "手机很好用，电池也耐用，推荐购买。",
    "The staff were friendly and the food was delicious.",
    "Terrible quality, it broke after two days. A waste of money.",
    "I love this book, a wonderful story from the first page.",
]
BEGINNINGS = ["从前有一座山，", "Once upon a time, there was"]


def demo(
    output_dir: Annotated[Path, typer.Option(help="Where adapter and merged model go.")] = Path("outputs/demo"),
    model: options.Model = "tiny",
    seed: Annotated[int, typer.Option(help="The same seed on the same machine gives the same numbers.")] = 42,
) -> None:
    """Teach a small Baichuan to tell good reviews from bad in Chinese and English, and let it write.

    A few minutes on two cores, offline: LoRA and transformers' Trainer on 640 bundled reviews; accuracy on 160 others
    before and after; adapter and merged model saved, and the merged one loaded back in a fresh process.

    Example: [bold]baichuan-hf demo --output-dir outputs/demo[/]
    """
    console = Console(highlight=False)
    start = time.perf_counter()
    console.print(
        Panel("A small Baichuan learns to tell good reviews from bad, in Chinese and English.", expand=False)
    )

    console.print(f"[bold]1.[/] Fine-tuning {model} with LoRA on {len(_reviews('train'))} reviews")
    before, after = _fine_tune(model, output_dir, seed)

    console.print("\n[bold]2.[/] Loading the merged model in a fresh process, with this code\n")
    console.print(Syntax(LOAD_AND_CLASSIFY, "python", theme="ansi_dark", background_color="default"))
    held_out = _reviews("test")
    answers = _in_fresh_process(output_dir / "merged", [row["review"] for row in held_out] + NEW_REVIEWS)
    console.print(_accuracy_table(before, after, held_out, answers))
    console.print(_prediction_table(NEW_REVIEWS, answers[len(held_out) :]))

    console.print("[bold]3.[/] The base model goes on writing\n")
    for beginning, continuation in zip(BEGINNINGS, _continue(model, BEGINNINGS, seed), strict=True):
        console.print(Text.assemble("  ", (beginning, "bold cyan"), continuation.replace("\n", " ")), end="\n\n")

    minutes, seconds = divmod(round(time.perf_counter() - start), 60)
    console.print(
        f"Done in {minutes} min {seconds} s. The adapter is in {output_dir}, the merged model in its folder merged."
    )
    console.print("With your own data: [bold]baichuan-hf train --help[/]")


def _reviews(split: str) -> list[dict[str, str]]:
    with (REVIEWS / f"{split}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _fine_tune(model: str, output_dir: Path, seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """The metrics on the held-out reviews before the first step and after the last."""
    import datasets
    import transformers

    from ..training import ClassifyArguments, train

    arguments = ClassifyArguments(
        task="classify",
        model=model,
        train_file=str(REVIEWS / "train.csv"),
        eval_file=str(REVIEWS / "test.csv"),
        text_column="review",
        lora=True,
        lora_target_modules=["all-linear"],
        merge=True,
    )
    training_arguments = transformers.TrainingArguments(
        output_dir=str(output_dir),
        seed=seed,
        num_train_epochs=6,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        per_device_train_batch_size=16,
        eval_on_start=True,
        save_strategy="no",
        logging_strategy="no",
        dataloader_pin_memory=False,
    )
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    # What remains is Trainer's progress bar: it goes to stderr, its dictionaries of metrics to stdout.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
        after = train(arguments, training_arguments)
    log = json.loads((output_dir / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return log[0], after


def _in_fresh_process(folder: Path, texts: list[str]) -> list[dict[str, Any]]:
    """`{"label": ..., "score": ...}` for each text."""
    process = subprocess.run(
        [sys.executable, "-c", LOAD_AND_CLASSIFY, str(folder)], input=json.dumps(texts), capture_output=True, text=True
    )
    if process.returncode:
        raise RuntimeError(f"the fresh process failed:\n{process.stderr}")
    return json.loads(process.stdout)


def _continue(model: str, beginnings: list[str], seed: int) -> list[str]:
    from transformers import set_seed

    from ..inference import generate_text, load_causal_lm

    language_model, tokenizer = load_causal_lm(model)
    set_seed(seed)
    sampling: dict[str, Any] = {
        "max_new_tokens": 60,
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.9,
        "repetition_penalty": 1.1,
    }
    texts = [generate_text(language_model, tokenizer, beginning, **sampling) for beginning in beginnings]
    return [text.rstrip("\ufffd") for text in texts]  # the limit may cut a character of several tokens


def _accuracy_table(
    before: dict[str, float], after: dict[str, float], rows: list[dict[str, str]], answers: list[dict[str, Any]]
) -> Table:
    right = [answer["label"] == row["label"] for answer, row in zip(answers, rows, strict=False)]
    table = Table(f"on {len(rows)} held-out reviews", "accuracy", "macro-F1", box=box.SIMPLE_HEAD)
    for name, metrics in {"before fine-tuning": before, "after, with the adapter": after}.items():
        table.add_row(name, f"{metrics['eval_accuracy']:.1%}", f"{metrics['eval_f1_macro']:.3f}")
    table.add_row("merged, fresh process", f"[bold green]{sum(right) / len(right):.1%}", "")
    for language, name in {"zh": "   of them Chinese", "en": "   of them English"}.items():
        some = [hit for hit, row in zip(right, rows, strict=True) if row["language"] == language]
        table.add_row(name, f"{sum(some) / len(some):.1%}", "", style="dim")
    return table


def _prediction_table(texts: list[str], answers: list[dict[str, Any]], *, width: int = 20) -> Table:
    table = Table("new review", "label", "confidence", box=box.SIMPLE_HEAD)
    for text, answer in zip(texts, answers, strict=True):
        colour = "green" if answer["label"] == "positive" else "red"
        filled = round(answer["score"] * width)
        bar = Text.assemble(("█" * filled, colour), ("░" * (width - filled), "dim"), f" {answer['score']:.0%}")
        table.add_row(text, Text(answer["label"], style=colour), bar)
    return table
