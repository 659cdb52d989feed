"""Every task of `baichuan-hf train` by two processes, in each way of dividing the work, against one process."""

import importlib.util
import json
import shutil
import socket
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from baichuan_hf.model.loss import chunked_loss
from baichuan_hf.training import parse_arguments, train
from baichuan_hf.training.launch import launch_config
from tests.distributed.gloo import pretend_accelerator
from tests.distributed.launch import TORCHRUN, launch
from tests.helpers.checkpoint import reviews, save_checkpoint


ROWS = 16
TEXTS = [{"text": f"{number} cats and {number} dogs " * 4} for number in range(ROWS)]
CHATS = [{"instruction": f"Say {number}.", "output": f"It is {number}."} for number in range(ROWS)]
PAIRS = [{"prompt": f"Say {number}.", "chosen": f"It is {number}.", "rejected": "No."} for number in range(ROWS)]
TAGS = [{"tokens": list("李明来"), "tags": ["B-PER", "I-PER", "O"]}] * ROWS
ANSWERS = {"text": ["李明"], "answer_start": [3]}
QUESTIONS = [{"question": "谁？", "context": f"{number:02} 李明来了", "answers": ANSWERS} for number in range(ROWS)]
SENTENCES = [{"source": f"{number} cats", "target": f"{number} 只猫"} for number in range(ROWS)]
LORA = ["--lora", "--lora-dropout", "0"]

# By name of the run: its rows, and its words.
RUNS = {
    "classify": (reviews(ROWS), ["--task", "classify", "--text-column", "review", "--label-column", "stars"]),
    "classify-lora": (
        reviews(ROWS),
        ["--task", "classify", "--text-column", "review", "--label-column", "stars", *LORA],
    ),
    "dpo": (PAIRS, ["--task", "dpo"]),
    "mlm": (TEXTS, ["--task", "mlm"]),
    "pretrain": (TEXTS, ["--task", "pretrain", "--max-length", "16"]),
    "pretrain-lora": (TEXTS, ["--task", "pretrain", "--max-length", "16", *LORA]),
    "qa": (QUESTIONS, ["--task", "qa"]),
    "seq2seq": (SENTENCES, ["--task", "seq2seq"]),
    "sft": (CHATS, ["--task", "sft"]),
    "sft-stream": (CHATS, ["--task", "sft", "--streaming", "--eval-fraction", "0", "--shuffle-buffer", "5"]),
    "tag": (TAGS, ["--task", "tag"]),
}
# Which words are hidden is drawn by each process.
RANDOM = ("mlm",)
WAYS = {
    "ddp": [name for name in RUNS if name != "dpo" or importlib.util.find_spec("trl")],
    "fsdp2": ["pretrain", "pretrain-lora", "classify-lora"],
    "fsdp2-sharded": ["pretrain", "classify-lora"],
    "deepspeed_zero2": ["pretrain", "classify-lora"],
    "deepspeed_zero3": ["pretrain", "classify-lora"],
    "tp": ["pretrain", "classify"],
}


def words(root: Path, name: str, way: str) -> list[str]:
    """The command line of a run whose steps see four rows, divided as `way` does it."""
    rows_per_process = 4 if way in ("one", "tp") else 2
    return [
        "--model", str(root / "model"), "--train-file", str(root / name / "rows.jsonl"),
        "--eval-fraction", "0.25", "--output-dir", str(root / name / way), "--max-steps", "4", "--save-steps", "2",
        "--per-device-train-batch-size", str(rows_per_process), "--logging-steps", "1", "--disable-tqdm", "true",
        "--learning-rate", "1e-2",
        *(["--tensor-parallel-size", "2", "--save-only-model"] if way == "tp" else []),
        *(["--use-cpu"] if way in ("one", "ddp") else []),
        *RUNS[name][1],
    ]  # fmt: skip


def losses(root: Path, name: str, way: str) -> list[float]:
    history = json.loads((root / name / way / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    save_checkpoint(folder / "model")
    for name, (rows, _) in RUNS.items():
        (folder / name).mkdir()
        (folder / name / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    return folder


def command(way: str) -> list[str]:
    if way == "tp":
        return TORCHRUN
    name, _, sharded = way.partition("-")
    accelerate = ["accelerate.commands.launch", "--num_processes=2", f"--main_process_port={free_port()}"]
    options = ["--fsdp_state_dict_type=SHARDED_STATE_DICT"] if sharded else []
    return [*accelerate, f"--config_file={launch_config(name)}", *options]


def free_port() -> int:
    """DeepSpeed does not take 0 for any."""
    with socket.socket() as found:
        found.bind(("", 0))
        return found.getsockname()[1]


def loss_of(folder: Path) -> float:
    """Of a language model that is loaded from where it was saved."""
    input_ids = torch.arange(3, 43).view(2, 20)
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(input_ids=input_ids, labels=input_ids).loss.item()


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_equal_one(subtests, root, way):
    if way.startswith("deepspeed"):
        pytest.importorskip("deepspeed", reason="pip install deepspeed")
    launch(command(way), "tests.distributed.test_train", root, way, cpu=way == "ddp")
    for name in WAYS[way]:
        with subtests.test(name):
            if not (root / name / "one").exists():
                train(*parse_arguments(words(root, name, "one")))
            assert len(losses(root, name, way)) == 4
            if name not in RANDOM:
                assert losses(root, name, way) == pytest.approx(losses(root, name, "one"), rel=1e-4)
            assert (root / name / way / "all_results.json").exists()
    if way != "tp":  # whose optimiser transformers does not save
        assert json.loads((root / "pretrain" / way / "trainer_state.json").read_text())["global_step"] == 4
        AutoModelForSequenceClassification.from_pretrained(root / "classify-lora" / way, num_labels=2)
    assert loss_of(root / "pretrain" / way) == pytest.approx(loss_of(root / "pretrain" / "one"), rel=1e-4)


def test_the_command_runs_by_two_processes(tmp_path, root):
    """As a user starts it: only the first process writes and prints."""
    shutil.copytree(root / "classify", tmp_path / "classify")
    arguments = [*words(root, "classify", "ddp"), "--output-dir", str(tmp_path / "out")]
    output = launch(command("ddp"), "baichuan_hf.cli.main", "train", *arguments)
    assert output.count("Saved to") == 1
    train(*parse_arguments(words(root, "classify", "one")))
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    found = [entry["loss"] for entry in history if "loss" in entry]
    assert found == pytest.approx(losses(root, "classify", "one"), rel=1e-4)
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")


if __name__ == "__main__":
    root, way = Path(sys.argv[1]), sys.argv[2]
    if way != "ddp":
        pretend_accelerator()
    # Against one process, whose loss is in one chunk: a few tokens at a time.
    chunked_loss.__kwdefaults__["max_logits"] = 7 * AutoConfig.from_pretrained(root / "model").vocab_size
    for name in WAYS[way]:
        train(*parse_arguments(words(root, name, way)))
    if way != "tp":
        from accelerate import PartialState

        if PartialState().is_main_process:
            shutil.rmtree(root / "pretrain" / way / "checkpoint-4")
        PartialState().wait_for_everyone()
        train(*parse_arguments([*words(root, "pretrain", way), "--resume-from-checkpoint", "true"]))
