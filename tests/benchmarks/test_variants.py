"""The models that are compared: equal parameters, one component apart."""

from dataclasses import replace

import pytest
import torch

from baichuan_hf import BaichuanForCausalLM
from baichuan_hf.benchmarks.variants import TOLERANCE, Settings, Variant, build_config, list_variants
from baichuan_hf.evaluation.size import build_on_meta, count_parameters


SETTINGS = Settings()
BASELINE = build_config(SETTINGS, Variant("norm", "rms_norm"))
# What a change brings with it: the width that evens the parameters out, and what the config derives.
DERIVED = {"intermediate_size", "layer_types", "initializer_type", "model_max_length", "rope_parameters"}


@pytest.mark.parametrize("variant", list_variants(SETTINGS), ids=lambda variant: f"{variant.axis}-{variant.name}")
def test_variants_have_equal_parameters_and_differ_in_one_component(variant):
    target = count_parameters(build_on_meta(BASELINE))["total"]
    config = build_config(SETTINGS, variant)
    assert count_parameters(build_on_meta(config))[variant.equal] == pytest.approx(target, rel=TOLERANCE)

    deep = (
        {"hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "pad_token_id"}
        if variant.deep
        else set()
    )
    ours, theirs = config.to_dict(), BASELINE.to_dict()
    differing = {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}
    assert differing - DERIVED - deep <= variant.changes.keys()
    assert {name: ours[name] for name in variant.changes} == variant.changes
    assert bool(differing) == bool(variant.changes or variant.deep)


def test_every_variant_has_a_key_of_its_own_and_baselines_share_one():
    variants = list_variants(SETTINGS)
    changed = [variant.key for variant in variants if variant.changes]
    assert len(changed) == len(set(changed))
    assert {variant.key for variant in variants if not variant.changes} == {"baseline", "baseline, deep"}


def test_parameters_that_cannot_be_matched_are_refused():
    settings = replace(SETTINGS, hidden_size=64, deep_layers=400)
    deep = next(variant for variant in list_variants(settings) if variant.deep)
    with pytest.raises(ValueError, match="no feed-forward width .* Take a larger hidden_size or fewer deep_layers"):
        build_config(settings, deep)


def test_a_row_that_begins_with_the_padding_token_is_learnt_by_deep_models_too():
    settings = Settings(hidden_size=256, length=16)
    for variant in list_variants(settings):
        if variant.deep:
            model = BaichuanForCausalLM(build_config(settings, variant))
            rows = torch.arange(32).view(2, 16)  # the first begins with token 0, the default of `pad_token_id`
            model(input_ids=rows, labels=rows).loss.backward()
            assert all(parameter.grad.isfinite().all() for parameter in model.parameters()), variant.key
