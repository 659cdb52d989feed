"""`baichuan-hf convert`: checkpoint folders from one layout to another."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from . import options


BAICHUAN = "Of a Baichuan model"
GGUF = "To GGUF"
ADAPTERS = "Of an adapter"
MAX_SHARD_SIZE = "5GB"


def convert(
    source: Annotated[str, typer.Argument(help="Checkpoint folder to read, or `tiny`.", metavar="SRC")],
    destination: Annotated[str, typer.Argument(help="Folder to write; for GGUF a file or a folder.", metavar="DST")],
    to: Annotated[Literal["baichuan", "llama", "gguf"], typer.Option(help="What to convert to.")],
    dtype: options.Dtype = "auto",
    max_shard_size: Annotated[str, typer.Option(help="Of a file of weights.")] = MAX_SHARD_SIZE,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model that DST holds.")] = False,
    vocab_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Cut embeddings and head to so many rows, or fill them up.", rich_help_panel=BAICHUAN
        ),
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="PEFT adapter to merge into the weights.", rich_help_panel=BAICHUAN)
    ] = None,
    remote_code: Annotated[
        bool,
        typer.Option(
            "--remote-code",
            help="To Baichuan: put the model code beside the weights, for those without this package.",
            rich_help_panel=BAICHUAN,
        ),
    ] = False,
    quantize: Annotated[
        Literal["q8_0", "q5_1", "q5_0", "q4_1", "q4_0"] | None,
        typer.Option(help="ggml's type of the matrices, instead of --dtype.", rich_help_panel=GGUF),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="The model in the other layout, named in the new adapter; to GGUF: the folder of its model.",
            rich_help_panel=ADAPTERS,
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="To Baichuan: cut W_pack to this rank, and print the error; unset: exact, of three times the rank.",
            rich_help_panel=ADAPTERS,
        ),
    ] = None,
) -> None:
    """Turn a checkpoint into one of another layout that computes the same.

    Example: [bold]baichuan-hf convert Baichuan2-7B-Chat Baichuan2-7B-Chat-llama --to llama[/]

    SRC is a Baichuan, for [bold]--to baichuan[/] a model of another architecture, or a LoRA adapter of either.
    Weights, config, generation settings, tokenizer and image processor are carried over. What has no equal is refused
    by name. A Llama folder loads without this package; models with ALiBi cannot become one. A GGUF file is for
    llama.cpp, and all four Baichuan families can become one; a LoRA adapter becomes one of its own.
    """
    import torch

    from ..checkpoints import resolve_model
    from ..conversion.baichuan_folders import convert_baichuan_folder
    from ..conversion.folders import convert_folder
    from ..conversion.lora import is_adapter
    from ..hub import add_remote_code

    source = resolve_model(source)
    if remote_code and (to != "baichuan" or is_adapter(source)):
        raise ValueError("--remote-code is for models that become Baichuan: nothing else needs its code.")
    if is_adapter(source):
        if (dtype, max_shard_size, vocab_size, adapter, quantize) != ("auto", MAX_SHARD_SIZE, None, None, None):
            raise ValueError(f"{source} is an adapter: of the options it takes --base, --rank and --overwrite.")
        if to == "gguf":
            if rank is not None:
                raise ValueError("--rank is for --to baichuan: in GGUF the rank stays as it is.")
            convert_adapter_gguf(source, destination, base, overwrite)
        else:
            convert_adapter(source, destination, to, base, rank, overwrite)
        return
    if (base, rank) != (None, None):
        raise ValueError(f"--base and --rank are for adapters, but {source} holds no adapter_config.json.")
    shared: dict[str, Any] = {
        "dtype": None if dtype == "auto" else getattr(torch, dtype),
        "overwrite": overwrite,
    }
    if to == "gguf":
        if max_shard_size != MAX_SHARD_SIZE:
            raise ValueError("--max-shard-size is for safetensors: GGUF is one file.")
        convert_gguf(source, destination, quantize=quantize, vocab_size=vocab_size, adapter=adapter, **shared)
        return
    if quantize is not None:
        raise ValueError(f"--quantize {quantize} is for --to gguf, not for --to {to}.")
    shared["max_shard_size"] = max_shard_size
    lost: list[str] = []
    if to == "llama" or model_type_of(source) in ("baichuan", "llama"):
        rewritten = convert_baichuan_folder(
            source, destination, to=to, vocab_size=vocab_size, adapter=adapter, **shared
        )
        read, name, parameters, found, copied, left_out, lost = rewritten
    else:
        if vocab_size is not None or adapter is not None:
            raise ValueError(
                "--vocab-size and --adapter are for Baichuan and Llama models: convert SRC first, then its result."
            )
        done = convert_folder(source, destination, **shared)
        read, name, copied, left_out = done.reference, type(done.model).__name__, done.copied, done.left_out
        parameters, found = done.model.num_parameters(), done.model.dtype
    print(f"{read} -> {name}: {parameters:,} parameters, {str(found).removeprefix('torch.')}")
    if remote_code:
        add_remote_code(Path(destination))
        copied.append("code, for trust_remote_code=True")
    print(" and the ".join([f"Saved to {destination}: the model", *copied]))
    if left_out:
        print(f"Not part of {read}, left out: {', '.join(left_out)}")
    for sentence in lost:
        print(sentence)
    print_how_to_load(name, destination, remote_code=remote_code)


def convert_gguf(source: str, destination: str, **options: Any) -> None:
    from ..conversion.to_gguf import convert_to_gguf

    done = convert_to_gguf(source, destination, **options)
    print(f"BaichuanForCausalLM -> GGUF, llama.cpp's {done.architecture}: {done.parameters:,} parameters, {done.kind}")
    print(f"Saved to {done.file} ({done.file.stat().st_size / 1e6:,.1f} MB): the model and the tokenizer")
    if done.left_out:
        print(f"Not part of the model, left out: {', '.join(done.left_out)}")
    for sentence in done.lost:
        print(sentence)
    print("Run it:")
    print(f"    llama-cli -m {done.file}")


def convert_adapter_gguf(source: str, destination: str, base: str | None, overwrite: bool) -> None:
    from ..conversion.lora_to_gguf import convert_adapter_to_gguf

    done = convert_adapter_to_gguf(source, destination, base=base, overwrite=overwrite)
    print(f"Adapter -> GGUF, llama.cpp's {done.architecture}: {done.modules} modules, rank {done.rank}")
    print(f"Saved to {done.file}. Run it with the GGUF file of its model:")
    print(f"    llama-cli -m MODEL.gguf --lora {done.file}")


def convert_adapter(
    source: str,
    destination: str,
    to: Literal["baichuan", "llama"],
    base: str | None,
    rank: int | None,
    overwrite: bool,
) -> None:
    from ..conversion import lora

    done = lora.convert_adapter(source, destination, to=to, base=base, rank=rank, overwrite=overwrite)
    print(f"Adapter -> {to}: {done.modules} modules, rank {done.rank}")
    if done.error is not None:
        print(f"W_pack cut to rank {rank}: largest relative error of a layer {done.error:.3g} (Frobenius norm)")
    if to == "llama" and not done.base_checked:
        print("Not checked whether its model has rotary positions: that config is not at hand.")
    print(f"Saved to {destination}; put it upon a model in the new layout:")
    print("    from peft import PeftModel")
    print(f'    model = PeftModel.from_pretrained(model, "{destination}")')


def model_type_of(folder: str) -> str | None:
    """As its config says; None if it has none."""
    file = Path(folder) / "config.json"
    return json.loads(file.read_text(encoding="utf-8")).get("model_type") if file.is_file() else None


def print_how_to_load(name: str, folder: str, *, remote_code: bool) -> None:
    from ..hub import auto_class_of

    auto_class = auto_class_of(name)
    print("Load it:")
    if "Llama" not in name and not remote_code:
        print("    import baichuan_hf")
    print(f"    from transformers import {auto_class}")
    print(f'    model = {auto_class}.from_pretrained("{folder}"{", trust_remote_code=True" if remote_code else ""})')
