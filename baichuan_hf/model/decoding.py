"""Decoding steps as CUDA graphs: what `generate` calls for every token, without the time to launch its kernels.

Shape legend: B batch, S keys that a static cache has room for.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CompileConfig, PreTrainedModel, StaticCache
from transformers.cache_utils import StaticLayer
from transformers.masking_utils import create_masks_for_generate
from transformers.utils import logging

from .cuda_graphs import recording
from .lm_head import NormHead
from .weight_only import replaced, weight_only_layers


logger = logging.get_logger(__name__)


class DecodingStep:
    """A forward pass that is recorded as a CUDA graph when it comes a second time with inputs of the same form: one
    token a row, and a static cache. Anything else runs as it is.

    The recorded kernels read and write the same memory in every replay: the outputs hold until the next call. An
    object serves one call of `generate`, so that changed weights never meet an old graph.

    Args:
        forward: from inputs by name to outputs.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward
        self.form: Any = None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: dict[str, Tensor] = {}
        self.outputs: Any = None
        self.recordable = True

    def __call__(self, **inputs: Any) -> Any:
        tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        form = _form(inputs)
        if self.graph is not None and form == self.form:
            for name, tensor in self.inputs.items():
                tensor.copy_(tensors[name])
            self.graph.replay()
            return self.outputs
        if form == self.form and self.recordable and _fits(inputs):
            self._record({**inputs, **{name: tensor.clone() for name, tensor in tensors.items()}})
            return self(**inputs)
        self.form, self.graph = form, None
        outputs = self.forward(**inputs)
        # Others, such as attention weights, are collected by `generate`, and a replay would overwrite them.
        self.recordable = self.recordable and set(outputs) <= {"logits", "past_key_values"}
        return outputs

    def _record(self, inputs: dict[str, Any]) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with recording(graph, inputs["input_ids"].device):
                self.outputs = self.forward(**inputs)
        except RuntimeError as error:
            logger.warning_once(
                f"This model's decoding step cannot be recorded as a CUDA graph, and is slower: {error}"
            )
            self.recordable = False
            return
        self.graph = graph
        self.inputs = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}


def compiled_step(model: PreTrainedModel, compile_config: CompileConfig | None, compiled: Callable) -> Callable:
    """What `generate` calls for every token with a static cache.

    Args:
        model: the language model.
        compile_config: of `generate`. None records what the model's own settings compile; the backend `cudagraphs`
            records the model as it is, without waiting for a compiler; any other is used as it is.
        compiled: the model's `get_compiled_call` of transformers.
    """
    if not _is_on_one_gpu(model):
        return compiled(compile_config)
    if compile_config is None:
        return DecodingStep(PartwiseCompiled(model, _compiled_once, whole=compiled(None)))
    if compile_config.backend == "cudagraphs":
        return DecodingStep(model.__call__)
    return compiled(compile_config)


class PartwiseCompiled:
    """A model's forward pass whose layers and head are compiled, and not what is around them.

    All layers of a kind are one compilation, so that it takes as long as one layer does. What calling them one by one
    costs is gone once the step is a CUDA graph.

    Args:
        model: the language model.
        compiler: compiles a function.
        whole: for caches that are no plain `StaticCache`, and parts that others have put code into.
    """

    def __init__(
        self, model: PreTrainedModel, compiler: Callable[[Callable], Callable], whole: Callable[..., Any]
    ) -> None:
        self.model = model
        self.whole = whole
        self.head: nn.Module = model.get_output_embeddings()
        self.weight_only = weight_only_layers(model)
        layers = model.base_model.get_submodule("layers")
        run_layer, run_head = compiler(_run_layer), compiler(_run_head)
        self.forwards = {
            self.head: partial(run_head, self.head),
            **{layer: partial(_run_one, run_layer, layer, number) for number, layer in enumerate(layers)},
        }

    def __call__(self, **inputs: Any) -> Any:
        if not _fits(inputs) or any("forward" in vars(part) for part in self.forwards):
            return self.whole(**inputs)
        try:
            for part, forward in self.forwards.items():
                part.forward = forward
            # What is compiled cannot see whether the weight changes: it does not, in a step.
            norms = self.head.holding_norms() if isinstance(self.head, NormHead) else nullcontext()
            with norms, replaced(self.weight_only if inputs["input_ids"].numel() == 1 else {}):
                return self.model(**inputs)
        finally:
            for part in self.forwards:
                vars(part).pop("forward", None)


class _OneLayer:
    """A cache that is one of its layers: with its number in it, every layer of the model would be compiled."""

    def __init__(self, layer: StaticLayer) -> None:
        self.layer = layer

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        return self.layer.update(key, value)


def _run_one(run: Callable[..., Tensor], layer: nn.Module, number: int, *args: Any, **kwargs: Any) -> Tensor:
    return run(layer, kwargs.pop("past_key_values").layers[number], *args, **kwargs)


def _run_layer(layer: nn.Module, cache: StaticLayer, *args: Any, **kwargs: Any) -> Tensor:
    return type(layer).forward(layer, *args, past_key_values=_OneLayer(cache), **kwargs)


def _run_head(head: nn.Module, hidden_states: Tensor) -> Tensor:
    return type(head).forward(head, hidden_states)


@cache
def _compiled_once(part: Callable[..., Any]) -> Callable[..., Any]:
    """By the default settings. torch.compile takes 10 ms to say that it knows a function."""
    return torch.compile(part, **_compile_config().to_dict())


def default_compile_config(model: PreTrainedModel) -> CompileConfig | None:
    """Settings of torch.compile for decoding on a GPU; None where transformers' own are right."""
    return _compile_config() if _is_on_one_gpu(model) else None


def _compile_config() -> CompileConfig:
    # Matrix-vector products are memory-bound; tuned kernels come closer to the bandwidth than cuBLAS. One compilation
    # serves caches of all lengths.
    return CompileConfig(dynamic=True, mode=None, options={"coordinate_descent_tuning": True})


def decoding_masks(
    *, config: Any, inputs_embeds: Tensor, attention_mask: Tensor | None, past_key_values: Any, **kwargs: Any
) -> Any:
    """As transformers' `create_masks_for_generate`, but for one token a row only the padding, (B, S): the step makes
    the mask of it, within its graph."""
    one_kind = set(config.layer_types) == {"full_attention"}
    if inputs_embeds.shape[1] == 1 and one_kind and isinstance(past_key_values, StaticCache):
        if attention_mask is None:
            return None
        room = past_key_values.get_mask_sizes(1, 0)[0]
        return F.pad(attention_mask, (0, room - attention_mask.shape[1]))
    return create_masks_for_generate(
        config=config,
        inputs_embeds=inputs_embeds,
        attention_mask=attention_mask,
        past_key_values=past_key_values,
        **kwargs,
    )


def _is_on_one_gpu(model: PreTrainedModel) -> bool:
    devices = getattr(model, "hf_device_map", {})
    sharded = getattr(model, "_device_mesh", None) is not None
    return model.device.type == "cuda" and len(set(devices.values())) < 2 and not sharded


def _fits(inputs: dict[str, Any]) -> bool:
    """Whether the cache keeps count on the device, where a graph can."""
    cache = inputs.get("past_key_values")
    one_token = inputs.get("input_ids") is not None and inputs["input_ids"].shape[1] == 1
    return one_token and isinstance(cache, StaticCache) and all(type(layer) is StaticLayer for layer in cache.layers)


def _form(inputs: dict[str, Any]) -> dict[str, Any]:
    return {
        name: (value.shape, value.dtype, value.device) if isinstance(value, Tensor) else id(value)
        for name, value in inputs.items()
    }
