"""`baichuan-hf eval`."""

import json
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from baichuan_hf import bundled_checkpoint
from baichuan_hf.evaluation import measure_text


TEXTS = ["春天来了，花开了。", "Hello world"]
QUESTIONS = [
    ("1 + 1 =", ["2", "3"], 0),
    ("天空的颜色是", ["蓝色", "方形的", "咸的"], 0),
    ("鱼生活在", ["天上", "水里"], 1),
    ("The opposite of hot is", ["long", "cold"], 1),
    ("一年有几个月？", ["十二", "十三", "七"], 0),
    ("雪是", ["黑的", "白的"], 1),
]
TASK = """\
task: general_knowledge
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "问：{{{{question}}}}\\n答："
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


def expected_of(folder, texts=TEXTS, adapter=None):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if adapter is not None:
        model.load_adapter(adapter)
    return measure_text(model, AutoTokenizer.from_pretrained(folder), texts)


@pytest.fixture(params=["text.txt", "text.jsonl", "text.csv"])
def file(request, tmp_path):
    path = tmp_path / request.param
    lines = {
        ".txt": "\n\n".join(TEXTS),
        ".jsonl": "\n".join(json.dumps({"text": text, "n": 1}) for text in TEXTS),
        ".csv": "\n".join(["n,text", *(f"1,{text}" for text in TEXTS)]),
    }
    path.write_text(lines[path.suffix], encoding="utf-8")
    return path


def test_text_files(run, checkpoint, file):
    result = run("eval", checkpoint, "--text-file", file, "--dtype", "float32", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["model"], report["dtype"]) == (str(checkpoint), "float32")
    assert report["texts"] == {str(file): pytest.approx(expected_of(checkpoint), rel=1e-6)}


def test_without_a_text_on_the_one_that_comes_along(run):
    recorded = json.loads((bundled_checkpoint("tiny-alibi") / "evaluation.json").read_text(encoding="utf-8"))
    result = run("eval", "tiny-alibi", "--dtype", "float32", "--batch-size", 2)
    assert result.exit_code == 0, result.output
    words = result.stdout.split()
    for language in ("zh", "en"):
        facts = recorded[f"written for this ({language})"]
        assert {f"{facts['bytes']:,}", str(facts["tokens"]), f"{facts['model']:.4f}"} <= set(words)


def test_adapters(run, checkpoint, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(target_modules=["W_pack"], r=2, init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path / "adapter")
    (tmp_path / "text.txt").write_text(TEXTS[0], encoding="utf-8")
    words = ("--text-file", tmp_path / "text.txt", "--dtype", "float32", "--json")
    reports = [json.loads(run("eval", folder, *words).stdout) for folder in (checkpoint, tmp_path / "adapter")]
    base, found = (next(iter(report["texts"].values())) for report in reports)
    assert found == pytest.approx(expected_of(checkpoint, TEXTS[:1], adapter=tmp_path / "adapter"), rel=1e-6)
    assert found["perplexity"] != pytest.approx(base["perplexity"], rel=1e-3)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--text-file", "nowhere.txt"], "nowhere.txt: no such file"),
        (["--text-file", "empty.txt"], "empty.txt: holds no text (column 'text')"),
        (["--text-file", "rows.csv"], "--text-column 'text' is not a column; there are 'a', 'b'"),
        (["--task", "x", "--include-path", "nowhere"], "pip install 'baichuan-hf[eval]'"),
    ],
)
def test_bad_input(run, checkpoint, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    result = run("eval", checkpoint, *words)
    assert result.exit_code == 1
    assert message in result.stderr


@pytest.fixture
def task_folder(tmp_path):
    pytest.importorskip("lm_eval", reason="pip install 'baichuan-hf[eval]'")
    file = tmp_path / "questions.jsonl"
    rows = [dict(zip(("question", "choices", "answer"), row, strict=True)) for row in QUESTIONS]
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    (tmp_path / "general_knowledge.yaml").write_text(TASK.format(file=file), encoding="utf-8")
    return tmp_path


@torch.no_grad()
def right_answers(name):
    """By adding up what the model gives to the tokens of each answer."""
    folder = bundled_checkpoint(name)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer, right = AutoTokenizer.from_pretrained(folder), 0
    for question, choices, answer in QUESTIONS:
        prompt = tokenizer(f"问：{question}\n答：").input_ids
        scores = []
        for choice in choices:
            ids = tokenizer(f"问：{question}\n答：{choice}").input_ids
            assert ids[: len(prompt)] == prompt
            chances = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            scores.append(sum(chances[at - 1, ids[at]].item() for at in range(len(prompt), len(ids))))
        right += scores.index(max(scores)) == answer
    return right


@pytest.mark.parametrize("name", ["tiny", "tiny-alibi"])
def test_task_of_a_local_file(run, name, task_folder):
    words = ("--task", "general_knowledge", "--include-path", task_folder, "--dtype", "float32", "--batch-size", 4)
    result = run("eval", name, *words, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["n-samples"]["general_knowledge"]["effective"] == len(QUESTIONS)
    assert report["results"]["general_knowledge"]["acc,none"] == right_answers(name) / len(QUESTIONS)
    limited = run("eval", name, *words, "--limit", 2)
    assert "|general_knowledge|" in limited.stdout and "|acc" in limited.stdout


WRITING = """\
task: writing
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  max_gen_toks: 8
  do_sample: false
  until: ["<never>"]
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


def test_answers_are_written_as_the_task_says(run, task_folder):
    """Eight tokens, the likeliest ones: not the checkpoint's 256 with a penalty of repetitions."""
    folder = bundled_checkpoint("tiny")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for question in ("春天来了，", "天空的颜色是", "The sea was"):
        ids = tokenizer(question, return_tensors="pt").input_ids
        for _ in range(8):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        assert tokenizer.eos_token_id not in ids
        answer = tokenizer.decode(ids[0, -8:])
        rows.append({"question": question, "answer": answer})
    file = task_folder / "writing.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    (task_folder / "writing.yaml").write_text(WRITING.format(file=file), encoding="utf-8")
    words = ("--task", "writing", "--include-path", task_folder, "--dtype", "float32", "--batch-size", 2, "--json")
    result = run("eval", "tiny", *words)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["results"]["writing"]["exact_match,none"] == 1


def test_unknown_task(run, task_folder):
    result = run("eval", "tiny", "--task", "general_knowlege", "--include-path", task_folder)
    assert result.exit_code == 1
    assert "near are general_knowledge" in result.stderr
    result = run("eval", "tiny", "--task", "x", "--include-path", "nowhere")
    assert "--include-path 'nowhere': no such folder" in result.stderr
