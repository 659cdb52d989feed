"""`baichuan-hf chat`: a conversation in the terminal."""

from typing import Annotated

import typer
from rich.console import Console

from . import options


HELP = "/clear forgets the conversation, /exit leaves. · 输入 /clear 重新开始，/exit 退出。"


def chat(
    model: options.Model = "tiny",
    system: Annotated[str | None, typer.Option(help="Who the model is to be (Baichuan2 and `tiny`).")] = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    seed: options.Seed = None,
    max_new_tokens: options.MaxNewTokens = None,
    do_sample: options.DoSample = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    repetition_penalty: options.RepetitionPenalty = None,
) -> None:
    """Talk to a chat model, in Chinese or English; the oldest rounds are forgotten when its context is full.

    Example: [bold]baichuan-hf chat --model baichuan-inc/Baichuan2-7B-Chat --dtype bfloat16[/]
    """
    from transformers import TextStreamer, set_seed

    from ..inference import ChatSession, load_causal_lm

    if seed is not None:
        set_seed(seed)
    language_model, tokenizer = load_causal_lm(model, dtype=dtype, device=device)
    session = ChatSession(language_model, tokenizer, system=system, max_new_tokens=max_new_tokens)
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    console = Console()
    console.print(HELP, style="dim")
    while True:
        try:
            text = console.input("[bold cyan]>[/] ").strip()
        except (EOFError, KeyboardInterrupt):
            break
        if text == "/exit":
            break
        if text == "/clear":
            session.clear()
        elif text.startswith("/"):
            console.print(HELP, style="dim")
        elif text:
            session.reply(
                text,
                streamer=streamer,
                do_sample=do_sample,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                repetition_penalty=repetition_penalty,
            )
