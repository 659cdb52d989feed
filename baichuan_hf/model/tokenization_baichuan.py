"""`BaichuanTokenizer`: the original tokenizer of every generation, as a fast one."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from tokenizers import Encoding
from tokenizers.models import BPE
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE, BatchEncoding, TruncationStrategy
from transformers.tokenization_utils_tokenizers import TokenizersBackend
from transformers.utils import PaddingStrategy

from .chat_templates import ASSISTANT_TOKEN_ID, USER_TOKEN_ID, default_chat_template
from .saving import HUB_OPTIONS, Layout, PushToHub, add_code, layout_to_save, update_json
from .sentencepiece_model import SentencePieceModel, join_bytes
from .word_cache import WordCache, build_word_cache, is_cuttable, no_garbage


# What a tokenizer_config.json says of the code beside it: the slow class, and the fast one.
AUTO_MAP = {"AutoTokenizer": [None, "tokenization_baichuan.BaichuanTokenizer"]}
# Characters of a text, or of all in a batch, from which on it is faster to look words up.
LONG = 100
NO_PADDING, NO_TRUNCATION = PaddingStrategy.DO_NOT_PAD, TruncationStrategy.DO_NOT_TRUNCATE
# What may be said to `_encode_plus` for that; whatever else is wanted, the library does.
LOOKED_UP = {
    "add_special_tokens",
    "max_length",
    "padding_side",
    "padding_strategy",
    "return_attention_mask",
    "stride",
    "truncation_strategy",
    "verbose",
}


class LazyEncodings(Sequence):
    """What the library makes of texts, when someone asks: `BatchEncoding.word_ids` and its like do."""

    def __init__(self, count: int, encode: Callable[[], BatchEncoding]) -> None:
        self._count = count
        self._encode = encode

    @functools.cached_property
    def _encodings(self) -> list[Encoding]:
        return self._encode().encodings

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return self._encodings[index]

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (self._encodings,)


class BaichuanTokenizer(PushToHub, TokenizersBackend):
    """
    Byte-level-fallback BPE of the Baichuan families, built from `tokenizer.model` (or `tokenizer.json`) with the ids
    and texts of the original tokenizer. `<reserved_N>` are ordinary pieces; only `<unk>`, `<s>` and `</s>` are
    special. The chat template of the generation is there unless the folder has one of its own. Padding stands on the
    right, as originally; load with `padding_side="left"` to generate for a batch.

    One difference: with `skip_special_tokens=False` the original puts a space before the text in front of a special
    token; here decoding gives back what was encoded.

    Example:

    ```python
    >>> import baichuan_hf
    >>> from transformers import AutoTokenizer

    >>> tokenizer = AutoTokenizer.from_pretrained(baichuan_hf.bundled_checkpoint("tiny"))
    >>> tokenizer.decode(tokenizer("你好，world")["input_ids"])
    '你好，world'
    ```
    """

    vocab_files_names = {"vocab_file": "tokenizer.model", "tokenizer_file": "tokenizer.json"}
    model_input_names = ["input_ids", "attention_mask"]
    model = BPE

    # No `__init__`: transformers takes the tokenizer.json of a class that has one to pieces and builds it anew.
    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> BaichuanTokenizer:
        """As transformers, with the name of a file that is damaged.

        Raises:
            ValueError: a file of the folder is no JSON.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except json.JSONDecodeError:
            for file in sorted(Path(pretrained_model_name_or_path).glob("*token*.json")):
                try:
                    json.loads(file.read_text(encoding="utf-8"))
                except ValueError as error:
                    raise ValueError(f"{file} is damaged: {error}. Download or copy it again.") from error
            raise

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: Any) -> dict[str, Any]:
        """What transformers calls to turn the files of a folder into constructor arguments.

        Raises:
            OSError: the folder holds no tokenizer, or `tokenizer.model` is a Git LFS pointer.
            ValueError: `tokenizer.model` is damaged, or of a kind that Baichuan does not use.
        """
        kwargs.pop("auto_map", None)  # names remote code that is not needed, and would be saved again
        if kwargs.get("vocab_file") is None and kwargs.get("tokenizer_file") is None and "name_or_path" in kwargs:
            raise OSError(f"{kwargs['name_or_path']} holds no tokenizer: neither tokenizer.model nor tokenizer.json.")
        if kwargs.get("tokenizer_file") is not None or kwargs.get("vocab_file") is None:
            return super().convert_to_native_format(trust_remote_code=trust_remote_code, **kwargs)
        model = SentencePieceModel.from_file(kwargs["vocab_file"])
        kwargs["tokenizer_object"] = model.build_tokenizer()
        for name, token_id in (("unk_token", model.unk_id), ("bos_token", model.bos_id), ("eos_token", model.eos_id)):
            if kwargs.get(name) is None:
                kwargs[name] = model.token(token_id)
        if kwargs.get("pad_token") is None:
            # Original files name <unk> as the padding token; the model has no other.
            kwargs["pad_token"] = model.token(model.pad_id) or kwargs["unk_token"]
        if kwargs.get("chat_template") is None:
            kwargs["chat_template"] = default_chat_template(
                model.token(USER_TOKEN_ID), model.token(ASSISTANT_TOKEN_ID)
            )
        return kwargs

    # None: not built yet; False: this tokenizer can have none.
    _words: WordCache | Literal[False] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Without the cache, which would travel to every process and change the fingerprint that `datasets` takes.
        return {name: value for name, value in vars(self).items() if name != "_words"}

    def _add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        self._words = None
        return super()._add_tokens(new_tokens, special_tokens)

    def _encode_plus(self, text: Any, text_pair: Any = None, **kwargs: Any) -> BatchEncoding:
        """As in transformers, but for long texts of which only ids and mask are wanted: these are looked up."""
        by_library = functools.partial(super()._encode_plus, text, text_pair, **kwargs)
        is_batched = isinstance(text, (list, tuple))
        texts = text if is_batched else [text]
        if text_pair is not None or not (words := self._word_cache(texts, kwargs)):
            return by_library()
        front, back = self._put_around() if kwargs.get("add_special_tokens", True) else ([], [])
        kept = slice(None)
        if kwargs.get("truncation_strategy", NO_TRUNCATION) != NO_TRUNCATION:
            room = kwargs["max_length"] - len(front) - len(back)
            if room < 1:
                return by_library()
            kept = slice(room) if self.truncation_side == "right" else slice(-room, None)
        with no_garbage(len(texts)):
            try:
                ids = words(texts)
            except UnicodeEncodeError:
                return by_library()
            if front or back or kept != slice(None):
                ids = [[*front, *row[kept], *back] for row in ids]
            for row in ids:
                self._eventual_warn_about_too_long_sequence(row, kwargs.get("max_length"), kwargs.get("verbose", True))
            data: dict[str, Any] = {"input_ids": ids}
            if kwargs.get("return_attention_mask") in (None, True):
                data["attention_mask"] = [[1] * len(row) for row in ids]
        data = data if is_batched else {name: rows[0] for name, rows in data.items()}
        return BatchEncoding(data, LazyEncodings(len(texts), by_library), n_sequences=1)

    def _word_cache(self, texts: Sequence[Any], settings: dict[str, Any]) -> WordCache | None:
        """What looks the texts up, or None if the library shall encode them, as `settings` or the texts want it."""
        if (
            any(type(text) is not str for text in texts)
            or sum(map(len, texts)) < LONG
            or settings.get("padding_strategy", NO_PADDING) != NO_PADDING
            or settings.get("truncation_strategy") == TruncationStrategy.ONLY_SECOND
            or any(value for name, value in settings.items() if name not in LOOKED_UP)
            or self.split_special_tokens
            or not is_cuttable(self._tokenizer)
        ):
            return None
        if self._words is None:
            self._words = build_word_cache(self._tokenizer, self._encode_alone) or False
        return self._words or None

    def _encode_alone(self, texts: list[str]) -> list[list[int]]:
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = False
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def _put_around(self) -> tuple[list[int], list[int]]:
        """The ids in front of a text's own and behind them."""
        if not self._tokenizer.num_special_tokens_to_add(False):
            return [], []
        sample = super()._encode_plus("a", return_special_tokens_mask=True)
        mask, ids = sample["special_tokens_mask"], sample["input_ids"]
        return ids[: mask.index(0)], ids[len(mask) - mask[::-1].index(0) :]

    def _decode(self, token_ids: Any, skip_special_tokens: bool = False, **kwargs: Any) -> str:
        text = super()._decode(token_ids, skip_special_tokens=skip_special_tokens, **kwargs)
        if "\ufffd" not in text:
            return text
        # The library gives up a whole run of byte tokens when one is no UTF-8, SentencePiece that byte alone.
        token_ids = [token_ids] if isinstance(token_ids, int) else token_ids
        tokens = self.convert_ids_to_tokens(token_ids, skip_special_tokens=skip_special_tokens)
        return self.backend_tokenizer.decoder.decode(join_bytes(tokens))

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Copy `tokenizer.model`, which tools other than transformers read; returns the path written."""
        source = getattr(self, "vocab_file", None)
        if not source or not os.path.isfile(source):
            return ()
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        target = os.path.join(save_directory, prefix + self.vocab_files_names["vocab_file"])
        if os.path.abspath(source) != os.path.abspath(target):
            shutil.copyfile(source, target)
        return (target,)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
        push_to_hub: bool = False,
        layout: Layout | None = None,
        **kwargs: Any,
    ) -> tuple[str, ...]:
        """As in transformers, in a layout of choice (see `baichuan_hf.save_layout`). Returns the paths written."""
        layout = layout_to_save(self, save_directory, layout)
        hub_options = {key: kwargs.pop(key) for key in (HUB_OPTIONS | {"token"}) & kwargs.keys()}
        files = super().save_pretrained(save_directory, legacy_format, filename_prefix, **kwargs)
        config_file = Path(save_directory, (f"{filename_prefix}-" if filename_prefix else "") + TOKENIZER_CONFIG_FILE)
        if layout == "remote_code":
            add_code(config_file, BaichuanTokenizer, AUTO_MAP)
        elif layout == "llama":
            # Of transformers itself: it takes tokenizer.json as it is.
            update_json(config_file, tokenizer_class="PreTrainedTokenizerFast")
        if push_to_hub:
            self.push_to_hub(**({"repo_id": Path(save_directory).name} | hub_options), layout=layout)
        return files

    def _save_pretrained(
        self,
        save_directory: str | os.PathLike,
        file_names: tuple[str, ...],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
    ) -> tuple[str, ...]:
        file_names = super()._save_pretrained(save_directory, file_names, legacy_format, filename_prefix)
        # transformers drops these two, and llama.cpp takes a file without them for one whose texts begin with <s>.
        added = self.encode("")
        config_file = Path(save_directory, (f"{filename_prefix}-" if filename_prefix else "") + TOKENIZER_CONFIG_FILE)
        update_json(config_file, add_bos_token=self.bos_token_id in added, add_eos_token=self.eos_token_id in added)
        return file_names + self.save_vocabulary(str(save_directory), filename_prefix)
