"""`train_seq2seq`: what it learns, writes, refuses, and the numbers it gives."""

import importlib.util
import json
import random
import re

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, EncoderDecoderModel, Seq2SeqTrainingArguments

from baichuan_hf.data.pairs import load_pair_splits, train_pair_tokenizer
from baichuan_hf.training import parse_arguments, predict_targets, train
from baichuan_hf.training.tasks.seq2seq import Seq2SeqArguments, load_pairs, pair_loss, translation_metrics
from tests.helpers.checkpoint import quiet_arguments, save_checkpoint


WORDS = {"one": "一", "two": "二", "three": "三", "four": "四", "five": "五"}
SMALL = "hidden_size=32,intermediate_size=48,num_hidden_layers=1,num_attention_heads=2,normalize_lm_head=false"
SCRATCH = {"from_scratch": True, "config_overrides": SMALL, "vocab_size": 300, "share_embeddings": True}
needs_scores = pytest.mark.skipif(importlib.util.find_spec("sacrebleu") is None, reason="needs sacrebleu")


def pairs(count=400, *, seed=0):
    """Numbers in English, to be written in Chinese and backwards."""
    generator = random.Random(seed)
    rows = [generator.choices(list(WORDS), k=generator.randint(1, 4)) for _ in range(count)]
    return [(" ".join(row), "".join(WORDS[word] for word in reversed(row))) for row in rows]


def write_parallel(folder, rows, name="train"):
    for column, lines in zip(("en", "zh"), zip(*rows, strict=True), strict=True):
        (folder / f"{name}.{column}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder / name)


def ours(train_file, **values):
    columns = {"source_column": "en", "target_column": "zh"}
    return Seq2SeqArguments(task="seq2seq", train_file=str(train_file), **(columns | values))


def theirs(folder, **values):
    quiet = quiet_arguments(folder).to_dict()
    kept = ("save_strategy", "use_cpu", "disable_tqdm", "report_to")
    defaults = {name: quiet[name] for name in kept} | {"max_steps": 2, "learning_rate": 5e-3}
    return Seq2SeqTrainingArguments(output_dir=str(folder), **(defaults | values))


@needs_scores
def test_from_scratch_learns_and_writes_a_loadable_translator(tmp_path):
    train_file = write_parallel(tmp_path, pairs())
    arguments = ours(train_file, eval_fraction=0.1, max_target_length=12, **SCRATCH)
    settings = {"max_steps": 300, "per_device_train_batch_size": 32, "label_smoothing_factor": 0.1}
    generation = {"predict_with_generate": True, "generation_num_beams": 2}
    metrics = train(arguments, theirs(tmp_path / "out", **settings, **generation))
    assert metrics["eval_bleu"] > 80
    assert metrics["eval_chrf"] > 80
    assert metrics["eval_loss"] < 0.3
    assert 1 <= metrics["eval_gen_len"] <= 8
    assert json.loads((tmp_path / "out/all_results.json").read_text()) == pytest.approx(metrics)

    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert isinstance(model, EncoderDecoderModel)
    assert (model.encoder.config.is_causal, model.generation_config.num_beams) == (False, 2)
    assert torch.equal(model.encoder.embed_tokens.weight, model.decoder.model.embed_tokens.weight)
    new = pairs(30, seed=1)
    written = predict_targets(model, tokenizer, [source for source, _ in new], batch_size=7)
    assert sum(text == target for text, (_, target) in zip(written, new, strict=True)) >= 24
    for (source, _), text in zip(new[:5], written, strict=False):
        ids = model.generate(**tokenizer(source, return_tensors="pt"))[0]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_warm_start_from_a_language_model_and_going_on_with_the_pair(tmp_path):
    checkpoint = save_checkpoint(tmp_path / "model")
    train_file = write_parallel(tmp_path, pairs(40))
    arguments = ours(train_file, model=str(checkpoint), eval_fraction=0)
    train(arguments, theirs(tmp_path / "out", learning_rate=1e-9))
    pair = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    weights = load_file(checkpoint / "model.safetensors")
    for half, prefix in ((pair.encoder, "model."), (pair.decoder, "")):
        state = half.state_dict()
        for name, weight in weights.items():
            if name.startswith(prefix):
                torch.testing.assert_close(state[name.removeprefix(prefix)], weight.float(), atol=1e-6, rtol=0)
    assert (pair.config.decoder_start_token_id, pair.generation_config.max_length) == (1, 257)

    again = ours(train_file, model=str(tmp_path / "out"), eval_fraction=0)
    train(again, theirs(tmp_path / "again", learning_rate=1e-9))
    state = load_file(tmp_path / "again/model.safetensors")
    torch.testing.assert_close(state, load_file(tmp_path / "out/model.safetensors"), atol=1e-6, rtol=0)


def test_lora_trains_adapter_and_cross_attention_and_merges(tmp_path):
    checkpoint = save_checkpoint(tmp_path / "model")
    method = {"lora": True, "lora_target_modules": ["all-linear"], "merge": True}
    arguments = ours(write_parallel(tmp_path, pairs(40)), model=str(checkpoint), eval_fraction=0, **method)
    train(arguments, theirs(tmp_path / "out"))
    names = load_file(tmp_path / "out/adapter_model.safetensors").keys()
    assert {"lora_A", "cross_attn"} == {part for name in names for part in name.split(".") if part in _KINDS}
    assert not any("cross_attn" in name and "lora" in name for name in names)
    merged = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out/merged")
    assert not torch.equal(
        merged.decoder.model.layers[0].self_attn.W_pack.weight,
        load_file(checkpoint / "model.safetensors")["model.layers.0.self_attn.W_pack.weight"].float(),
    )


_KINDS = {"lora_A", "cross_attn", "embed_tokens", "lm_head"}


def test_qlora_trains_over_four_bits(tmp_path):
    pytest.importorskip("bitsandbytes")
    checkpoint = save_checkpoint(tmp_path / "model", hidden_size=64, intermediate_size=64)
    arguments = ours(write_parallel(tmp_path, pairs(40)), model=str(checkpoint), eval_fraction=0, qlora=True)
    metrics = train(arguments, theirs(tmp_path / "out"))
    assert metrics["train_loss"] > 0
    assert (tmp_path / "out/adapter_model.safetensors").exists()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_accumulated_batches_equal_one(tmp_path, smoothing):
    checkpoint = save_checkpoint(tmp_path / "model")
    train_file = write_parallel(tmp_path, pairs(8))
    weights = []
    for size, steps in ((8, 1), (2, 4)):
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "optim": "sgd"}
        arguments = ours(train_file, model=str(checkpoint), eval_fraction=0)
        folder = tmp_path / str(size)
        train(arguments, theirs(folder, max_steps=1, max_grad_norm=0, label_smoothing_factor=smoothing, **settings))
        weights.append(load_file(folder / "model.safetensors"))
    torch.testing.assert_close(weights[0], weights[1], atol=1e-6, rtol=1e-5)


