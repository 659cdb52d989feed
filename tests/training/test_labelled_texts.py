"""The rows of `--task classify`: which kind of label they have, and what is refused."""

import pytest
from datasets import ClassLabel, Dataset
from transformers import AutoModelForSequenceClassification

from baichuan_hf.training import ClassifyArguments
from baichuan_hf.training.tasks.labelled_texts import choose_examples, label_names, load_labelled_texts, problem_type
from tests.helpers.checkpoint import reviews, write_csv


def ours(train_file, **values):
    values = {"model": "micro", "text_column": "review", "label_column": "stars"} | values
    return ClassifyArguments(task="classify", train_file=str(train_file), **values)


def load(tmp_path, labels, **values):
    """Training rows with these labels."""
    Dataset.from_dict({"review": [f"text {i}" for i in range(len(labels))], "stars": labels}).to_parquet(
        tmp_path / "x.parquet"
    )
    return load_labelled_texts(ours(tmp_path / "x.parquet", from_scratch=True, eval_fraction=0, **values))["train"]


SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


@pytest.mark.parametrize(
    ("labels", "values", "kind", "found"),
    [
        pytest.param([3, 1, 2], {}, SINGLE, [2, 0, 1], id="whole-numbers"),
        pytest.param([3, 1, 2], {"problem_type": REGRESSION}, REGRESSION, [3.0, 1.0, 2.0], id="asked-numbers"),
        pytest.param([3.5, 1.0, None], {}, REGRESSION, [3.5, 1.0], id="fractions"),
        pytest.param(["3.5", "1", ""], {}, REGRESSION, [3.5, 1.0], id="fractions-of-a-csv"),
        pytest.param([3.5, 1.0, 3.5], {"problem_type": SINGLE}, SINGLE, [1, 0, 1], id="asked-classes"),
        pytest.param(["a,b", "b"], {}, SINGLE, [0, 1], id="words-with-commas"),
        pytest.param(["a, b", "b", "", None], {"problem_type": MULTI}, MULTI, [[0, 1], [1], []], id="separated"),
        pytest.param(["a|b", "b,c"], {"problem_type": MULTI, "label_separator": "|"}, MULTI, [[0, 1], [2]], id="bars"),
        pytest.param([["b", "a", "b"], [], ["a"]], {}, MULTI, [[1, 0], [], [0]], id="lists"),
        pytest.param([[2, 10], [10]], {}, MULTI, [[0, 1], [1]], id="lists-of-numbers"),
    ],
)
def test_kind_of_label(tmp_path, labels, values, kind, found):
    rows = load(tmp_path, labels, **values)
    assert problem_type(rows) == kind
    assert list(rows["label"]) == found


def test_inferred_regression_is_said(tmp_path, caplog):
    load(tmp_path, [0.5, 1.0])
    assert "'stars' are numbers that are not all whole, so this is regression; if they are classes" in caplog.text


def test_a_trained_model_is_what_it_is(checkpoint, tmp_path):
    """Whole numbers are no classes to a model that gives numbers, nor does it become a classifier on demand."""
    config = {"num_labels": 1, "problem_type": "regression"}
    AutoModelForSequenceClassification.from_pretrained(checkpoint, **config).save_pretrained(tmp_path / "model")
    values = {"model": str(tmp_path / "model"), "eval_fraction": 0}
    write_csv(tmp_path / "x.csv", [{"review": "a", "stars": 1}, {"review": "b", "stars": 2}])
    assert problem_type(load_labelled_texts(ours(tmp_path / "x.csv", **values))["train"]) == REGRESSION
    with pytest.raises(ValueError, match=r"--problem-type is single_.*, but .*model has been trained for regression"):
        load_labelled_texts(ours(tmp_path / "x.csv", problem_type=SINGLE, **values))


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        pytest.param([["x", "y"]], SINGLE, r"holds \['x', 'y'\]; single_label.* one class", id="lists"),
        pytest.param(["1", "many"], REGRESSION, "holds 'many'; regression wants a finite number", id="words"),
        pytest.param([1.0, float("inf")], REGRESSION, "holds inf; regression", id="infinite"),
        pytest.param([[1.0, 2.0]], REGRESSION, r"holds \[1.0, 2.0\]; regression", id="numbers"),
        pytest.param([{"a": 1}], MULTI, r"holds \{'a': 1\}; multi_label.* a list of classes", id="dictionary"),
        pytest.param([[], []], None, "no row has a label", id="none"),
    ],
)
def test_labels_of_another_kind_are_refused(tmp_path, labels, kind, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, labels, problem_type=kind)


