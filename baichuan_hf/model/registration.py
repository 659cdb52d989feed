"""Makes transformers' Auto classes find the Baichuan classes by `model_type`."""

from __future__ import annotations

import transformers
from transformers import PreTrainedConfig

from .configuration_baichuan import BaichuanConfig
from .modeling_baichuan import (
    BaichuanForCausalLM,
    BaichuanForImageClassification,
    BaichuanForMaskedLM,
    BaichuanForQuestionAnswering,
    BaichuanForSequenceClassification,
    BaichuanForTokenClassification,
    BaichuanModel,
)
from .tokenization_baichuan import BaichuanTokenizer


AUTO_CLASSES = {
    "AutoModel": BaichuanModel,
    "AutoModelForCausalLM": BaichuanForCausalLM,
    "AutoModelForMaskedLM": BaichuanForMaskedLM,
    "AutoModelForSequenceClassification": BaichuanForSequenceClassification,
    "AutoModelForTokenClassification": BaichuanForTokenClassification,
    "AutoModelForQuestionAnswering": BaichuanForQuestionAnswering,
    "AutoModelForImageClassification": BaichuanForImageClassification,
}


class _TokenizerByName(PreTrainedConfig):
    """Stands in for `BaichuanConfig` when the tokenizer is registered.

    A tokenizer that is registered for the config of a folder loses to remote code when `trust_remote_code=True`; one
    that transformers knows by its class name only, as given in `tokenizer_config.json` or in the config, wins.
    """

    model_type = "baichuan_tokenizer"


def register() -> None:
    """Register config, models and tokenizer; calling it again changes nothing."""
    transformers.AutoConfig.register(BaichuanConfig.model_type, BaichuanConfig, exist_ok=True)
    for name, model_class in AUTO_CLASSES.items():
        getattr(transformers, name).register(BaichuanConfig, model_class, exist_ok=True)
    transformers.AutoTokenizer.register(_TokenizerByName, fast_tokenizer_class=BaichuanTokenizer, exist_ok=True)
