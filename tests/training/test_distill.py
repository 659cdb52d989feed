"""`train_distilled` and --keep-zeros: what a student takes from its teacher, writes and refuses."""

import json

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from baichuan_hf.pruning import evenly_spread, keep_layers, prune_weights, zero_share
from baichuan_hf.training import ClassifyArguments, DistillArguments, MaskedLanguageModelArguments, train
from baichuan_hf.training.tasks.distill import hidden_loss, soft_loss
from tests.helpers.checkpoint import quiet_arguments, reviews, save_checkpoint, write_csv


SMALL = "hidden_size=16,intermediate_size=24,num_hidden_layers=1,num_attention_heads=2,normalize_lm_head=false"
CLASSES = {"text_column": "review", "label_column": "stars"}
LESSONS = "\n\n".join(["天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。", "寒来暑往，秋收冬藏。闰余成岁，律吕调阳。"] * 20)


def ours(train_file, **values):
    return DistillArguments(task="distill", train_file=str(train_file), **({"max_length": 16} | values))


def theirs(folder, **values):
    return quiet_arguments(folder, **({"max_steps": 2, "learning_rate": 1e-2} | values))


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("teacher"), initializer_range=0.2)


@pytest.fixture(scope="module")
def lessons(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "lessons.txt"
    file.write_text(LESSONS, encoding="utf-8")
    return file


def make_classifier(folder, language_model, names, **values):
    """A teacher that is sure, of the labels `names` in this order."""
    torch.manual_seed(0)
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    model = AutoModelForSequenceClassification.from_pretrained(language_model, **labels, **values).float()
    model.score.weight.data *= 100
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(language_model).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "alphas", [{"alpha_ce": 1.0}, {"alpha_ce": 0.0, "alpha_hidden": 1.0}], ids=["logits", "hidden"]
)
def test_a_student_of_a_language_model_draws_near_without_labels(language_model, lessons, tmp_path, alphas):
    """A preset from scratch takes the teacher's tokenizer; its states are narrower, and projected."""
    losses = []
    for steps in (1, 40):
        arguments = ours(
            lessons, teacher=str(language_model), model="tiny", from_scratch=True, config_overrides=SMALL,
            eval_fraction=0, alpha_labels=0.0, **alphas,
        )  # fmt: skip
        settings = {"max_steps": steps, "logging_steps": 1, "per_device_train_batch_size": 8}
        train(arguments, theirs(tmp_path / str(steps), **settings))
        history = json.loads((tmp_path / str(steps) / "trainer_state.json").read_text())["log_history"]
        losses.append([entry["loss"] for entry in history if "loss" in entry][-1])
    assert losses[1] < 0.8 * losses[0]
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "40")
    assert student.config.hidden_size == 16
    assert not any("projection" in name for name in load_file(tmp_path / "40/model.safetensors"))
    assert AutoTokenizer.from_pretrained(tmp_path / "40").get_vocab() == (
        AutoTokenizer.from_pretrained(language_model).get_vocab()
    )


def test_a_student_that_is_its_teacher_has_nothing_to_learn(language_model, lessons, tmp_path):
    arguments = ours(
        lessons, teacher=str(language_model), model=str(language_model), eval_fraction=0, alpha_labels=0.0,
        alpha_ce=1.0, alpha_hidden=1.0,
    )  # fmt: skip
    metrics = train(arguments, theirs(tmp_path, optim="sgd"))
    assert metrics["train_loss"] == pytest.approx(0, abs=1e-6)