def test_a_file_cut_off_in_a_line(tmp_path, caplog):
    (tmp_path / "cut.jsonl").write_text('{"review": "a", "stars": "x"}\n{"review": "b", "st')
    (tmp_path / "cut.csv").write_text('review,stars\na,x\nb,y\n"c, and')
    for name in ("cut.jsonl", "cut.csv"):
        with pytest.raises(ValueError, match=f"{name}: cannot be read"):
            load_labelled_texts(ours(tmp_path / name, from_scratch=True))
    # Where the line could have ended there, the label is missing.
    (tmp_path / "short.csv").write_text("review,stars\na,x\nb,y\nc")
    rows = load_labelled_texts(ours(tmp_path / "short.csv", from_scratch=True, eval_fraction=0))["train"]
    assert list(rows["text"]) == ["a", "b"]
    assert "short.csv: 1 of 3 rows lack a text or a label" in caplog.text


def test_examples_are_as_many_of_each_label():
    names = ["a", "b", "c"]
    rows = Dataset.from_dict(
        {"text": [str(i) for i in range(60)], "label": [int(i > 9) + int(i > 29) for i in range(60)]}
    )
    rows = rows.cast_column("label", ClassLabel(names=names))
    chosen = choose_examples(rows, 8, seed=1)
    assert [list(chosen["label"]).count(index) for index in range(3)] == [3, 3, 2]
    assert label_names(chosen) == names
    assert list(chosen) == list(choose_examples(rows, 8, seed=1)) != list(choose_examples(rows, 8, seed=2))
    with pytest.raises(ValueError, match="--few-shot 2 is fewer than the labels, 3"):
        choose_examples(rows, 2, seed=0)
    with pytest.raises(ValueError, match="takes 11 examples of each label, but 'a' has 10"):
        choose_examples(rows, 33, seed=0)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        pytest.param(["b", "a", "c"], ["a", "b", "c"], id="words"),
        pytest.param([10, 9, -1], ["-1", "9", "10"], id="numbers"),
        pytest.param([1.0, 0.0, None], ["0", "1"], id="floats"),
        pytest.param([True, False, True], ["False", "True"], id="booleans"),
    ],
)
def test_labels_are_discovered(tmp_path, labels, names):
    rows = Dataset.from_dict({"review": [str(i) for i in range(12)], "stars": labels * 4})
    rows.to_parquet(tmp_path / "x.parquet")
    train_rows = load_labelled_texts(ours(tmp_path / "x.parquet", from_scratch=True, eval_fraction=0))["train"]
    assert train_rows.features["label"].names == names
    expected = [str(int(label) if isinstance(label, float) else label) for label in labels * 4 if label is not None]
    assert [names[index] for index in train_rows["label"]] == expected


def test_columns_may_bear_the_names_of_the_defaults(tmp_path):
    Dataset.from_dict({"text": [1, 2, 3], "label": [0, 1, 0]}).to_parquet(tmp_path / "x.parquet")
    arguments = ours(
        tmp_path / "x.parquet", text_column="text", label_column="label", from_scratch=True, eval_fraction=0
    )
    rows = load_labelled_texts(arguments)["train"]
    assert list(rows) == [{"text": "1", "label": 0}, {"text": "2", "label": 1}, {"text": "3", "label": 0}]


