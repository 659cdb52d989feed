"""`baichuan-hf generate` and `baichuan-hf chat`."""

import pytest

from baichuan_hf import BaichuanForSequenceClassification
from baichuan_hf.data.chat import build_chat_input
from baichuan_hf.inference import ChatSession, generate_text, load_causal_lm
from tests.helpers import tiny_config


@pytest.fixture(scope="module")
def model_and_tokenizer(checkpoint):
    return load_causal_lm(str(checkpoint), device="cpu")


def test_streams_what_generate_gives(run, checkpoint, model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    expected = generate_text(model, tokenizer, "春天来了", max_new_tokens=8, do_sample=False)
    result = run(
        "generate", "春天来了", "--model", checkpoint, "--max-new-tokens", 8, "--no-do-sample", "--device", "cpu"
    )
    assert result.exit_code == 0, result.output
    assert result.stdout == f"春天来了{expected}\n"


def test_prompt_from_standard_input_and_beams(run, checkpoint, model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    expected = generate_text(model, tokenizer, "Once", max_new_tokens=4, num_beams=3, do_sample=False)
    words = ["--model", checkpoint, "--max-new-tokens", 4, "--num-beams", 3, "--no-do-sample", "--device", "cpu"]
    result = run("generate", "-", *words, input="Once\n")
    assert result.stdout == f"Once{expected}\n"


def test_what_writes_no_text(run, tmp_path):
    BaichuanForSequenceClassification(tiny_config()).save_pretrained(tmp_path / "classifier")
    result = run("generate", "a", "--model", tmp_path / "classifier", "--device", "cpu")
    assert result.exit_code == 1
    assert "holds a BaichuanForSequenceClassification, which writes no text" in result.stderr
    result = run("generate", "a", "--model", "nofolder")
    assert result.exit_code == 1
    assert "nofolder: no such folder, and no name of a model on the Hub, which is owner/name" in result.stderr


def test_seed_repeats_a_draw(run, checkpoint):
    words = [
        "generate",
        "a",
        "--model",
        checkpoint,
        "--do-sample",
        "--max-new-tokens",
        12,
        "--device",
        "cpu",
        "--seed",
    ]
    first, second, other = (run(*words, seed).stdout for seed in (1, 1, 2))
    assert first == second != other


def test_empty_prompt_starts_a_text(run, checkpoint):
    result = run("generate", "", "--model", checkpoint, "--max-new-tokens", 2, "--device", "cpu")
    assert result.exit_code == 0, result.output


def test_folder_without_a_model_is_one_line(run, tmp_path):
    result = run("generate", "a", "--model", tmp_path)
    assert result.exit_code == 1
    assert str(tmp_path) in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        pytest.param(["--device", "abacus"], 1, "device 'abacus' is not there; this machine has cpu", id="device"),
        pytest.param(["--dtype", "float99"], 2, "'--dtype'", id="dtype"),
        pytest.param(["--top-p", "3"], 2, "'--top-p'", id="range"),
        pytest.param(["--temperature", "0", "--do-sample"], 1, "temperature", id="temperature"),
    ],
)
def test_wrong_settings_are_named(run, checkpoint, words, code, message):
    result = run("generate", "a", "--model", checkpoint, *words)
    assert result.exit_code == code
    assert message in result.stderr


def test_chat_remembers_and_clears(run, checkpoint, monkeypatch):
    prompts = []

    def record(tokenizer, messages, **kwargs):
        prompts.append([message["content"] for message in messages])
        return build_chat_input(tokenizer, messages, **kwargs)

    monkeypatch.setattr("baichuan_hf.inference.generation.build_chat_input", record)
    words = ["chat", "--model", checkpoint, "--max-new-tokens", 3, "--no-do-sample", "--device", "cpu"]
    result = run(*words, input="你好\nand you?\n/what\n/clear\nagain\n/exit\nnever\n")
    assert result.exit_code == 0, result.output
    first, second, third = prompts
    assert (first, len(second), second[0], second[2], third) == (["你好"], 3, "你好", "and you?", ["again"])
    assert result.stdout.count("/exit leaves") == 2  # once at the start, once for the unknown command


def test_chat_forgets_the_oldest_rounds(model_and_tokenizer):
    session = ChatSession(*model_and_tokenizer, max_new_tokens=8)
    for turn in range(12):
        session.reply(f"这是第 {turn} 句话，it is turn {turn}", do_sample=False)
    assert len(session.messages) == 24
    session.clear()
    assert session.messages == []


def test_chat_without_room_for_a_prompt_is_refused(run, checkpoint):
    result = run("chat", "--model", checkpoint, "--max-new-tokens", 128, input="")
    assert result.exit_code == 1
    assert "max_new_tokens (128) leaves no room for a prompt in a context of 128" in result.stderr
