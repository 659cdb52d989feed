"""Layers, heads and weights taken out: what is left computes what it did, and is what is most important."""

import copy
from itertools import pairwise

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from baichuan_hf import BaichuanForCausalLM, BaichuanForSequenceClassification
from baichuan_hf.pruning import (
    block_influence,
    evenly_spread,
    head_importance,
    input_norms,
    keep_heads,
    keep_layers,
    make_batches,
    measure_quality,
    prune_folder,
    prune_weights,
    zero_share,
)
from baichuan_hf.pruning.folders import Calibration
from baichuan_hf.pruning.weights import linear_layers
from tests.helpers import tiny_config
from tests.helpers.checkpoint import reviews, save_checkpoint, write_csv


ATTENTIONS = {
    "fused": {},
    "fused-bias": {"attention_bias": True},
    "grouped": {"num_key_value_heads": 2, "attention_bias": True},
    "sliding": {"sliding_window": 4},
    "encoder": {"is_causal": False, "position_embedding_type": "learned"},
}


def make_model(model_class=BaichuanForCausalLM, **settings):
    torch.manual_seed(0)
    return model_class(tiny_config(num_hidden_layers=3, initializer_range=0.2, **settings)).eval()


def make_batch(rows=3, length=9, padding=3):
    torch.manual_seed(1)
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[0, length - padding :] = 0
    ids = torch.randint(3, 128, (rows, length)) * mask
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def logits(model, batch):
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


@pytest.mark.parametrize("settings", ATTENTIONS.values(), ids=ATTENTIONS)
def test_heads_that_say_nothing_are_not_missed(settings, tmp_path):
    """Without heads 0 and 2 (of grouped queries: without the first group) of each layer."""
    model_class = BaichuanForCausalLM if settings.get("is_causal", True) else BaichuanForSequenceClassification
    model, batch = make_model(model_class, **settings), make_batch()
    groups = model.config.num_key_value_heads
    gone = [0, 2] if groups == 4 else [0]
    silent = copy.deepcopy(model)
    for layer in silent.base_model.layers:
        width = 64 // groups
        for head in gone:
            layer.self_attn.o_proj.weight.data[:, head * width : (head + 1) * width] = 0
    keep_heads(model, [[head for head in range(groups) if head not in gone]] * 3)
    torch.testing.assert_close(logits(model, batch), logits(silent, batch), atol=1e-4, rtol=1e-4)
    assert (model.config.num_attention_heads, model.config.head_dim) == (2, 16)

    model.save_pretrained(tmp_path)
    auto = AutoModelForCausalLM if model_class is BaichuanForCausalLM else AutoModelForSequenceClassification
    loaded = auto.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, batch), logits(model, batch))
    if model_class is BaichuanForCausalLM:
        options = {"max_new_tokens": 8, "do_sample": False}
        ids = make_batch(padding=0)["input_ids"]
        assert torch.equal(model.generate(ids, **options), loaded.generate(ids, **options, use_cache=False))


def test_layers_that_do_nothing_are_not_missed(tmp_path):
    model, batch = (
        make_model(layer_types=["full_attention", "sliding_attention"] + ["full_attention"], sliding_window=4),
        make_batch(),
    )
    layer = model.model.layers[0]
    for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
        torch.nn.init.zeros_(linear.weight)
    expected = logits(model, batch)
    influence = block_influence(model, [batch])
    assert influence.argmin() == 0
    assert influence[0] == pytest.approx(0, abs=1e-6)
    keep_layers(model, influence.topk(2).indices.tolist())
    torch.testing.assert_close(logits(model, batch), expected)
    assert model.config.layer_types == ["sliding_attention", "full_attention"]

    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, batch), logits(model, batch))
    options = {"max_new_tokens": 8, "do_sample": False}
    ids = make_batch(padding=0)["input_ids"]
    assert torch.equal(model.generate(ids, **options), loaded.generate(ids, **options, use_cache=False))


def test_block_influence_is_one_minus_the_cosine_over_tokens():
    model, batch = make_model(norm_position="pre"), make_batch()
    with torch.no_grad():
        states = model.model(
            batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True
        ).hidden_states
    kept = batch["attention_mask"].bool()
    expected = [1 - torch.cosine_similarity(*(s[kept] for s in pair), dim=-1).mean() for pair in pairwise(states)]
    # The last state is behind the final norm.
    torch.testing.assert_close(block_influence(model, [batch])[:2], torch.stack(expected)[:2])
    split = [{name: rows[half] for name, rows in batch.items()} for half in (slice(0, 1), slice(1, 3))]
    torch.testing.assert_close(block_influence(model, split), block_influence(model, [batch]))


@pytest.mark.parametrize("groups", [4, 2])
def test_head_importance_is_the_product_of_output_and_gradient(groups):
    model, batch = make_model(num_key_value_heads=groups), make_batch(rows=1)
    found = head_importance(model, [batch])
    outputs = []
    for layer in model.model.layers:
        layer.self_attn.o_proj.register_forward_pre_hook(lambda module, args: outputs.append(args[0]))
    loss = model(**batch).loss
    for layer, (output, gradient) in enumerate(zip(outputs, torch.autograd.grad(loss, outputs), strict=True)):
        by_head = (output * gradient).unflatten(-1, (4, 16)).sum((0, 1, 3)).abs()
        torch.testing.assert_close(found[layer], by_head.unflatten(0, (groups, -1)).sum(-1), atol=1e-6, rtol=1e-4)


