"""`baichuan-hf eval`: what a language model makes of texts and of benchmarks."""

import json
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from . import options


TEXTS = "Bits per byte and perplexity"
TASKS = "Tasks of lm-evaluation-harness (pip install 'baichuan-hf\\[eval]')"
# Of what lm-eval returns: no settings of the machine, and no path of the model.
REPORTED = ("results", "groups", "n-shot", "n-samples", "versions")


def evaluate(
    model: Annotated[str, typer.Argument(help="Folder or Hub name of a model or an adapter, or [bold]tiny[/].")],
    text_file: Annotated[
        list[str] | None,
        typer.Option(
            help="Text (txt, csv, jsonl, parquet), a folder or a data set of the Hub; may be given several times.",
            rich_help_panel=TEXTS,
        ),
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column with the text.", rich_help_panel=TEXTS)] = "text",
    length: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of a window; by default the context length.", rich_help_panel=TEXTS),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="Name of a task or group, as in lm-eval; may be given several times.", rich_help_panel=TASKS
        ),
    ] = None,
    include_path: Annotated[
        str | None, typer.Option(help="Folder of YAML files with tasks of your own.", rich_help_panel=TASKS)
    ] = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option(min=0, help="Solved examples before a question; unset: as the task says.", rich_help_panel=TASKS),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Take so many questions of each task.", rich_help_panel=TASKS)
    ] = None,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="Ask as in a conversation.", rich_help_panel=TASKS)
    ] = False,
    confirm_run_unsafe_code: Annotated[
        bool,
        typer.Option(
            "--confirm-run-unsafe-code",
            help="Run the code that the model writes (humaneval, mbpp).",
            rich_help_panel=TASKS,
        ),
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows or texts at once.")] = 1,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Measure a language model on texts, by bits per byte and perplexity, and in benchmarks, by lm-evaluation-harness.

    Example: [bold]baichuan-hf eval Baichuan2-7B-Base --task ceval-valid --num-fewshot 5[/]

    Without a text or task, on the half page of each language that comes with the package. A text is read in windows
    that see nothing before them, documents apart by </s>. Bits per byte compare models of any tokenizer.
    """
    from ..evaluation import find_tasks, measure_text, read_documents, run_tasks
    from ..inference import load_causal_lm
    from ..training.tiny.evaluate import written_texts

    documents = {source: read_documents(source, text_column) for source in text_file or []}
    if not documents and not task:
        documents = written_texts()
    manager = find_tasks(task, include_path) if task else None
    language_model, tokenizer = load_causal_lm(model, dtype=dtype, device=device)
    report: dict[str, Any] = {"model": model, "dtype": str(language_model.dtype).removeprefix("torch.")}
    if documents:
        report["texts"] = {
            name: measure_text(
                language_model, tokenizer, texts, context=length, batch_size=batch_size, desc=f"Reading {name}"
            )
            for name, texts in documents.items()
        }
    results = None
    if task:
        results = run_tasks(
            language_model,
            tokenizer,
            task,
            manager=manager,
            num_fewshot=num_fewshot,
            limit=limit,
            batch_size=batch_size,
            apply_chat_template=apply_chat_template,
            confirm_run_unsafe_code=confirm_run_unsafe_code,
        )
        report |= {key: results[key] for key in REPORTED if key in results}
    if as_json:
        print(json.dumps(report, indent=2, ensure_ascii=False, default=float))
        return
    if documents:
        Console(highlight=False).print(_texts_table(report["texts"]))
    if results is not None:
        from lm_eval.utils import make_table

        print(make_table(results))
        if results.get("groups"):
            print(make_table(results, "groups"))


def _texts_table(texts: dict[str, dict[str, Any]]) -> Table:
    table = Table("text", box=box.SIMPLE_HEAD)
    for column in ("documents", "bytes", "tokens", "bits per byte", "perplexity"):
        table.add_column(column, justify="right")
    for name, row in texts.items():
        counts = (f"{row[key]:,}" for key in ("documents", "bytes", "tokens"))
        table.add_row(name, *counts, f"{row['bits_per_byte']:.4f}", f"{row['perplexity']:,.2f}")
    return table
