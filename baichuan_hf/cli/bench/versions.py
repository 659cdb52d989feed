"""A model quantised, and the package in another version."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Rows, command_line, pick_device


def quantization(
    rows: Rows = Path("outputs/bench/quantization.csv"),
    model: Annotated[str | None, typer.Option(help="Folder of a model, or `tiny`.")] = None,
    shape: Annotated[str | None, typer.Option(help="In place of it random weights: tiny, 1b, 7b or 13b.")] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="As of `quantize`; may be given often. By default all.")
    ] = None,
    head: Annotated[bool, typer.Option("--head", help="Each with the head quantised, too.")] = False,
    text_file: Annotated[str | None, typer.Option(help="Texts that gptq fits the weights to.")] = None,
    eval_file: Annotated[Path | None, typer.Option(help="Plain text to measure on.")] = None,
    group_size: Annotated[int, typer.Option(min=8, help="Inputs that share a scale, where a method has groups.")] = 32,
    static: Annotated[bool, typer.Option("--static", help="Write with a static cache; on a GPU compiled.")] = False,
    new_tokens: Annotated[int, typer.Option(min=1, help="To write.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Turns, of which the median counts.")] = 5,
    device: Device = "auto",
) -> None:
    """Size, bits per byte and tokens a second of a model before and after it is quantised.

    Example: [bold]baichuan-hf bench quantization --model tiny --method int8 --method nf4[/]
    """
    from ...benchmarks.quantization import measure_quantization
    from ...quantization import METHODS
    from ..quantize import read_texts

    measure_quantization(
        rows,
        model=model,
        shape=shape,
        methods=method or tuple(METHODS),
        head=head,
        texts=read_texts(text_file, "text", 128) if text_file else (),
        eval_file=eval_file,
        group_size=group_size,
        static=static,
        new_tokens=new_tokens,
        rounds=rounds,
        device=pick_device(device),
        command=command_line(),
    )


def ratio(
    before: Annotated[Path, typer.Option(help="Folder with the other version's [bold]baichuan_hf[/].")],
    label: Annotated[str, typer.Option(help="What the rows call the other version: its commit or number.")],
    rows: Rows = Path("outputs/bench/ratio.csv"),
    shape: Annotated[list[str] | None, typer.Option(help="tiny or 100m; may be given often.")] = None,
    rounds: Annotated[int, typer.Option(min=2, help="Pairs of calls, of which the median ratio counts.")] = 20,
    device: Device = "auto",
) -> None:
    """Whether the original families are as fast as in another version of the package, called in turns.

    The other version comes from git: [bold]git archive v0.1.0 baichuan_hf | tar -x -C old[/]

    Example: [bold]baichuan-hf bench ratio --before old --label v0.1.0[/]
    """
    from ...benchmarks.ratio import measure_ratio

    measure_ratio(
        rows,
        before,
        shapes=shape or ["tiny"],
        rounds=rounds,
        device=pick_device(device),
        label=label,
        command=command_line(),
    )
