"""`baichuan-hf bench`: measurements whose rows are kept in CSV files; one sub-command per case."""

import math
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


bench = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")

Rows = Annotated[Path, typer.Option(help="CSV file that rows are appended to; what it holds is not measured again.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto: a CUDA device if there is one.")]
Picture = Annotated[
    Path | None, typer.Option(help="Draw the rows into this file (needs [bold]pip install 'baichuan-hf\\[bench]'[/]).")
]


@bench.callback()
def main() -> None:
    """Measure components, attention and versions; the rows are kept in CSV files.

    Example: [bold]baichuan-hf bench scaling --tokens 1024 --tokens 4096[/]
    """


@bench.command()
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
    from ..benchmarks import architectures as case
    from ..benchmarks.learning import read_corpus
    from ..benchmarks.report import architecture_table, draw_architectures, length_table, rate_table, summarize
    from ..benchmarks.variants import Settings
    from .main import fail

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
        device=_device(device),
        workers=workers,
        rounds=rounds,
        max_seconds=max_seconds,
        command=_command(),
    )
    summaries = summarize(rows) if rows.exists() else []
    for table in (architecture_table(summaries), length_table(summaries), rate_table(summaries)):
        if table.row_count:
            Console(highlight=False).print(table)
    if picture is not None and summaries:
        draw_architectures(rows, picture)
    if failed:
        fail(f"{len(failed)} runs failed: {'; '.join(failed)}")


@bench.command()
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
    from ..benchmarks import scaling as case

    case.measure_scaling(
        rows, lengths=tokens or case.LENGTHS, kinds=kind, rounds=rounds, device=_device(device), command=_command()
    )
    if picture is not None:
        case.draw_scaling(rows, picture)


@bench.command()
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
    from ..benchmarks.loss import loss_table, measure_loss

    measure_loss(
        rows,
        tokens=tokens,
        hidden_size=hidden_size,
        vocab_size=vocab_size,
        rounds=rounds,
        device=_device(device),
        command=_command(),
    )
    Console(highlight=False).print(loss_table(rows))


@bench.command()
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
    from ..benchmarks import parallel as case
    from .main import fail

    failed = case.measure_parallel(
        rows,
        ways=way or case.WAYS,
        shape=shape,
        processes=processes,
        batch_size=batch_size,
        length=length,
        steps=steps,
        device=_device(device),
        command=_command(),
    )
    if failed:
        fail(f"{len(failed)} ways failed: {'; '.join(failed)}")


@bench.command()
def quantization(
    rows: Rows = Path("outputs/bench/quantization.csv"),
    model: Annotated[str | None, typer.Option(help="Folder of a model, or `tiny`.")] = None,
    shape: Annotated[str | None, typer.Option(help="In place of it random weights: tiny, 1b or 7b.")] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="As of `quantize`; may be given often. By default all.")
    ] = None,
    head: Annotated[bool, typer.Option("--head", help="Each with the head quantised, too.")] = False,
    text_file: Annotated[str | None, typer.Option(help="Texts that gptq fits the weights to.")] = None,
    eval_file: Annotated[Path | None, typer.Option(help="Plain text to measure on.")] = None,
    static: Annotated[bool, typer.Option("--static", help="Write with a static cache; on a GPU compiled.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Turns, of which the median counts.")] = 5,
    device: Device = "auto",
) -> None:
    """Size, bits per byte and tokens a second of a model before and after it is quantised.

    Example: [bold]baichuan-hf bench quantization --model tiny --method int8 --method nf4[/]
    """
    from ..benchmarks.quantization import measure_quantization
    from ..quantization import METHODS
    from .quantize import read_texts

    measure_quantization(
        rows,
        model=model,
        shape=shape,
        methods=method or tuple(METHODS),
        head=head,
        texts=read_texts(text_file, "text", 128) if text_file else (),
        eval_file=eval_file,
        static=static,
        rounds=rounds,
        device=_device(device),
        command=_command(),
    )


@bench.command()
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
    from ..benchmarks.ratio import measure_ratio

    measure_ratio(
        rows,
        before,
        shapes=shape or ["tiny"],
        rounds=rounds,
        device=_device(device),
        label=label,
        command=_command(),
    )


@bench.command()
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
    from ..benchmarks import training
    from .main import fail

    failed = training.measure_training(
        rows,
        cases=case or tuple(training.CASES),
        shape=shape,
        batch_size=batch_size,
        length=length,
        rounds=rounds,
        at_once=at_once,
        device=_device(device),
        command=_command(),
    )
    Console(highlight=False).print(training.training_table(rows))
    if failed:
        fail(f"{len(failed)} variants failed: {'; '.join(failed)}")


def _device(name: str):
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _command() -> str:
    return shlex.join(["baichuan-hf", *sys.argv[1:]])
