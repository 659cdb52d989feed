"""The Baichuan models on today's Hugging Face stack: `import baichuan_hf`, and the Auto classes load them."""

from .adapters import register_adapters
from .checkpoints import bundled_checkpoint
from .conversion import from_transformers, to_llama
from .conversion.to_llama import register_layout
from .data.chat import build_chat_input
from .model.configuration_baichuan import BaichuanConfig, list_presets
from .model.modeling_baichuan import (
    BaichuanForCausalLM,
    BaichuanForImageClassification,
    BaichuanForMaskedLM,
    BaichuanForQuestionAnswering,
    BaichuanForSequenceClassification,
    BaichuanForTokenClassification,
    BaichuanModel,
    BaichuanPreTrainedModel,
)
from .model.registration import register
from .model.saving import save_layout
from .model.tokenization_baichuan import BaichuanTokenizer


__version__ = "0.1.0"

__all__ = [
    "BaichuanConfig",
    "BaichuanForCausalLM",
    "BaichuanForImageClassification",
    "BaichuanForMaskedLM",
    "BaichuanForQuestionAnswering",
    "BaichuanForSequenceClassification",
    "BaichuanForTokenClassification",
    "BaichuanModel",
    "BaichuanPreTrainedModel",
    "BaichuanTokenizer",
    "build_chat_input",
    "bundled_checkpoint",
    "from_transformers",
    "list_presets",
    "save_layout",
    "to_llama",
]

register()
register_adapters()
register_layout()
