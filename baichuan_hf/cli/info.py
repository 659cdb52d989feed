"""`baichuan-hf info`: what a model holds and costs, before anything is downloaded or allocated."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich import box
from rich.columns import Columns
from rich.console import Console
from rich.table import Table


def info(
    model: Annotated[
        str, typer.Argument(help="A preset ([bold]llama-2-7b[/], [bold]gpt2[/], ...), or a folder or Hub name.")
    ],
    batch_size: Annotated[int, typer.Option(min=1, help="Texts at once.")] = 1,
    length: Annotated[int | None, typer.Option(min=1, help="Tokens of each; by default the context length.")] = None,
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"], typer.Option(help="Of served weights, cache and activations.")
    ] = "bfloat16",
    lora_r: Annotated[int, typer.Option(min=1, help="Rank of the adapters.")] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: bytes and plain numbers.")] = False,
) -> None:
    """Show a model's key variables, parameters, memory to serve and to train, and operations.

    Example: [bold]baichuan-hf info mixtral-8x7b --batch-size 8 --length 2048[/]
    """
    import torch

    from ..evaluation import ASSUMPTIONS, measure

    size = measure(
        _load_config(model), batch_size=batch_size, length=length, dtype=getattr(torch, dtype), lora_r=lora_r
    )
    if as_json:
        print(json.dumps({"model": model, **size}, indent=2))
        return
    console = Console(highlight=False)
    console.print(f"[bold]{model}[/], a {size['class']}")
    console.print(Columns([_variables(size["variables"]), _parameters(size["parameters"])]))
    console.print(Columns([_memory(size["memory"], size["settings"]), _rates(size)]))
    console.print(ASSUMPTIONS, style="dim")


def _load_config(name: str) -> Any:
    from transformers import AutoConfig

    import baichuan_hf

    from ..checkpoints import resolve_model

    source = resolve_model(name)
    if not Path(source).is_dir() and "/" not in source:
        try:
            return baichuan_hf.BaichuanConfig.from_preset(name)
        except ValueError as error:
            raise ValueError(f"{error} Nor is there a folder {name!r}.") from None
    config = AutoConfig.from_pretrained(source)
    if not isinstance(config, baichuan_hf.BaichuanConfig):
        raise ValueError(
            f"{name}: model_type is {config.model_type!r}, not 'baichuan': convert it first (baichuan-hf convert), or"
            f" take a preset: {', '.join(baichuan_hf.list_presets())}."
        )
    return config


def _variables(values: dict[str, int]) -> Table:
    table = _number_table("variable", "value")
    names = {
        "vocab_size": "vocabulary",
        "hidden_size": "model size",
        "max_position_embeddings": "context",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
        "num_key_value_heads": "key/value heads",
        "head_dim": "head size",
        "intermediate_size": "FFN size",
        "num_local_experts": "experts",
    }
    for key, name in names.items():
        table.add_row(name, f"{values[key]:,}")
    if values["num_local_experts"]:
        table.add_row("experts per token", f"{values['num_experts_per_tok']:,}")
    return table


def _parameters(counts: dict[str, int]) -> Table:
    table = _number_table("parameters", "number", "of all", "of layers")
    layers = {"attention": "attention", "feed_forward": "FFN", "norms": "norms"}
    in_layers = sum(counts[part] for part in layers)
    for part, name in {"embeddings": "embeddings", **layers, "head": "head"}.items():
        share = f"{counts[part] / in_layers:.1%}" if part in layers else ""
        table.add_row(name, f"{counts[part]:,}", f"{counts[part] / counts['total']:.1%}", share)
    for key, name in {"total": "total", "active": "active per token", "lora": "LoRA adapters"}.items():
        table.add_row(
            name, f"{counts[key]:,}", f"{counts[key] / counts['total']:.1%}", "", style="bold" * (key == "total")
        )
    return table


def _memory(memory: dict[str, dict[str, int]], settings: dict[str, Any]) -> Table:
    columns = {"serve": "serve", "train_full": "train", "train_lora": "LoRA", "train_qlora": "QLoRA"}
    rows = {
        "weights": "weights",
        "gradients": "gradients",
        "optimizer": "optimiser",
        "activations": "activations",
        "kv_cache": "KV cache",
        "total": "total",
    }
    table = _number_table("GiB for {batch_size} x {length:,} tokens".format(**settings), *columns.values())
    for row, name in rows.items():
        amounts = (memory[column][row] for column in columns)
        cells = (f"{amount / 2**30:,.2f}" if amount else "" for amount in amounts)
        table.add_row(name, *cells, style="bold" * (row == "total"))
    return table


def _rates(size: dict[str, Any]) -> Table:
    cache, flops = size["kv_cache"], size["flops_per_token"]
    table = _number_table("per token", "amount")
    table.add_row("operations, forward", f"{flops['forward'] / 1e9:,.2f} GFLOP")
    table.add_row("operations, training", f"{flops['training'] / 1e9:,.2f} GFLOP")
    if cache["per_token"]:
        table.add_row("KV cache", _amount(cache["per_token"]))
        table.add_row("of a whole context", _amount(cache["maximum_per_text"]))
    return table


def _number_table(title: str, *columns: str) -> Table:
    table = Table(title, box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _amount(number: float) -> str:
    """1536 -> 1.5 KiB"""
    units = ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while number >= 1024 and len(units) > 1:
        number /= 1024
        units.pop(0)
    return f"{number:,.4g} {units[0]}"
