"""`baichuan-hf convert`: checkpoint folders from one layout to another."""

from typing import Annotated, Literal

import typer


def convert(
    source: Annotated[str, typer.Argument(help="Checkpoint folder of another architecture.", metavar="SRC")],
    destination: Annotated[str, typer.Argument(help="Folder to write.", metavar="DST")],
    to: Annotated[Literal["baichuan"], typer.Option(help="What to convert to.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model that DST holds.")] = False,
) -> None:
    """Turn a checkpoint of another architecture into one of this package that computes the same.

    Example: [bold]baichuan-hf convert gpt2-folder gpt2-baichuan --to baichuan[/]

    Weights, config, generation settings, tokenizer and image processor are carried over. What has no equal here is
    refused by name.
    """
    from ..conversion.folders import convert_folder
    from ..model.registration import AUTO_CLASSES

    done = convert_folder(source, destination, overwrite=overwrite)
    name = type(done.model).__name__
    dtype = str(done.model.dtype).removeprefix("torch.")
    print(f"{done.reference} -> {name}: {done.model.num_parameters():,} parameters, {dtype}")
    print(" and the ".join([f"Saved to {destination}: the model", *done.copied]))
    if done.left_out:
        print(f"Not part of {done.reference}, left out: {', '.join(done.left_out)}")
    auto_class = next((auto for auto, ours in AUTO_CLASSES.items() if ours.__name__ == name), "AutoModelForSeq2SeqLM")
    print("Load it:\n    import baichuan_hf")
    print(f"    from transformers import {auto_class}")
    print(f'    model = {auto_class}.from_pretrained("{destination}")')
