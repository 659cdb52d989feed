"""Liger's kernels: known to Trainer without a word, and equal to what they stand in for."""

import copy
import subprocess
import sys

import pytest
import torch
from transformers.integrations.liger import apply_liger_kernel

from baichuan_hf import BaichuanForCausalLM
from tests.helpers import tiny_config


def test_liger_knows_baichuan_once_it_is_imported(tmp_path):
    """Without Liger, which needs Triton: a package with its name and its table."""
    package = tmp_path / "liger_kernel" / "transformers"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "monkey_patch.py").write_text("MODEL_TYPE_TO_APPLY_LIGER_FN = {}\n")
    script = """
import sys
import baichuan_hf
assert "liger_kernel" not in sys.modules
from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as known
from baichuan_hf.adapters.liger import apply_liger_kernel_to_baichuan
assert known == {"baichuan": apply_liger_kernel_to_baichuan}, known
"""
    environment = {"PYTHONPATH": f"{tmp_path}:{':'.join(sys.path)}"}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "components",
    [
        {},
        {"position_embedding_type": "alibi"},
        {"normalize_lm_head": True},
        {"normalize_lm_head": True, "z_loss_weight": 1e-2},
        {"lm_head_bias": True},
    ],
    ids=str,
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_patched_models_give_equal_losses_and_gradients(components, dtype, tolerance, smoothing):
    pytest.importorskip("liger_kernel", reason="needs Liger: pip install 'baichuan-hf[liger]'")
    plain = BaichuanForCausalLM(tiny_config(**components)).to("cuda", dtype)
    plain.skip_logits = True
    patched = copy.deepcopy(plain)
    apply_liger_kernel(patched, None)
    ids = torch.randint(3, plain.config.vocab_size, (3, 37), device="cuda")
    mask = torch.ones_like(ids)
    mask[1, :11] = 0
    losses, gradients = [], []
    for model in (plain, patched):
        labels = ids.masked_fill(mask == 0, -100)
        loss = model.train()(input_ids=ids, attention_mask=mask, labels=labels, label_smoothing=smoothing).loss
        loss.backward()
        losses.append(loss.float())
        gradients.append({name: weight.grad.float() for name, weight in model.named_parameters()})
    torch.testing.assert_close(losses[1], losses[0], rtol=tolerance, atol=tolerance)
    for name, gradient in gradients[0].items():
        difference = (gradients[1][name] - gradient).norm() / gradient.norm()
        assert difference < tolerance, (name, difference.item())
