"""Conversations from the layouts that people publish, and their tokens with the assistant's part marked."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase


Message = dict[str, str]

ROLES = ("system", "user", "assistant")

# The names that ShareGPT files give to the roles.
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
}


def to_messages(row: dict[str, Any]) -> list[Message]:
    """The conversation of one row, in the layout of transformers' chat templates.

    Args:
        row: `messages` (role, content), `conversations` (ShareGPT: from, value) with an optional `system`, or Alpaca's
            `instruction`, `input`, `output` with an optional `system` and `history`, a list of [question, answer].

    Raises:
        ValueError: none of the three, a role that is none, or a content that is no text.
    """
    if row.get("messages"):
        turns = [{"role": turn["role"], "content": turn["content"]} for turn in row["messages"]]
    elif row.get("conversations"):
        turns = [_from_sharegpt(turn) for turn in row["conversations"]]
    elif row.get("instruction") is not None and row.get("output") is not None:
        turns = []
        for question, answer in row.get("history") or []:
            turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        question = "\n".join(filter(None, [row["instruction"], row.get("input")]))
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]
    else:
        raise ValueError(
            f"no conversation in a row with {', '.join(map(repr, row))}: give `messages`, ShareGPT's `conversations`,"
            " or Alpaca's `instruction` and `output`"
        )
    if row.get("system") and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": row["system"]})
    for number, turn in enumerate(turns):
        # A template takes whoever is not the user for the assistant.
        if turn["role"] not in ROLES:
            raise ValueError(f"message {number}: unknown role {turn['role']!r}; known are {', '.join(ROLES)}")
        if not isinstance(turn["content"], str):
            raise ValueError(f"message {number}, of the {turn['role']}: the content is no text: {turn['content']!r}")
    return turns


def _from_sharegpt(turn: dict[str, str]) -> Message:
    if turn["from"] not in SHAREGPT_ROLES:
        raise ValueError(f"unknown speaker {turn['from']!r}; known are {', '.join(SHAREGPT_ROLES)}")
    return {"role": SHAREGPT_ROLES[turn["from"]], "content": turn["value"]}


def encode_conversation(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """`input_ids` and `labels`, the latter -100 outside of what the assistant says.

    A conversation ends with </s>, which the assistant is to learn, also where the template writes none (Baichuan 2;
    its own fine-tuning code does the same).

    Raises:
        ValueError: the tokenizer has no chat template, or one that does not mark the assistant's part.
    """
    template = tokenizer.chat_template or ""
    if "{%- generation" not in template and "{% generation" not in template:
        raise ValueError(
            "the tokenizer's chat template does not mark the assistant's part by {% generation %}: set"
            " tokenizer.chat_template to one that does"
        )
    encoded = tokenizer.apply_chat_template(
        list(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, said = list(encoded["input_ids"]), list(encoded["assistant_masks"])
    if messages[-1]["role"] == "assistant" and ids[-1] != tokenizer.eos_token_id:
        ids, said = [*ids, tokenizer.eos_token_id], [*said, 1]
    return {"input_ids": ids, "labels": [token if mark else -100 for token, mark in zip(ids, said, strict=True)]}
