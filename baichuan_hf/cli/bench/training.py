"""Training: whole steps, the loss alone, several processes."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .options import Device, Rows, command_line, pick_device


def loss(
    rows: Rows = Path("outputs/bench/loss.csv"),
    tokens: Annotated[int, typer.Option(min=1, help="Of a step.")] = 8192,
    hidden_size: Annotated[int, typer.Option(min=1, help="Width of the states before the head.")] = 4096,
    vocab_size: Annotated[int, typer.Option(min=2, help="Number of classes.")] = 125696,
    rounds: Annotated[int, typer.Option(min=1, help="Calls of each that count.")] = 10,
    device: Device = "auto",
) -> None:
    """Time and memory of the loss over a large vocabulary: in chunks, on whole logits, by Liger.

    Example: [bold]baichuan-hf bench loss --tokens 512 --hidden-size 512 --rounds 3[/]
    """
    from ...benchmarks.loss import loss_table, measure_loss

    measure_loss(
        rows,
        tokens=tokens,
        hidden_size=hidden_size,
        vocab_size=vocab_size,
        rounds=rounds,
        device=pick_device(device),
        command=command_line(),
    )
    Console(highlight=False).print(loss_table(rows))


def parallel(
    rows: Rows = Path("outputs/bench/parallel.csv"),
    way: Annotated[
        list[str] | None, typer.Option(help="ddp, fsdp2 or tp; may be given often. By default all.")
    ] = None,
    shape: Annotated[str, typer.Option(help="tiny, or 1b: 1.1 billion weights.")] = "1b",
    processes: Annotated[int, typer.Option(min=2, help="That share the work.")] = 2,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a step, of all processes together.")] = 16,
    length: Annotated[int, typer.Option(min=8, help="Tokens of a row.")] = 2048,
    steps: Annotated[int, typer.Option(min=5, help="Of the optimiser.")] = 15,
    device: Device = "auto",
) -> None:
    """Tokens a second, memory and losses of training by several GPUs, in each way, next to those of one.

    Example: [bold]baichuan-hf bench parallel --way ddp --way fsdp2[/]
    """
    from ...benchmarks import parallel as case
    from ..main import fail

    failed = case.measure_parallel(
        rows,
        ways=way or case.WAYS,
        shape=shape,
        processes=processes,
        batch_size=batch_size,
        length=length,
        steps=steps,
        device=pick_device(device),
        command=command_line(),
    )
    if failed:
        fail(f"{len(failed)} ways failed: {'; '.join(failed)}")


def train(
    rows: Rows = Path("outputs/bench/train.csv"),
    case: Annotated[
        list[str] | None, typer.Option(help="lora, qlora or full; may be given often. By default all.")
    ] = None,
    shape: Annotated[str | None, typer.Option(help="tiny, 1b or 7b, in place of the case's own.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows of a step, likewise.")] = None,
    length: Annotated[int | None, typer.Option(min=8, help="Tokens of a row, likewise.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Steps of each that count.")] = 10,
    at_once: Annotated[int, typer.Option(min=2, help="Models that fit into memory together.")] = 3,
    device: Device = "auto",
) -> None:
    """Training steps of Baichuan models in turns with those of a Llama of the same shape: speed and memory.

    Example: [bold]baichuan-hf bench train --case lora --case full[/]
    """
    from ...benchmarks import training
    from ..main import fail

    failed = training.measure_training(
        rows,
        cases=case or tuple(training.CASES),
        shape=shape,
        batch_size=batch_size,
        length=length,
        rounds=rounds,
        at_once=at_once,
        device=pick_device(device),
        command=command_line(),
    )
    Console(highlight=False).print(training.training_table(rows))
    if failed:
        fail(f"{len(failed)} variants failed: {'; '.join(failed)}")
