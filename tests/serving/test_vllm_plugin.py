"""What the plugin for vLLM is before there is a vLLM: these tests need none."""

import subprocess
import sys
import tomllib
import types
from importlib.metadata import EntryPoint

import pytest
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from baichuan_hf import BaichuanForCausalLM
from baichuan_hf.serving import vllm_plugin
from baichuan_hf.serving.vllm_support import alibi_slopes, check_servable, fold_head
from tests.helpers import FAMILIES, REPOSITORY, tiny_config


PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


@pytest.fixture
def other_vllm(monkeypatch):
    """A vLLM of another version, in which nothing is where the model looks for it."""
    vllm = types.ModuleType("vllm")
    vllm.__version__, registered = "0.99.1", {}
    vllm.ModelRegistry = types.SimpleNamespace(register_model=registered.__setitem__)
    for name in [name for name in sys.modules if name.startswith("vllm.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.delitem(sys.modules, "baichuan_hf.serving.vllm_model", raising=False)
    return registered


def test_entry_point_leads_to_the_plugin():
    (name, value), *others = PROJECT["entry-points"]["vllm.general_plugins"].items()
    assert not others
    assert EntryPoint(name, value, "vllm.general_plugins").load() is vllm_plugin.register


def test_plugin_loads_without_vllm():
    code = "import sys, baichuan_hf.serving.vllm_plugin; print('vllm' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert result.stdout.strip() == "False"


def test_extra_installs_what_is_tested():
    (requirement,) = map(Requirement, PROJECT["optional-dependencies"]["vllm"])
    assert requirement.specifier == SpecifierSet(vllm_plugin.TESTED)


@pytest.mark.parametrize("version", ["0.31.0", "0.32.1", "0.32.2.dev3+cpu", "0.32.0+cu130"])
def test_tested_versions_pass_in_silence(version):
    assert vllm_plugin.untested(version) is None


@pytest.mark.parametrize("version", ["0.23.0", "0.30.9", "0.33.0", "1.0.0"])
def test_other_versions_are_named(version):
    message = vllm_plugin.untested(version)
    assert version in message
    assert vllm_plugin.TESTED in message
    assert "pip install 'baichuan-hf[vllm]'" in message


def test_other_vllm_is_left_in_peace_until_a_baichuan_is_asked_for(other_vllm, caplog):
    vllm_plugin.register()
    assert set(other_vllm) == {"BaichuanForCausalLM", "BaiChuanForCausalLM"}
    assert not caplog.records
    (place,) = set(other_vllm.values())
    module, _, name = place.partition(":")
    with pytest.raises(ImportError, match=r"tested with vLLM >=0\.31,<.*0\.99\.1.*vllm\.config"):
        getattr(sys.modules[module], name)
    assert "0.99.1" in caplog.text


@pytest.mark.parametrize("overrides", FAMILIES.values(), ids=FAMILIES)
def test_families_are_servable(overrides):
    check_servable(tiny_config(**overrides))


REFUSED = {
    "norm_type": {"norm_type": "layer_norm"},
    "norm_position": {"norm_position": "sandwich"},
    "gated_mlp": {"gated_mlp": False},
    "hidden_act": {"hidden_act": "gelu"},
    "is_causal": {"is_causal": False},
    "num_local_experts": {"num_local_experts": 4},
    "position_embedding_type": {"position_embedding_type": "learned"},
    "rope_parameters": {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
    "alibi_scaling": {"position_embedding_type": "alibi", "alibi_scaling": {"alibi_type": "dynamic"}},
    "tie_word_embeddings": {"tie_word_embeddings": True, "normalize_lm_head": True},
    "classifier_pooling": {"classifier_pooling": "mean"},
}


@pytest.mark.parametrize(("field", "overrides"), REFUSED.items(), ids=REFUSED)
def test_what_would_be_computed_otherwise_is_refused(field, overrides):
    with pytest.raises(ValueError, match=f"^{field}.*cannot be served by vLLM"):
        check_servable(tiny_config(**overrides))


@pytest.mark.parametrize("scaling", [None, {"alibi_type": "linear", "factor": 4}, {"alibi_type": "ntk", "factor": 4}])
def test_slopes_are_the_model_s(scaling):
    """As seen in what the model adds to scores, per head and token of distance."""
    config = tiny_config(position_embedding_type="alibi", num_attention_heads=6, hidden_size=96, alibi_scaling=scaling)
    slopes = torch.tensor(alibi_slopes(config))
    published = torch.tensor([2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])
    if scaling is None:
        expected = published
    elif scaling["alibi_type"] == "linear":
        expected = published / 4
    else:  # the steepest stays, the flattest is divided by the factor
        expected = torch.where(published == 2**-1, published, slopes)
        assert slopes[3] == pytest.approx(2**-8 / 4)
    torch.testing.assert_close(slopes, expected)


def test_folded_head_is_a_plain_one():
    torch.manual_seed(0)
    model = BaichuanForCausalLM(tiny_config(normalize_lm_head=True)).eval()
    folded = dict(fold_head(model.state_dict().items()))
    plain = BaichuanForCausalLM(tiny_config()).eval()
    plain.load_state_dict(folded)
    ids = torch.randint(3, 128, (1, 9))
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, model(ids).logits)


@pytest.mark.parametrize(("name", "dtype"), [("lm_head.qweight", torch.int32), ("lm_head.weight", torch.int8)])
def test_quantised_head_is_refused(name, dtype):
    with pytest.raises(ValueError, match=f"{name}.*quantised.*--head"):
        list(fold_head([(name, torch.ones(2, 2, dtype=dtype))]))
