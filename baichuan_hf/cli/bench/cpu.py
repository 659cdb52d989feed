"""What a CPU can show: a model's passes, and the tokenizer."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .options import Rows, command_line


def cpu(
    rows: Rows = Path("outputs/bench/cpu.csv"),
    peer: Annotated[
        list[str] | None, typer.Option(help="llama, bloom or mpt; may be given often. By default all.")
    ] = None,
    shape: Annotated[str, typer.Option(help="tiny or 100m.")] = "100m",
    rounds: Annotated[int, typer.Option(min=1, help="Turns, of which the median counts.")] = 10,
) -> None:
    """Read, write and train on the CPU, in turns with the model of transformers that the weights were copied from.

    Example: [bold]baichuan-hf bench cpu --peer llama[/]
    """
    from ...benchmarks import cpu as case

    case.measure_cpu(rows, peers=peer or tuple(case.PEERS), shape=shape, rounds=rounds, command=command_line())
    Console(highlight=False).print(case.cpu_table(rows))


def tokenizer(
    rows: Rows = Path("outputs/bench/tokenizer.csv"),
    model: Annotated[str, typer.Option(help="Folder with [bold]tokenizer.model[/], or `tiny`.")] = "tiny",
    text_file: Annotated[
        list[Path] | None, typer.Option(help="Plain text; may be given often. By default what comes with the package.")
    ] = None,
    megabytes: Annotated[float, typer.Option(min=0, help="Of documents made of it, as often as needed.")] = 10.0,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each, with all of it; the median counts.")] = 3,
) -> None:
    """Megabytes a second of the tokenizer, in batches and text by text, in turns with sentencepiece's.

    Example: [bold]baichuan-hf bench tokenizer --text-file a.txt --text-file b.txt --megabytes 100[/]
    """
    from ...benchmarks import tokenizer as case

    case.measure_tokenizer(
        rows,
        model=model,
        text_files=text_file or (),
        megabytes=megabytes,
        rounds=rounds,
        command=command_line(),
    )
    Console(highlight=False).print(case.tokenizer_table(rows))
