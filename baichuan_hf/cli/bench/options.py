"""What the commands of `baichuan-hf bench` share."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer


Rows = Annotated[Path, typer.Option(help="CSV file that rows are appended to; what it holds is not measured again.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto: a CUDA device if there is one.")]
Shape = Annotated[str, typer.Option(help="tiny, 1b, 7b or 13b.")]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        help="llama, baichuan or 'baichuan, ALiBi'; may be given often; the first is compared with. By default all.",
    ),
]
Rounds = Annotated[int, typer.Option(min=1, help="Calls of each, of which the median counts.")]
Picture = Annotated[
    Path | None, typer.Option(help="Draw the rows into this file (needs [bold]pip install 'baichuan-hf\\[bench]'[/]).")
]


def pick_device(name: str):
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def command_line() -> str:
    """What was typed, for the rows."""
    return shlex.join(["baichuan-hf", *sys.argv[1:]])