def test_resumed_run_with_shared_embeddings_equals_the_whole(tmp_path):
    arguments = ours(write_parallel(tmp_path, pairs(40)), eval_fraction=0, **SCRATCH)
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    train(arguments, theirs(tmp_path / "whole", **settings))
    resume = str(tmp_path / "whole/checkpoint-2")
    train(arguments, theirs(tmp_path / "parts", resume_from_checkpoint=resume, **settings))
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    torch.testing.assert_close(whole, parts, atol=0, rtol=0)


def test_loss_is_that_of_all_tokens_and_smooths_in_training_only():
    logits, labels = torch.randn(2, 3, 7), torch.tensor([[1, 2, -100], [3, -100, -100]])
    model, outputs = torch.nn.Linear(1, 1), type("Outputs", (), {"logits": logits})
    kept, targets = logits[labels != -100], labels[labels != -100]
    for training, smoothing in ((True, 0.2), (False, 0.0)):
        expected = torch.nn.functional.cross_entropy(kept, targets, label_smoothing=smoothing)
        ours_now = pair_loss(outputs, labels, model=model.train(training), label_smoothing=0.2)
        torch.testing.assert_close(ours_now, expected)
        half = pair_loss(outputs, labels, 6, model=model, label_smoothing=0.2)
        torch.testing.assert_close(half, expected / 2)


def test_trained_tokenizer_gives_back_what_it_reads(tmp_path):
    tokenizer = train_pair_tokenizer((text for pair in pairs(50) for text in pair), vocab_size=300)
    assert len(tokenizer) <= 300
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("one two", "二 1,5 €\tß🙂", "three"):
        ids = loaded(text)["input_ids"]
        assert ids[-1] == loaded.eos_token_id
        assert loaded.decode(ids, skip_special_tokens=True) == text
    assert loaded("one two")["input_ids"][0] == loaded("two one")["input_ids"][1]
    with pytest.raises(ValueError, match="--vocab-size is 100; it must be at least 259"):
        train_pair_tokenizer(["a"], vocab_size=100)


@pytest.mark.parametrize("kind", ["jsonl", "hub"])
def test_tables_and_nested_columns(tmp_path, kind):
    rows = [{"en": " one ", "zh": "一"}, {"en": "", "zh": "二"}, {"en": "three", "zh": None}]
    prefix = "translation." if kind == "hub" else ""
    Dataset.from_list([{"translation": row} if prefix else row for row in rows]).to_json(tmp_path / "x.jsonl")
    arguments = ours(tmp_path / "x.jsonl", eval_fraction=0, source_column=prefix + "en", target_column=prefix + "zh")
    assert list(load_pairs(arguments)["train"]) == [{"source": "one", "target": "一"}]