def test_head_importance_averages_texts_and_leaves_no_trace():
    model, batch = make_model(), make_batch(padding=0)
    before = logits(model, batch)
    rows = [{name: values[row : row + 1] for name, values in batch.items()} for row in range(3)]
    alone = torch.stack([head_importance(model, [row]) for row in rows]).mean(0)
    torch.testing.assert_close(head_importance(model, [batch]), alone, atol=1e-6, rtol=1e-4)
    assert torch.equal(logits(model, batch), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_input_norms_are_those_of_tokens():
    model, batch = make_model(), make_batch()
    norms = input_norms(model, [batch])
    assert set(norms) == set(linear_layers(model))
    with torch.no_grad():
        states = model.model(
            batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True
        ).hidden_states
        inputs = model.model.layers[1].input_layernorm(states[1])[batch["attention_mask"].bool()]
    torch.testing.assert_close(norms[model.model.layers[1].self_attn.W_pack], inputs.norm(dim=0))


def test_half_of_each_row_is_zero_the_least():
    model, dense = make_model(), make_model()
    prune_weights(model, sparsity=0.5)
    assert zero_share(model) == 0.5
    for before, after in zip(linear_layers(dense), linear_layers(model), strict=True):
        for row, pruned in zip(before.weight, after.weight, strict=True):
            kept = pruned != 0
            assert torch.equal(row[kept], pruned[kept])
            assert row[kept].abs().min() >= row[~kept].abs().max()
    assert torch.equal(model.lm_head.weight, dense.lm_head.weight)


def test_two_of_four_stay_by_weight_times_input():
    model, dense, batch = make_model(), make_model(), make_batch()
    norms = input_norms(model, [batch])
    prune_weights(model, pattern="2:4", norms=norms)
    for before, after in zip(linear_layers(dense), linear_layers(model), strict=True):
        kept = (after.weight != 0).unflatten(1, (-1, 4))
        assert (kept.sum(-1) == 2).all()
        scores = (before.weight.abs() * norms[after]).unflatten(1, (-1, 4))
        assert torch.equal(kept, scores >= scores.sort(-1).values[..., 2:3])


def test_evenly_spread_layers():
    assert evenly_spread(12, 6) == [0, 2, 4, 7, 9, 11]
    assert evenly_spread(6, 1) == [0]
    assert evenly_spread(3, 3) == [0, 1, 2]


@pytest.mark.parametrize(
    ("prune", "settings", "message"),
    [
        pytest.param(lambda m: keep_layers(m, [0, 3]), {}, "the model has 0 to 2", id="layer"),
        pytest.param(lambda m: keep_layers(m, []), {}, "layers to keep are", id="none"),
        pytest.param(lambda m: evenly_spread(3, 4), {}, "4 of 3 layers", id="too-many"),
        pytest.param(
            lambda m: keep_layers(m, [0]), {"norm_type": "deep_norm", "norm_position": "post"}, "deep_norm", id="deep"
        ),
        pytest.param(
            lambda m: keep_layers(m, [1, 2]), {"num_local_experts": 2, "moe_layer_interval": 2},
            "layer 1 would become layer 0, which lacks experts", id="experts",
        ),
        pytest.param(lambda m: keep_heads(m, [[0], [0, 1], [0]]), {}, "as many in each of 3 layers", id="unequal"),
        pytest.param(lambda m: keep_heads(m, [[4]] * 3), {}, "head 4 is not there; each layer has 0 to 3", id="head"),
        pytest.param(lambda m: keep_heads(m, [[0]] * 3), {"position_embedding_type": "alibi"}, "'alibi'", id="alibi"),
        pytest.param(lambda m: prune_weights(m, sparsity=1.0), {}, "sparsity is 1.0", id="sparsity"),
        pytest.param(lambda m: prune_weights(m, pattern="4:2"), {}, "of the form 2:4", id="pattern"),
        pytest.param(lambda m: prune_weights(m, pattern="2:5"), {}, "2:5 does not divide .* 64 inputs", id="width"),
        pytest.param(lambda m: prune_weights(m), {}, "either sparsity", id="neither"),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_out_is_refused(prune, settings, message):
    with pytest.raises(ValueError, match=message):
        prune(make_model(**settings))


def test_other_models_are_refused():
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                         num_attention_heads=1))  # fmt: skip
    with pytest.raises(ValueError, match="LlamaForCausalLM is no Baichuan model"):
        keep_layers(model, [0])


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    save_checkpoint(folder)
    names = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    AutoModelForSequenceClassification.from_pretrained(folder, **names).save_pretrained(folder)
    return folder


def test_folder_of_a_classifier(classifier, tmp_path):
    file = write_csv(tmp_path / "x.csv", reviews())
    calibration = Calibration(str(file), text_column="review", label_column="stars", rows=20)
    before, after = prune_folder(
        str(classifier), str(tmp_path / "small"), layers=1, heads=2, pattern="2:4", calibration=calibration
    )
    small = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small")
    assert (small.config.num_hidden_layers, small.config.num_attention_heads) == (1, 2)
    assert small.config.id2label == {0: "bad", 1: "good"}
    assert (before.zeros, after.zeros) == (0.0, 0.5)
    assert after.parameters == small.num_parameters() < before.parameters
    assert 0 <= after.quality.accuracy <= 1


def test_quality_is_that_of_transformers(classifier):
    from transformers import AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(save_checkpoint(classifier / "lm")).float()
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    texts = ["一二三四五", "one two", "三"]
    batches = make_batches(model, tokenizer, texts, batch_size=2)
    losses = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        if ids.shape[1] > 1:
            with torch.no_grad():
                losses += [float(model(ids, labels=ids).loss)] * (ids.shape[1] - 1)
    assert measure_quality(model, batches).loss == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    with pytest.raises(ValueError, match="label 'x' is not among the model's: 'bad', 'good'"):
        make_batches(AutoModelForSequenceClassification.from_pretrained(classifier), tokenizer, ["a"], ["x"])
