"""`baichuan-hf serve`: transformers' own server."""

import typer


SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}


def serve(ctx: typer.Context) -> None:
    """Serve a language model to OpenAI's clients, by transformers' own server and with all its options.

    Example: [bold]baichuan-hf serve tiny --port 8000[/]

    It answers /v1/chat/completions, /v1/completions, /v1/responses, /v1/models and /health, streamed or not. The
    model is a folder, a name on the Hub, [bold]tiny[/], or an adapter; without one, each request names its own. Of
    many requests at once, [bold]--continuous-batching[/] computes one batch.
    """
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        raise ImportError("baichuan-hf serve needs fastapi, uvicorn and openai: pip install 'baichuan-hf[serve]'")

    from ..serving.transformers_server import server_command

    server = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    server.command(help=serve.__doc__)(server_command())
    typer.main.get_command(server).main(ctx.args, prog_name="baichuan-hf serve", standalone_mode=False)
