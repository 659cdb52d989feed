"""What a model takes: time to load it, memory to use it."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .options import Device, Models, Picture, Rounds, Rows, Shape, command_line, pick_device


def load(
    rows: Rows = Path("outputs/bench/load.csv"),
    shape: Shape = "1b",
    models: Models = None,
    rounds: Annotated[int, typer.Option(min=1, help="Loads of each, of which the median counts.")] = 5,
    device: Device = "auto",
) -> None:
    """Load a model from safetensors, in turns with a Llama of the same shape, and write the first token.

    Example: [bold]baichuan-hf bench load --shape 7b[/]
    """
    from ...benchmarks import loading as case

    case.measure_loading(
        rows,
        shape=shape,
        models=models or case.MODELS,
        rounds=rounds,
        device=pick_device(device),
        command=command_line(),
    )
    Console(highlight=False).print(case.loading_table(rows))


def memory(
    rows: Rows = Path("outputs/bench/memory.csv"),
    picture: Picture = None,
    shape: Shape = "1b",
    tokens: Annotated[
        list[int] | None, typer.Option(help="A length; may be given often. By default 1k to 32k.")
    ] = None,
    positions: Annotated[list[str] | None, typer.Option(help="rope or alibi; may be given often.")] = None,
    case: Annotated[list[str] | None, typer.Option(help="prefill, decode or training; may be given often.")] = None,
    rounds: Rounds = 5,
    device: Device = "auto",
) -> None:
    """Peak memory and time of reading a text, of a token behind it, and of training on it, as the text grows.

    Example: [bold]baichuan-hf bench memory --shape tiny --tokens 1024 --tokens 2048 --picture memory.png[/]
    """
    from ...benchmarks import memory as module

    module.measure_memory(
        rows,
        shape=shape,
        lengths=tokens or module.LENGTHS,
        positions=positions or module.POSITIONS,
        passes=case or tuple(module.PASSES),
        rounds=rounds,
        device=pick_device(device),
        command=command_line(),
    )
    Console(highlight=False).print(module.memory_table(rows))
    if picture is not None:
        module.draw_memory(rows, picture)
