"""The baselines that fine-tuned models are held against."""

import json

import pytest

from baichuan_hf.benchmarks.rows import read_rows
from baichuan_hf.benchmarks.runs import record_run
from baichuan_hf.benchmarks.tagging import crf_baseline, features


def test_features_are_the_words_around():
    row = features(["我", "在", "北", "京"], 2)
    assert (row["-2"], row["-1"], row["0"], row["+1"], row["+2"]) == ("我", "在", "北", "京", ">")
    assert row["-1,0+1"] == "在北京"
    assert features(["7"], 0) | {"digit": "True", "-1": "<", "+1": ">"} == features(["7"], 0)


def test_a_conditional_random_field_finds_what_the_words_show(tmp_path):
    pytest.importorskip("sklearn_crfsuite", reason="needs sklearn-crfsuite: pip install 'baichuan-hf[bench]'")
    sentences = [
        {"tokens": ["在", city[0], city[1], "市"], "tags": ["O", "B-LOC", "I-LOC", "O"]}
        for city in ("北京", "上海", "广州", "天津")
    ] + [{"tokens": ["他", "走", "了"], "tags": ["O", "O", "O"]}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in sentences * 6))
    words = ["--task", "tag", "--train-file", str(path), "--output-dir", str(tmp_path / "out")]
    record_run(tmp_path / "rows.csv", "baseline", words, baseline=crf_baseline, metrics=("precision", "recall", "f1"))
    (row,) = read_rows(tmp_path / "rows.csv")
    assert (row["method"], row["precision"], row["recall"], row["f1"]) == ("baseline", "1.0000", "1.0000", "1.0000")
    assert row["command"].startswith("baichuan-hf train --task tag")
