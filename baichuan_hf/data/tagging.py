"""Sentences whose words carry tags: files, pieces of words, and the entities that tags mark."""

import logging
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset, DatasetDict, Features, Value
from datasets import Sequence as ListOf
from transformers import BatchEncoding, PreTrainedTokenizerBase

from .tables import load_splits


logger = logging.getLogger(__name__)

CONLL_SUFFIXES = (".conll", ".bio", ".bioes", ".tsv", ".txt")

# What marks an entity: B(egin), I or M (inside), E(nd), S(ingle). A tag without one stands outside of entities.
CONTINUATIONS = ("I", "M", "E")
OPENINGS = ("B", "I", "M")


def load_tagged_splits(source: str) -> DatasetDict:
    """As `load_splits`, and files of CoNLL's layout, whose columns are then `tokens` and `tags`."""
    if Path(source).suffix.lower() in CONLL_SUFFIXES and Path(source).is_file():
        return DatasetDict(train=read_conll(source))
    return load_splits(source)


def read_conll(source: str) -> Dataset:
    """A token and, last in its line, a tag; a blank line ends a sentence, `-DOCSTART-` is left out.

    Where every token is followed by a digit (the place of a character in its word, as in Weibo NER) it is removed.
    Raises ValueError naming the line that has no tag, or that is not UTF-8.
    """
    sentences: list[list[tuple[str, str]]] = [[]]
    with open(source, "rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise ValueError(f"{source}: line {number} is not UTF-8 ({error.reason}); is it cut off?") from error
            cells = line.split("\t" if "\t" in line else None)
            if not line.strip():
                sentences.append([])
            elif len(cells) < 2 or not cells[-1].strip():
                raise ValueError(f"{source}: line {number} is {line!r}, not a token and a tag; is the file cut off?")
            elif cells[0] != "-DOCSTART-":
                sentences[-1].append((cells[0], cells[-1].strip()))
    tokens = [[token for token, _ in sentence] for sentence in sentences if sentence]
    tags = [[tag for _, tag in sentence] for sentence in sentences if sentence]
    if tokens and all(len(token) > 1 and token[-1] in "0123456789" for sentence in tokens for token in sentence):
        logger.warning("%s: a digit ends every token, as in %r: it is removed", source, tokens[0][0])
        tokens = [[token[:-1] for token in sentence] for sentence in tokens]
    features = Features({"tokens": ListOf(Value("string")), "tags": ListOf(Value("string"))})
    return Dataset.from_dict({"tokens": tokens, "tags": tags}, features=features)


def encode_words(
    words: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, max_length: int | None = None, separator: str = ""
) -> tuple[BatchEncoding, list[int]]:
    """The pieces of `words`, and for each word the place of its last piece, or -1 if it has none (cut off, or empty).

    No piece spans two words, as one of the whole text would (北京 is one): it could not carry two tags. The last piece
    carries the tag because only there a causal model has read the whole word, be it one character in four bytes.
    """
    spaced = [separator + word if index else word for index, word in enumerate(words)]
    encoding = tokenizer(
        spaced, is_split_into_words=True, truncation=max_length is not None, max_length=max_length, verbose=False
    )
    last = [-1] * len(words)
    for place, word in enumerate(encoding.word_ids()):
        if word is not None:
            last[word] = place
    return encoding, last


def find_entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """(type, first, last) of every entity in BIO, BIOES or BMES tags, read as leniently as seqeval does.

    An I without a B before it begins an entity too, and another type ends one.
    """
    entities, first = set(), 0
    for index, tag in enumerate([*tags, "O"]):
        mark, _, kind = tag.partition("-")
        previous, _, previous_kind = tags[index - 1].partition("-") if index else ("O", "", "")
        if mark in CONTINUATIONS and previous in OPENINGS and kind == previous_kind:
            continue
        if previous != "O":
            entities.add((previous_kind, first, index - 1))
        first = index
    return entities
