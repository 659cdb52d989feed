"""Prompts as the original chat code builds them, with its truncation of the history.

`tokenizer.apply_chat_template` gives the same ids as long as nothing has to be cut.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase, logging

from ..model.chat_templates import ASSISTANT_TOKEN_ID, USER_TOKEN_ID, chat_generation


logger = logging.get_logger(__name__)

Message = dict[str, Any]


def build_chat_input(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    *,
    model_max_length: int = 4096,
    max_new_tokens: int = 2048,
    generation: int | None = None,
) -> list[int]:
    """The prompt ids of a conversation, cut to the room there is, as `model.chat` of the originals builds them.

    Whole rounds (a user's message and what follows it) are kept from the end while they fit; the last round always is,
    and then cut on the left.

    Args:
        tokenizer: tokenizer of a Baichuan model.
        messages: `{"role": ..., "content": ...}` each; roles `user`, `assistant` and, in Baichuan2, `system` first.
        model_max_length: context length of the model, `model.config.model_max_length`.
        max_new_tokens: tokens to keep free for the answer; the first generation never keeps more than half the
            context.
        generation: 1 (Baichuan-13B-Chat) or 2 (Baichuan2-Chat); by default the one of the tokenizer's vocabulary.

    Returns:
        Prompt ids, ready for `model.generate`.

    Raises:
        ValueError: a role or an order that the generation does not know, or a tokenizer that is not Baichuan's.
    """
    generation = generation or chat_generation(tokenizer.convert_ids_to_tokens(USER_TOKEN_ID))
    if generation not in _BUILDERS:
        raise ValueError(
            f"generation is {generation!r}, and piece {USER_TOKEN_ID} of this tokenizer is"
            f" {tokenizer.convert_ids_to_tokens(USER_TOKEN_ID)!r}, no chat piece of Baichuan: pass generation=1 or 2."
        )
    if max_new_tokens >= model_max_length and generation == 2:
        logger.warning_once(
            f"max_new_tokens ({max_new_tokens}) leaves no room in model_max_length ({model_max_length}): the prompt is"
            " not cut as you may expect. Lower max_new_tokens."
        )
    return _BUILDERS[generation](tokenizer, messages, model_max_length, max_new_tokens)


def _first_generation(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], model_max_length: int, max_new_tokens: int
) -> list[int]:
    room = max(model_max_length // 2, model_max_length - max_new_tokens)
    prompt: list[int] = []
    current: list[int] = []
    for message in reversed(messages):
        tokens = _encode(tokenizer, message["content"])
        if message["role"] == "assistant":
            current = [ASSISTANT_TOKEN_ID, *tokens, tokenizer.eos_token_id, *current]
            continue
        if message["role"] != "user":
            raise ValueError(f"Role {message['role']!r} is not supported: Baichuan-13B-Chat knows user and assistant.")
        current = [USER_TOKEN_ID, *tokens, *current]
        if prompt and len(prompt) + len(current) > room:
            break
        prompt, current = current + prompt, []
        if len(prompt) >= room:
            break
    return [*prompt[-room:], ASSISTANT_TOKEN_ID]


def _second_generation(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], model_max_length: int, max_new_tokens: int
) -> list[int]:
    if any(message["role"] == "system" for message in messages[1:]):
        raise ValueError("A system message must stand first.")
    system: list[int] = []
    rounds: list[list[int]] = []
    for message in messages:
        tokens = _encode(tokenizer, message["content"])
        if message["role"] == "system":
            system = tokens
            continue
        if message["role"] == "user" or not rounds:
            rounds.append([])
        rounds[-1] += [USER_TOKEN_ID if message["role"] == "user" else ASSISTANT_TOKEN_ID, *tokens]

    room = model_max_length - max_new_tokens
    history: list[int] = []
    for tokens in reversed(rounds):
        if history and len(history) + len(tokens) > room - len(system):
            break
        history = tokens + history
        if len(history) >= room - len(system):
            break
    prompt = system + history
    if messages[-1]["role"] != "assistant":
        prompt.append(ASSISTANT_TOKEN_ID)
    return prompt[-room:]


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


_BUILDERS = {1: _first_generation, 2: _second_generation}
