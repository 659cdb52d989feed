"""The command line of `baichuan-hf train`, and its YAML twin."""

import pytest

from baichuan_hf.training import parse_arguments


REQUIRED = ["--task", "classify", "--train-file", "x.csv"]


def test_words_set_ours_and_those_of_transformers():
    ours, theirs = parse_arguments([*REQUIRED, "--lora", "--lora_r", "4", "--learning-rate", "1e-3", "--bf16=false"])
    assert (ours.task, ours.train_file, ours.lora, ours.lora_r) == ("classify", "x.csv", True, 4)
    assert (theirs.learning_rate, theirs.bf16) == (1e-3, False)


def test_yaml_gives_what_the_same_words_give(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "task: classify\ntrain_file: x.csv\nlora: yes\nlora-target-modules: [o_proj, W_pack]\neval_file:\n"
        "learning_rate: 1e-4\nsave_strategy: no\nlr_scheduler_type: cosine_with_min_lr\n"
        f"lr_scheduler_kwargs: {{min_lr: 1.0e-5}}\noutput_dir: {tmp_path}\n"
    )
    words = [
        *REQUIRED, "--lora", "--lora-target-modules", "o_proj", "W_pack", "--learning-rate", "1e-4", "--save-strategy",
        "no", "--lr-scheduler-type", "cosine_with_min_lr", "--lr-scheduler-kwargs", '{"min_lr": 1e-5}', "--output-dir",
        str(tmp_path),
    ]  # fmt: skip
    from_yaml, from_words = parse_arguments([str(tmp_path / "run.yaml")]), parse_arguments(words)
    assert from_yaml[0] == from_words[0]
    assert from_yaml[1].to_dict() == from_words[1].to_dict()
    assert from_yaml[1].lr_scheduler_kwargs == {"min_lr": 1e-5}


def test_words_win_over_yaml(tmp_path):
    (tmp_path / "run.yml").write_text("task: classify\ntrain_file: x.csv\nseed: 1\n")
    ours, theirs = parse_arguments([str(tmp_path / "run.yml"), "--seed", "2", "--train-file", "y.csv"])
    assert (theirs.seed, ours.train_file) == (2, "y.csv")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param([], "required: --task", id="nothing"),
        pytest.param([*REQUIRED, "--learing-rate", "1"], "did you mean --learning-rate", id="misspelt"),
        pytest.param([*REQUIRED, "--zzzzzz"], "--help-all", id="unknown"),
        pytest.param([*REQUIRED, "--learning-rate", "fast"], "learning-rate: invalid float value: 'fast'", id="type"),
        pytest.param([*REQUIRED, "--eval-strategy", "often"], "often", id="choice"),
        pytest.param([*REQUIRED, "--merge"], "--merge .* needs --lora or --qlora", id="merge"),
        pytest.param([*REQUIRED, "--from-scratch", "--lora"], "--from-scratch", id="scratch"),
        pytest.param([*REQUIRED, "--max-length", "0"], "--max-length is 0; it must be at least 1", id="length"),
    ],
)
def test_wrong_words_are_named(words, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments(words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("task: classify\ntrain_file: x.csv\nlr: 1\n", "'--lr=1'", id="unknown-key"),
        pytest.param("just words", "expected lines of `option: value`", id="no-mapping"),
        pytest.param("task: [classify", "not valid YAML", id="syntax"),
    ],
)
def test_wrong_yaml_is_named(tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        parse_arguments([str(tmp_path / "run.yaml")])


def test_absent_yaml_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="run.yaml"):
        parse_arguments([str(tmp_path / "run.yaml")])


def test_config_overrides_are_typed():
    ours, _ = parse_arguments([*REQUIRED, "--config-overrides", "hidden_dropout=0.1,use_cache=false"])
    assert ours.config_values() == {"hidden_dropout": 0.1, "use_cache": False}


def test_config_overrides_of_another_form_are_refused():
    ours, _ = parse_arguments([*REQUIRED, "--config-overrides", "hidden_dropout"])
    with pytest.raises(ValueError, match="'hidden_dropout' is not of the form field=value"):
        ours.config_values()


def test_a_gpu_without_bfloat16_is_named(monkeypatch):
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: False)
    with pytest.raises(ValueError, match="--bf16: there is no GPU here .* take --fp16 true instead"):
        parse_arguments([*REQUIRED, "--bf16", "true"])
