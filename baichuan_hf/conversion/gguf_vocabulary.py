"""What a GGUF file says of the tokenizer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..model.sentencepiece_model import CONTROL, SPACE, UNUSED, USER_DEFINED, SentencePieceModel
from ..model.tokenization_baichuan import BaichuanTokenizer


if TYPE_CHECKING:
    import gguf

VOCABULARY_FILE = BaichuanTokenizer.vocab_files_names["vocab_file"]
# Marks in a chat template what the assistant says, for training; other engines do not know it.
GENERATION_TAG = re.compile(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}")


class Vocabulary(NamedTuple):
    """A tokenizer as llama.cpp takes it, with a token for each row of the embeddings."""

    tokens: list[str]
    scores: list[float]
    types: list[int]  # as in SentencePiece, whose numbers ggml's are
    add_space_prefix: bool
    tokenizer: PreTrainedTokenizerBase
    lost: list[str]  # what llama.cpp does otherwise, in sentences


def read_vocabulary(source: Path, rows: int) -> Vocabulary:
    """The tokenizer of a folder, from its SentencePiece model and the tokens that were added to that.

    Raises:
        OSError: there is no such file.
        ValueError: it has more tokens than `rows`, or is not what the folder's tokenizer has become.
    """
    file = source / VOCABULARY_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"{source} has no {VOCABULARY_FILE}, from which llama.cpp's tokenizer is made: copy it from the"
            " checkpoint that this one was trained from."
        )
    model = SentencePieceModel.from_file(file)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if (size := max(len(model.pieces), len(tokenizer))) > rows:
        raise ValueError(f"The tokenizer of {source} has {size} tokens, the model {rows}: give --vocab-size {size}.")
    known = tokenizer.convert_ids_to_tokens(range(len(model.pieces)))
    for token_id, (piece, token) in enumerate(zip(model.pieces, known, strict=True)):
        if piece != token:
            raise ValueError(
                f"Token {token_id} is {piece!r} in {file}, but {token!r} in the folder's other tokenizer files: they"
                " are of two tokenizers; put the right ones there."
            )
    # llama.cpp looks for these in the text as it is.
    tokens = [
        piece.replace(SPACE, " ") if kind == USER_DEFINED else piece
        for piece, kind in zip(model.pieces, model.types, strict=True)
    ]
    scores, types = list(model.scores), list(model.types)
    for token_id in range(len(tokens), rows):
        added = tokenizer.added_tokens_decoder.get(token_id)
        tokens.append(f"[PAD{token_id}]" if added is None else added.content)
        scores.append(-1000.0)
        types.append(UNUSED if added is None else CONTROL if added.special else USER_DEFINED)
    lost = []
    if model.charsmap or model.remove_extra_whitespaces:
        lost.append("The tokenizer tidies texts before it splits them (widths, spaces), llama.cpp's does not.")
    return Vocabulary(tokens, scores, types, model.add_dummy_prefix, tokenizer, lost)


def add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    """Write tokens, special tokens and chat template."""
    tokenizer = vocabulary.tokenizer
    # ggml's name of SentencePiece's BPE.
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    writer.add_add_space_prefix(vocabulary.add_space_prefix)
    special = {
        writer.add_bos_token_id: tokenizer.bos_token_id,
        writer.add_eos_token_id: tokenizer.eos_token_id,
        writer.add_unk_token_id: tokenizer.unk_token_id,
        writer.add_pad_token_id: tokenizer.pad_token_id,
    }
    for add, token_id in special.items():
        if token_id is not None:
            add(token_id)
    around = tokenizer("").input_ids
    writer.add_add_bos_token(tokenizer.bos_token_id in around)
    writer.add_add_eos_token(tokenizer.eos_token_id in around)
    if tokenizer.chat_template:
        # A comment trims the spaces around it as the tag did.
        writer.add_chat_template(GENERATION_TAG.sub(r"{#\1 \2#}", tokenizer.chat_template))
