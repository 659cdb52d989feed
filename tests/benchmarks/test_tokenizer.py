"""Tokenizers side by side: the same ids, or no figures."""

import shutil

import pytest

import baichuan_hf
from baichuan_hf.benchmarks.rows import read_rows
from baichuan_hf.benchmarks.tokenizer import LONGEST, SHORTEST, _documents, measure_tokenizer, tokenizer_table


def test_documents_have_the_size_that_was_asked_for_and_all_lengths():
    documents = list(_documents([["a line"], ["酒店的位置", "很好"]], 1_000_000))
    sizes = [len(document.encode()) for document in documents]
    assert 1_000_000 <= sum(sizes) < 1_000_000 + LONGEST
    assert SHORTEST - 2 <= min(sizes) < 2 * SHORTEST
    assert LONGEST / 2 < max(sizes) <= LONGEST
    assert any("酒店" in document for document in documents)
    assert any("line" in document for document in documents)


def test_rows(tmp_path, text_file):
    pytest.importorskip("sentencepiece", reason="needs: pip install 'baichuan-hf[sentencepiece]'")
    rows, lines = tmp_path / "rows.csv", []
    measure_tokenizer(rows, text_files=[text_file], megabytes=0.1, command="bench", report=lines.append)
    found = read_rows(rows)
    assert [(row["texts"], row["tokenizer"]) for row in found] == [
        ("batches", "sentencepiece"),
        ("batches", "sentencepiece, all threads"),
        ("batches", "tokenizers"),
        ("batches", "baichuan-hf"),
        ("batches", "baichuan-hf, ids alone"),
        ("single texts", "sentencepiece"),
        ("single texts", "baichuan-hf"),
    ]
    assert tokenizer_table(rows).row_count == len(lines) == 7
    for row in found:
        assert float(row["mb_per_second"]) == pytest.approx(float(row["megabytes"]) / float(row["seconds"]), rel=0.1)
        assert row["command"] == "bench"
        if row["tokenizer"] == "sentencepiece":
            assert float(row["speed"]) == 1


def test_other_ids_are_an_error(tmp_path, text_file):
    """A folder whose tokenizer.json is not that of its tokenizer.model."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="needs: pip install 'baichuan-hf[sentencepiece]'")
    shutil.copytree(
        baichuan_hf.bundled_checkpoint("tiny"), tmp_path / "model", ignore=shutil.ignore_patterns("*.saf*")
    )
    settings = {"vocab_size": 400, "byte_fallback": True, "minloglevel": 2, "model_type": "bpe"}
    sentencepiece.SentencePieceTrainer.train(input=str(text_file), model_prefix=str(tmp_path / "other"), **settings)
    baichuan_hf.BaichuanTokenizer.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "model")
    shutil.copyfile(tmp_path / "other.model", tmp_path / "model" / "tokenizer.model")
    with pytest.raises(ValueError, match="are not those of sentencepiece"):
        measure_tokenizer(tmp_path / "x.csv", model=str(tmp_path / "model"), text_files=[text_file], megabytes=0.01)
    assert not (tmp_path / "x.csv").exists()


def test_a_file_without_text_is_refused(tmp_path):
    pytest.importorskip("sentencepiece", reason="needs: pip install 'baichuan-hf[sentencepiece]'")
    (tmp_path / "empty.txt").write_text("\n<unk>\n")
    with pytest.raises(ValueError, match=r"empty\.txt: holds no text"):
        measure_tokenizer(tmp_path / "x.csv", text_files=[tmp_path / "empty.txt"])
