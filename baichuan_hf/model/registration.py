"""Makes transformers' Auto classes find the Baichuan classes by `model_type`."""

from __future__ import annotations

import transformers
from transformers import PreTrainedConfig
from transformers.models.auto import modeling_auto, tokenization_auto

from .configuration_baichuan import BaichuanConfig
from .modeling_baichuan import AUTO_CLASSES
from .tokenization_baichuan import BaichuanTokenizer


# Where transformers looks up a task by the name of a class: Trainer's label smoothing shifts the labels of these only.
NAME_TABLES = {
    "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "AutoModelForMaskedLM": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "AutoModelForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "AutoModelForTokenClassification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "AutoModelForQuestionAnswering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "AutoModelForImageClassification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
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
    for name, table in NAME_TABLES.items():
        getattr(modeling_auto, table)[BaichuanConfig.model_type] = AUTO_CLASSES[name].__name__
    transformers.AutoTokenizer.register(_TokenizerByName, fast_tokenizer_class=BaichuanTokenizer, exist_ok=True)
    # The spelling of the first Baichuan-7B.
    tokenization_auto.REGISTERED_TOKENIZER_CLASSES["BaiChuanTokenizer"] = BaichuanTokenizer
