"""`baichuan-hf prune`: a checkpoint with fewer layers, heads or weights."""

from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table


MEASURED_ON = "Texts to measure importance and quality on"


def prune(
    source: Annotated[str, typer.Argument(help="Folder or Hub name of a Baichuan model, or `tiny`.", metavar="SRC")],
    destination: Annotated[str, typer.Argument(help="Folder to write.", metavar="DST")],
    layers: Annotated[
        int | None, typer.Option(min=1, help="Keep so many: the most influential ones; without texts, evenly spread.")
    ] = None,
    heads: Annotated[
        int | None,
        typer.Option(min=1, help="Keep so many in each layer (of grouped queries: groups), the most important ones."),
    ] = None,
    sparsity: Annotated[
        float | None, typer.Option(help="Set this share of the weights of each row to zero, the least ones.")
    ] = None,
    pattern: Annotated[
        str | None, typer.Option(help="In place of it: [bold]2:4[/] leaves two of every four neighbours.")
    ] = None,
    text_file: Annotated[
        str | None,
        typer.Option(help="As --train-file of `train`; half for either.", rich_help_panel=MEASURED_ON),
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column with the text.", rich_help_panel=MEASURED_ON)] = "text",
    label_column: Annotated[
        str | None, typer.Option(help="Column with the label, for a classifier.", rich_help_panel=MEASURED_ON)
    ] = None,
    rows: Annotated[int, typer.Option(min=2, help="Take so many.", rich_help_panel=MEASURED_ON)] = 256,
    max_length: Annotated[
        int, typer.Option(min=2, help="Longer texts are cut to this many tokens.", rich_help_panel=MEASURED_ON)
    ] = 512,
) -> None:
    """Make a model smaller: take out layers and heads, or set weights to zero.

    Example: [bold]baichuan-hf prune tiny small --layers 4 --text-file novel.txt[/]

    Layers are chosen by block influence (Men et al. 2024), heads by the gradient of a gate (Michel et al. 2019),
    weights by Wanda (Sun et al. 2023), or without texts by their magnitude. Train on afterwards: [bold]baichuan-hf
    train --model DST[/], with [bold]--keep-zeros[/] if weights were set to zero, or [bold]--task distill --teacher
    SRC[/].
    """
    from ..pruning.folders import Calibration, prune_folder

    calibration = None
    if text_file is not None:
        calibration = Calibration(text_file, text_column, label_column, rows, max_length)
    before, after = prune_folder(
        source, destination, layers=layers, heads=heads, sparsity=sparsity, pattern=pattern, calibration=calibration
    )
    table = Table("", "before", "after", box=box.SIMPLE_HEAD)
    table.add_row("parameters", f"{before.parameters:,}", f"{after.parameters:,}")
    table.add_row("zeros in linear layers", f"{before.zeros:.1%}", f"{after.zeros:.1%}")
    if before.quality is not None and after.quality is not None:
        table.add_row("loss", f"{before.quality.loss:.4f}", f"{after.quality.loss:.4f}")
        if before.quality.accuracy is not None:
            table.add_row("accuracy", f"{before.quality.accuracy:.4f}", f"{after.quality.accuracy:.4f}")
    console = Console(highlight=False)
    console.print(table)
    console.print(f"Saved to [bold]{destination}[/].")
