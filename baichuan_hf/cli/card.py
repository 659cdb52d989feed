"""`baichuan-hf card`: model cards from data files."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def card(
    source: Annotated[
        str | None,
        typer.Argument(help="A YAML file, a folder with card.yaml in it, or a model by name.", metavar="SRC"),
    ] = None,
    language: Annotated[Literal["en", "zh"], typer.Option(help="Of what is printed.")] = "en",
    output_dir: Annotated[
        Path | None, typer.Option(help="Write README.md and README.zh-CN.md into this folder instead.")
    ] = None,
) -> None:
    """Render a model card in English or Chinese; without SRC, list the models that have one.

    Example: [bold]baichuan-hf card Baichuan2-7B-Chat --output-dir my-copy[/]

    A folder that [bold]baichuan-hf train[/] has written holds such a file: change it, and render it again.
    """
    from ..hub import CARD_FILES, list_cards, load_card, render_card, write_cards

    if source is None:
        print("\n".join(list_cards()))
    elif output_dir is None:
        print(render_card(load_card(source), language).content)
    else:
        write_cards(load_card(source), output_dir)
        print(f"Wrote {' and '.join(CARD_FILES.values())} into {output_dir}")
