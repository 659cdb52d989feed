"""`baichuan-hf generate`: continue a text."""

import sys
from typing import Annotated

import typer

from . import options


def generate(
    prompt: Annotated[str, typer.Argument(help="The beginning of the text; [bold]-[/] reads it from standard input.")],
    model: options.Model = "tiny",
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    seed: options.Seed = None,
    max_new_tokens: options.MaxNewTokens = 128,
    do_sample: options.DoSample = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    num_beams: options.NumBeams = None,
) -> None:
    """Continue a text, word by word as the model writes it.

    Example: [bold]baichuan-hf generate "春天来了，" --do-sample --temperature 0.8 --max-new-tokens 60[/]
    """
    from transformers import TextStreamer, set_seed

    from ..inference import generate_text, load_causal_lm

    if prompt == "-":
        prompt = sys.stdin.read().rstrip("\n")
    if seed is not None:
        set_seed(seed)
    language_model, tokenizer = load_causal_lm(model, dtype=dtype, device=device)
    beams = (num_beams or 1) > 1
    text = generate_text(
        language_model,
        tokenizer,
        prompt,
        streamer=None if beams else TextStreamer(tokenizer, skip_special_tokens=True),
        max_new_tokens=max_new_tokens,
        do_sample=do_sample,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        num_beams=num_beams,
    )
    if beams:
        print(prompt + text)
