"""transformers' common model, configuration and training tests on every family."""

import unittest
from typing import Any
from unittest import mock

import pytest
import torch
from transformers.models.auto import modeling_auto

from baichuan_hf import (
    BaichuanConfig,
    BaichuanForCausalLM,
    BaichuanForMaskedLM,
    BaichuanForQuestionAnswering,
    BaichuanForSequenceClassification,
    BaichuanForTokenClassification,
    BaichuanModel,
)
from tests.conformance.upstream import upstream
from tests.helpers import FAMILIES, tiny_config


common = upstream("test_modeling_common")
ConfigTester = upstream("test_configuration_common").ConfigTester
TrainingTesterMixin = upstream("test_training_mixin").TrainingTesterMixin

# Of decoders and encoders alike.
SHARED_CLASSES = (
    BaichuanModel,
    BaichuanForSequenceClassification,
    BaichuanForTokenClassification,
    BaichuanForQuestionAnswering,
)

# Configurations beside `FAMILIES`: what GPT-2, BERT, Mixtral and T5's encoder are made of.
COMPONENTS = {
    "gpt2": {
        "position_embedding_type": "learned",
        "norm_type": "layer_norm",
        "norm_bias": True,
        "gated_mlp": False,
        "hidden_act": "gelu_new",
        "mlp_bias": True,
        "attention_bias": True,
        "tie_word_embeddings": True,
    },
    "bert": {
        "is_causal": False,
        "position_embedding_type": "learned",
        "type_vocab_size": 2,
        "norm_type": "layer_norm",
        "norm_position": "post",
        "norm_bias": True,
        "embedding_norm": True,
        "final_norm": False,
        "add_pooling_layer": True,
        "gated_mlp": False,
        "hidden_act": "gelu",
    },
    "mixtral": {"num_local_experts": 4, "num_key_value_heads": 2},
    "t5-encoder": {
        "is_causal": False,
        "position_embedding_type": "relative",
        "gated_mlp": False,
        "hidden_act": "relu",
    },
}


class ModelTester:
    """What the mixins ask about the model under test."""

    is_training = True
    batch_size = 5
    seq_length = 7
    causal_lm_class = BaichuanForCausalLM

    def __init__(self, family: str) -> None:
        self.family = family
        config = self.get_config()
        self.hidden_size = config.hidden_size
        self.num_attention_heads = config.num_attention_heads
        self.num_hidden_layers = config.num_hidden_layers
        self.pad_token_id = config.pad_token_id

    def get_config(self) -> BaichuanConfig:
        return tiny_config(**(FAMILIES | COMPONENTS)[self.family])

    def prepare_config_and_inputs_for_common(self) -> tuple[BaichuanConfig, dict[str, torch.Tensor]]:
        config = self.get_config()
        shape = (self.batch_size, self.seq_length)
        inputs = {"input_ids": common.ids_tensor(shape, config.vocab_size)}
        inputs["attention_mask"] = torch.tril(torch.ones(shape, dtype=torch.long))
        return config, inputs


WITHOUT_EXPERTS = {
    f"test_eager_matches_batched_and_grouped_inference_{index}_{dtype}": "looks at the class, which may have experts"
    for index, dtype in enumerate(("fp16", "fp32", "bf16"))
}
WITHOUT_ROPE = {
    f"test_model_rope_{test}": "takes a config that has rope_parameters, here None, for that of a RoPE model"
    for test in (
        "scaling_from_config_0_linear",
        "scaling_from_config_1_dynamic",
        "scaling_from_config_2_yarn",
        "with_partial_rotation",
    )
}


class Conformance(common.ModelTesterMixin, TrainingTesterMixin):
    family: str
    # Upstream test -> why it cannot pass as written. Each still runs and must fail: no entry outlives its reason.
    expected_failures = {
        "test_generation_tester_mixin_inheritance": "GenerationTesterMixin is not in the source package (upstream.py)",
        "test_model_weights_reload_no_missing_tied_weights": (
            "loads a file that holds none of the weights, which is refused here: a damaged download is no random model"
        ),
    } | WITHOUT_EXPERTS
    model_tester = None  # abstract in TrainingTesterMixin
    all_model_classes = (*SHARED_CLASSES, BaichuanForCausalLM)
    # The test guesses from a copyright line whether a model is too old for it; 5.16 has no such switch and skips it.
    test_can_init_all_missing_weights_before_2023 = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, reason in cls.expected_failures.items():
            if hasattr(cls, name):  # not every version has every test
                setattr(cls, name, pytest.mark.xfail(reason=reason, strict=True)(getattr(cls, name)))

    def setUp(self) -> None:
        self.model_tester = ModelTester(self.family)
        # The tests tell a model's task by its class name in tables; the package is in all of them but this.
        names = {BaichuanConfig.model_type: BaichuanModel.__name__}
        self.enterContext(mock.patch.dict(modeling_auto.MODEL_MAPPING_NAMES, names))

    def test_config(self) -> None:
        sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 128}
        ConfigTester(
            self, config_class=BaichuanConfig, **sizes, **(FAMILIES | COMPONENTS)[self.family]
        ).run_common_tests()


class RopeTest(Conformance, unittest.TestCase):
    family = "rope"


class AlibiTest(Conformance, unittest.TestCase):
    family = "alibi"
    expected_failures = Conformance.expected_failures | WITHOUT_ROPE


class GqaTest(Conformance, unittest.TestCase):
    family = "gqa"


class Gpt2Test(Conformance, unittest.TestCase):
    family = "gpt2"
    expected_failures = Conformance.expected_failures | WITHOUT_ROPE


class EncoderConformance(Conformance):
    all_model_classes = (*SHARED_CLASSES, BaichuanForMaskedLM)
    expected_failures = Conformance.expected_failures | WITHOUT_ROPE
    del expected_failures["test_generation_tester_mixin_inheritance"]  # of models that generate

    def setUp(self) -> None:
        super().setUp()
        self.model_tester.causal_lm_class = BaichuanForMaskedLM  # the class to train


class BertTest(EncoderConformance, unittest.TestCase):
    family = "bert"


class MixtralTest(Conformance, unittest.TestCase):
    family = "mixtral"
    all_model_classes = (BaichuanModel, BaichuanForCausalLM)
    expected_failures = {
        name: why for name, why in Conformance.expected_failures.items() if name not in WITHOUT_EXPERTS
    }

    def test_training_gradient_checkpointing_use_reentrant_true(self) -> None:
        """In place of upstream's: the balancing loss would silently have no gradient, so it is refused."""
        model = BaichuanForCausalLM(self.model_tester.get_config())
        with pytest.raises(ValueError, match="load-balancing loss would have no gradient"):
            model.gradient_checkpointing_enable({"use_reentrant": True})


class T5EncoderTest(EncoderConformance, unittest.TestCase):
    family = "t5-encoder"


# The head of the language model is the only difference between these and the classes above.
class RopeNormHeadTest(Conformance, unittest.TestCase):
    family = "rope-normhead"
    all_model_classes = (BaichuanForCausalLM,)


class AlibiNormHeadTest(Conformance, unittest.TestCase):
    family = "alibi-normhead"
    all_model_classes = (BaichuanForCausalLM,)


class GqaNormHeadTest(Conformance, unittest.TestCase):
    family = "gqa-normhead"
    all_model_classes = (BaichuanForCausalLM,)