def test_a_student_of_a_classifier_learns_its_opinions_not_the_labels(language_model, tmp_path):
    """The labels say the contrary of the teacher, whose labels stand in another order."""
    teacher = make_classifier(tmp_path / "teacher", language_model, ["good", "bad"])
    said = pipeline("text-classification", str(teacher), device="cpu")
    rows = reviews(40)
    opinions = [answer["label"] for answer in said([row["review"] for row in rows])]
    assert 5 < opinions.count("bad") < 35
    contrary = [
        {"review": row["review"], "stars": "good" if opinion == "bad" else "bad"}
        for row, opinion in zip(rows, opinions, strict=True)
    ]
    file = write_csv(tmp_path / "x.csv", contrary)
    settings = {"max_steps": 80, "per_device_train_batch_size": 16}
    for name, alphas in (("teacher's", (1.0, 0.0)), ("rows'", (0.01, 1.0))):
        arguments = ours(
            file, eval_fraction=0, teacher=str(teacher), model=str(language_model), temperature=1.0,
            alpha_ce=alphas[0], alpha_labels=alphas[1], **CLASSES,
        )  # fmt: skip
        folder = tmp_path / name
        train(arguments, theirs(folder, **settings))
        answers = [row["label"] for row in pipeline("text-classification", str(folder), device="cpu")(
            [row["review"] for row in rows]
        )]  # fmt: skip
        agree = sum(answer == opinion for answer, opinion in zip(answers, opinions, strict=True))
        assert agree >= 36 if name == "teacher's" else agree <= 10


def test_several_labels_and_lora(language_model, tmp_path):
    kind = {"problem_type": "multi_label_classification"}
    teacher = make_classifier(tmp_path / "teacher", language_model, ["a", "b", "c"], **kind)
    rows = [{"review": f"{i} 很好", "stars": ["a", "b"] if i % 2 else ["c"]} for i in range(16)]
    Dataset.from_list(rows).to_json(tmp_path / "x.jsonl")
    arguments = ours(
        tmp_path / "x.jsonl", teacher=str(teacher), model=str(language_model), lora=True, eval_fraction=0.25, **CLASSES
    )
    metrics = train(arguments, theirs(tmp_path / "out"))
    assert metrics["train_loss"] > 0
    assert (tmp_path / "out/adapter_model.safetensors").exists()


def test_a_masked_language_model_and_a_number_teach_too(language_model, lessons, tmp_path):
    """A student that is its teacher has nothing to learn from it."""
    file = tmp_path / "numbers.jsonl"
    Dataset.from_list([{"text": f"{number} 很好", "label": number / 7} for number in range(20)]).to_json(file)
    kinds = {
        "masked": MaskedLanguageModelArguments(task="mlm", train_file=str(lessons), model=str(language_model)),
        "number": ClassifyArguments(task="classify", train_file=str(file), model=str(language_model)),
    }
    for name, arguments in kinds.items():
        teacher = tmp_path / name
        train(arguments, theirs(teacher))
        student = ours(arguments.train_file, teacher=str(teacher), model=str(teacher), alpha_labels=0.0)
        metrics = train(student, theirs(tmp_path / f"{name}-student", optim="sgd"))
        assert metrics["train_loss"] == pytest.approx(0, abs=1e-6)


def test_accumulated_batches_equal_one(language_model, lessons, tmp_path):
    weights = []
    for size, steps in ((8, 1), (2, 4)):
        arguments = ours(
            lessons, teacher=str(language_model), model="tiny", from_scratch=True, config_overrides=SMALL,
            eval_fraction=0, alpha_hidden=1.0,
        )  # fmt: skip
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "optim": "sgd"}
        train(arguments, theirs(tmp_path / str(size), max_steps=1, max_grad_norm=0, **settings))
        weights.append(load_file(tmp_path / str(size) / "model.safetensors"))
    torch.testing.assert_close(weights[0], weights[1], atol=1e-6, rtol=1e-4)


def test_resumed_run_with_projections_equals_the_whole(language_model, lessons, tmp_path):
    arguments = ours(
        lessons, teacher=str(language_model), model="tiny", from_scratch=True, config_overrides=SMALL, eval_fraction=0,
        alpha_hidden=1.0,
    )  # fmt: skip
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    train(arguments, theirs(tmp_path / "whole", **settings))
    resume = str(tmp_path / "whole/checkpoint-2")
    assert "hidden_projections.0.weight" in load_file(tmp_path / "whole/checkpoint-2/model.safetensors")
    train(arguments, theirs(tmp_path / "parts", resume_from_checkpoint=resume, **settings))
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    torch.testing.assert_close(whole, parts, atol=0, rtol=0)


