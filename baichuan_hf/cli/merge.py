"""`baichuan-hf merge`: an adapter into the weights of its model."""

from typing import Annotated, Literal

import typer

from . import options
from .convert import MAX_SHARD_SIZE, print_how_to_load


def merge(
    adapter: Annotated[str, typer.Argument(help="Folder of a PEFT adapter.", metavar="ADAPTER")],
    destination: Annotated[str, typer.Argument(help="Folder to write.", metavar="DST")],
    base: Annotated[
        str | None, typer.Option(help="Folder or Hub name of its model; unset: the one that it names.")
    ] = None,
    dtype: options.Dtype = "auto",
    layout: Annotated[
        Literal["baichuan", "remote_code", "llama"],
        typer.Option(help="With the model code beside the weights, or as Llama, which needs none."),
    ] = "baichuan",
    max_shard_size: Annotated[str, typer.Option(help="Of a file of weights.")] = MAX_SHARD_SIZE,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model that DST holds.")] = False,
) -> None:
    """Put an adapter (LoRA, DoRA, rsLoRA, ...) into the weights of its model, and save that as a model.

    Example: [bold]baichuan-hf merge my-adapter my-model --layout llama[/]

    Of every task, with labels, trained heads and added tokens. A model in 4 bits cannot take an adapter in: give the
    one that it was made from as [bold]--base[/]. For GGUF, or to change the vocabulary too: [bold]baichuan-hf convert
    MODEL DST --adapter ADAPTER[/].
    """
    import torch

    from ..adapters.merging import merge_folder

    done = merge_folder(
        adapter,
        destination,
        base=base,
        dtype=None if dtype == "auto" else getattr(torch, dtype),
        layout=layout,
        max_shard_size=max_shard_size,
        overwrite=overwrite,
    )
    print(f"{done.kind} of {done.base} -> {done.model_class}:", end=" ")
    print(f"{done.parameters:,} parameters, {str(done.dtype).removeprefix('torch.')}")
    print(f"Saved to {destination}.")
    print_how_to_load(done.model_class, destination, remote_code=layout == "remote_code")
