"""`baichuan-hf export`: a model as a graph for other runtimes."""

from typing import Annotated, Literal

import typer


def export(
    source: Annotated[str, typer.Argument(help="Folder of a Baichuan model, or `tiny`.", metavar="SRC")],
    destination: Annotated[str, typer.Argument(help="Folder to write.", metavar="DST")],
    to: Annotated[Literal["onnx", "torch"], typer.Option(help="ONNX, or a program of torch.export (.pt2).")] = "onnx",
    cache: Annotated[
        bool, typer.Option(help="Of a language model: take and give keys and values, so that it can go on.")
    ] = True,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="That the graph computes in.")
    ] = "float32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what DST holds.")] = False,
) -> None:
    """Write a model as one graph, for batches and texts of any length, by transformers' exporters.

    Example: [bold]baichuan-hf export tiny tiny-onnx[/]

    Language models, classifiers, encoders; the tokenizer goes with it. The graph is read back and run beside the
    model, and kept if both give the same: that takes memory for several copies.
    """
    import torch

    from ..export import export_folder

    done = export_folder(source, destination, to=to, cache=cache, dtype=getattr(torch, dtype), overwrite=overwrite)
    print(f"{done.model_class} -> {to}, {dtype}: {', '.join(done.files)}")
    print(f"Saved to {' and the '.join([f'{destination}: the graph', *done.copied])}")
    print(f"A batch of other sizes gave what the model gives, within {done.difference:.2g} of {done.largest:.3g}.")
    print("Run it:")
    print("    import baichuan_hf")
    print("    from transformers.exporters import ExportedModel")
    print(f'    graph = ExportedModel.from_pretrained("{destination}")')
