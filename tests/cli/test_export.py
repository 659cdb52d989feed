"""`baichuan-hf export`; what the graphs compute is tested in tests/export."""

import pytest
import transformers
from packaging.version import Version


@pytest.mark.skipif(Version(transformers.__version__) < Version("5.23"), reason="needs transformers 5.23 or newer")
def test_the_command(run, checkpoint, tmp_path):
    result = run("export", checkpoint, tmp_path / "dst", "--to", "torch", "--no-cache")
    assert result.exit_code == 0, result.output
    assert "BaichuanForCausalLM -> torch, float32: config.json, export.json, model.pt2" in result.stdout
    assert f"Saved to {tmp_path}/dst: the graph and the tokenizer" in result.stdout
    assert "A batch of other sizes gave what the model gives, within " in result.stdout
    assert f'graph = ExportedModel.from_pretrained("{tmp_path}/dst")' in result.stdout
    again = run("export", checkpoint, tmp_path / "dst", "--to", "torch")
    assert again.exit_code == 1
    assert "holds a model already: name another folder, or pass --overwrite" in again.stderr
