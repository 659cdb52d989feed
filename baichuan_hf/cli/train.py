"""`baichuan-hf train`: transformers' HfArgumentParser behind a typer command, with a help that can be read."""

import dataclasses
import logging
from collections.abc import Iterable
from typing import Annotated, Any, get_args

import typer
from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand


COMMON = [
    "output_dir",
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "bf16",
    "activation_checkpointing",
    "eval_strategy",
    "save_strategy",
    "save_total_limit",
    "load_best_model_at_end",
    "metric_for_best_model",
    "logging_steps",
    "report_to",
    "seed",
    "resume_from_checkpoint",
    "push_to_hub",
]


class TrainCommand(TyperCommand):
    """Shows, below the usual help, the arguments that the parser of `baichuan_hf.training` takes."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        _show_arguments(everything=False)


def show_all(wanted: bool) -> None:
    if wanted:
        _show_arguments(everything=True)
        raise typer.Exit


def show_launch_config(name: str | None) -> None:
    if name is not None:
        from ..training.launch import launch_config

        print(launch_config(name))
        raise typer.Exit


def train(
    ctx: typer.Context,
    help_all: Annotated[
        bool,
        typer.Option("--help-all", callback=show_all, is_eager=True, help="Show every one of TrainingArguments too."),
    ] = False,
    launch_config: Annotated[
        str | None,
        typer.Option(
            metavar="ddp|fsdp2|...",
            callback=show_launch_config,
            is_eager=True,
            help="Print where a configuration for accelerate is, to train by many processes, and exit.",
        ),
    ] = None,
) -> None:
    """Fine-tune a model on your own data.

    Example: [bold]baichuan-hf train --task classify --train-file X.csv --text-column review --output-dir out[/]

    A YAML file holds the same names, one `name: value` a line; arguments that follow it win over it. An interrupted
    run goes on from its last checkpoint, as if nothing had happened, with [bold]--resume-from-checkpoint true[/].

    Many GPUs: [bold]accelerate launch --config_file "$(baichuan-hf train --launch-config fsdp2)" --num_processes 8
    -m baichuan_hf.cli.main train ...[/], or ddp, deepspeed_zero2, deepspeed_zero3.
    """
    from ..training import TASKS, parse_arguments
    from ..training import train as run
    from ..training.launch import leave_group
    from .main import fail

    try:
        arguments, training_arguments = parse_arguments(ctx.args)
    except (ValueError, FileNotFoundError) as error:
        fail(f"{error} (tasks: {', '.join(TASKS)}; help: baichuan-hf train --help)", code=2)
    if training_arguments.process_index:
        _be_quiet()
    metrics = run(arguments, training_arguments)
    if training_arguments.process_index == 0:
        _show_results(metrics, str(training_arguments.output_dir))
    leave_group()


def _be_quiet() -> None:
    """What every process would say is said by the first."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    logging.getLogger("baichuan_hf").setLevel(logging.ERROR)


def _show_results(metrics: dict[str, float], output_dir: str) -> None:
    table = Table("metric", "value", box=box.SIMPLE_HEAD)
    for name, value in metrics.items():
        if name == "train_loss" or (name.startswith("eval_") and not name.endswith(("_runtime", "_per_second"))):
            table.add_row(name, f"{value:.4f}")
    console = Console(highlight=False)
    console.print(table)
    console.print(f"Saved to [bold]{output_dir}[/]; every number is in all_results.json there.")


def _show_arguments(*, everything: bool) -> None:
    from transformers import TrainingArguments

    from ..training import TASKS, TrainArguments

    console = Console()
    ours = dataclasses.fields(TrainArguments)
    shared = _defaults(TrainArguments)
    theirs = {field.name: field for field in dataclasses.fields(TrainingArguments) if field.init}
    base = {field.name for field in dataclasses.fields(TrainingArguments)}
    console.print(_panel(f"Model, data and adapters (tasks: {', '.join(TASKS)})", ours))
    for name, task in TASKS.items():
        parents = task.arguments.__bases__
        # A task that takes what several others take lists what it has besides.
        known = _defaults(*parents) if len(parents) > 1 else shared
        fields = dataclasses.fields(task.arguments)
        own = [field for field in fields if field.name not in known or field.default != known[field.name]]
        own += [field for field in dataclasses.fields(task.training_arguments) if field.name not in base]
        if own:
            others = [other for other in TASKS if len(parents) > 1 and TASKS[other].arguments in parents]
            title = f"--task {name}" + (f", besides that of {' and '.join(others)}" if others else "")
            console.print(_panel(title, own))
    if everything:
        console.print(_panel("transformers.TrainingArguments", theirs.values()))
    else:
        # Not every supported transformers has every one of them.
        common = [theirs[name] for name in COMMON if name in theirs]
        console.print(_panel("transformers.TrainingArguments, the commonest", common))
        console.print(f" The other {len(theirs) - len(common)}: baichuan-hf train --help-all\n", style="dim")


def _defaults(*kinds: type) -> dict[str, Any]:
    return {field.name: field.default for kind in kinds for field in dataclasses.fields(kind)}


def _panel(title: str, fields: Iterable[dataclasses.Field]) -> Panel:
    table = Table.grid(padding=(0, 2))
    for field in fields:
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        default = "" if required or field.default in (None, False, dataclasses.MISSING) else f" [{field.default}]"
        value = "" if field.type is bool else _value_name(field.type)
        table.add_row(
            Text("--" + field.name.replace("_", "-"), style="bold cyan"),
            Text(value, style="bold yellow"),
            Text.assemble(
                ("required. " if required else "", "red"),
                field.metadata.get("help", "").replace("%%", "%"),
                (default, "dim"),
            ),
        )
    return Panel(table, title=title, title_align="left", border_style="dim")


def _value_name(annotation: Any) -> str:
    """int | None -> INT; what may be many things -> VALUE."""
    kinds = [kind for kind in get_args(annotation) or (annotation,) if kind is not type(None)]
    names = {int: "INT", float: "FLOAT", str: "TEXT", bool: "true|false"}
    return names.get(kinds[0], "VALUE") if len(kinds) == 1 else "VALUE"
