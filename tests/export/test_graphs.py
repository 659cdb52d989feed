"""`baichuan-hf export`: onnxruntime and torch.export's programs give what the model gives."""

import importlib.util

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AutoModelForCausalLM, AutoTokenizer

from baichuan_hf import (
    BaichuanForCausalLM,
    BaichuanForMaskedLM,
    BaichuanForQuestionAnswering,
    BaichuanForSequenceClassification,
    BaichuanForTokenClassification,
)
from baichuan_hf.export import export_folder, graphs
from tests.helpers import FAMILIES, tiny_config
from tests.helpers.checkpoint import save_checkpoint


OLD = Version(transformers.__version__) < Version("5.23")
needs_exporters = pytest.mark.skipif(OLD, reason="needs transformers 5.23 or newer")
needs_onnx = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("onnxscript") is None,
    reason="needs onnx, onnxscript and onnxruntime: pip install 'baichuan-hf[export]'",
)


def save_model(folder, model_class=BaichuanForCausalLM, **overrides):
    torch.manual_seed(0)
    model = model_class(tiny_config(initializer_range=0.2, **overrides)).eval()
    model.save_pretrained(folder)
    return model


def draw(model, rows, length):
    """Ids, and a mask with padding on the left of the first of several rows."""
    ids = torch.randint(3, model.config.vocab_size, (rows, length))
    mask = torch.ones_like(ids)
    mask[0, : length // 3 if rows > 1 else 0] = 0
    return ids, mask


class Session:
    """A graph in onnxruntime, by the names of its inputs and outputs alone."""

    def __init__(self, folder, config):
        import onnxruntime

        self.session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        self.caches = [found.name for found in self.session.get_inputs() if "past_key_values" in found.name]
        self.empty = (config.num_key_value_heads, 0, config.head_dim)

    def start(self, rows):
        heads, length, size = self.empty
        return {name: torch.zeros(rows, heads, length, size).numpy() for name in self.caches}

    def __call__(self, ids, mask, past=None):
        """Logits, and the keys and values after them."""
        feeds = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()} | (past or {})
        names = [found.name for found in self.session.get_outputs()]
        outputs = dict(zip(names, self.session.run(None, feeds), strict=True))
        kept = {name: outputs[name.replace("input.", "output.", 1)] for name in self.caches}
        return torch.from_numpy(outputs["logits"]), kept


@needs_exporters
@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("family", ["rope", "alibi", "rope-normhead", "alibi-normhead", "gqa"])
def test_onnx_with_a_cache(tmp_path, family):
    """Prompts of odd lengths in parts of odd lengths, and greedy texts, in onnxruntime."""
    model = save_model(tmp_path / "src", **FAMILIES[family])
    export_folder(tmp_path / "src", tmp_path / "dst")
    session = Session(tmp_path / "dst", model.config)
    for rows, parts in ((1, (1,)), (3, (13, 1, 1)), (2, (1, 7, 5)), (5, (17,)), (1, (101, 27))):
        ids, mask = draw(model, rows, sum(parts))
        with torch.no_grad():
            expected = model(input_ids=ids, attention_mask=mask).logits
        past, found = session.start(rows), []
        for end, length in zip(torch.tensor(parts).cumsum(0).tolist(), parts, strict=True):
            logits, past = session(ids[:, end - length : end], mask[:, :end], past)
            found.append(logits)
        seen = mask.bool()
        torch.testing.assert_close(torch.cat(found, 1)[seen], expected[seen], atol=1e-4, rtol=1e-4)

    ids, mask = draw(model, 2, 9)
    expected = model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, eos_token_id=None)
    text, past, new = ids, session.start(2), ids
    for _ in range(12):
        logits, past = session(new, mask, past)
        new = logits[:, -1].argmax(-1, keepdim=True)
        text, mask = torch.cat([text, new], 1), torch.cat([mask, torch.ones_like(new)], 1)
    assert torch.equal(text, expected)


@needs_exporters
@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("family", ["rope", "alibi"])
def test_onnx_without_a_cache(tmp_path, family):
    """Rows that are packed too, which the mask numbers."""
    model = save_model(tmp_path / "src", **FAMILIES[family])
    export_folder(tmp_path / "src", tmp_path / "dst", cache=False)
    session = Session(tmp_path / "dst", model.config)
    assert session.caches == []
    packed = draw(model, 1, 9)[0], torch.tensor([[1, 1, 1, 1, 2, 2, 3, 3, 3]])
    for ids, mask in (draw(model, 1, 1), draw(model, 3, 13), draw(model, 2, 101), packed):
        with torch.no_grad():
            expected = model(input_ids=ids, attention_mask=mask).logits
        seen = mask.bool()
        torch.testing.assert_close(session(ids, mask)[0][seen], expected[seen], atol=1e-4, rtol=1e-4)


