"""Continuing a text and holding a conversation, through `model.generate` and transformers' streamers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from ..checkpoints import resolve_model
from ..data.chat import Message, build_chat_input
from ..model.configuration_baichuan import BaichuanConfig


def load_causal_lm(
    name: str, *, dtype: str = "auto", device: str = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A language model (or an adapter of one) and its tokenizer; `name`: a folder, a name on the Hub, or `tiny`.

    Raises ValueError for a device that is not there and a model of another task, OSError for a model that is missing.
    """
    if device not in ("auto", "cpu"):
        kind, _, index = device.partition(":")
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        there = (
            [f"{accelerator.type}:{number}" for number in range(torch.accelerator.device_count())]
            if accelerator
            else []
        )
        if f"{kind}:{index or 0}" not in there:
            raise ValueError(f"device {device!r} is not there; this machine has {', '.join(['cpu', *there])}")
    source = resolve_model(name)
    if "/" not in source and not Path(source).exists():  # at once: the Hub is asked for minutes where there is none
        raise FileNotFoundError(f"{name}: no such folder, and no name of a model on the Hub, which is owner/name.")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, device_map=device).eval()
    held = (model.config.architectures or [type(model).__name__])[0]
    if isinstance(model.config, BaichuanConfig) and not held.endswith("ForCausalLM"):
        raise ValueError(f"{name} holds a {held}, which writes no text: its head would be a random one.")
    return model, AutoTokenizer.from_pretrained(source)


def generate_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | list[int],
    *,
    streamer: BaseStreamer | None = None,
    **generation: Any,
) -> str:
    """What the model writes after `prompt`, a text or its ids; an empty one starts a new text.

    `generation` are fields of GenerationConfig; those that are None keep the checkpoint's value. Raises ValueError for
    settings that contradict each other.
    """
    ids = tokenizer(prompt).input_ids if isinstance(prompt, str) else prompt
    input_ids = torch.tensor([ids or [tokenizer.bos_token_id]], device=model.device)
    settings = {name: value for name, value in generation.items() if value is not None}
    output = model.generate(input_ids, attention_mask=torch.ones_like(input_ids), streamer=streamer, **settings)
    return tokenizer.decode(output[0, input_ids.shape[1] :], skip_special_tokens=True)


class ChatSession:
    """A conversation whose oldest rounds are forgotten when the context is full, as the original chat code does."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        system: str | None = None,
        max_new_tokens: int | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.system = system
        self.context = model.config.model_max_length
        # Half the context at most: the other half is for what was said.
        self.max_new_tokens = max_new_tokens or min(
            model.generation_config.max_new_tokens or self.context, self.context // 2
        )
        if self.max_new_tokens >= self.context:
            raise ValueError(
                f"max_new_tokens ({self.max_new_tokens}) leaves no room for a prompt in a context of {self.context}"
            )
        self.clear()

    def clear(self) -> None:
        """Forget everything but the system message."""
        self.messages: list[Message] = [{"role": "system", "content": self.system}] if self.system else []

    def reply(self, text: str, *, streamer: BaseStreamer | None = None, **generation: Any) -> str:
        """The model's answer to `text`, remembered along with it. `generation`: as for `generate_text`."""
        messages = [*self.messages, {"role": "user", "content": text}]
        prompt = build_chat_input(
            self.tokenizer, messages, model_max_length=self.context, max_new_tokens=self.max_new_tokens
        )
        answer = generate_text(
            self.model, self.tokenizer, prompt, streamer=streamer, max_new_tokens=self.max_new_tokens, **generation
        )
        self.messages = [*messages, {"role": "assistant", "content": answer}]
        return answer
