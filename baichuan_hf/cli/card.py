"""`baichuan-hf card`: model cards from data files."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def card(
    source: Annotated[
        str | None,
        typer.Argument(help="A model by name, a YAML file, or the folder of a model or adapter.", metavar="SRC"),
    ] = None,
    language: Annotated[Literal["en", "zh"], typer.Option(help="Of what is printed.")] = "en",
    license: Annotated[
        str | None,
        typer.Option(help="Of a folder without card.yaml; unset: that of its base model, where it is known."),
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Write README.md and README.zh-CN.md into this folder instead.")
    ] = None,
) -> None:
    """Render a model card in English or Chinese; without SRC, list the models that have one.

    Example: [bold]baichuan-hf card Baichuan2-7B-Chat --output-dir my-copy[/]

    A folder that [bold]baichuan-hf train[/] has written holds a card.yaml: change it, and render it again. Of another
    the card says what its files do, with its base model and how to load it.
    """
    from ..hub import CARD_FILES, card_of_folder, list_cards, load_card, render_card, write_cards
    from ..hub.model_card import DATA_FILE

    if source is None:
        print("\n".join(list_cards()))
        return
    folder = Path(source)
    bare = folder.is_dir() and not (folder / DATA_FILE).is_file()
    if license is not None and not bare:
        raise ValueError(f"--license is for a folder without {DATA_FILE}: {source} says itself what its licence is.")
    data = card_of_folder(folder, license) if bare else load_card(source)
    if output_dir is None:
        print(render_card(data, language).content)
    else:
        write_cards(data, output_dir)
        print(f"Wrote {' and '.join(CARD_FILES.values())} into {output_dir}")
