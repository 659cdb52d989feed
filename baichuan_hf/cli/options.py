"""Options that several commands share; those of generation bear the names of GenerationConfig."""

from typing import Annotated, Literal

import typer


GENERATION = "Generation (as in GenerationConfig; unset: the checkpoint's own value)"

Model = Annotated[
    str, typer.Option(help="Folder or Hub name of the model, or [bold]tiny[/], the one that is bundled.")
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(help="Of the weights; auto: as in the file."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, ...; auto: an accelerator if there is one.")]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable.")]
MaxNewTokens = Annotated[int | None, typer.Option(min=1, help="Stop after this many.", rich_help_panel=GENERATION)]
DoSample = Annotated[
    bool | None,
    typer.Option("--do-sample/--no-do-sample", help="Draw, or take the likeliest.", rich_help_panel=GENERATION),
]
Temperature = Annotated[float | None, typer.Option(help="Below 1 bolder, above 1 wilder.", rich_help_panel=GENERATION)]
TopK = Annotated[int | None, typer.Option(help="Draw from the k likeliest tokens.", rich_help_panel=GENERATION)]
TopP = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Draw from the likeliest of this total.", rich_help_panel=GENERATION),
]
RepetitionPenalty = Annotated[
    float | None, typer.Option(help="Above 1: what was said becomes less likely.", rich_help_panel=GENERATION)
]
NumBeams = Annotated[int | None, typer.Option(min=1, help="Beam search when above 1.", rich_help_panel=GENERATION)]
