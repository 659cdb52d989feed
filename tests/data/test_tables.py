"""Rows from files, and the split that every run shares."""

import json
from collections import Counter

import pytest
from datasets import ClassLabel, Dataset

from baichuan_hf.data.tables import hold_out, load_splits, load_train_and_test, require_columns


ROWS = [
    {"text": "好酒店，NA", "label": 1},
    {"text": 'He said "no", then left', "label": 0},
    {"text": "None", "label": 1},
]


def write(folder, kind):
    rows, file = Dataset.from_list(ROWS), folder / f"rows.{kind}"
    if kind == "csv":
        rows.to_csv(file)
    elif kind == "parquet":
        rows.to_parquet(file)
    elif kind == "jsonl":
        rows.to_json(file, force_ascii=False)
    else:
        file.write_text(json.dumps(ROWS))
    return file


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path, kind):
    assert list(load_splits(str(write(tmp_path, kind)))["train"]) == ROWS


def test_folder_keeps_its_splits(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(f"text,label\n{split},1\n")
    splits = load_train_and_test(str(tmp_path))
    assert {split: rows["text"][0] for split, rows in splits.items()} == {"train": "train", "test": "test"}


def test_byte_order_mark_and_empty_cells(tmp_path):
    (tmp_path / "excel.csv").write_text("text,label\n好,\n,1\n", encoding="utf-8-sig")
    rows = load_splits(str(tmp_path / "excel.csv"))["train"]
    assert list(rows) == [{"text": "好", "label": ""}, {"text": "", "label": "1"}]


def test_wrong_sources_are_named(tmp_path):
    (tmp_path / "rows.doc").write_text("text\n")
    (tmp_path / "gbk.csv").write_bytes("text,label\n酒店,1\n".encode("gbk"))
    (tmp_path / "broken.jsonl").write_text('{"text": "a"\n{]')
    with pytest.raises(ValueError, match=r"rows.doc: unknown extension '.doc'; a data file is one of .csv .json"):
        load_splits(str(tmp_path / "rows.doc"))
    with pytest.raises(ValueError, match="gbk.csv: cannot be read: .*save the file as UTF-8"):
        load_splits(str(tmp_path / "gbk.csv"))
    with pytest.raises(ValueError, match=r"broken.jsonl: cannot be read"):
        load_splits(str(tmp_path / "broken.jsonl"))
    for kind in ("csv", "json", "jsonl", "parquet", "txt"):
        (tmp_path / f"empty.{kind}").touch()
        with pytest.raises(ValueError, match=rf"empty.{kind}: is empty; give a file with rows"):
            load_splits(str(tmp_path / f"empty.{kind}"))
    (tmp_path / "head.csv").write_text("text,label\n")
    with pytest.raises(ValueError, match=r"head.csv: has no rows"):
        load_splits(str(tmp_path / "head.csv"))
    with pytest.raises(FileNotFoundError, match="absent.csv: no such file"):
        load_splits(str(tmp_path / "absent.csv"))
    with pytest.raises(FileNotFoundError, match="someone/unknown: neither a file or folder here"):
        load_splits("someone/unknown")


def test_folder_without_training_rows_is_refused(tmp_path):
    (tmp_path / "test.csv").write_text("text,label\na,1\n")
    with pytest.raises(ValueError, match="has no split `train`; there are test"):
        load_train_and_test(str(tmp_path))


def test_missing_column_lists_those_there_are():
    with pytest.raises(ValueError, match="x.csv: --text-column 'review' is not a column; there are 'text', 'label'"):
        require_columns(Dataset.from_list(ROWS), {"--text-column": "review"}, "x.csv")


def labelled(counts):
    rows = [{"text": f"{name} {index}", "label": name} for name, count in counts.items() for index in range(count)]
    return Dataset.from_list(rows).cast_column("label", ClassLabel(names=list(counts)))


def test_hold_out_is_stratified_and_the_same_each_time():
    rows = labelled({"a": 80, "b": 20})
    first, second = hold_out(rows, 0.2, by="label"), hold_out(rows, 0.2, by="label")
    assert list(first["test"]) == list(second["test"])
    assert Counter(first["test"]["label"]) == {0: 16, 1: 4}
    assert sorted([*first["train"]["text"], *first["test"]["text"]]) == sorted(rows["text"])


@pytest.mark.parametrize(
    ("counts", "fraction", "message"),
    [
        pytest.param({"a": 9, "b": 1}, 0.2, "label 'b' has one row", id="rare"),
        pytest.param({"a": 9, "b": 9}, 1.0, "must lie between 0 and 1", id="fraction"),
        pytest.param({"a": 9, "b": 9}, 0.01, "--eval-fraction 0.01 of 18 rows", id="few"),
    ],
)
def test_hold_out_refuses_what_it_cannot_split(counts, fraction, message):
    with pytest.raises(ValueError, match=message):
        hold_out(labelled(counts), fraction, by="label")


def test_hold_out_without_classes_takes_the_share_and_needs_two_sides():
    rows = Dataset.from_dict({"text": [str(i) for i in range(10)]})
    first, second = hold_out(rows, 0.3), hold_out(rows, 0.3)
    assert (len(first["train"]), len(first["test"])) == (7, 3)
    assert first["test"]["text"][:] == second["test"]["text"][:]
    assert {*first["train"]["text"], *first["test"]["text"]} == {*rows["text"]}
    assert len(hold_out(rows, 0.04)["test"]) == 1
    with pytest.raises(ValueError, match=r"--eval-fraction 0.95 of 10 rows leaves none to train on; give --eval-file"):
        hold_out(rows, 0.95)