def test_names_of_a_data_set_are_kept(tmp_path):
    rows = Dataset.from_dict({"review": list("abcd"), "stars": [1, 0, -1, 1]})
    rows.cast_column("stars", ClassLabel(names=["poor", "fine", "grand"])).to_parquet(tmp_path / "x.parquet")
    train_rows = load_labelled_texts(ours(tmp_path / "x.parquet", from_scratch=True, eval_fraction=0))["train"]
    assert train_rows.features["label"].names == ["poor", "fine", "grand"]
    assert list(train_rows["label"]) == [1, 0, 1]


def test_incomplete_rows_and_imbalance_are_reported(tmp_path, caplog):
    rows = [{"review": f"text {i}", "stars": "a" if i < 9 else "b"} for i in range(12)]
    write_csv(tmp_path / "x.csv", [*rows, {"review": " ", "stars": "a"}, {"review": "NA", "stars": ""}])
    splits = load_labelled_texts(ours(tmp_path / "x.csv", from_scratch=True, eval_fraction=0))
    assert len(splits["train"]) == 12
    assert "2 of 14 rows lack a text or a label" in caplog.text
    assert "a 9 (75%), b 3 (25%)" in caplog.text


def test_evaluation_file_is_used_as_it_is(tmp_path):
    train_file = write_csv(tmp_path / "train.csv", reviews(8))
    eval_file = write_csv(tmp_path / "eval.csv", reviews(4))
    splits = load_labelled_texts(ours(train_file, eval_file=str(eval_file), from_scratch=True))
    assert (len(splits["train"]), splits["test"]["text"][:]) == (8, [row["review"] for row in reviews(4)])


@pytest.mark.parametrize(
    ("rows", "evaluation", "message"),
    [
        pytest.param({"text": ["a"], "stars": ["x"]}, None, "--text-column 'review' .* 'text', 'stars'", id="text"),
        pytest.param({"review": ["a"], "label": ["x"]}, None, "--label-column 'stars' is not", id="label"),
        pytest.param({"review": ["", "b"], "stars": ["x", ""]}, None, "none of 2 rows has both", id="empty"),
        pytest.param({"review": ["a", "b"], "stars": ["x", "x"]}, None, "every label is 'x'", id="one-label"),
        pytest.param(
            {"review": ["a", "b"], "stars": ["x", "y"]},
            {"review": ["c"], "stars": ["z"]},
            "eval.jsonl: label 'z' is not among those to learn: 'x', 'y'",
            id="unseen",
        ),
    ],
)
def test_rows_that_cannot_be_learnt_from_are_refused(tmp_path, rows, evaluation, message):
    Dataset.from_dict(rows).to_json(tmp_path / "x.jsonl")
    values = {}
    if evaluation:
        Dataset.from_dict(evaluation).to_json(tmp_path / "eval.jsonl")
        values["eval_file"] = str(tmp_path / "eval.jsonl")
    with pytest.raises(ValueError, match=message):
        load_labelled_texts(ours(tmp_path / "x.jsonl", from_scratch=True, **values))


def test_a_trained_classifier_keeps_its_labels(checkpoint, tmp_path):
    labels = {"num_labels": 3, "id2label": {0: "good", 1: "bad", 2: "mixed"}}
    AutoModelForSequenceClassification.from_pretrained(checkpoint, **labels).save_pretrained(tmp_path / "model")
    arguments = ours(write_csv(tmp_path / "x.csv", reviews(8)), model=str(tmp_path / "model"))
    assert load_labelled_texts(arguments)["train"].features["label"].names == ["good", "bad", "mixed"]
    arguments.train_file = str(write_csv(tmp_path / "y.csv", [{"review": "a", "stars": "strange"}]))
    with pytest.raises(ValueError, match="label 'strange' is not among those to learn: 'good', 'bad', 'mixed'"):
        load_labelled_texts(arguments)