def test_what_is_cut_or_left_out_is_said(tmp_path, caplog):
    checkpoint = save_checkpoint(tmp_path / "model")
    rows = [("one two three", "三二一"), ("one", "一"), ("two", " ")]
    arguments = ours(
        write_parallel(tmp_path, rows), eval_file=write_parallel(tmp_path, rows, "test"), model=str(checkpoint),
        max_source_length=3, max_target_length=2,
    )  # fmt: skip
    train(arguments, theirs(tmp_path / "out", max_steps=1))
    assert "train: 1 of 3 rows lack a text and are left out" in caplog.text
    assert "train: 1 of 2 sources are cut to --max-source-length 3 tokens" in caplog.text
    assert re.search(r"train: \d of 2 targets are cut to --max-target-length 2 tokens", caplog.text)
    assert "test: 1 of 2 sources are cut" in caplog.text
    assert "test: 1 of 2 targets" not in caplog.text


@needs_scores
def test_scores_are_those_of_sacrebleu_by_language():
    import sacrebleu

    german = ["Ein Mann geht.", "Zwei Hunde laufen schnell."], ["Ein Mann geht.", "Zwei Hunde rennen sehr schnell."]
    metrics = translation_metrics(*german)
    assert metrics["bleu"] == pytest.approx(sacrebleu.corpus_bleu(german[0], [german[1]]).score)
    assert metrics["chrf"] == pytest.approx(sacrebleu.corpus_chrf(german[0], [german[1]]).score)
    chinese = ["今天天气很好"], ["今天天气真好"]
    assert translation_metrics(*chinese)["bleu"] == pytest.approx(
        sacrebleu.corpus_bleu(chinese[0], [chinese[1]], tokenize="zh").score
    )
    assert translation_metrics(*chinese)["bleu"] > 10


def test_command_line_takes_the_arguments_of_seq2seq_trainer():
    words = ["--task", "seq2seq", "--train-file", "x", "--output-dir", "y", "--generation-num-beams", "4", "--use-cpu"]
    arguments, training_arguments = parse_arguments(words)
    assert (type(arguments), training_arguments.generation_num_beams) == (Seq2SeqArguments, 4)
    with pytest.raises(ValueError, match="did you mean --generation-num-beams"):
        parse_arguments([*words, "--generation-num-beam", "4"])


def test_missing_sacrebleu_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=re.escape("pip install 'baichuan-hf[translation]'")):
        train(ours("x"), theirs(tmp_path, predict_with_generate=True))


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        pytest.param({}, {"metric_for_best_model": "bleu"}, "needs --predict-with-generate", id="metric"),
        pytest.param({"source_column": "fr"}, {}, "--source-column 'fr' is not a column; .* 'en', 'zh'", id="column"),
        pytest.param({"max_target_length": 0}, {}, "--max-target-length is 0", id="length"),
        pytest.param({"tokenizer": "x"}, {}, "--tokenizer x: --model tiny brings its own", id="tokenizer"),
        pytest.param({"share_embeddings": True, "lora": True}, {}, "does not go with --lora", id="share-lora"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, values, settings, message):
    Dataset.from_list([{"en": "one", "zh": "一"}]).to_json(tmp_path / "x.jsonl")
    with pytest.raises(ValueError, match=message):
        train(ours(tmp_path / "x.jsonl", **values), theirs(tmp_path / "out", **settings))


def test_other_architectures_are_refused(tmp_path):
    from transformers import GPT2Config

    GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=50).save_pretrained(tmp_path / "gpt2")
    save_checkpoint(tmp_path / "model")
    AutoTokenizer.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "gpt2")
    arguments = ours(write_parallel(tmp_path, pairs(8)), model=str(tmp_path / "gpt2"), eval_fraction=0)
    with pytest.raises(ValueError, match="gpt2 is a gpt2: --task seq2seq makes an encoder-decoder of a Baichuan"):
        train(arguments, theirs(tmp_path / "out"))


def test_damaged_parallel_text_is_refused(tmp_path):
    (tmp_path / "x.en").write_text("one\ntwo\n")
    (tmp_path / "x.zh").write_text("一\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"x\.en has 2 lines and .*x\.zh has 1 lines"):
        load_pair_splits(str(tmp_path / "x"), ("en", "zh"))
    (tmp_path / "x.zh").write_bytes("一\n二".encode()[:-1])
    with pytest.raises(ValueError, match=r"x\.zh: not UTF-8 .*cut off"):
        load_pair_splits(str(tmp_path / "x"), ("en", "zh"))
