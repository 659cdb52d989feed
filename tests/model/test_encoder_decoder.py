"""A Baichuan encoder and a cross-attending Baichuan decoder inside transformers' EncoderDecoderModel."""

import pytest
import torch
from transformers import (
    DataCollatorForSeq2Seq,
    EncoderDecoderModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    set_seed,
)

from baichuan_hf import BaichuanForCausalLM, BaichuanModel, BaichuanTokenizer, bundled_checkpoint
from tests.helpers import tiny_config


VASWANI = {
    "position_embedding_type": "sinusoidal",
    "norm_type": "layer_norm",
    "norm_position": "post",
    "norm_bias": True,
    "final_norm": False,
    "gated_mlp": False,
    "hidden_act": "relu",
    "mlp_bias": True,
    "attention_bias": True,
    "embedding_multiplier": 8.0,
}
PAIRS = {
    "rope": {},
    "vaswani": VASWANI,
    "alibi-gqa": {"position_embedding_type": "alibi", "num_key_value_heads": 2},
    "relative-deepnorm": {"position_embedding_type": "relative", "norm_type": "deep_norm", "norm_position": "post"},
    "learned-sandwich": {"position_embedding_type": "learned", "norm_position": "sandwich"},
    "experts": {"num_local_experts": 4},
}
SIZES = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "initializer_range": 0.2}


def make_pair(seed: int = 0, encoder_settings: dict | None = None, **settings) -> EncoderDecoderModel:
    torch.manual_seed(seed)
    encoder = BaichuanModel(tiny_config(**SIZES | settings | {"is_causal": False} | (encoder_settings or {})))
    decoder = BaichuanForCausalLM(tiny_config(**SIZES | settings | {"add_cross_attention": True}))
    pair = EncoderDecoderModel(encoder=encoder, decoder=decoder).eval()
    for config in (pair.config, pair.generation_config):
        config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
    return pair


def make_inputs(lengths: tuple[int, ...] = (9, 6), seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return {"input_ids": torch.randint(3, 97, mask.shape) * mask, "attention_mask": mask.long()}


@pytest.mark.parametrize("settings", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("seed", [0, 1])
def test_generation_is_the_same_with_every_cache_and_alone(settings, seed):
    pair, inputs = make_pair(seed, **settings), make_inputs(seed=seed)
    options = {"max_new_tokens": 12, "do_sample": False}
    uncached = pair.generate(**inputs, **options, use_cache=False)
    for cache in ("dynamic", "static"):
        assert torch.equal(uncached, pair.generate(**inputs, **options, cache_implementation=cache)), cache
    for row, length in enumerate((9, 6)):
        alone = pair.generate(inputs["input_ids"][row : row + 1, :length], **options)
        assert torch.equal(alone[0], uncached[row, : alone.shape[1]])
    beams = pair.generate(**inputs, **options, num_beams=3)
    assert torch.equal(beams, pair.generate(**inputs, **options, num_beams=3, use_cache=False))


@pytest.mark.parametrize("settings", PAIRS.values(), ids=PAIRS)
def test_eager_equals_sdpa_and_shows_cross_attentions(settings):
    pair, inputs = make_pair(**settings), make_inputs()
    target = torch.randint(3, 97, (2, 7))
    with torch.no_grad():
        expected = pair(**inputs, decoder_input_ids=target).logits
        pair.set_attn_implementation("eager")
        outputs = pair(**inputs, decoder_input_ids=target, output_attentions=True)
    torch.testing.assert_close(outputs.logits, expected, atol=1e-4, rtol=1e-4)
    assert len(outputs.cross_attentions) == 2
    weights = outputs.cross_attentions[0]
    assert weights.shape == (2, 4, 7, 9)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 7))
    assert not weights[1, :, :, 6:].any()


def test_decoder_sees_the_encoder_and_not_the_future():
    pair, inputs = make_pair(), make_inputs((9,))
    target = torch.randint(3, 97, (1, 7))

    def logits(**changes):
        with torch.no_grad():
            return pair(**(inputs | {"decoder_input_ids": target} | changes)).logits

    other_source = inputs["input_ids"].clone()
    other_source[0, -1] = 96 - other_source[0, -1]
    assert not torch.allclose(logits(), logits(input_ids=other_source))
    other_target = target.clone()
    other_target[0, -1] = 96 - other_target[0, -1]
    torch.testing.assert_close(logits()[:, :-1], logits(decoder_input_ids=other_target)[:, :-1])


