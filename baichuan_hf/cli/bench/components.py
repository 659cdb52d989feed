"""Components of a model: what they reach, and what they cost."""

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .options import Device, Picture, Rows, command_line, pick_device


def architectures(
    train_file: Annotated[list[Path], typer.Option(help="Plain text; may be given often. A twentieth is held out.")],
    rows: Rows = Path("outputs/bench/architectures.csv"),
    picture: Picture = None,
    axis: Annotated[
        list[str] | None, typer.Option(help="A component to compare; may be given often. By default all.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of the optimiser.")] = 500,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a step.")] = 32,
    length: Annotated[int, typer.Option(min=8, help="Tokens of a row; evaluated up to eight times that.")] = 256,
    hidden_size: Annotated[int, typer.Option(min=64, help="Width of the shallow models; the deep have half.")] = 256,
    num_hidden_layers: Annotated[int, typer.Option(min=1, help="Of the shallow models.")] = 4,
    deep_layers: Annotated[int, typer.Option(min=1, help="Of the deep models.")] = 24,
    learning_rate: Annotated[
        list[float] | None, typer.Option(help="To try, with the first seed; may be given often.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each variant, at its best rate.")] = 3,
    workers: Annotated[int, typer.Option(min=1, help="Processes that train at the same time.")] = 1,
    rounds: Annotated[int, typer.Option(min=0, help="Of timing the steps; 0 leaves it out.")] = 15,
    max_seconds: Annotated[float, typer.Option(help="Start no run after so long; go on with the same command.")] = (
        math.inf
    ),
    device: Device = "auto",
) -> None:
    """Compare components: small models that differ in one, at equal parameters, on the same text and seeds.

    Example: [bold]baichuan-hf bench architectures --train-file a.txt --train-file b.txt --axis norm[/]
    """
    from ...benchmarks import architectures as case
    from ...benchmarks.learning import read_corpus
    from ...benchmarks.report import architecture_table, draw_architectures, length_table, rate_table, summarize
    from ...benchmarks.variants import Settings
    from ..main import fail

    settings = Settings(
        steps=steps,
        batch_size=batch_size,
        length=length,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        deep_layers=deep_layers,
        learning_rates=tuple(learning_rate or Settings.learning_rates),
        seeds=seeds,
    )
    failed = case.compare(
        rows,
        read_corpus(train_file, settings),
        settings,
        axes=axis,
        device=pick_device(device),
        workers=workers,
        rounds=rounds,
        max_seconds=max_seconds,
        command=command_line(),
    )
    summaries = summarize(rows) if rows.exists() else []
    for table in (architecture_table(summaries), length_table(summaries), rate_table(summaries)):
        if table.row_count:
            Console(highlight=False).print(table)
    if picture is not None and summaries:
        draw_architectures(rows, picture)
    if failed:
        fail(f"{len(failed)} runs failed: {'; '.join(failed)}")


def scaling(
    rows: Rows = Path("outputs/bench/scaling.csv"),
    picture: Picture = None,
    tokens: Annotated[
        list[int] | None, typer.Option(help="A length; may be given often. By default 1k to 64k.")
    ] = None,
    kind: Annotated[list[str] | None, typer.Option(help="Of attention; may be given often. By default all.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Calls of each, of which the median counts.")] = 10,
    device: Device = "auto",
) -> None:
    """Time and memory of an encoder layer as the text grows: full attention, Longformer, Linformer, Performer.

    Example: [bold]baichuan-hf bench scaling --tokens 1024 --tokens 4096 --picture scaling.png[/]
    """
    from ...benchmarks import scaling as case

    case.measure_scaling(
        rows,
        lengths=tokens or case.LENGTHS,
        kinds=kind,
        rounds=rounds,
        device=pick_device(device),
        command=command_line(),
    )
    if picture is not None:
        case.draw_scaling(rows, picture)
