"""Classification as language modelling: a template with a place for the text, and a word for each label.

Shape legend: B texts, L labels, R sequences, T tokens, K tokens that are scored.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase


FILE_NAME = "prompt.json"


@dataclass(frozen=True)
class Prompt:
    """A pattern and a verbaliser (Schick & Schütze 2021).

    Args:
        template: with `{text}` and `{label}`, once each. With `{label}` behind, a label is scored by what it adds to
            the text; in front, by how well the text then goes on (the noisy channel of Min et al. 2022).
        words: what stands for each label at `{label}`.
        bias: what is subtracted from the score of each label, as `baichuan-hf train --calibrate` finds it.

    Raises:
        ValueError: the template lacks a place, or two labels have the same word.
    """

    template: str
    words: dict[str, str]
    bias: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for place in ("{text}", "{label}"):
            if self.template.count(place) != 1:
                raise ValueError(f"prompt template {self.template!r}: must hold {place} once")
        for one, other in itertools.combinations(self.words, 2):
            if self.words[one] == self.words[other]:
                raise ValueError(
                    f"verbalizer: {self.words[one]!r} stands for {one!r} and for {other!r}, which it cannot tell apart"
                )
        if empty := [label for label, word in self.words.items() if not word]:
            raise ValueError(f"verbalizer: label {empty[0]!r} has no word")

    @property
    def labels(self) -> list[str]:
        """In the order of their scores."""
        return list(self.words)

    def fill(self, text: str) -> list[str]:
        """The template with `text`, once for each label."""
        frames = (self.template.replace("{label}", word).split("{text}") for word in self.words.values())
        return [before + text + after for before, after in frames]

    def save(self, folder: str | Path) -> None:
        """Write prompt.json."""
        text = json.dumps(asdict(self), ensure_ascii=False, indent=2)
        (Path(folder) / FILE_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "Prompt":
        """Read prompt.json. Raises FileNotFoundError."""
        values = json.loads((Path(folder) / FILE_NAME).read_text(encoding="utf-8"))
        return cls(values["template"], values["words"], values["bias"] and tuple(values["bias"]))


def encode_prompts(
    texts: Sequence[str], prompt: Prompt, tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> dict[str, list[Any]]:
    """For each text `input_ids`, the filled template for each label, `start`, the first token that is scored, and
    `cut`, whether the text was cut.

    What is scored begins where the labels differ, though not with the first token of all, which nothing foretells. Of
    a text that is too long the end is cut, never the template. Raises ValueError for words that the tokenizer's ids do
    not tell apart, and for a template that leaves no room.
    """
    frame = max(map(len, _encode_filled("", prompt, tokenizer)))
    if frame >= max_length:
        raise ValueError(f"--max-length {max_length} leaves no room for a text: the template takes {frame} tokens")
    columns: dict[str, list[Any]] = {"input_ids": [], "start": [], "cut": []}
    for text in texts:
        offsets = tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False
        )["offset_mapping"]
        encoded = _encode_filled(text, prompt, tokenizer)
        cut = max(map(len, encoded)) > max_length
        room = min(len(offsets), max_length - frame)
        # More than once only where the seams take more tokens than the parts.
        while max(map(len, encoded)) > max_length:
            encoded = _encode_filled(text[: offsets[room - 1][1] if room else 0], prompt, tokenizer)
            room -= 1
        shared = next(place for place, tokens in enumerate(itertools.zip_longest(*encoded)) if len(set(tokens)) > 1)
        columns["input_ids"].append(encoded)
        columns["start"].append(max(shared, 1))
        columns["cut"].append(cut)
    return columns


def _encode_filled(text: str, prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return tokenizer(prompt.fill(text), return_attention_mask=False, verbose=False)["input_ids"]


def check_words(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ValueError if the ids of one filled template begin with those of another: the shorter always wins."""
    ids = sorted(zip(_encode_filled("", prompt, tokenizer), prompt.labels, strict=True))
    for (shorter, one), (longer, other) in itertools.pairwise(ids):
        if longer[: len(shorter)] == shorter:
            raise ValueError(
                f"verbalizer: the tokens of {prompt.words[other]!r} ({other!r}) begin with those of"
                f" {prompt.words[one]!r} ({one!r}), which would always be the likelier; choose other words, or end the"
                " template with a sign"
            )


@dataclass
class PromptCollator:
    """Collates rows of `encode_prompts` for `score_batch`: padded on the left, so that what is scored lies at the end;
    sequences that differ in their last token only are one, so that words of one token cost a single pass."""

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        sequences: dict[tuple[int, ...], int] = {}
        places, scored = [], []
        for row in rows:
            for ids in row["input_ids"]:
                places.append(sequences.setdefault(tuple(ids[:-1]), len(sequences)))
                scored.append(ids[row["start"] :])
        width = max(map(len, sequences))
        padding = self.tokenizer.pad_token_id
        batch = {
            "input_ids": torch.tensor([[padding] * (width - len(ids)) + [*ids] for ids in sequences]),
            "attention_mask": torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in sequences]),
            "places": torch.tensor(places).view(len(rows), -1),
        }
        length = max(map(len, scored))
        targets = torch.tensor([[-100] * (length - len(ids)) + ids for ids in scored])
        batch["targets"] = targets.view(len(rows), -1, length)
        if "label" in rows[0]:
            # Not `labels`, which a language model takes for tokens.
            batch["answers"] = torch.tensor([row["label"] for row in rows])
        return batch


def score_batch(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The log-probability (B, L) of what is scored of each filled template, summed over its tokens.

    Args:
        model: a causal language model.
        batch: of `PromptCollator`: `input_ids` (R, T), `attention_mask` (R, T), `places` (B, L), the row of each
            filled template, and `targets` (B, L, K), its last tokens.
    """
    places, targets = batch["places"], batch["targets"]
    logits = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        use_cache=False,
        logits_to_keep=targets.shape[-1],
    ).logits.float()  # (R, K, V)
    columns = torch.arange(targets.shape[-1], device=targets.device)
    chosen = logits[places[..., None], columns, targets.clamp(min=0)]  # (B, L, K)
    log_probs = chosen - logits.logsumexp(-1)[places]
    return log_probs.masked_fill(targets < 0, 0).sum(-1)
