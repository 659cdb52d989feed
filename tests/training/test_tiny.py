"""The recipe of the bundled checkpoints, on texts of a few kilobytes."""

import gzip
import json
import math
import sqlite3
import struct
import zipfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from typer.testing import CliRunner

from baichuan_hf import BaichuanConfig, BaichuanForCausalLM, BaichuanTokenizer, bundled_checkpoint
from baichuan_hf.training.tiny import __main__, card, chat, corpus, evaluate, pretrain, readers
from baichuan_hf.training.tiny.__main__ import app
from baichuan_hf.training.tiny.sources import Source


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path.parent


@pytest.fixture(scope="module")
def tokenizer() -> BaichuanTokenizer:
    return BaichuanTokenizer.from_pretrained(bundled_checkpoint("tiny"))


@pytest.fixture(scope="module")
def model() -> BaichuanForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BaichuanForCausalLM(BaichuanConfig(**sizes, vocab_size=6144, max_position_embeddings=16)).eval()


def test_messages_are_read_in_either_language(tmp_path: Path):
    pairs = {
        b"": b"Content-Type: text/plain; charset=UTF-8\n",
        b"context\4The <b>first</b> message of all": "全部消息之中的第一条，需要写得足够长一些才行".encode(),
        b"a single one of the messages\0many of the messages": "一条消息，这里也要写得足够长才算是一条消息".encode(),
    }
    originals, translations = list(pairs), list(pairs.values())
    head = struct.pack("<5I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs)) + bytes(8)
    start, tables, texts = 28 + 16 * len(pairs), b"", b""
    for text in originals + translations:
        tables += struct.pack("<2I", len(text), start + len(texts))
        texts += text + b"\0"
    write(tmp_path / "zh_CN/LC_MESSAGES/a.mo", head + tables + texts)
    read = partial(readers.read_messages, tmp_path)
    assert list(read(language="en")) == ["The first message of all\na single one of the messages"]
    assert list(read(language="zh")) == [f"{translations[1].decode()}\n{translations[2].decode()}"]


def test_novels_are_read_by_chapter(tmp_path: Path):
    lines = [
        b"EMMA",
        b"",
        b"CHAPTER I",
        b"",
        b"Emma Woodhouse, handsome,",
        b"clever, and rich.",
        b"CHAPTER II",
        b"End.",
    ]
    strings = b"".join(b"\0\4\0\x09" + len(line).to_bytes(4, "big") + line for line in lines)
    stream = zlib.compress(b"X\n" + strings)
    write(tmp_path / "Rdata.rdb", (len(stream).to_bytes(4, "big") + stream) * 2)
    chapters = list(readers.read_novels(tmp_path))
    assert len(chapters) == 4
    assert "Emma Woodhouse, handsome, clever, and rich." in chapters[1]


def test_scripture_is_read_by_chapter(tmp_path: Path):
    book = (
        '<title>A</title><chapter sID="1"/><w lemma="1">In</w> the <note>or: a</note>beginning<chapter sID="2"/>Thus'
    )
    stream = zlib.compress(book.encode())
    write(tmp_path / "ot.bzz", stream)
    write(tmp_path / "ot.bzs", struct.pack("<3I", 0, len(stream), len(book)))
    assert list(readers.read_sword(tmp_path)) == ["", "In the beginning", "Thus"]


def test_pages_glosses_and_newspapers(tmp_path: Path):
    page = (
        "<html><head><title>x</title></head><body><h1>A</h1><p>b <b>c</b><pre>code</pre></p><script>s</script></body>"
    )
    assert next(readers.read_pages(write(tmp_path / "a.html", page))).split() == ["A", "b", "c"]
    gloss = '  1 licence\n00001740 03 n 02 ice_cream 0 frappe 0 001 ~ 00 n 0000 | frozen dessert; "an ice"  \n'
    folder = write(tmp_path / "wordnet/data.noun", gloss).parent
    assert list(readers.read_glosses(folder)) == ['ice cream, frappe: frozen dessert; "an ice"']
    words = "[中国/ns  政府/n]nt  １９９８年/t  。/w\n"
    assert list(readers.read_tagged_newspaper(write(tmp_path / "199801.txt", words))) == ["中国政府１９９８年。"]


def test_posts_are_rows_of_a_query(tmp_path: Path):
    database = sqlite3.connect(tmp_path / "fun_content.db")
    database.execute("CREATE TABLE jokes (content TEXT)")
    database.executemany(
        "INSERT INTO jokes VALUES (?)", [("甲：你好。<br/>乙：&ldquo;再见&rdquo;",), ("二",), ("三",)]
    )
    database.commit()
    read = partial(readers.read_posts, tmp_path, query="SELECT content FROM jokes")
    assert list(read()) == ["甲：你好。\n乙：“再见”", "二", "三"]
    assert list(read(entries=2)) == ["甲：你好。\n乙：“再见”\n二", "三"]


def test_stories_are_the_chapters_of_the_largest_file(tmp_path: Path):
    contents = "<w:p><w:t>开始（1）——起 PAGEREF _1 </w:t></w:p>"
    paragraphs = ["前言", "开始（1）——<w:t>起</w:t>", "他说：“1 &lt; 2。”", "开始（2）——落"]
    chapters = "".join(f"<w:p>{paragraph}</w:p>" for paragraph in paragraphs)
    for name, text in {"one.docx": chapters[:40], "all.docx": contents + chapters}.items():
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("word/document.xml", text)
    assert list(readers.read_stories(tmp_path)) == ["前言", "开始（1）——起\n他说：“1 < 2。”", "开始（2）——落\n"]


def test_sayings_jargon_recipes_and_translations(tmp_path: Path):
    header, row = "word\tindustry\taliases\tplain\tfunny\texample", '闭环\tit\t\t"从头到尾\t别漏了\t要闭环→要做完'
    write(tmp_path / "it_generated.tsv", f"{header}\n{row}\n")
    assert list(readers.read_jargon(tmp_path)) == ['闭环："从头到尾 别漏了 要闭环→要做完']
    with zipfile.ZipFile(tmp_path / "xiehouyu.zip", "w") as archive:
        archive.writestr("xiehouyu.txt", "一丈厚的烧饼\t吃不透\n")
    assert list(readers.read_sayings(tmp_path)) == ["一丈厚的烧饼——吃不透"]
    dish = {
        "description": "# 炒蛋\n![图](a.jpg)",
        "steps": [{"description": "**打**蛋"}],
        "additional_notes": ["趁热"],
    }
    write(tmp_path / "all_recipes.json", json.dumps([dish]))
    assert next(readers.read_recipes(tmp_path)).split() == ["炒蛋", "图", "打蛋", "趁热"]
    write(tmp_path / "tatoeba.tsv", '\ufeff1\t他"说话\t2\tHe talks.\n3\t他說話\t2\tHe talks.\n')
    read = partial(readers.read_translations, tmp_path)
    assert [*read(column=1), *read(column=3)] == ['他"说话', "He talks."]


@pytest.fixture
def micro(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work folder whose packages are there already: two short texts in place of `SOURCES`."""
    reviews = [f"第{n}家饭馆的菜做得很好吃，服务员也热情，下次还来。" for n in range(300)]
    glosses = [f"word{n}, term{n}: a thing of the kind number {n} that one can look up in a book" for n in range(300)]
    unseen = "这是一条留给以后测量用的评论，任何模型在训练的１０００步里都不应该看到它。"
    repeated = "A line that stands in each and every document of this text"
    texts = {
        "product reviews": ("zh", [*reviews, reviews[0], f"前面还有几个字，{unseen}", unseen[3:22]]),
        "WordNet glosses": ("en", [f"{repeated}\n{gloss}" for gloss in glosses]),
    }
    made = []
    for name, (language, documents) in texts.items():
        folder = write(tmp_path / "work/downloads" / name.split()[0] / "VERSION", f"{name}-1.0.tar.gz")
        write(folder / "rows.json", json.dumps(documents))
        package = f"pypi:{name.split()[0]}==1.0"
        made.append(
            Source(name, language, (package,), "MIT", lambda at: iter(json.loads((at / "rows.json").read_text())))
        )
    for module in (corpus, card, __main__):
        monkeypatch.setattr(module, "SOURCES", made)
    monkeypatch.setattr(corpus.build_corpus, "__defaults__", (made,))
    write(tmp_path / "unseen.txt", unseen)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    monkeypatch.setitem(pretrain.SHAPES, "micro", {**shape, "max_position_embeddings": 64, "normalize_lm_head": True})
    return tmp_path / "work"


def run(command: str, work: Path, *options: str) -> str:
    result = CliRunner().invoke(app, [command, "--work", str(work), *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_corpus_is_split_deduplicated_and_free_of_unseen_text(micro: Path):
    run("corpus", micro, "--unseen", str(micro.parent / "unseen.txt"))
    train, valid = (Dataset.from_parquet(str(micro / f"corpus/{split}.parquet")) for split in ("train", "valid"))
    assert not set(train["text"]) & set(valid["text"])
    texts = [*train["text"], *valid["text"]]
    assert len(texts) == len(set(texts)) == 600
    assert not any("留给以后" in text for text in texts)
    assert sum("each and every document" in text for text in texts) == 1
    report = json.loads((micro / "corpus/sources.json").read_text())
    assert sum(row["train_documents"] for row in report) == len(train)
    assert sum(row["valid_bytes"] for row in report) == sum(len(text.encode()) for text in valid["text"])
    assert report[0]["files"] == ["product reviews-1.0.tar.gz"]


def test_recipe_from_packages_to_card(micro: Path):
    pytest.importorskip("sentencepiece", reason="training a tokenizer needs the extra `sentencepiece`")
    run("corpus", micro)
    run("tokenizer", micro, "--vocab-size", "600")
    run("blocks", micro, "--length", "64", "--per-source", "20", "--written-repeats", "1", "--replay", "10")
    run("pretrain", micro, "--name", "micro", "--max-steps", "30", "--batch-size", "8", "--learning-rate", "0.01")
    run("chat", micro, "--name", "micro", "--max-steps", "2", "--batch-size", "2")
    run("evaluate", micro, "--name", "micro")
    run("card", micro, "--name", "micro")

    final = micro / "micro/final"
    saved = {file.name for file in final.iterdir()}
    assert saved == {
        *("README.md", "README.zh-CN.md", "card.yaml", "config.json", "evaluation.json", "generation_config.json"),
        "model.safetensors",
        *("chat_template.jinja", "tokenizer.model", "tokenizer_config.json"),
    }
    losses = [
        log["loss"]
        for log in json.loads((micro / "micro/pretrain/trainer_state.json").read_text())["log_history"][:-1]
    ]
    assert losses[-1] < losses[0] - 1
    results = json.loads((final / "evaluation.json").read_text())
    assert set(results) >= {"zh", "en", "product reviews", "WordNet glosses", "written for this (zh)"}
    assert results["en"]["model"] < 8


def test_interrupted_pretraining_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: BaichuanTokenizer
):
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    monkeypatch.setitem(pretrain.SHAPES, "micro", shape)
    rows = np.random.default_rng(0).integers(0, 6144, (32, 16), dtype=np.uint16)
    Dataset.from_dict({"input_ids": rows}).to_parquet(tmp_path / "blocks/train.parquet")
    (tmp_path / "tokenizer").mkdir()
    tokenizer.save_vocabulary(str(tmp_path / "tokenizer"))

    def weights() -> dict[str, torch.Tensor]:
        run("pretrain", tmp_path, "--name", "micro", "--max-steps", "4", "--batch-size", "2")
        return BaichuanForCausalLM.from_pretrained(tmp_path / "micro/pretrain").state_dict()

    expected = weights()
    with monkeypatch.context() as patch:
        patch.setattr(pretrain.Trainer, "_save_checkpoint", fail_at_step_3(pretrain.Trainer._save_checkpoint))
        for file in sorted((tmp_path / "micro/pretrain").glob("**/*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        with pytest.raises(RuntimeError, match="power cut"):
            weights()
    for name, weight in weights().items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=0)


def fail_at_step_3(save):
    def save_or_fail(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise RuntimeError("power cut")
        return save(self, *args, **kwargs)

    return save_or_fail


def test_blocks_are_the_stream_of_documents(tokenizer: BaichuanTokenizer):
    texts = ["第一篇文章。", "The second document.", "third " * 50]
    stream = [token for text in texts for token in (*tokenizer(text)["input_ids"], tokenizer.eos_token_id)]
    blocks = list(pretrain.token_blocks(iter(texts), tokenizer, 8))
    assert np.concatenate(blocks).tolist() == stream[: len(stream) // 8 * 8]


def test_blocks_repeat_the_sources_that_are_to_be(tmp_path: Path, tokenizer: BaichuanTokenizer):
    corpus = tmp_path / "train.parquet"
    Dataset.from_list([{"source": "a", "text": "first"}, {"source": "b", "text": "second"}]).to_parquet(corpus)
    pretrain.build_blocks(corpus, tmp_path / "blocks.parquet", tokenizer, length=1, repeats={"b": 3})
    ids = [row[0] for row in Dataset.from_parquet(str(tmp_path / "blocks.parquet"))["input_ids"]]
    expected = [*tokenizer("first")["input_ids"], *3 * tokenizer("second")["input_ids"], *4 * [tokenizer.eos_token_id]]
    assert sorted(ids) == sorted(expected)


def test_chat_rows_teach_the_answer_only(tokenizer: BaichuanTokenizer):
    row = chat.encode_turn(("你好", "Hello!"), tokenizer)
    prompt, answer = tokenizer("你好")["input_ids"], tokenizer("Hello!")["input_ids"]
    assert row["input_ids"] == [195, *prompt, 196, *answer, 2]
    assert row["labels"] == [-100] * (len(prompt) + 2) + [*answer, 2]


def test_bits_per_byte_of_the_baselines(model: BaichuanForCausalLM, tokenizer: BaichuanTokenizer):
    documents = ["abc abc abc", "天天天天"]
    counts = np.zeros(6144, dtype=np.int64)
    result = evaluate.bits_per_byte(model, tokenizer, documents, unigram_counts=counts)
    data = "abc abc abc\n天天天天\n".encode()
    assert result["bytes"] == len(data) == 25
    assert result["gzip"] == pytest.approx(8 * len(gzip.compress(data, 9)) / 25, abs=1e-4)
    assert result["unigram"] == pytest.approx(result["tokens"] * math.log2(6144) / 25, abs=1e-4)
