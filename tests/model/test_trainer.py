"""transformers' Trainer, with nothing of our own between it and the model."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import Dataset
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

import baichuan_hf
from tests.helpers import FAMILIES, tiny_config


class Rows(Dataset):
    """Rows of different lengths; labels of the first half of each are ignored."""

    def __init__(self, count=8):
        generator = torch.Generator().manual_seed(3)
        self.rows = [torch.randint(3, 128, (4 + 3 * (i % 4),), generator=generator) for i in range(count)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        ids = self.rows[index]
        width = 16
        labels = ids.clone()
        labels[: len(ids) // 2] = -100
        pad = width - len(ids)
        return {
            "input_ids": torch.nn.functional.pad(ids, (0, pad)),
            "attention_mask": torch.nn.functional.pad(torch.ones_like(ids), (0, pad)),
            "labels": torch.nn.functional.pad(labels, (0, pad), value=-100),
        }


def train(tmp_path, model, batch_size, accumulation, steps=2, **arguments):
    settings = TrainingArguments(
        output_dir=str(tmp_path / f"out-{batch_size}"),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=steps,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        seed=0,
        data_seed=0,
        disable_tqdm=True,
        **arguments,
    )
    trainer = Trainer(model=model, args=settings, train_dataset=Rows())
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def make(family, **overrides):
    torch.manual_seed(0)
    config = tiny_config(initializer_range=0.2, **(FAMILIES[family] | overrides))
    return baichuan_hf.BaichuanForCausalLM(config)


@pytest.mark.parametrize("family", ["rope-normhead", "alibi", "gqa"])
def test_accumulated_batches_train_as_one_large_batch(family, tmp_path):
    """Rows have different numbers of labels: only a loss divided by `num_items_in_batch` gives the same steps."""
    models = [make(family), make(family)]
    large = train(tmp_path, models[0], batch_size=8, accumulation=1)
    small = train(tmp_path, models[1], batch_size=1, accumulation=8)
    assert small == pytest.approx(large, rel=1e-4)
    assert large[1] < large[0]
    for (name, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_loss_with_num_items_in_batch():
    """The sum over the labels divided by the number given."""
    model = make("rope")
    batch = {k: torch.stack([Rows()[i][k] for i in range(3)]) for k in ("input_ids", "attention_mask", "labels")}
    labels = (batch["labels"][:, 1:] != -100).sum()
    mean = model(**batch).loss
    assert torch.allclose(model(**batch, num_items_in_batch=2 * labels).loss, mean / 2)
    assert torch.allclose(model(**batch, num_items_in_batch=labels.item()).loss, mean)


def test_z_loss_is_an_average_over_accumulated_batches():
    """Without `num_items_in_batch` it is the original's; with it, a batch's share of the labels weighs it."""
    plain, with_z = make("rope-normhead"), make("rope-normhead", z_loss_weight=0.1)
    batch = {k: torch.stack([Rows()[i][k] for i in range(4)]) for k in ("input_ids", "attention_mask", "labels")}
    labels = (batch["labels"][:, 1:] != -100).sum()
    expected = 0.1 * (plain(**batch).logits[:, :-1].amax(-1) ** 2).mean()
    assert torch.allclose(with_z(**batch).loss - plain(**batch).loss, expected, rtol=1e-4)
    halved = with_z(**batch, num_items_in_batch=2 * labels).loss - plain(**batch, num_items_in_batch=2 * labels).loss
    assert torch.allclose(halved, expected / 2, rtol=1e-4)


@pytest.mark.parametrize("family", ["rope-normhead", "alibi"])
def test_bfloat16_autocast_keeps_float32_weights(family, tmp_path):
    model = make(family)
    losses = train(tmp_path, model, batch_size=4, accumulation=2, bf16=True)
    assert model.dtype == torch.float32
    assert losses[1] < losses[0]


@pytest.mark.parametrize("family", ["rope", "alibi-normhead"])
def test_gradient_checkpointing_through_trainer(family, tmp_path):
    models = [make(family), make(family)]
    expected = train(tmp_path, models[0], batch_size=8, accumulation=1)
    losses = train(tmp_path, models[1], batch_size=8, accumulation=1, gradient_checkpointing=True)
    assert losses == pytest.approx(expected, rel=1e-5)


def test_language_modelling_collator(tmp_path):
    """Texts of a tokenizer through the stock collator: padding is ignored."""
    from transformers import AutoTokenizer

    from tests.helpers import golden_folder

    tokenizer = AutoTokenizer.from_pretrained(golden_folder("tokenizers/baichuan-surrogate"))
    rows = [tokenizer(text) for text in ("你好，世界", "Hello", "一句比较长的话，用来填充。")]
    batch = DataCollatorForLanguageModeling(tokenizer, mlm=False)(rows)
    assert ((batch["labels"] == -100) == (batch["attention_mask"] == 0)).all()
    model = make("rope-normhead", vocab_size=5000)
    loss = model(**batch).loss
    parts = [
        model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["input_ids"]])) for row in rows
    ]
    lengths = [len(row["input_ids"]) - 1 for row in rows]
    expected = sum(part.loss * n for part, n in zip(parts, lengths, strict=True)) / sum(lengths)
    assert torch.allclose(loss, expected, atol=1e-4)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_label_smoothing_smooths_the_loss_of_the_next_token(tmp_path, lora):
    """Trainer shifts the labels only of classes that it knows by name; of others it would smooth the wrong token."""
    torch.manual_seed(0)
    model = baichuan_hf.BaichuanForCausalLM(tiny_config(initializer_range=0.3))
    if lora:
        model = get_peft_model(model, LoraConfig(r=2))
    arguments = TrainingArguments(str(tmp_path), label_smoothing_factor=0.1, use_cpu=True, report_to="none")
    trainer = Trainer(model, arguments)
    batch = {name: torch.stack([row[name] for row in Rows()]) for name in Rows()[0]}
    with torch.no_grad():
        loss = trainer.compute_loss(model, dict(batch))
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), label_smoothing=0.1
    )
    torch.testing.assert_close(loss, expected)
