"""Fewer bits for the weights of a model, by torchao, bitsandbytes or GPTQModel, which do it and compute with them."""

from .folders import Quantized, quantize_folder
from .methods import METHODS, quantization_config


__all__ = ["METHODS", "Quantized", "quantization_config", "quantize_folder"]
