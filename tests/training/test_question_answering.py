"""`train_question_answering`: what it learns, writes, refuses, and the answers it gives."""

import json
import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from baichuan_hf.training import train
from baichuan_hf.training.tasks.question_answering import (
    QuestionArguments,
    encode_windows,
    extract_answers,
    load_questions,
    predict_answers,
)
from tests.helpers.checkpoint import quiet_arguments, save_checkpoint


ANSWERS = {"谁？": ["李明", "𪚥生"], "哪里？": ["北京", "上海"]}


def questions(count=96, *, unanswerable=False, seed=0):
    """Texts that hold a person and a place, or one of them; the question tells which is asked for."""
    generator = random.Random(seed)
    rows = []
    for index in range(count):
        question = generator.choice(list(ANSWERS))
        names = {kind: generator.choice(choices) for kind, choices in ANSWERS.items()}
        parts = [*names.values(), *generator.choices("的了在看", k=4)]
        missing = unanswerable and index % 3 == 0
        if missing:
            parts.remove(names[question])
        generator.shuffle(parts)
        context, answer = "".join(parts), names[question]
        answers = {"text": [answer], "answer_start": [context.find(answer)]}
        rows.append(
            {
                "id": f"q{index}",
                "question": question,
                "context": context,
                "answers": {"text": [], "answer_start": []} if missing else answers,
            }
        )
    return rows


def write_json(path, rows):
    Dataset.from_list(rows).to_json(path)
    return path


def ours(train_file, **values):
    values = {"model": "micro", "max_length": 32, "doc_stride": 8} | values
    return QuestionArguments(task="qa", train_file=str(train_file), **values)


def theirs(folder, **values):
    defaults = {"num_train_epochs": 10, "per_device_train_batch_size": 8, "learning_rate": 1e-2}
    return quiet_arguments(folder, **(defaults | values))


@pytest.fixture(scope="module")
def answerable(tmp_path_factory):
    return write_json(tmp_path_factory.mktemp("data") / "questions.jsonl", questions())


def test_full_fine_tuning_learns_and_writes_a_loadable_model(checkpoint, answerable, tmp_path):
    metrics = train(ours(answerable, model=str(checkpoint)), theirs(tmp_path))
    assert metrics["eval_exact_match"] == metrics["eval_f1"] == 1.0
    assert json.loads((tmp_path / "all_results.json").read_text()) == pytest.approx(metrics)
    assert "| f1 | 1.0 |" in (tmp_path / "README.md").read_text()
    predictions = json.loads((tmp_path / "predictions.json").read_text(encoding="utf-8"))
    golden = {row["id"]: row["answers"]["text"][0] for row in questions()}
    assert len(predictions) >= 15
    assert predictions == {name: golden[name] for name in predictions}
    assert AutoModelForQuestionAnswering.from_pretrained(tmp_path).dtype == torch.float32


def test_that_a_text_has_no_answer_is_learnt(checkpoint, tmp_path):
    train_file = write_json(tmp_path / "train.jsonl", questions(192, unanswerable=True))
    eval_file = write_json(tmp_path / "eval.jsonl", questions(30, unanswerable=True, seed=1))
    arguments = ours(train_file, eval_file=str(eval_file), model=str(checkpoint))
    assert train(arguments, theirs(tmp_path / "out"))["eval_exact_match"] > 0.9
    predictions = json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))
    assert 7 <= list(predictions.values()).count("") <= 13


def test_lora_trains_adapter_and_head_and_merges(checkpoint, answerable, tmp_path):
    arguments = ours(answerable, model=str(checkpoint), lora=True, merge=True, lora_target_modules=["all-linear"])
    metrics = train(arguments, theirs(tmp_path, num_train_epochs=16))
    assert metrics["eval_f1"] > 0.9
    names = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert {name.split(".")[-2] for name in names} == {"lora_A", "lora_B", "qa_outputs"}
    merged = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    rows = questions(40, seed=1)
    pairs = [(row["question"], row["context"] + "的" * 60) for row in rows]
    answers = predict_answers(merged, tokenizer, pairs, max_length=32, doc_stride=8, max_answer_length=8)
    assert np.mean([[text] == row["answers"]["text"] for text, row in zip(answers, rows, strict=True)]) > 0.9


def test_qlora_trains_over_four_bits_and_merges(answerable, tmp_path):
    pytest.importorskip("bitsandbytes")
    model = save_checkpoint(tmp_path / "model", hidden_size=64, intermediate_size=64)
    arguments = ours(answerable, model=str(model), qlora=True, merge=True, lora_target_modules=["all-linear"])
    assert train(arguments, theirs(tmp_path / "out", num_train_epochs=16))["eval_f1"] > 0.9
    merged = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out" / "merged")
    assert merged.dtype == torch.float32


def test_from_scratch_and_resume(answerable, tmp_path):
    sizes = "hidden_size=32,intermediate_size=32,num_hidden_layers=1,num_attention_heads=2"
    arguments = ours(answerable, model="tiny", from_scratch=True, eval_fraction=0, config_overrides=sizes)
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2}
    train(arguments, theirs(tmp_path / "whole", **settings))
    resume = str(tmp_path / "whole" / "checkpoint-2")
    train(arguments, theirs(tmp_path / "parts", resume_from_checkpoint=resume, **settings))
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not (tmp_path / "whole" / "predictions.json").exists()


