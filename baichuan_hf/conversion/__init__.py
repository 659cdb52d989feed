"""Models of transformers into ours: one file per reference architecture, one line for it here."""

from __future__ import annotations

from transformers import PreTrainedModel

from ..model.configuration_baichuan import BaichuanConfig
from .architecture import Architecture
from .bert import BERT
from .bloom import BLOOM
from .convert import build_model, finish
from .gpt2 import GPT2
from .llama import LLAMA, MISTRAL, MIXTRAL
from .longformer import LONGFORMER
from .marian import MARIAN
from .mpt import MPT
from .t5 import T5
from .to_llama import to_llama
from .vit import VIT


__all__ = ["ARCHITECTURES", "from_transformers", "to_llama"]

ARCHITECTURES: dict[str, Architecture] = {
    "bert": BERT,
    "bloom": BLOOM,
    "gpt2": GPT2,
    "llama": LLAMA,
    "longformer": LONGFORMER,
    "marian": MARIAN,
    "mistral": MISTRAL,
    "mixtral": MIXTRAL,
    "mpt": MPT,
    "t5": T5,
    "vit": VIT,
}


def architecture_of(model_type: str) -> Architecture:
    """The converter for a `model_type`.

    Raises:
        ValueError: there is none.
    """
    if model_type == BaichuanConfig.model_type:
        raise ValueError("The model is Baichuan already, there is nothing to convert.")
    if model_type not in ARCHITECTURES:
        raise ValueError(
            f"model_type {model_type!r} cannot be converted to Baichuan. Supported: {', '.join(ARCHITECTURES)}."
        )
    return ARCHITECTURES[model_type]


def from_transformers(model: PreTrainedModel) -> PreTrainedModel:
    """A model of transformers as one of ours that computes the same: config and weights are copied.

    Dtype, device, training mode and generation config are kept. The class is the one of ours with the same head; an
    encoder-decoder becomes transformers' `EncoderDecoderModel` of two of ours. Dropout probabilities are copied; not
    all places where the reference drops are places where ours does.

    Args:
        model: of a `model_type` in `baichuan_hf.conversion.ARCHITECTURES`, not quantised.

    Raises:
        ValueError: the architecture, its class or one of its settings has no equal here; the message names it.

    Example:

    ```python
    >>> import baichuan_hf
    >>> from transformers import GPT2Config, GPT2LMHeadModel

    >>> model = baichuan_hf.from_transformers(GPT2LMHeadModel(GPT2Config(n_layer=2)))
    >>> type(model).__name__, model.config.position_embedding_type
    ('BaichuanForCausalLM', 'learned')
    ```
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"from_transformers takes a model of transformers, not {type(model).__name__}: load it first.")
    architecture = architecture_of(model.config.model_type)
    architecture.check(model)
    if getattr(model, "is_quantized", False):
        raise ValueError("The model is quantised, so its weights cannot be copied: call model.dequantize() first.")
    return finish((architecture.build or build_model)(model, architecture), model)
