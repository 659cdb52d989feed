"""Ids of long texts, looked up word by word where the library would merge them anew.

`tokenizers` takes a text without pre-tokenizer for one word, which its own cache never holds. Here a text is cut
wherever two neighbours are neighbours in no token of the vocabulary: no merge and no added token reaches across, so
the ids of the words are those of the text. All words are looked up at once, by operations on arrays.
"""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import BPE

from .sentencepiece_model import SPACE


# Stands between words that are encoded together: neighbour of nothing in a vocabulary that this is for.
SEPARATOR = "\0"
# Neighbours are known by a hash of so many bits: where two pairs collide there is a cut less, and no harm.
PAIR_BITS = 20
# Words of so many bytes are found by these in a table of so many slots (64 MiB, as few words shall want the same),
# longer ones and those left over in a dict.
KEY_BYTES, SLOT_BITS = 16, 21
# Bytes of words after which the cache begins anew; characters of the texts that are looked up together; unknown words
# that are encoded together.
CAPACITY, CHUNK, PART = 1 << 22, 1 << 17, 256
# Lists from which on Python's search for garbage takes longer than the one that follows if it is put off.
MANY = 2000

# Of the two halves of a key, by the word's length.
MASKS = np.array(
    [[(1 << 8 * min(max(n - half, 0), 8)) - 1 for n in range(KEY_BYTES + 1)] for half in (0, 8)], np.uint64
).view(np.int64)
REPLACE_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}


class WordCache:
    """Texts to ids, as `encode` gives them.

    Args:
        tokens: the vocabulary with its ids, and all that was added to it.
        encode: the ids of texts; of SEPARATOR a single one, which comes from nothing else.
    """

    def __init__(self, tokens: Mapping[str, int], encode: Callable[[list[str]], list[list[int]]]) -> None:
        codes = _code_points(SEPARATOR.join(tokens).replace(" ", SPACE))
        is_inside = (codes[:-1] != ord(SEPARATOR)) & (codes[1:] != ord(SEPARATOR))
        self._are_neighbours = np.zeros(1 << PAIR_BITS, bool)
        self._are_neighbours[_hash_pairs(codes)[is_inside]] = True
        # Lists of them share their numbers, which takes less time than to make each anew.
        self._numbers = np.arange(max(tokens.values()) + 1).astype(object)
        self._encode = encode
        self._lock = threading.Lock()
        self._clear()

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text.

        Raises:
            UnicodeEncodeError: a text holds half of a surrogate pair.
        """
        with self._lock:
            return [ids for chunk in _chunks(texts) for ids in self._encode_chunk(chunk)]

    def _clear(self) -> None:
        """Know no word but SEPARATOR."""
        # The ids of all words, with room for more behind, and where in them each word's start, and how many they are.
        self._ids = self._numbers.take(self._encode([SEPARATOR])[0])
        self._num_ids = 1
        self._words = {SEPARATOR.encode(): (0, 1)}
        self._size = 0
        # Of a slot: two halves of a key, and the same two numbers; all zeros if it is free.
        self._table = np.zeros((1 << SLOT_BITS, 4), np.int64)

    def _encode_chunk(self, texts: list[str]) -> Iterator[list[int]]:
        if self._size > CAPACITY:
            self._clear()
        text = "".join(texts)
        data = text.encode() + bytes(KEY_BYTES)
        codes = _code_points(text.replace(" ", SPACE))  # as the normaliser writes it
        ends = np.cumsum([len(text) for text in texts])
        is_edge = np.ones(len(codes) + 1, bool)
        np.logical_not(self._are_neighbours.take(_hash_pairs(codes)), out=is_edge[1:-1])
        is_edge[ends] = True
        if SEPARATOR in text:  # which stands alone, with whatever its neighbour's hash collides
            is_separator = codes == ord(SEPARATOR)
            is_edge[:-1] |= is_separator
            is_edge[1:] |= is_separator
        # Where characters start in UTF-8: all bytes but 0x80 to 0xBF.
        places = np.flatnonzero(np.frombuffer(data, np.int8) >= -64)
        edges, ends = places.take(np.flatnonzero(is_edge)), places.take(ends)

        starts, counts = self._find(data, edges)
        behind = np.zeros(len(counts) + 1, np.int64)
        counts.cumsum(out=behind[1:])
        first = (starts - behind[:-1]).repeat(counts)
        ids = self._ids.take(first + np.arange(len(first)))
        bounds = behind[edges.searchsorted(ends)].tolist()
        return (ids[start:end].tolist() for start, end in pairwise([0, *bounds]))

    def _find(self, data: bytes, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the ids of each word between two edges start, and how many they are; zeros follow the words."""
        starts, lengths = edges[:-1], edges[1:] - edges[:-1]
        eights = np.ascontiguousarray(np.ndarray(len(data) - 7, np.int64, data, strides=(1,)))
        key_lengths = np.minimum(lengths, KEY_BYTES)
        low, high = (eights.take(starts + 8 * half) & MASKS[half].take(key_lengths) for half in (0, 1))
        mixed = low * 0x1E3779B97F4A7C15 ^ high * 0x42B2AE3D27D4EB4F
        slots = (mixed >> (64 - SLOT_BITS)) & ((1 << SLOT_BITS) - 1)
        found = self._table.take(slots, axis=0)
        is_short = lengths <= KEY_BYTES
        is_found = (found[:, 3] > 0) & (found[:, 0] == low) & (found[:, 1] == high) & is_short
        if (missing := np.flatnonzero(~is_found)).size:
            # The first word that comes to a slot keeps it, mostly a frequent one; another has the slot beside it.
            taken = missing[(found[missing, 3] > 0) & is_short[missing]]
            slots[taken] ^= 1
            others = found[taken] = self._table.take(slots[taken], axis=0)
            is_found[taken] = (others[:, 3] > 0) & (others[:, 0] == low[taken]) & (others[:, 1] == high[taken])
            missing = missing[~is_found[missing]]
            spans = zip(starts[missing].tolist(), edges[missing + 1].tolist(), strict=True)
            words = [data[start:end] for start, end in spans]
            self._learn(list(set(words).difference(self._words)))
            free = missing[(found[missing, 3] == 0) & is_short[missing]]
            found[missing, 2:] = np.array([self._words[word] for word in words], np.int64).reshape(-1, 2)
            found[free, 0], found[free, 1] = low[free], high[free]
            self._table[slots[free]] = found[free]
        return found[:, 2], found[:, 3]

    def _learn(self, words: list[bytes]) -> None:
        """Give rows to words that have none."""
        if not words:
            return
        self._size += sum(map(len, words))
        # In parts, which the library encodes side by side.
        parts = [words[start : start + PART] for start in range(0, len(words), PART)]
        texts = [SEPARATOR.join(["", *(word.decode() for word in part), ""]) for part in parts]
        for part, ids in zip(parts, self._encode(texts), strict=True):
            edges = np.flatnonzero(np.array(ids) == self._ids[0])
            assert len(edges) == len(part) + 1
            starts, counts = edges[:-1] + 1 + self._num_ids, edges[1:] - edges[:-1] - 1
            spans = zip(starts.tolist(), counts.tolist(), strict=True)
            self._words.update(zip(part, spans, strict=True))
            self._num_ids += len(ids)
            if self._num_ids > len(self._ids):
                self._ids = np.resize(self._ids, 2 * self._num_ids)
            self._ids[self._num_ids - len(ids) : self._num_ids] = self._numbers.take(ids)