def test_encoder_of_another_width():
    pair = make_pair(encoder_settings={"hidden_size": 32, "num_attention_heads": 2})
    assert pair.enc_to_dec_proj.weight.shape == (48, 32)
    assert pair.generate(**make_inputs(), max_new_tokens=3).shape[0] == 2

    torch.manual_seed(0)
    encoder = BaichuanModel(tiny_config(**SIZES | {"is_causal": False, "hidden_size": 32, "num_attention_heads": 2}))
    decoder = BaichuanForCausalLM(tiny_config(**SIZES, add_cross_attention=True, cross_attention_hidden_size=32))
    states = encoder(make_inputs()["input_ids"]).last_hidden_state
    assert decoder(torch.tensor([[1, 5], [1, 6]]), encoder_hidden_states=states).logits.shape == (2, 2, 97)


@pytest.mark.parametrize("settings", PAIRS.values(), ids=PAIRS)
def test_save_and_load(tmp_path, settings):
    pair, inputs = make_pair(**settings), make_inputs()
    pair.save_pretrained(tmp_path)
    loaded = EncoderDecoderModel.from_pretrained(tmp_path)
    assert (loaded.encoder.config.is_causal, loaded.decoder.config.is_causal) == (False, True)
    with torch.no_grad():
        outputs = [model(**inputs, decoder_input_ids=inputs["input_ids"]).logits for model in (pair, loaded)]
    assert torch.equal(*outputs)


def test_warm_start_from_an_encoder_and_a_language_model(tmp_path):
    torch.manual_seed(0)
    encoder, decoder = BaichuanModel(tiny_config(is_causal=False)), BaichuanForCausalLM(tiny_config())
    encoder.save_pretrained(tmp_path / "encoder")
    decoder.save_pretrained(tmp_path / "decoder")
    pair = EncoderDecoderModel.from_encoder_decoder_pretrained(tmp_path / "encoder", tmp_path / "decoder")
    loaded = pair.decoder.state_dict()
    assert all(torch.equal(weight, loaded[name]) for name, weight in decoder.state_dict().items())
    assert any("cross_attn" in name for name in loaded)
    assert all(weight.isfinite().all() and weight.std() > 0 for name, weight in loaded.items() if "cross_attn" in name)


def test_an_encoder_as_decoder_needs_a_word(tmp_path):
    BaichuanModel(tiny_config(is_causal=False)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is_causal=True"):
        EncoderDecoderModel.from_encoder_decoder_pretrained(tmp_path, tmp_path)
    pair = EncoderDecoderModel.from_encoder_decoder_pretrained(tmp_path, tmp_path, decoder_is_causal=True)
    assert pair.decoder.config.add_cross_attention


def test_gradient_checkpointing_gives_the_same_gradients():
    inputs, gradients = make_inputs(), []
    for checkpointing in (False, True):
        pair = make_pair().train()
        if checkpointing:
            pair.gradient_checkpointing_enable()
        pair(**inputs, labels=inputs["input_ids"]).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in pair.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)


@pytest.mark.filterwarnings("ignore:Version v4.12.0 introduces a better way:FutureWarning")
def test_seq2seq_trainer_learns_to_reverse(tmp_path):
    """Reversing needs the encoder: without cross-attention its loss stays that of a guess."""
    set_seed(0)
    tokenizer = BaichuanTokenizer.from_pretrained(bundled_checkpoint("tiny"))
    sources = torch.randint(5, 15, (256, 5)).tolist()
    rows = [{"input_ids": source, "labels": [*source[::-1], 2]} for source in sources]
    pair = make_pair(initializer_range=0.1, num_hidden_layers=1).train()
    trainer = Seq2SeqTrainer(
        pair,
        Seq2SeqTrainingArguments(
            output_dir=str(tmp_path),
            max_steps=150,
            learning_rate=5e-3,
            per_device_train_batch_size=32,
            predict_with_generate=True,
            generation_max_length=8,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=rows,
        eval_dataset=rows[:32],
        data_collator=DataCollatorForSeq2Seq(tokenizer, pair),
        processing_class=tokenizer,
    )
    trainer.train()
    prediction = trainer.predict(rows[:32])
    right = [
        list(generated[1:7]) == row["labels"] for generated, row in zip(prediction.predictions, rows[:32], strict=True)
    ]
    assert sum(right) >= 24
