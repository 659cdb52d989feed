"""Speed of generation that is more than one token of one text a pass."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .options import Device, Rounds, Rows, Shape, command_line, pick_device


def assisted(
    rows: Rows = Path("outputs/bench/assisted.csv"),
    shape: Shape = "7b",
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model", help="llama, baichuan or 'baichuan, ALiBi'; may be given often. By default both of ours."
        ),
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=100, help="Of the text, which repeats itself every 50.")] = 128,
    new_tokens: Annotated[int, typer.Option(min=1, help="To write after it.")] = 256,
    rounds: Rounds = 3,
    device: Device = "auto",
) -> None:
    """Tokens a second with prompt lookup and with a draft model, in turns with plain decoding of the same model.

    The weights are such that the text repeats itself and a draft is always right: the most there is to gain.

    Example: [bold]baichuan-hf bench assisted --shape tiny --new-tokens 64[/]
    """
    from ...benchmarks import assisted as case

    case.measure_assisted(
        rows,
        shape=shape,
        models=models or case.OURS,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        rounds=rounds,
        device=pick_device(device),
        command=command_line(),
    )
    Console(highlight=False).print(case.assisted_table(rows))


def batching(
    rows: Rows = Path("outputs/bench/batching.csv"),
    shape: Shape = "7b",
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="llama, baichuan or 'baichuan, ALiBi'; may be given often; the first is compared with. By default the"
            " first two, which have the same weights.",
        ),
    ] = None,
    attention: Annotated[
        str,
        typer.Option(
            help="sdpa or eager, which need no further package; flash_attention_2 or flash_attention_3, not for ALiBi."
        ),
    ] = "sdpa",
    cuda_graph: Annotated[
        bool,
        typer.Option(
            "--cuda-graph", help="Record passes as CUDA graphs, which transformers does for flash attention."
        ),
    ] = False,
    requests: Annotated[int, typer.Option(min=1, help="That come all at once.")] = 64,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Of the longest; the shortest has a 32nd of it.")] = 1024,
    new_tokens: Annotated[int, typer.Option(min=1, help="At most for a request; at least an eighth of it.")] = 64,
    rounds: Rounds = 3,
    device: Device = "auto",
) -> None:
    """Tokens a second of transformers' continuous batching, in turns with a Llama of the same weights.

    The cache has room for all requests and no more. Meant to take a minute for a 7B on an H100.

    Example: [bold]baichuan-hf bench batching --shape tiny --requests 8 --prompt-tokens 64 --new-tokens 16[/]
    """
    from ...benchmarks import batching as case

    case.measure_batching(
        rows,
        shape=shape,
        models=models or case.TWINS,
        attention=attention,
        cuda_graph=cuda_graph,
        requests=requests,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        rounds=rounds,
        device=pick_device(device),
        command=command_line(),
    )
    Console(highlight=False).print(case.batching_table(rows))
