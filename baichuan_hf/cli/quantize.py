"""`baichuan-hf quantize`: a checkpoint with fewer bits for its weights."""

from typing import Annotated

import typer

from . import options


CALIBRATION = "Texts that gptq fits the weights to"


def quantize(
    source: Annotated[str, typer.Argument(help="Folder of a Baichuan model, or `tiny`.", metavar="SRC")],
    destination: Annotated[str, typer.Argument(help="Folder to write.", metavar="DST")],
    method: Annotated[
        str,
        typer.Option(
            help="int8, int8-dynamic, int4, int4-dynamic, float8, float8-dynamic (torchao); bnb-int8, nf4, fp4"
            " (bitsandbytes); gptq (GPTQModel)."
        ),
    ],
    group_size: Annotated[
        int, typer.Option(min=1, help="Inputs that share a scale: of int4, int4-dynamic and gptq.")
    ] = 128,
    head: Annotated[
        bool, typer.Option("--head", help="Quantise the language model's head too; a NormHead is folded for it.")
    ] = False,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model that DST holds.")] = False,
    text_file: Annotated[
        str | None, typer.Option(help="As --train-file of `train`.", rich_help_panel=CALIBRATION)
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column with the text.", rich_help_panel=CALIBRATION)] = "text",
    rows: Annotated[int, typer.Option(min=1, help="Take so many.", rich_help_panel=CALIBRATION)] = 128,
) -> None:
    """Store the weights of the layers in 8 or 4 bits; the folder loads with from_pretrained as any other.

    Example: [bold]baichuan-hf quantize Baichuan2-7B-Chat Baichuan2-7B-Chat-nf4 --method nf4[/]

    Embeddings, norms and the head stay as they are. To fine-tune what is in 4 bits (QLoRA), [bold]baichuan-hf train
    --qlora[/] quantises by itself.
    """
    import torch

    from ..hub import auto_class_of
    from ..quantization import quantize_folder

    texts = read_texts(text_file, text_column, rows) if text_file is not None else []
    done = quantize_folder(
        source,
        destination,
        method=method,
        group_size=group_size,
        head=head,
        texts=texts,
        dtype=None if dtype == "auto" else getattr(torch, dtype),
        device=device,
        overwrite=overwrite,
    )
    before, after = (f"{size / 1e6:,.1f} MB" for size in (done.bytes_before, done.bytes_after))
    print(f"{done.model_class}: {done.layers} layers as {method}; {before} -> {after}")
    if done.left:
        print(f"As they were, because their shape does not suit {method}: {', '.join(done.left)}")
    if done.folded:
        print("NormHead is folded: lm_head is a plain head, whose rows have length 1.")
    print(f"Saved to {destination}. Load it:")
    print("    import baichuan_hf")
    auto_class = auto_class_of(done.model_class)
    print(f"    from transformers import {auto_class}")
    print(f'    model = {auto_class}.from_pretrained("{destination}")')


def read_texts(file: str, column: str, rows: int) -> list[str]:
    """The first texts of a file that are not empty."""
    from ..data.tables import load_train_and_test, require_columns

    table = load_train_and_test(file)["train"]
    require_columns(table, {"--text-column": column}, file)
    texts = [text for text in table[column] if text and text.strip()]
    return texts[:rows]
