"""Pairs of texts, one to read and one to write: files, and a tokenizer that is trained on them."""

from collections.abc import Iterable
from pathlib import Path

from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from .tables import load_splits


SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}


def load_pair_splits(source: str, columns: tuple[str, str]) -> DatasetDict:
    """As `load_splits`, and parallel text: `train` with columns `en` and `de` is train.en and train.de, line by line.

    A column of columns, as `translation` of many data sets on the Hub, becomes `translation.en` and `translation.de`.
    Raises what `load_splits` does, and ValueError for parallel files of different lengths.
    """
    files = [Path(f"{source}.{column}").expanduser() for column in columns]
    if not all(file.is_file() for file in files):
        return load_splits(source).flatten()
    lines = [_read_lines(file) for file in files]
    if len(lines[0]) != len(lines[1]):
        counts = " and ".join(f"{file} has {len(part)} lines" for file, part in zip(files, lines, strict=True))
        raise ValueError(f"{counts}: parallel text has a line for each line; is one cut off?")
    return DatasetDict(train=Dataset.from_dict(dict(zip(columns, lines, strict=True))))


def _read_lines(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 ({error.reason} at byte {error.start}); is it cut off?") from error
    return text.removesuffix("\n").split("\n")  # not splitlines: a line may hold other separators, as U+2028


def train_pair_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE (Sennrich et al. 2016, Radford et al. 2019) with `vocab_size` pieces at most, for both languages.

    No text is unknown to it, and </s> ends each text it encodes. Raises ValueError if the bytes alone are more pieces.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + len(SPECIAL_TOKENS):
        raise ValueError(
            f"--vocab-size is {vocab_size}; it must be at least {len(alphabet) + len(SPECIAL_TOKENS)}: a piece for"
            " each byte, and the special ones"
        )
    tokenizer = Tokenizer(models.BPE())
    # The first word of a text is the same piece as elsewhere.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    end = SPECIAL_TOKENS["eos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.token_to_id(end))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL_TOKENS)