@pytest.mark.parametrize("unanswerable", [False, True])
def test_golden_logits_give_the_golden_answers(checkpoint, tmp_path, unanswerable):
    """Over windows that share tokens, with a text far longer than one."""
    rows = questions(12, unanswerable=unanswerable)
    for row in rows:
        row["context"] += "的" * 60
    arguments = ours(write_json(tmp_path / "x.jsonl", rows), eval_fraction=0)
    rows = load_questions(arguments)["train"]
    windows = encode_windows(rows, AutoTokenizer.from_pretrained(checkpoint), arguments)
    assert len(windows) > 2 * len(rows)
    logits = np.random.default_rng(0).normal(size=(2, len(windows), 40))
    for side, name in zip(logits, ("start_positions", "end_positions"), strict=True):
        side[range(len(windows)), windows[name]] += 20
    answers = extract_answers(rows, windows, *logits, max_answer_length=8, may_be_none=unanswerable)
    assert answers == [texts[0] if texts else "" for texts in rows["texts"]]


def test_misplaced_answers_are_reported_and_not_trained_on_but_evaluated(tmp_path, caplog):
    rows = questions(6)
    rows[2]["answers"]["answer_start"] = [0 if rows[2]["answers"]["answer_start"][0] else 1]
    rows[4]["answers"]["answer_start"] = [-1]
    file = write_json(tmp_path / "x.jsonl", rows)
    splits = load_questions(ours(file, eval_file=str(file)))
    assert "x.jsonl: in 2 of 6 rows the answer is not at its answer_start; the first is q2" in caplog.text
    assert splits["train"]["id"][:] == ["q0", "q1", "q3", "q5"]
    assert splits["test"]["id"][:] == [f"q{index}" for index in range(6)]


def test_a_text_is_held_out_with_all_its_questions(tmp_path):
    rows = [row | {"context": f"{row['context']}{index // 3}"} for index, row in enumerate(questions(30))]
    for index in range(30):  # three questions about each text
        rows[index] |= {"context": rows[index - index % 3]["context"], "answers": {"text": [], "answer_start": []}}
    splits = load_questions(ours(write_json(tmp_path / "x.jsonl", rows), eval_fraction=0.3))
    assert (len(splits["train"]), len(splits["test"])) == (21, 9)
    assert not set(splits["train"]["context"]) & set(splits["test"]["context"])


def test_incomplete_rows_and_lists_of_answers(tmp_path, caplog):
    rows = [
        {"q": "谁？", "c": "李明来了", "a": [{"text": "李明", "answer_start": 0}]},
        {"q": "谁？", "c": "来了", "a": []},
        {"q": " ", "c": "来了", "a": []},
        {"q": "谁？", "c": None, "a": None},
    ]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    names = {"question_column": "q", "text_column": "c", "label_column": "a"}
    splits = load_questions(ours(tmp_path / "x.json", eval_fraction=0, **names))
    assert splits["train"]["texts"][:] == [["李明"], []]
    assert splits["train"]["id"][:] == ["0", "1"]
    assert "x.json: 2 of 4 rows lack a question or a text" in caplog.text


GOOD = {"question": "谁？", "context": "李明来了", "answers": {"text": ["李明"], "answer_start": [0]}}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        pytest.param({"query": "谁？"}, "--question-column 'question' .* 'query'", id="question"),
        pytest.param(
            {name: GOOD[name] for name in ("question", "answers")}, "--text-column 'context' is not", id="text"
        ),
        pytest.param(GOOD | {"answers": "李明"}, "row 1: 'answers' holds '李明'; --task qa wants", id="string"),
        pytest.param(GOOD | {"answers": {"text": ["李明"]}}, "row 1: 'answers' holds .* as many", id="no-start"),
        pytest.param(GOOD | {"context": " "}, "none of 1 rows has both 'question' and 'context'", id="empty"),
        pytest.param(
            GOOD | {"answers": {"text": ["李明"], "answer_start": [1]}},
            "in 1 of 1 rows .* the first is 0: '李明', but at 1 the text has '明来'",
            id="misplaced",
        ),
        pytest.param(GOOD, "--eval-fraction 0.2 of 1 texts leaves one side none", id="one-text"),
    ],
)
def test_rows_that_cannot_be_learnt_from_are_refused(tmp_path, row, message):
    values = {"eval_fraction": 0} if "eval-fraction" not in message else {}
    with pytest.raises(ValueError, match=message):
        load_questions(ours(write_json(tmp_path / "x.jsonl", [row]), **values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param({"max_length": 16}, "max_length is 16; .* 32 or more", id="length"),
        pytest.param({"doc_stride": 11}, "doc_stride is 11; it must be at most a third", id="stride"),
        pytest.param({"max_answer_length": 0}, "--max-answer-length is 0", id="answer"),
    ],
)
def test_lengths_that_leave_no_room_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ours("x.json", **values)
