"""Entry point: one typer app; one file per command."""

import os
from typing import Annotated, Any

import typer
from huggingface_hub.errors import StrictDataclassError
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from .. import __version__
from .bench import bench
from .card import card
from .chat import chat
from .check import check
from .convert import convert
from .demo import demo
from .evaluate import evaluate
from .export import export
from .generate import generate
from .info import info
from .merge import merge
from .prune import prune
from .quantize import quantize
from .serve import SETTINGS, serve
from .train import TrainCommand, train


# What wrong input raises, here and in the libraries below; anything else is a bug and keeps its traceback.
USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError, MemoryError, StrictDataclassError)


class Commands(TyperGroup):
    """A group whose commands report wrong input in one line and exit with 1 (2 is for the command line itself)."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except USER_ERRORS as error:
            if os.environ.get("BAICHUAN_HF_TRACEBACK"):
                raise
            fail(" ".join(str(error).split()))


def fail(message: str, *, code: int = 1) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]Error:[/] {escape(message)}")
    raise typer.Exit(code)


def show_version(wanted: bool) -> None:
    if wanted:
        print("baichuan-hf", __version__)
        raise typer.Exit


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """The Baichuan models on today's Hugging Face stack: train them, and talk to them."""


app.command()(demo)
app.command(
    cls=TrainCommand,
    options_metavar="[CONFIG.yaml] [ARGUMENTS]",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(train)
app.command()(generate)
app.command()(chat)
# Help, too, is that of transformers.
app.command(add_help_option=False, context_settings=SETTINGS)(serve)
app.command()(convert)
app.command()(merge)
app.command()(check)
app.command("eval")(evaluate)
app.command()(prune)
app.command()(quantize)
app.command()(export)
app.command()(info)
app.command()(card)
app.add_typer(bench, name="bench")


if __name__ == "__main__":
    app()
