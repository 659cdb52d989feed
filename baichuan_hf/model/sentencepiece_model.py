"""Reads a SentencePiece `tokenizer.model` and builds an equal `tokenizers.Tokenizer`, without the library.

The file is a protobuf message (sentencepiece_model.proto): pieces with score and type, the trainer's settings and the
normaliser's.
"""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers
from tokenizers.models import BPE

from .checkpoint_files import is_lfs_pointer, lfs_pointer_message


NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
BPE_MODEL = 2
SPACE = "▁"
BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")


@dataclass
class SentencePieceModel:
    """What a tokenizer needs of the file; field numbers are those of the message."""

    pieces: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    model_type: int = 1
    byte_fallback: bool = False
    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = -1
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True

    @classmethod
    def from_file(cls, path: str | Path) -> SentencePieceModel:
        """
        Raises:
            OSError: the file is a Git LFS pointer.
            ValueError: the file is cut short, or no SentencePiece model of the BPE kind.
        """
        if is_lfs_pointer(path):
            raise OSError(lfs_pointer_message(path))
        data = Path(path).read_bytes()
        try:
            model = cls._from_message(data)
        except (IndexError, struct.error, UnicodeDecodeError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} ({len(data)} bytes) is no SentencePiece model, or cut short. Download it again."
            ) from error
        if not model.pieces:
            raise ValueError(f"{path} ({len(data)} bytes) holds no pieces: it is no SentencePiece model.")
        if model.model_type != BPE_MODEL:
            raise ValueError(f"{path} is a SentencePiece model of type {model.model_type}; only BPE (2) is supported.")
        return model

    @classmethod
    def _from_message(cls, data: bytes) -> SentencePieceModel:
        model = cls()
        for number, value in _read_fields(data):
            if number == 1:
                piece = dict(_read_fields(value))
                model.pieces.append(piece[1].decode())
                model.scores.append(struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0)
                model.types.append(piece.get(3, NORMAL))
            elif number == 2:
                trainer = dict(_read_fields(value))
                model.model_type = trainer.get(3, 1)
                model.byte_fallback = bool(trainer.get(35, 0))
                for name, key in (("unk_id", 40), ("bos_id", 41), ("eos_id", 42), ("pad_id", 43)):
                    setattr(model, name, _signed(trainer.get(key, getattr(model, name))))
            elif number == 3:
                normalizer = dict(_read_fields(value))
                model.charsmap = normalizer.get(2, b"")
                model.add_dummy_prefix = bool(normalizer.get(3, 1))
                model.remove_extra_whitespaces = bool(normalizer.get(4, 1))
        return model

    def token(self, token_id: int) -> str | None:
        """The piece with an id, or None where the model has no such token."""
        return self.pieces[token_id] if 0 <= token_id < len(self.pieces) else None

    def build_tokenizer(self) -> Tokenizer:
        """A tokenizer that gives the ids and texts of the SentencePiece library."""
        vocab = {piece: token_id for token_id, piece in enumerate(self.pieces)}
        tokenizer = Tokenizer(
            BPE(
                vocab,
                self._merges(vocab),
                unk_token=self.token(self.unk_id),
                fuse_unk=True,
                byte_fallback=self.byte_fallback,
            )
        )
        normalizer: list[normalizers.Normalizer] = [normalizers.Precompiled(self.charsmap)] if self.charsmap else []
        if self.remove_extra_whitespaces:
            normalizer += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
        if self.add_dummy_prefix:
            normalizer.append(normalizers.Prepend(SPACE))
        tokenizer.normalizer = normalizers.Sequence([*normalizer, normalizers.Replace(" ", SPACE)])
        decoder = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        if self.add_dummy_prefix:
            decoder.append(decoders.Strip(" ", left=1))
        tokenizer.decoder = decoders.Sequence(decoder)
        # One list, in the order of the ids: the library numbers tokens that it does not know.
        tokenizer.add_tokens(
            [
                AddedToken(piece, normalized=SPACE in piece, special=kind != USER_DEFINED)
                for piece, kind in zip(self.pieces, self.types, strict=True)
                if kind in (UNKNOWN, CONTROL, USER_DEFINED)
            ]
        )
        return tokenizer

    def _merges(self, vocab: dict[str, int]) -> list[tuple[str, str]]:
        """Every way to put a piece together from two, best piece first: what SentencePiece's scores amount to."""
        ordinary = {piece for piece, kind in zip(self.pieces, self.types, strict=True) if kind == NORMAL}
        merges = [
            (-self.scores[token_id], token_id, split, piece)
            for piece, token_id in vocab.items()
            if piece in ordinary
            for split in range(1, len(piece))
            if piece[:split] in ordinary and piece[split:] in ordinary
        ]
        return [(piece[:split], piece[split:]) for _, _, split, piece in sorted(merges)]


def join_bytes(tokens: list[str]) -> list[str]:
    """`tokens` with each run of byte tokens (`<0xE4>`) put together to its text, as SentencePiece decodes them: U+FFFD
    stands for every byte that is no UTF-8."""
    joined: list[str] = []
    for is_byte, group in itertools.groupby(tokens, key=lambda token: BYTE_TOKEN.fullmatch(token) is not None):
        run = list(group)
        joined += [_decode_utf8(bytes(int(token[3:5], 16) for token in run))] if is_byte else run
    return joined


def _decode_utf8(data: bytes) -> str:
    text = ""
    while True:
        try:
            return text + data.decode()
        except UnicodeDecodeError as error:
            text += data[: error.start].decode() + "\ufffd" * (error.end - error.start)
            data = data[error.end :]


def _read_fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protobuf message as (number, int or bytes); a nested message is left as bytes."""
    position = 0
    while position < len(data):
        key, position = _read_varint(data, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, position = _read_varint(data, position)
            yield number, value
            continue
        if wire_type == 2:
            length, position = _read_varint(data, position)
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"wire type {wire_type}")
        if position + length > len(data):
            raise ValueError(f"{position + length} bytes expected, {len(data)} found")
        yield number, data[position : position + length]
        position += length


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