@contextmanager
def no_garbage(num_lists: int) -> Iterator[None]:
    """No search for garbage while many lists of numbers are made, which are none: Python would look through all that
    there are whenever some hundred are new, which takes as long again for 10,000 short texts."""
    if num_lists < MANY or not gc.isenabled():  # the caller's own decision, or that of another thread in here
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def build_word_cache(tokenizer: Tokenizer, encode: Callable[[list[str]], list[list[int]]]) -> WordCache | None:
    """A cache for a tokenizer, or None for one that may treat a word otherwise than the text it is cut from.

    Args:
        tokenizer: with all tokens added.
        encode: the ids of texts without those that are put around them.
    """
    tokens = tokenizer.get_vocab()
    added = tokenizer.get_added_tokens_decoder()
    if (
        not is_cuttable(tokenizer)
        or any(f"<0x{byte:02X}>" not in tokens for byte in range(256))  # what is unknown is fused
        or any(SEPARATOR in token for token in tokens)
        or tokens[f"<0x{ord(SEPARATOR):02X}>"] in added
        or any(token.lstrip or token.rstrip or token.single_word for token in added.values())
    ):
        return None
    return WordCache(tokens, encode)


def is_cuttable(tokenizer: Tokenizer) -> bool:
    """Whether the parts of a tokenizer that can be exchanged are those that `SentencePieceModel` builds for text that
    is neither stripped nor begun with a space."""
    model = tokenizer.model
    return (
        isinstance(model, BPE)
        and model.byte_fallback
        and not (model.dropout or model.ignore_merges or model.continuing_subword_prefix or model.end_of_word_suffix)
        and tokenizer.pre_tokenizer is None
        and tokenizer.normalizer is not None
        and json.loads(tokenizer.normalizer.__getstate__()) == {"type": "Sequence", "normalizers": [REPLACE_SPACES]}
    )


def _chunks(texts: Sequence[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    size = 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if size >= CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _hash_pairs(codes: np.ndarray) -> np.ndarray:
    mixed: np.ndarray = codes[:-1] * np.uint32(0x9E3779B1) + codes[1:] * np.uint32(0x85EBCA77)
    return mixed >> np.uint32(32 - PAIR_BITS)
