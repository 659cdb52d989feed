"""The tokenizer of a folder: whether it loads, fits the embeddings, and gives SentencePiece's ids."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME as GENERATION_CONFIG

from ..conversion.folders import has_tokenizer
from ..model.chat_templates import ASSISTANT_TOKEN_ID, USER_TOKEN_ID, chat_generation
from ..model.checkpoint_files import is_lfs_pointer
from ..model.configuration_baichuan import BaichuanConfig
from ..model.tokenization_baichuan import BaichuanTokenizer
from .report import Report


PART = "tokenizer"
TAKE_OURS = (
    'write "tokenizer_class": "BaichuanTokenizer" into tokenizer_config.json, and take tokenizer.model from the base'
    " model, if it is missing"
)
# Scripts, digits, runs of spaces, line breaks, bytes without a piece of their own.
TEXTS = (
    "登鹳雀楼->王之涣\n夜雨寄北->",
    "  Two  spaces,\ttab, 12345 and 3.14;\n\n    def f(x): return x",
    "你好，世界！Hello 😀 ﷽ \u200d",
)


def check_tokenizer(folder: Path, config: BaichuanConfig, report: Report) -> None:
    """Compare the tokenizer with the config, the generation settings and, where it is installed, SentencePiece."""
    if not has_tokenizer(folder):
        report.warning(PART, "there is none", "copy tokenizer.model and tokenizer_config.json of the base model")
        return
    tokenizer = _load(folder, report)
    if tokenizer is None:
        return
    largest = max(tokenizer.get_vocab().values())
    if largest >= config.vocab_size:
        report.error(
            PART,
            f"it has the id {largest}, but vocab_size={config.vocab_size} is all that the embeddings hold",
            f"give them rows: baichuan-hf convert {folder} DST --to baichuan --vocab-size {largest + 1}; or take the"
            " base model's tokenizer",
        )
    _check_special_ids(folder, tokenizer, config, report)
    _check_chat(folder, tokenizer, report)
    _compare_with_sentencepiece(folder, tokenizer, report)


def _load(folder: Path, report: Report) -> PreTrainedTokenizerBase | None:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever the libraries raise for files of any origin
        report.error(PART, f"it does not load: {' '.join(str(error).split())[:300]}", TAKE_OURS)
        return None
    if not isinstance(tokenizer, BaichuanTokenizer):
        report.warning(PART, f"it loads as {type(tokenizer).__name__}, not as BaichuanTokenizer", TAKE_OURS)
    return tokenizer


def _check_special_ids(
    folder: Path, tokenizer: PreTrainedTokenizerBase, config: BaichuanConfig, report: Report
) -> None:
    generation = _read(folder / GENERATION_CONFIG)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        own = getattr(tokenizer, name)
        for source, given in (
            ("config.json", getattr(config, name)),
            ("generation_config.json", generation.get(name)),
        ):
            ids = given if isinstance(given, list) else [given]
            if given is not None and own not in ids:
                report.warning(
                    PART,
                    f"{name} is {own} in the tokenizer, {given} in {source}",
                    "make them equal; generation ends at, and training ignores, what the config names",
                )


def _check_chat(folder: Path, tokenizer: PreTrainedTokenizerBase, report: Report) -> None:
    piece = tokenizer.convert_ids_to_tokens(USER_TOKEN_ID) if len(tokenizer) > ASSISTANT_TOKEN_ID else None
    if chat_generation(piece) is None:
        report.note(PART, f"id {USER_TOKEN_ID} is {piece!r}, no chat piece of Baichuan: there is no chat template")
    generation = _read(folder / GENERATION_CONFIG)
    for name, usual in (("user_token_id", USER_TOKEN_ID), ("assistant_token_id", ASSISTANT_TOKEN_ID)):
        if (given := generation.get(name, usual)) != usual:
            report.warning(
                PART,
                f"{name} is {given} in generation_config.json, where all published models have {usual}",
                "write the chat template that it was trained with into chat_template.jinja",
            )


def _compare_with_sentencepiece(folder: Path, tokenizer: PreTrainedTokenizerBase, report: Report) -> None:
    file = folder / "tokenizer.model"
    if not file.is_file() or is_lfs_pointer(file):
        return
    if importlib.util.find_spec("sentencepiece") is None:
        report.note(PART, "not compared with SentencePiece's ids", "pip install 'baichuan-hf[sentencepiece]'")
        return
    from sentencepiece import SentencePieceProcessor

    try:
        original = SentencePieceProcessor(model_file=str(file))
    except RuntimeError:
        report.error(PART, "tokenizer.model is damaged or cut short", "copy it from the base model")
        return
    for text in TEXTS:
        if (ours := tokenizer.encode(text, add_special_tokens=False)) != (theirs := original.encode(text)):
            report.error(
                PART,
                f"it gives other ids than SentencePiece on tokenizer.model: {text!r} is {ours[:8]}..., not"
                f" {theirs[:8]}...",
                "delete tokenizer.json, which is made from another file or by another class",
            )
            return


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
