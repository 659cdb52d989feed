"""Decoding steps as CUDA graphs: what `generate` calls for every token, without the time to launch its kernels.

Shape legend: B batch, S keys that a static cache has room for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from contextvars import ContextVar
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


# Every model takes two compilations of a layer, for one row and for several. torch.compile allows eight in a process,
# and runs what comes later as it is.
MAX_COMPILATIONS = 64

# Whether to run nothing but what is compiled: where a CUDA graph is recorded, a compiler's trials would fail.
_COMPILED_ONLY = ContextVar("compiled_only", default=False)


class NotCompiledError(RuntimeError):
    """What should run has not been compiled for such inputs."""


class DecodingStep:
    """A forward pass that is recorded as a CUDA graph when it comes a second time with inputs of the same form, or at
    once if all of it is compiled: one token a row, and a static cache. Anything else runs as it is.

    The recorded kernels read and write the same memory in every replay: the outputs hold until the next call. An
    object serves one call of `generate`, so that changed weights never meet an old graph.

    Args:
        forward: from inputs by name to outputs.
        compiled_only: the same of what is compiled, which raises NotCompiledError where something is not; or None.
    """

    def __init__(self, forward: Callable[..., Any], compiled_only: Callable[..., Any] | None = None) -> None:
        self.forward = forward
        self.compiled_only = compiled_only
        self.form: Any = None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: dict[str, Tensor] = {}
        self.outputs: Any = None
        self.recordable = True

    def __call__(self, **inputs: Any) -> Any:
        form = _form(inputs)
        if self.graph is None or form != self.form:
            forward = self.forward if form == self.form else self.compiled_only
            self.form, self.graph = form, None
            if forward is not None and self.recordable and _fits(inputs):
                self._record(forward, inputs)
        if self.graph is None:
            outputs = self.forward(**inputs)
            self.recordable = self.recordable and _is_replayable(outputs)
            return outputs
        for name, tensor in self.inputs.items():
            tensor.copy_(inputs[name])
        self.graph.replay()
        return self.outputs

    def _record(self, forward: Callable[..., Any], inputs: dict[str, Any]) -> None:
        tensors = {name: value.clone() for name, value in inputs.items() if isinstance(value, Tensor)}
        graph = torch.cuda.CUDAGraph()
        try:
            with recording(graph, inputs["input_ids"].device):
                outputs = forward(**{**inputs, **tensors})
        except NotCompiledError:
            return
        except RuntimeError as error:
            logger.warning_once(
                f"This model's decoding step cannot be recorded as a CUDA graph, and is slower: {error}"
            )
            self.recordable = False
            return
        if _is_replayable(outputs):
            self.graph, self.inputs, self.outputs = graph, tensors, outputs


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
        step = PartwiseCompiled(model, _compiled_once, whole=compiled(None))
        return DecodingStep(step, step.compiled_only)
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
        self.forwards, self.compiled = self._forwards(compiler), self._forwards(_compiled_before)

    def __call__(self, **inputs: Any) -> Any:
        if not self._suits(inputs):
            return self.whole(**inputs)
        dynamo = torch._dynamo.config
        with dynamo.patch(recompile_limit=max(MAX_COMPILATIONS, dynamo.recompile_limit)):
            return self._run(self.forwards, inputs)

    def compiled_only(self, **inputs: Any) -> Any:
        """The same with parts that calls before have compiled.

        Raises:
            NotCompiledError: they have not, for such inputs.
        """
        if not self._suits(inputs):
            raise NotCompiledError
        token = _COMPILED_ONLY.set(True)
        try:
            return self._run(self.compiled, inputs)
        finally:
            _COMPILED_ONLY.reset(token)

    def _forwards(self, compiler: Callable[[Callable], Callable]) -> dict[nn.Module, Callable[..., Tensor]]:
        run_layer, run_head = compiler(_run_layer), compiler(_run_head)
        layers = self.model.base_model.get_submodule("layers")
        return {
            self.head: partial(run_head, self.head),
            **{layer: partial(_run_one, run_layer, layer, number) for number, layer in enumerate(layers)},
        }

    def _suits(self, inputs: dict[str, Any]) -> bool:
        return _fits(inputs) and not any("forward" in vars(part) for part in self.forwards)

    def _run(self, forwards: Mapping[nn.Module, Callable[..., Tensor]], inputs: dict[str, Any]) -> Any:
        try:
            for part, forward in forwards.items():
                part.forward = forward
            # What is compiled cannot see whether the weight changes: it does not, in a step.
            norms = self.head.holding_norms() if isinstance(self.head, NormHead) else nullcontext()
            with norms, replaced(self.weight_only if inputs["input_ids"].numel() == 1 else {}):
                return self.model(**inputs)
        finally:
            for part in forwards:
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
    _check_compiled()
    return type(layer).forward(layer, *args, past_key_values=_OneLayer(cache), **kwargs)


def _run_head(head: nn.Module, hidden_states: Tensor) -> Tensor:
    _check_compiled()
    return type(head).forward(head, hidden_states)


def _check_compiled() -> None:
    """Leaves nothing in what is compiled."""
    if not torch.compiler.is_compiling() and _COMPILED_ONLY.get():
        raise NotCompiledError


@cache
def _compiled_before(part: Callable[..., Any]) -> Callable[..., Any]:
    return torch._dynamo.run(part)


@cache
def _compiled_once(part: Callable[..., Any]) -> Callable[..., Any]:
    """By the default settings. torch.compile takes 10 ms to say that it knows a function."""
    return torch.compile(part, **_compile_config().to_dict())


def default_compile_config(model: PreTrainedModel) -> CompileConfig | None:
    """Settings of torch.compile for decoding on a GPU; None where transformers' own are right."""
    return _compile_config() if _is_on_one_gpu(model) else None


def _compile_config() -> CompileConfig:
    # Matrix-vector products are memory-bound; tuned kernels come closer to the bandwidth than cuBLAS. One compilation
    # serves caches of all lengths. Combined kernels rotate and write keys and values to the cache in one launch.
    options = {"coordinate_descent_tuning": True, "combo_kernels": True}
    return CompileConfig(dynamic=True, mode=None, options=options)


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


def _is_replayable(outputs: Any) -> bool:
    """Others, such as attention weights, are collected by `generate`, and a replay would overwrite them."""
    return set(outputs) <= {"logits", "past_key_values"}


def _form(inputs: dict[str, Any]) -> dict[str, Any]:
    return {
        name: (value.shape, value.dtype, value.device) if isinstance(value, Tensor) else id(value)
        for name, value in inputs.items()
    }