def test_a_pruned_student_keeps_its_zeros(language_model, lessons, tmp_path):
    student = AutoModelForCausalLM.from_pretrained(language_model)
    keep_layers(student, evenly_spread(2, 1))
    prune_weights(student, pattern="2:4")
    student.save_pretrained(tmp_path / "student")
    AutoTokenizer.from_pretrained(language_model).save_pretrained(tmp_path / "student")
    shares = {}
    for keep in (True, False):
        arguments = ours(
            lessons, teacher=str(language_model), model=str(tmp_path / "student"), eval_fraction=0, keep_zeros=keep,
            alpha_hidden=0.1,
        )  # fmt: skip
        train(arguments, theirs(tmp_path / str(keep), weight_decay=0.1))
        trained = AutoModelForCausalLM.from_pretrained(tmp_path / str(keep))
        shares[keep] = zero_share(trained)
        assert not torch.equal(trained.model.layers[0].mlp.up_proj.weight, student.model.layers[0].mlp.up_proj.weight)
    assert shares[True] == pytest.approx(0.5, abs=1e-3)
    assert shares[False] < 0.1


def test_losses_are_those_of_the_papers():
    student, teacher = torch.randn(5, 7), torch.randn(5, 7)
    soft = (teacher / 3).softmax(-1)
    expected = 9 * (soft * (soft.log() - (student / 3).log_softmax(-1))).sum(-1).mean()
    torch.testing.assert_close(soft_loss(student, teacher, 3.0), expected)
    binary = torch.nn.functional.binary_cross_entropy_with_logits
    own = teacher.sigmoid()
    expected = binary(student, own) - binary(teacher, own)
    torch.testing.assert_close(soft_loss(student, teacher, 1.0, problem_type="multi_label_classification"), expected)
    torch.testing.assert_close(
        soft_loss(student, teacher, 2.0, problem_type="regression"), (student - teacher).square().mean()
    )

    states, kept = tuple(torch.randn(5, 2, 3, 4)), torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    torch.testing.assert_close(hidden_loss(states[::2], states, kept, None), torch.tensor(0.0))
    torch.testing.assert_close(hidden_loss(states[1:4], states, kept, None), torch.stack(
        [(states[i][kept] - states[j][kept]).square().mean() for i, j in ((1, 0), (2, 2), (3, 4))]
    ).mean())  # fmt: skip


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param({"teacher": ""}, "needs --teacher", id="none"),
        pytest.param({"temperature": 0.0}, "--temperature is 0.0", id="temperature"),
        pytest.param({"alpha_ce": 0.0}, "are 0.0, 0.5, 0.0; none may be below 0", id="alphas"),
        pytest.param({"few_shot": 4}, "does not go with --task distill", id="few-shot"),
        pytest.param({"lora": True, "keep_zeros": True}, "those under --lora and --qlora are not", id="zeros"),
    ],
)
def test_wrong_arguments_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ours("x", **({"teacher": "t"} | values))


def test_teachers_that_do_not_fit_are_refused(language_model, lessons, tmp_path):
    def run(**values):
        values = {"teacher": str(language_model), "model": str(language_model), "eval_fraction": 0} | values
        train(ours(values.pop("file", lessons), **values), theirs(tmp_path / "out"))

    tagger = tmp_path / "tagger"
    from transformers import AutoModelForTokenClassification

    AutoModelForTokenClassification.from_pretrained(language_model).save_pretrained(tagger)
    with pytest.raises(ValueError, match="is a BaichuanForTokenClassification; a student can learn from one of"):
        run(teacher=str(tagger))

    size = AutoModelForCausalLM.from_pretrained(language_model).config.vocab_size
    with pytest.raises(ValueError, match=rf"has a vocabulary of {size}, the student --model tiny one of 6144"):
        run(model="tiny")

    narrow = ["--alpha-hidden: hidden states of 16 and 32 need projections"]
    small = save_checkpoint(tmp_path / "small", hidden_size=16, num_attention_heads=2)
    with pytest.raises(ValueError, match=narrow[0]):
        run(model=str(small), lora=True, alpha_hidden=1.0)

    teacher = make_classifier(tmp_path / "teacher", language_model, ["x", "y"])
    file = write_csv(tmp_path / "x.csv", reviews(8))
    with pytest.raises(ValueError, match=r"the teacher knows the labels \['x', 'y'\], .* \['bad', 'good'\]"):
        run(file=file, teacher=str(teacher), **CLASSES)

    with pytest.raises(ValueError, match="--keep-zeros: no weight of the model is zero"):
        run(keep_zeros=True)
