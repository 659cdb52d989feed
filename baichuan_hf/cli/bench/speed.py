"""Speed of inference: writing, reading, attention."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .options import Device, Models, Picture, Rounds, Rows, Shape, command_line, pick_device


BatchSize = Annotated[int, typer.Option(min=1, help="Texts at once.")]
Profile = Annotated[Path | None, typer.Option(help="Append to this text file what the time of each went into.")]


def decode(
    rows: Rows = Path("outputs/bench/inference.csv"),
    picture: Picture = None,
    shape: Shape = "7b",
    models: Models = None,
    way: Annotated[
        list[str] | None,
        typer.Option(help="dynamic, graph, compiled or new-lengths; may be given often. By default all."),
    ] = None,
    batch_size: BatchSize = 1,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Of each text; with new-lengths of the first.")] = 128,
    new_tokens: Annotated[int, typer.Option(min=1, help="To write after it.")] = 256,
    rounds: Rounds = 5,
    profile: Profile = None,
    device: Device = "auto",
) -> None:
    """Tokens that `generate` writes a second, in turns with a Llama of the same weights.

    Example: [bold]baichuan-hf bench decode --shape tiny --way dynamic --new-tokens 16[/]
    """
    from ...benchmarks import inference as case

    case.measure_decoding(
        rows,
        shape=shape,
        models=models or case.MODELS,
        ways=way or tuple(case.DECODING_WAYS),
        batch_size=batch_size,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        rounds=rounds,
        device=pick_device(device),
        profile=profile,
        command=command_line(),
    )
    _show(rows, picture)


def prefill(
    rows: Rows = Path("outputs/bench/inference.csv"),
    picture: Picture = None,
    shape: Shape = "7b",
    models: Models = None,
    tokens: Annotated[int, typer.Option(min=2, help="Of each text.")] = 4096,
    batch_size: BatchSize = 1,
    rounds: Rounds = 9,
    profile: Profile = None,
    device: Device = "auto",
) -> None:
    """Milliseconds to read a text, in turns with a Llama of the same weights.

    Example: [bold]baichuan-hf bench prefill --shape tiny --tokens 256[/]
    """
    from ...benchmarks import inference as case

    case.measure_prefill(
        rows,
        shape=shape,
        models=models or case.MODELS,
        tokens=tokens,
        batch_size=batch_size,
        rounds=rounds,
        device=pick_device(device),
        profile=profile,
        command=command_line(),
    )
    _show(rows, picture)


def attention(
    rows: Rows = Path("outputs/bench/attention.csv"),
    tokens: Annotated[list[int] | None, typer.Option(help="A length; may be given often.")] = None,
    heads: Annotated[int, typer.Option(min=1, help="Of the 13B by default.")] = 40,
    head_dim: Annotated[int, typer.Option(min=8, help="A multiple of 8.")] = 128,
    rounds: Rounds = 9,
    device: Device = "auto",
) -> None:
    """Attention with ALiBi, in the forms that there are, next to causal attention without it.

    Example: [bold]baichuan-hf bench attention --tokens 512 --heads 4 --head-dim 32[/]
    """
    from ...benchmarks.attention import attention_table, measure_attention

    measure_attention(
        rows,
        lengths=tokens or (4096, 16384),
        heads=heads,
        head_dim=head_dim,
        rounds=rounds,
        device=pick_device(device),
        command=command_line(),
    )
    Console(highlight=False).print(attention_table(rows))


def start(
    rows: Rows = Path("outputs/bench/start.csv"),
    shape: Shape = "7b",
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model", help="llama, baichuan or 'baichuan, ALiBi'; may be given often. By default the first two."
        ),
    ] = None,
    way: Annotated[
        list[str] | None, typer.Option(help="dynamic, graph or compiled; may be given often. By default all.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Seconds until the first tokens of a process, with what torch.compile left on the disk and without.

    Example: [bold]baichuan-hf bench start --shape tiny --way dynamic[/]
    """
    from ...benchmarks import first_token as case

    case.measure_start(
        rows,
        shape=shape,
        models=models or case.MODELS[:2],
        ways=way or tuple(case.WAYS),
        device=pick_device(device),
        command=command_line(),
    )
    Console(highlight=False).print(case.start_table(rows))


def _show(rows: Path, picture: Path | None) -> None:
    from ...benchmarks.inference import draw_inference, inference_table

    Console(highlight=False).print(inference_table(rows))
    if picture is not None:
        draw_inference(rows, picture)