@needs_exporters
@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_class", "settings"),
    [
        (BaichuanForSequenceClassification, {"num_labels": 3}),
        (BaichuanForTokenClassification, {"position_embedding_type": "alibi"}),
        (BaichuanForMaskedLM, {"is_causal": False}),
    ],
)
def test_onnx_of_other_tasks(tmp_path, model_class, settings):
    model = save_model(tmp_path / "src", model_class, **settings)
    assert export_folder(tmp_path / "src", tmp_path / "dst").model_class == model_class.__name__
    session = Session(tmp_path / "dst", model.config)
    for rows, length in ((1, 5), (4, 11)):
        ids, mask = draw(model, rows, length)
        with torch.no_grad():
            expected = model(input_ids=ids, attention_mask=mask).logits
        found, _ = session(ids, mask)
        if expected.shape[:2] == mask.shape:
            found, expected = found[mask.bool()], expected[mask.bool()]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@needs_exporters
@pytest.mark.parametrize("family", ["rope", pytest.param("alibi", marks=pytest.mark.slow)])
def test_torch_program(tmp_path, family):
    from transformers.exporters import ExportedModel

    source = save_checkpoint(tmp_path / "src", **FAMILIES[family])
    done = export_folder(source, tmp_path / "dst", to="torch")
    assert done.difference < 1e-4 < done.largest
    assert "model.pt2" in done.files
    assert done.copied == ["tokenizer"]
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    graph = ExportedModel.from_pretrained(tmp_path / "dst")
    # ALiBi has another form for texts of more than a thousand tokens, which a graph has not.
    for rows, past, length in ((5, 11, 1), (1, 3, 1100)):
        inputs = graphs.draw_inputs(model, rows, past, length)
        expected = graphs.draw_inputs(model, rows, past, length)
        with torch.no_grad():
            torch.testing.assert_close(graph(**inputs).logits, model(**expected).logits, atol=1e-4, rtol=1e-4)
    copied = AutoTokenizer.from_pretrained(tmp_path / "dst")
    assert type(copied).__name__ != "BaichuanTokenizer"
    assert copied("春天 Hello").input_ids == AutoTokenizer.from_pretrained(source)("春天 Hello").input_ids


@needs_exporters
@pytest.mark.slow
def test_answers(tmp_path):
    save_model(tmp_path / "src", BaichuanForQuestionAnswering)
    assert export_folder(tmp_path / "src", tmp_path / "dst", to="torch").difference < 1e-4


@needs_exporters
def test_a_graph_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    save_model(tmp_path / "src")
    monkeypatch.setattr(graphs, "compare", lambda *_: (0.5, 2.0))
    with pytest.raises(ValueError, match=r"gives other numbers than the model \(by up to 0\.5 of 2\)"):
        export_folder(tmp_path / "src", tmp_path / "dst", to="torch")
    assert not list((tmp_path / "dst").iterdir())


@needs_exporters
def test_comparison_sees_what_differs(tmp_path):
    model = save_model(tmp_path / "src")
    other = save_model(tmp_path / "other")
    with torch.no_grad():
        other.lm_head.weight[5] += 0.1
    assert graphs.compare(model, save_model(tmp_path / "same"), 4)[0] == 0
    assert graphs.compare(model, other, 4)[0] > 0.01


@needs_exporters
def test_what_is_refused(tmp_path):
    save_model(tmp_path / "src")
    save_model(tmp_path / "dst")
    with pytest.raises(ValueError, match="dst holds a model already"):
        export_folder(tmp_path / "src", tmp_path / "dst", to="torch")
    file = tmp_path / "src" / "config.json"
    text = file.read_text()
    file.write_text(text.replace("{", '{"quantization_config": {"quant_method": "gptq", "bits": 4},', 1))
    with pytest.raises(ValueError, match="src is quantised: export the model that it was made from"):
        export_folder(tmp_path / "src", tmp_path / "new", to="torch")
    transformers.LlamaConfig(architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path / "src")
    with pytest.raises(ValueError, match="model_type is 'llama', not 'baichuan'"):
        export_folder(tmp_path / "src", tmp_path / "new", to="torch")


@needs_exporters
def test_what_a_graph_cannot_follow(tmp_path):
    save_model(tmp_path / "src", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    with pytest.raises(ValueError, match="src cannot be traced, the path that it takes depends on its inputs"):
        export_folder(tmp_path / "src", tmp_path / "dst", to="torch")
    save_model(tmp_path / "src", sliding_window=4, layer_types=["sliding_attention", "full_attention"])
    with pytest.raises(ValueError, match="sliding_window=4 has a cache that .* give --no-cache"):
        export_folder(tmp_path / "src", tmp_path / "dst", to="torch")
    assert not (tmp_path / "dst").exists()
    assert export_folder(tmp_path / "src", tmp_path / "dst", to="torch", cache=False).difference < 1e-4


@needs_exporters
def test_missing_packages(tmp_path, monkeypatch):
    save_model(tmp_path / "src")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = r"--to onnx needs onnx, onnxscript, onnxruntime: pip install 'baichuan-hf\[export\]'"
    with pytest.raises(ImportError, match=message):
        export_folder(tmp_path / "src", tmp_path / "dst")


@pytest.mark.skipif(not OLD, reason="needs transformers older than 5.23")
def test_old_transformers(tmp_path):
    save_model(tmp_path / "src")
    with pytest.raises(ImportError, match=r"export needs transformers 5\.23 or newer, this is 5\."):
        export_folder(tmp_path / "src", tmp_path / "dst", to="torch")
