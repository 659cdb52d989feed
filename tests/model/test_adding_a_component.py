"""A component is added by a class and its line in the family's mapping, and a name in the config's `Literal`: the rest
of the package, and the tests of pairs, take it from there."""

from typing import Literal, get_args

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.activations import ACT2FN

from baichuan_hf import BaichuanConfig, BaichuanForCausalLM
from baichuan_hf.model.configuration_baichuan import NormType
from baichuan_hf.model.normalization import NORMALIZATIONS
from tests.helpers import pairs, tiny_config
from tests.helpers.invariants import check_invariants


class ScaleNorm(nn.Module):
    """g * x / |x| (Nguyen & Salazar 2019). (..., dim) -> same."""

    def __init__(self, dim: int, *, eps: float, bias: bool) -> None:
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.tensor(dim**0.5))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.scale * x / x.norm(dim=-1, keepdim=True).clamp(min=self.eps)
        return x if self.bias is None else x + self.bias


class Snake(nn.Module):
    """x + sin(x)^2 (Ziyin et al. 2020)."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x.sin().square()


@pytest.fixture
def components(monkeypatch) -> None:
    """What edits of normalization.py and configuration_baichuan.py would do; transformers has the activations."""
    monkeypatch.setitem(NORMALIZATIONS, "scale_norm", ScaleNorm)
    monkeypatch.setattr(
        BaichuanConfig.__dataclass_fields__["norm_type"], "type", Literal[(*get_args(NormType), "scale_norm")]
    )
    monkeypatch.setitem(ACT2FN, "snake", Snake)


def value_of(field: str, name: str) -> pairs.Value:
    return next(value for value in pairs.axes()[field] if value.value == name)


def test_names_are_unknown_without_them():
    for field, name in {"norm_type": "scale_norm", "hidden_act": "snake"}.items():
        with pytest.raises(Exception, match=f"{field}.*{name}"):
            tiny_config(**{field: name})


def test_model_is_made_of_them(components, tmp_path):
    model = BaichuanForCausalLM(tiny_config(norm_type="scale_norm", hidden_act="snake", norm_bias=True)).eval()
    norms = [module for module in model.modules() if isinstance(module, ScaleNorm)]
    assert len(norms) == 5  # two a layer, and the last
    layer, x = model.model.layers[0], torch.randn(2, 3, 64)
    gate = layer.mlp.gate_proj(x)
    expected = layer.mlp.down_proj((gate + gate.sin() ** 2) * layer.mlp.up_proj(x))
    torch.testing.assert_close(layer.mlp(x), expected)

    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert (again.config.norm_type, again.config.hidden_act) == ("scale_norm", "snake")
    ids = torch.randint(3, 128, (2, 7))
    assert torch.equal(again(ids).logits, model(ids).logits)


@pytest.mark.parametrize("field, name", [("norm_type", "scale_norm"), ("hidden_act", "snake")])
def test_pairs_take_them_in(components, monkeypatch, field, name):
    """Those with every other value that is not the default: all are built and keep the invariants, or are refused."""
    # Of transformers' activations the pairs have a selection.
    activations = [*pairs.NUMBERS_AND_SWITCHES["hidden_act"], "snake"]
    monkeypatch.setitem(pairs.NUMBERS_AND_SWITCHES, "hidden_act", activations)
    new = value_of(field, name)
    met, refused = {}, []
    for pair in pairs.all_pairs():
        if new in pair:
            config = pairs.build_config(*pair)
            if isinstance(config, str):
                assert pairs.names_both(config, *pair), config
                refused.append(next(value for value in pair if value != new))
            else:
                met[pairs.identity(config)] = config
    assert len(met) > 40
    assert [str(value) for value in refused] == (["initializer_type=deep_net"] if field == "norm_type" else [])
    for config in met.values():
        check_invariants(config)
