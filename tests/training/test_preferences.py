"""`--task dpo`: TRL's DPOTrainer, also on a normalised head."""

import importlib.util
import json

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainingArguments

from baichuan_hf import BaichuanForCausalLM
from baichuan_hf.adapters.trl import normalize_fused_head
from baichuan_hf.training import train
from baichuan_hf.training.tasks.preferences import PreferenceArguments, to_pairs
from tests.helpers import tiny_config
from tests.helpers.checkpoint import quiet_arguments


needs_trl = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="pip install 'baichuan-hf[trl]'")

ASKED = [{"role": "user", "content": "Hi?"}]
PAIR = {
    "prompt": ASKED,
    "chosen": [{"role": "assistant", "content": "yes"}],
    "rejected": [{"role": "assistant", "content": "no"}],
}


@pytest.mark.parametrize(
    "row",
    [
        pytest.param({"prompt": "Hi?", "chosen": "yes", "rejected": "no"}, id="text"),
        pytest.param(PAIR, id="messages"),
        pytest.param({"instruction": "Hi?", "input": "", "chosen": "yes", "rejected": "no"}, id="alpaca"),
        pytest.param(
            {
                "conversations": [{"from": "human", "value": "Hi?"}],
                "chosen": {"from": "gpt", "value": "yes"},
                "rejected": {"from": "gpt", "value": "no"},
            },
            id="sharegpt",
        ),
    ],
)
def test_layouts(row):
    assert to_pairs(Dataset.from_list([row]), "x.json")[0] == PAIR


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Hi?", "chosen": "yes"}, "x.json: no column 'rejected'; a row needs"),
        ({"chosen": "yes", "rejected": "no"}, "x.json: no conversation in a row with"),
    ],
)
def test_rows_that_are_no_pairs(row, message):
    with pytest.raises(ValueError, match=message):
        to_pairs(Dataset.from_list([row]), "x.json")


def test_without_trl_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'baichuan-hf\[trl\]'"):
        train(PreferenceArguments("dpo", "x.json"), TrainingArguments(str(tmp_path), use_cpu=True))


@needs_trl
@pytest.mark.parametrize("normalized", [False, True], ids=["linear", "normhead"])
def test_trl_scores_what_the_model_says(normalized):
    from trl.trainer.utils import add_fused_lm_head

    torch.manual_seed(0)
    model = BaichuanForCausalLM(tiny_config(normalize_lm_head=normalized, initializer_range=0.3))
    ids = torch.randint(3, 128, (2, 9))
    expected = model(ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    add_fused_lm_head(model)
    as_it_is = model(ids, labels=ids, fused_lm_head=True).log_probs
    assert torch.allclose(as_it_is, expected, atol=1e-4) != normalized
    normalize_fused_head(model)
    found = model(ids, labels=ids, fused_lm_head=True).log_probs
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)

    gradients = []
    for scores in (expected, found):
        model.zero_grad()
        scores.sum().backward()
        gradients.append(model.lm_head.weight.grad.clone())
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)
    assert model.generate(ids, max_new_tokens=2).shape == (2, 11)


@needs_trl
@pytest.mark.parametrize("method", [{}, {"lora": True, "merge": True}], ids=["full", "lora"])
def test_the_better_answer_becomes_likelier(tmp_path, method):
    rows = [{"prompt": f"Say {n}.", "chosen": f"It is {n}.", "rejected": f"{n}? No idea."} for n in range(32)]
    (tmp_path / "pairs.json").write_text(json.dumps(rows), "utf-8")
    arguments = PreferenceArguments("dpo", str(tmp_path / "pairs.json"), max_length=32, **method)
    options = {"max_steps": 20, "learning_rate": 1e-3, "per_device_train_batch_size": 4}
    metrics = train(arguments, quiet_arguments(tmp_path / "out", **options))
    assert metrics["eval_rewards/accuracies"] == 1.0
    folder = tmp_path / "out" / "merged" if method else tmp_path / "out"
    assert AutoModelForCausalLM.from_pretrained(folder).config.normalize_lm_head
