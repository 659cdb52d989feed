"""`baichuan-hf bench`: measurements whose rows are kept in CSV files; one file per theme, one sub-command per case."""

import typer

from .components import architectures, scaling
from .cpu import cpu, tokenizer
from .generation import assisted, batching
from .loading import load, memory
from .speed import attention, decode, prefill, start
from .training import loss, parallel, train
from .versions import quantization, ratio


bench = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")


@bench.callback()
def main() -> None:
    """Measure speed, memory, components and versions; the rows are kept in CSV files.

    Example: [bold]baichuan-hf bench scaling --tokens 1024 --tokens 4096[/]
    """


for command in (
    architectures,
    scaling,
    loss,
    parallel,
    train,
    decode,
    prefill,
    assisted,
    batching,
    attention,
    start,
    load,
    memory,
    cpu,
    tokenizer,
    quantization,
    ratio,
):
    bench.command()(command)
