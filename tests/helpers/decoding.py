"""The decoding step that is compiled by parts, without a compiler."""

import functools

import pytest
import torch
from transformers import CompileConfig, PreTrainedModel

from baichuan_hf.model.decoding import PartwiseCompiled


def partwise_traced(model: PreTrainedModel) -> tuple[PartwiseCompiled, list[torch.fx.GraphModule]]:
    """The step, which fails where it would compile the model as a whole, and the graphs that it will have traced."""
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph

    settings = CompileConfig(backend=keep, dynamic=True, mode=None, fullgraph=True)
    compiler = functools.partial(torch.compile, **settings.to_dict())
    step = PartwiseCompiled(model, compiler, whole=functools.partial(pytest.fail, "not compiled by parts"))
    torch._dynamo.reset()
    return step, graphs
