"""A SentencePiece model of Baichuan's kind: the trainer's settings and the first 200 pieces are those of Baichuan2."""

import random
from pathlib import Path

from datasets import Dataset


# Ids 3 to 199 of Baichuan2; 195 and 196 mark the turns of a chat.
_TAGS = ["img", "h2", "td", "strong", "table", "tr", "li", "b", "h3", "br", "h4", "h5", "p", "h1", "tbody"]
_SIGNS = [
    *"０１２３４５６７８９+-=，。！？、：￥.!?",
    "...",
    "。。。",
    "。。。。。。",
    *"《》【】『』",
    "```",
    "<!--",
    "-->",
    "---",
    "<!DOCTYPE>",
]
RESERVED = [
    *("<SEP>", "<CLS>", "\n", "\t"),
    *(form for tag in _TAGS for form in (f"<{tag}>", f"<{tag}/>", f"</{tag}>")),
    *_SIGNS,
    *"；．＝＜＞－＋％‼㊣／｜",
    *(f"<reserved_{number}>" for number in range(12, 111)),
]


def train_tokenizer(
    corpus: Path, target: Path, *, vocab_size: int, character_coverage: float = 0.995, max_lines: int = 400_000
) -> None:
    """Train on random lines of `corpus` (a parquet file with a column `text`) and write `target`, a `tokenizer.model`.

    Raises:
        ModuleNotFoundError: sentencepiece is not installed.
    """
    try:
        import sentencepiece
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "training a tokenizer needs sentencepiece: pip install 'baichuan-hf[sentencepiece]'"
        ) from error
    lines = [line for text in Dataset.from_parquet(str(corpus))["text"] for line in text.splitlines()]
    if len(lines) > max_lines:
        lines = random.Random(0).sample(lines, max_lines)
    target.parent.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(target.with_suffix("")),
        model_type="bpe",
        vocab_size=vocab_size,
        character_coverage=character_coverage,
        user_defined_symbols=RESERVED,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        max_sentence_length=12282,
        max_sentencepiece_length=32,
        minloglevel=1,
    )
    target.with_suffix(".vocab").unlink()
