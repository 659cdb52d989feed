"""Masks for masked language models: whole words, of Chinese too.

Shape legend: B batch, T tokens.
"""

import importlib.util
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase


# A run of letters or digits, or any other character by itself.
WORD = re.compile(r"[^\W_\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]+|\S")


def split_words() -> Callable[[str], Iterator[tuple[int, int]]]:
    """A function from a text to the (start, end) of its words: by jieba if it is installed, else a word of a language
    that writes them apart, or one Chinese character."""
    if importlib.util.find_spec("jieba") is None:
        return lambda text: (match.span() for match in WORD.finditer(text))
    import jieba

    jieba.setLogLevel("WARNING")
    return lambda text: ((start, end) for word, start, end in jieba.tokenize(text) if not word.isspace())


def word_numbers(words: Iterator[tuple[int, int]], offsets: list[tuple[int, int]]) -> list[int]:
    """For each token the number of the word that its first character belongs to; -1 outside of words.

    Args:
        words: (start, end) of each word in characters, in order.
        offsets: (start, end) of each token; an empty one belongs to no word.
    """
    word_of = {place: number for number, (start, end) in enumerate(words) for place in range(start, end)}
    return [next((word_of[place] for place in range(start, end) if place in word_of), -1) for start, end in offsets]


@dataclass
class WholeWordMasking:
    """Collates rows of `input_ids` and `words` (`word_numbers`) into a batch with `labels`.

    A share of the words of each row is chosen; all tokens of a chosen word become labels, and of such tokens 80 % are
    replaced by the mask token, 10 % by any token, and 10 % stay (Devlin et al. 2019; Cui et al. 2021 for Chinese).
    """

    tokenizer: PreTrainedTokenizerBase
    probability: float = 0.15

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = self.tokenizer.pad({"input_ids": [row["input_ids"] for row in rows]}, return_tensors="pt")
        input_ids = batch["input_ids"]
        chosen = torch.zeros(input_ids.shape, dtype=torch.bool)
        for row, mask in zip(rows, chosen, strict=True):
            words = torch.tensor(row["words"])
            picked = torch.rand(int(words.max()) + 1) < self.probability
            # A row without a label would have no loss.
            picked[torch.randint(len(picked), ())] |= not picked.any()
            columns = slice(-len(words), None) if self.tokenizer.padding_side == "left" else slice(len(words))
            mask[columns] = picked[words.clamp(min=0)] & (words >= 0)
        labels = input_ids.masked_fill(~chosen, -100)
        fate = torch.rand(input_ids.shape)
        input_ids[chosen & (fate < 0.8)] = self.tokenizer.mask_token_id
        anything = chosen & (fate >= 0.8) & (fate < 0.9)
        input_ids[anything] = torch.randint(len(self.tokenizer), (int(anything.sum()),))
        return {**batch, "input_ids": input_ids, "labels": labels}
